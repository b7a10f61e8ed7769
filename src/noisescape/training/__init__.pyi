from .batch_size import BatchSizeAdvice, Interval, LearningRateRule, batch_size_advice
from .branches import Branch, BranchedCheck, branched_check
from .edge_of_stability import StabilityEdge, stability_edge
from .lightning import LightningNoiseMonitor
from .log import NoiseLog, read_log
from .monitor import Monitor
from .noise_knob import as_if_batch
from .probe import Probe, ProbeWarning
from .probe_schedule import ProbeSchedule
from .time_budget import TimeBudget
from .transformers import TransformersNoiseMonitor

__all__ = [
    "BatchSizeAdvice",
    "Branch",
    "BranchedCheck",
    "Interval",
    "LearningRateRule",
    "LightningNoiseMonitor",
    "Monitor",
    "NoiseLog",
    "Probe",
    "ProbeSchedule",
    "ProbeWarning",
    "StabilityEdge",
    "TimeBudget",
    "TransformersNoiseMonitor",
    "as_if_batch",
    "batch_size_advice",
    "branched_check",
    "read_log",
    "stability_edge",
]
