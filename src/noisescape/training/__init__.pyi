from .log import NoiseLog, read_log
from .monitor import Monitor

__all__ = ["Monitor", "NoiseLog", "read_log"]
