from .batch_size import BatchSizeAdvice, Interval, LearningRateRule, batch_size_advice
from .branches import Branch, BranchedCheck, branched_check
from .log import NoiseLog, read_log
from .monitor import Monitor
from .noise_knob import as_if_batch

__all__ = [
    "BatchSizeAdvice",
    "Branch",
    "BranchedCheck",
    "Interval",
    "LearningRateRule",
    "Monitor",
    "NoiseLog",
    "as_if_batch",
    "batch_size_advice",
    "branched_check",
    "read_log",
]
