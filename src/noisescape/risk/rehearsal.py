"""A risk on which a computation can be tried out on tensors without storage."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, TypeVar

from noisescape.errors import InvalidValueError
from noisescape.risk.capabilities import Capabilities
from noisescape.risk.empirical_risk import EmpiricalRisk
from noisescape.risk.samples import StreamedSamples

T = TypeVar("T")


def rehearse(risk: EmpiricalRisk, computation: Callable[[EmpiricalRisk], T]) -> T:
    """What a computation gives on a risk that can be given tensors without storage.

    It takes the turns that the model allows, which only real numbers tell: at each that is not known yet the
    rehearsal breaks off, it is found out, for the risk as well, and all begins anew. What no computation asks for
    is not found out, for of a large model that takes longer than all else.

    Raises:
        InvalidValueError: the risk of a shard.
    """
    if risk.shard is not None:
        raise InvalidValueError(
            "what a shard takes cannot be rehearsed, as the other ranks do not take part; forecast one process "
            "with this rank's part of the data, EmpiricalRisk(model, loss, part)"
        )
    _ = risk._chunking  # once for both
    while True:
        try:
            return computation(_copy(risk))
        except _Unknown as unknown:
            getattr(risk._capabilities, unknown.entry)


def _copy(risk: EmpiricalRisk) -> EmpiricalRisk:
    copied = copy.copy(risk)
    copied._capabilities = _Known(risk._capabilities)
    copied._largest_tried = risk.sample_count
    if isinstance(risk._samples, StreamedSamples):  # there are no numbers to take a checksum of
        copied._samples = risk._samples.unverified()
    return copied


class _Unknown(BaseException):
    """An entry has not been found out: nothing for a computation to catch."""

    def __init__(self, entry: str) -> None:
        super().__init__(entry)
        self.entry = entry


class _Known(Capabilities):
    """What has been found out of a model so far, and nothing more."""

    def __init__(self, found: Capabilities) -> None:
        vars(self).update(vars(found))

    def __getattribute__(self, name: str) -> Any:
        entry = getattr(Capabilities, name, None)
        if isinstance(entry, functools.cached_property) and name not in vars(self):
            raise _Unknown(name)
        return super().__getattribute__(name)
