"""Noise of any shape at the trace that another run's noise had, step by step."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics.base import Dynamics, NoiseState
from noisescape.dynamics.minibatch import DrawnNoise
from noisescape.errors import InvalidTypeError, InvalidValueError
from noisescape.linops import SymmetricOperator
from noisescape.linops.structured import with_trace
from noisescape.risk import EmpiricalRisk


@dataclass(frozen=True, eq=False)
class Yoked(Dynamics):
    """ε_t ~ √(τ_t/TrΣ(θ_t))·ε, ε of covariance Σ(θ_t) that ``inner`` has at θ_t: Tr Cov ε_t = τ_t whatever θ_t is.

    The trace of minibatch noise shrinks where a run stays in a minimum and grows where it leaves, so that noises
    which are of equal trace where they start soon are not. Yoked to a run of SGD, each gets as much as that did at
    every step, and only the shapes differ. No noise where inner has none.

    Args:
        inner: the dynamics that gives the shape.
        traces: τ_t = Tr Σ of the *gradient* noise at step t, (T,); for updates of trace τ' it is τ'/η². A run takes
            T steps at most.

    Raises:
        TypeError: inner has no noise to rescale, or draws it without a covariance.
        ValueError: traces that are no vector of finite numbers ≥ 0.

    >>> import noisescape as ns
    >>> bowl = ns.landscapes.quadratic(torch.eye(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> fading = Yoked(ns.GLDDynamic(1), torch.tensor([4.0, 1.0]))
    >>> ns.simulate(bowl, fading, torch.zeros(2), lr=0.1, steps=3, progress=False)
    Traceback (most recent call last):
    noisescape.errors.InvalidValueError: gld-dynamic has noise for 2 steps, not for 3
    """

    inner: Dynamics
    traces: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        kind = type(self.inner)
        if not isinstance(self.inner, Dynamics):
            raise InvalidTypeError(f"inner must be a dynamics, not {self.inner!r}")
        if not isinstance(self.inner, DrawnNoise) and kind.noisy_gradient is not Dynamics.noisy_gradient:
            raise InvalidTypeError(
                f"{kind.__name__} has no noise of its own to rescale: yoke one that draws from its covariance"
            )
        if not (
            isinstance(self.traces, Tensor)
            and self.traces.ndim == 1
            and len(self.traces)
            and bool((torch.isfinite(self.traces) & (self.traces >= 0)).all())
        ):
            raise InvalidValueError("traces must be a vector (T,) of finite numbers ≥ 0, one a step")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Yoked) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        """With a checksum of the traces, by which a checkpoint knows them again."""
        content = self.traces.detach().cpu().double().contiguous().numpy().tobytes()
        return f"Yoked({self.inner!r}, traces={len(self.traces)} of {hashlib.sha256(content).hexdigest()[:16]})"

    @property
    def name(self) -> str:  # type: ignore[override]
        """The inner dynamics' name: its shape is what is studied."""
        return self.inner.name

    @property
    @override
    def refresh(self) -> int:
        return self.inner.refresh

    @property
    @override
    def longest(self) -> int:
        return len(self.traces)

    @override
    def check(self, risk: EmpiricalRisk) -> None:
        self.inner.check(risk)

    @override
    def noise(
        self, risk: EmpiricalRisk, theta: Tensor, previous: SymmetricOperator | None, generator: torch.Generator
    ) -> tuple[SymmetricOperator, Tensor | None]:
        return self.inner.noise(risk, theta, previous, generator)

    @override
    def at_step(self, covariance: SymmetricOperator, step: int) -> SymmetricOperator | None:
        shape = self.inner.at_step(covariance, step)
        return None if shape is None else with_trace(shape, float(self.traces[step]))

    @override
    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        if not isinstance(self.inner, DrawnNoise):
            return super().noisy_gradient(risk, theta, state, generator)
        # one pass over the per-sample gradients gives what the draw is to be scaled by, and the gradient
        variances, gradient = self.inner.variances(risk, theta)
        own = variances.sum(-1, keepdim=True)
        scale = torch.where(own > 0, float(self.traces[state.step]) / own, 0.0).sqrt()
        gradient = risk.gradient(theta) if gradient is None else gradient
        return gradient + scale * self.inner.draw(risk, theta, generator), state.next()

    @override
    def covariance(self, risk: EmpiricalRisk, theta: Tensor) -> SymmetricOperator:
        """Σ of the first step, freshly computed at θ: trace τ_0."""
        self.check(risk)
        found, target = self.inner.covariance(risk, theta), float(self.traces[0])
        if not isinstance(self.inner, DrawnNoise):
            return with_trace(found, target)
        own = float(self.inner.variances(risk, theta)[0].sum())
        return found * (target / own if own > 0 else 0.0)
