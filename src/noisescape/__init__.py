from noisescape.risk import EmpiricalRisk
