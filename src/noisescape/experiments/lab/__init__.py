"""The theory lab: an experiment for each later law, that decides whether it holds where it can be tried."""

from noisescape.experiments.lab.law import LawConfig, law

__all__ = ["LawConfig", "law"]
