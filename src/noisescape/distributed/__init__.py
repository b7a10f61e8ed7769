"""Samples that lie with several processes: a rank's share of them, and what the ranks add up and collect."""

from noisescape.distributed.shard import Shard

__all__ = ["Shard"]
