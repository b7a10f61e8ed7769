"""Any Gaussian dynamics scaled to a given noise trace."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics.base import Dynamics
from noisescape.dynamics.gd import GD
from noisescape.dynamics.minibatch import MinibatchNoise
from noisescape.errors import InvalidTypeError
from noisescape.linops import SymmetricOperator
from noisescape.linops.structured import with_trace
from noisescape.risk import EmpiricalRisk
from noisescape.scalars import check_real


@dataclass(frozen=True)
class MatchedTrace(Dynamics):
    """ε ~ N(0, cΣ(θ_t)), Σ the covariance of ``inner``, c such that the trace is ``trace_target``; 0 where Σ is.

    Args:
        inner: the dynamics that gives the shape; one whose draws are those of its covariance operator.
        trace_target: Tr Σ of the gradient noise; for updates of trace τ a step it is τ/η².
    """

    inner: Dynamics
    trace_target: float

    def __post_init__(self) -> None:
        kind = type(self.inner)
        if not isinstance(self.inner, Dynamics):
            raise InvalidTypeError(f"inner must be a dynamics, not {self.inner!r}")
        if isinstance(self.inner, GD):
            raise InvalidTypeError(f"{kind.__name__} has no noise to rescale: match the trace of one that has")
        if kind.noisy_gradient is not Dynamics.noisy_gradient:
            mend = "choose its batch_size instead (the trace goes as 1/B)"
            if not isinstance(self.inner, MinibatchNoise):
                mend = "choose its own constants instead, or one that draws from its covariance operator"
            raise InvalidTypeError(
                f"{kind.__name__} draws its noise without a covariance root: there is none to rescale; {mend}"
            )

    @property
    def name(self) -> str:  # type: ignore[override]
        """The inner dynamics' name: its shape is what is studied."""
        return self.inner.name

    @property
    @override
    def refresh(self) -> int:
        return self.inner.refresh

    @property
    def memoryless(self) -> bool:  # type: ignore[override]
        """As its constants have it."""
        return self.inner.memoryless

    @override
    def check(self, risk: EmpiricalRisk) -> None:
        self.inner.check(risk)
        check_real(f"{self.name}: trace_target", self.trace_target, 0)

    @override
    def noise(
        self, risk: EmpiricalRisk, theta: Tensor, previous: SymmetricOperator | None, generator: torch.Generator
    ) -> tuple[SymmetricOperator, Tensor | None]:
        covariance, gradient = self.inner.noise(risk, theta, previous, generator)
        return with_trace(covariance, self.trace_target), gradient

    @override
    def at_step(self, covariance: SymmetricOperator, step: int) -> SymmetricOperator | None:
        return self.inner.at_step(covariance, step)

    @override
    def covariance(self, risk: EmpiricalRisk, theta: Tensor) -> SymmetricOperator:
        self.check(risk)
        return with_trace(self.inner.covariance(risk, theta), self.trace_target)
