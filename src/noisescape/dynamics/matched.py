"""Any Gaussian dynamics scaled to a given noise trace."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from noisescape.dynamics.base import GaussianLangevin, check_at_least
from noisescape.errors import InvalidTypeError
from noisescape.linops import SymmetricOperator
from noisescape.risk import EmpiricalRisk


@dataclass(frozen=True)
class MatchedTrace(GaussianLangevin):
    """The noise of ``inner``, rescaled at every refresh so that Tr Σ = ``trace_target``.

    Args:
        inner: the dynamics that gives the shape.
        trace_target: Tr Σ of the gradient noise; for updates of trace τ a step it is τ/η².
    """

    inner: GaussianLangevin
    trace_target: float

    def __post_init__(self) -> None:
        if not isinstance(self.inner, GaussianLangevin):
            raise InvalidTypeError(
                f"{type(self.inner).__name__} draws its noise without a covariance root: there is none to rescale; "
                "choose its batch_size instead (the trace goes as 1/B)"
            )

    @property
    def name(self) -> str:  # type: ignore[override]
        """The inner dynamics' name: its shape is what is studied."""
        return self.inner.name

    @property
    def refresh_interval(self) -> int:
        """The inner dynamics'."""
        return self.inner.refresh_interval

    def _check(self, risk: EmpiricalRisk) -> None:
        self.inner._check(risk)
        check_at_least("trace_target", self.trace_target, 0.0, self.name)

    def injects(self, step: int) -> bool:
        """As the inner dynamics."""
        return self.inner.injects(step)

    def shape(self, risk: EmpiricalRisk, theta: Tensor) -> Tensor:
        """The inner dynamics' root; its scale does not count."""
        return self.inner.root(risk, theta)

    def root(self, risk: EmpiricalRisk, theta: Tensor) -> Tensor:
        """The inner root times √(target / its trace); 0 where that is 0."""
        return self._to_target(self.shape(risk, theta))

    def refresh_root(
        self, risk: EmpiricalRisk, theta: Tensor, previous: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """What the inner dynamics goes on with, estimated or followed as there, scaled; and ∇L if that comes too.

        ``previous`` is the inner root up to its scale, which none that follows it depends on.
        """
        root, slope = self.inner.refresh_root(risk, theta, previous, generator)
        return self._to_target(root), slope

    def _to_target(self, root: Tensor) -> Tensor:
        return self.rescaled(root, torch.full_like(self.trace(root), self.trace_target))

    def draw(self, root: Tensor, generator: torch.Generator) -> Tensor:
        """As the inner dynamics."""
        return self.inner.draw(root, generator)

    def trace(self, root: Tensor) -> Tensor:
        """As the inner dynamics."""
        return self.inner.trace(root)

    def scale(self, root: Tensor, factor: Tensor) -> Tensor:
        """As the inner dynamics."""
        return self.inner.scale(root, factor)

    def operator(self, root: Tensor) -> SymmetricOperator:
        """As the inner dynamics."""
        return self.inner.operator(root)
