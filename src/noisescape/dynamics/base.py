"""What every dynamics is: a rule for the noise ε_t in θ_{t+1} = θ_t − η(∇L(θ_t) + ε_t)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from noisescape.errors import InvalidValueError
from noisescape.linops import DiagonalOperator, LowRankOperator, SymmetricOperator
from noisescape.risk import EmpiricalRisk
from noisescape.risk.gradient_covariance import covariance_factor, gradient_moments


@dataclass(frozen=True)
class NoiseState:
    """What the noise remembers between steps: how many were taken, and the covariance root in force."""

    step: int = 0
    root: Tensor | None = None


@dataclass(frozen=True)
class Dynamics(ABC):
    """A noisy gradient descent. ε is gradient noise: an update moves by −ηε, its covariance is η²Σ.

    θ may be one vector (D,) or replicas (R, D); ε has its shape, independent over replicas.
    """

    name: ClassVar[str]

    def init(self, risk: EmpiricalRisk, theta: Tensor) -> NoiseState:
        """Check the constants against the risk, before any work, and start afresh.

        Raises:
            ValueError: a constant that does not fit the risk (B > N without replacement, k > D, ...).
        """
        self._check(risk)
        return NoiseState()

    def _check(self, risk: EmpiricalRisk) -> None:  # noqa: B027  (nothing to check by default)
        """Raise if a constant does not fit the risk."""

    @abstractmethod
    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        """∇L(θ) + ε, and the state after the step."""

    @abstractmethod
    def covariance(self, risk: EmpiricalRisk, theta: Tensor) -> SymmetricOperator:
        """Σ at θ, the covariance of ε (gradient noise), (D, D)."""


@dataclass(frozen=True)
class MinibatchNoise(Dynamics):
    """Noise that is, or is measured against, that of minibatches.

    Args:
        batch_size: B.
        replacement: the sampling law of the batches.
    """

    batch_size: int
    replacement: bool = field(default=True, kw_only=True)

    def _check(self, risk: EmpiricalRisk) -> None:
        self.covariance_factor(risk)
        check_at_least("refresh", getattr(self, "refresh", 1), 1, self.name)
        if (batches := getattr(self, "batches", None)) is not None:
            check_at_least("batches", batches, 2, self.name)
        k = getattr(self, "k", 1)
        if not 1 <= k <= risk.dimension:
            raise InvalidValueError(f"{self.name}: k = {k} directions, but k must lie in 1..D = {risk.dimension}")

    def covariance_factor(self, risk: EmpiricalRisk) -> float:
        """Σ_B/C."""
        return covariance_factor(self.batch_size, risk.sample_count, replacement=self.replacement)

    def variances(self, risk: EmpiricalRisk, theta: Tensor) -> Tensor:
        """diag Σ_B, (D,) or (R, D); its sum is Tr Σ_B."""
        return self.moments(risk, theta)[1]

    def moments(self, risk: EmpiricalRisk, theta: Tensor) -> tuple[Tensor, Tensor]:
        """∇L and diag Σ_B, (D,) or (R, D), in one pass over the per-sample gradients."""
        mean, variances = gradient_moments(risk, theta)
        return mean, self.covariance_factor(risk) * variances

    def variances_of_batches(
        self, risk: EmpiricalRisk, theta: Tensor, batches: int, generator: torch.Generator
    ) -> Tensor:
        """diag Σ_B estimated from that many minibatch gradients: unbiased, for N too large to pass over."""
        mean, squares = torch.zeros_like(theta), torch.zeros_like(theta)
        for count in range(1, batches + 1):
            indices = draw_batches(
                theta.shape[:-1], risk.sample_count, self.batch_size, self.replacement, generator
            )
            slope = risk.minibatch_gradient(theta, indices)
            step = slope - mean  # Welford's update
            mean = mean + step / count
            squares = squares + step * (slope - mean)
        return squares / (batches - 1)


@dataclass(frozen=True)
class GaussianLangevin(Dynamics):
    """ε = R z with z ~ N(0, I) and a root R of the covariance, recomputed every ``refresh`` steps.

    A subclass says how R is found; between refreshes the noise keeps the old R, as in the published code.
    """

    @property
    def refresh_interval(self) -> int:
        """Steps between two computations of the root."""
        return int(getattr(self, "refresh", 1))

    @abstractmethod
    def shape(self, risk: EmpiricalRisk, theta: Tensor) -> Tensor:
        """R at θ up to a scale: (D,) for a diagonal one, (D, k) for a factor; replicas lead."""

    def root(self, risk: EmpiricalRisk, theta: Tensor) -> Tensor:
        """R at θ, with its scale."""
        return self.shape(risk, theta)

    def refresh_root(
        self, risk: EmpiricalRisk, theta: Tensor, previous: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """The root a trajectory goes on with, and ∇L(θ) where finding it yields that too.

        A subclass may start from the span of the previous root, whose scale must not count, or estimate by chance.
        """
        return self.root(risk, theta), None

    def injects(self, step: int) -> bool:
        """Whether there is noise at this step of a trajectory."""
        return True

    @abstractmethod
    def draw(self, root: Tensor, generator: torch.Generator) -> Tensor:
        """ε = R z, (D,) or (R, D)."""

    @abstractmethod
    def trace(self, root: Tensor) -> Tensor:
        """Tr Σ = ‖R‖²_F, () or (R,)."""

    @abstractmethod
    def scale(self, root: Tensor, factor: Tensor) -> Tensor:
        """factor·R with one factor for each replica."""

    def rescaled(self, root: Tensor, wanted: Tensor) -> Tensor:
        """R scaled so that Tr Σ is ``wanted``, () or (R,); 0 where there is no noise to scale."""
        present = self.trace(root)
        tiny = torch.finfo(present.dtype).tiny
        return self.scale(root, torch.where(present > tiny, (wanted / present.clamp_min(tiny)).sqrt(), 0.0))

    @abstractmethod
    def operator(self, root: Tensor) -> SymmetricOperator:
        """R Rᵀ as an operator."""

    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        """∇L(θ) + R z."""
        if not self.injects(state.step):
            return risk.gradient(theta), replace(state, step=state.step + 1)
        root, slope = state.root, None
        if root is None or state.step % self.refresh_interval == 0:
            root, slope = self.refresh_root(risk, theta, root, generator)
            root = root.contiguous()  # as it comes back from a checkpoint: layout decides how products round
        noise = self.draw(root, generator)
        slope = risk.gradient(theta) if slope is None else slope
        return slope + noise, replace(state, step=state.step + 1, root=root)

    def covariance(self, risk: EmpiricalRisk, theta: Tensor) -> SymmetricOperator:
        """Σ freshly and exactly computed at θ, whatever a trajectory estimates, sketches or follows."""
        self._check(risk)
        return self.operator(self.root(risk, theta))


@dataclass(frozen=True)
class DiagonalLangevin(GaussianLangevin):
    """Gaussian noise with independent coordinates; R is a vector of standard deviations."""

    def draw(self, root: Tensor, generator: torch.Generator) -> Tensor:
        """σ ⊙ z."""
        return root * _normal(root.shape, root, generator)

    def trace(self, root: Tensor) -> Tensor:
        """Σ σ²."""
        return root.square().sum(-1)

    def scale(self, root: Tensor, factor: Tensor) -> Tensor:
        """factor·σ."""
        return root * factor[..., None]

    def operator(self, root: Tensor) -> SymmetricOperator:
        """diag(σ²)."""
        return DiagonalOperator(root.square(), name=f"{self.name} covariance")


@dataclass(frozen=True)
class LowRankLangevin(GaussianLangevin):
    """Gaussian noise within a few directions; R is a factor (D, k)."""

    def draw(self, root: Tensor, generator: torch.Generator) -> Tensor:
        """R z, z ~ N(0, I_k)."""
        noise = _normal((*root.shape[:-2], root.shape[-1], 1), root, generator)
        return (root @ noise)[..., 0]

    def trace(self, root: Tensor) -> Tensor:
        """‖R‖²_F."""
        return root.square().sum((-2, -1))

    def scale(self, root: Tensor, factor: Tensor) -> Tensor:
        """factor·R."""
        return root * factor[..., None, None]

    def operator(self, root: Tensor) -> SymmetricOperator:
        """R Rᵀ."""
        return LowRankOperator(root, name=f"{self.name} covariance")


@dataclass(frozen=True)
class MatchedToMinibatch(MinibatchNoise, GaussianLangevin):
    """Gaussian noise of a shape of its own, scaled to Tr Σ_B."""

    def root(self, risk: EmpiricalRisk, theta: Tensor) -> Tensor:
        """The shape times √(Tr Σ_B / its trace); 0 where the shape is."""
        return self.rescaled(self.shape(risk, theta), self.variances(risk, theta).sum(-1))

    def refresh_shape(
        self, risk: EmpiricalRisk, theta: Tensor, previous: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """The shape a trajectory goes on with; a subclass may start from the previous root."""
        return self.shape(risk, theta)

    def refresh_root(
        self, risk: EmpiricalRisk, theta: Tensor, previous: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """As :meth:`root`; the pass that gives Tr Σ_B gives ∇L too."""
        slope, variances = self.moments(risk, theta)
        return self.rescaled(self.refresh_shape(risk, theta, previous, generator), variances.sum(-1)), slope


def check_at_least(name: str, value: float, least: float, dynamics: str) -> None:
    """Refuse a constant below its least sensible value."""
    if not value >= least:
        raise InvalidValueError(f"{dynamics}: {name} must be at least {least:g}, not {value:g}")


def draw_batches(
    replicas: torch.Size, sample_count: int, batch_size: int, replacement: bool, generator: torch.Generator
) -> Tensor:
    """Indices of one batch (B,), or of one for each replica (R, B)."""
    if replacement:
        return torch.randint(sample_count, (*replicas, batch_size), generator=generator, device=generator.device)
    # the positions of the B smallest of N uniform numbers are a uniform B-subset
    keys = torch.rand(*replicas, sample_count, generator=generator, device=generator.device)
    return keys.topk(batch_size, largest=False).indices


def _normal(shape: Any, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
