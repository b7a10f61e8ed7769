"""What every dynamics is: a rule for the noise ε_t in θ_{t+1} = θ_t − η(∇L(θ_t) + ε_t)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from noisescape.errors import InvalidTypeError, InvalidValueError, kind_of
from noisescape.linops import SymmetricOperator
from noisescape.linops.structured import HeldOperator
from noisescape.risk import EmpiricalRisk
from noisescape.scalars import check_whole


@dataclass(frozen=True)
class NoiseState:
    """What the noise remembers between steps.

    Attributes:
        step: how many were taken.
        covariance: the one in force, Σ as last found; None where there is none to keep.
        order: of the samples in the present epoch, (N,), or (R, N) of replicas; None where batches are independent.
    """

    step: int = 0
    covariance: SymmetricOperator | None = None
    order: Tensor | None = None

    def next(self, covariance: SymmetricOperator | None = None, order: Tensor | None = None) -> NoiseState:
        """The state after one more step."""
        return NoiseState(self.step + 1, covariance, order)


@dataclass(frozen=True)
class Dynamics(ABC):
    """A noisy gradient descent, θ ← θ − η(∇L(θ) + ε). ε is gradient noise: the update's covariance is η²Σ.

    A dynamics has a ``name`` and says in :meth:`noise` what Σ = Cov ε is at θ; Gaussian noise follows from it. One
    that draws otherwise, or for less, overrides :meth:`noisy_gradient`. One whose noise depends on the step
    overrides :meth:`at_step`, one that estimates Σ along a trajectory overrides :meth:`covariance`, which is exact.

    θ may be one vector (D,) or replicas (R, D); ε has its shape, independent over replicas.
    """

    name: ClassVar[str]
    memoryless: ClassVar[bool] = False
    """Whether every step of a trajectory is the same computation, whatever the steps before it found. Only then can
    a GPU replay it."""

    @property
    def refresh(self) -> int:
        """Steps between two computations of Σ; in between the noise keeps the old one, as in the published code."""
        return 1

    @property
    def longest(self) -> int | None:
        """The steps it has noise for; None for any number."""
        return None

    def check(self, risk: EmpiricalRisk) -> None:
        """Raise if a constant does not fit the risk.

        Raises:
            ValueError: B > N without replacement, k > D, and the like.
        """
        check_whole(f"{self.name}: refresh", self.refresh)

    def init(self, risk: EmpiricalRisk) -> NoiseState:
        """The state before the first step, once :meth:`check` has passed."""
        self.check(risk)
        return NoiseState()

    @abstractmethod
    def noise(
        self, risk: EmpiricalRisk, theta: Tensor, previous: SymmetricOperator | None, generator: torch.Generator
    ) -> tuple[SymmetricOperator, Tensor | None]:
        """Σ at θ that a trajectory goes on with, and ∇L(θ) where finding it gives that too.

        Args:
            risk: L.
            theta: θ, (D,), or replicas (R, D), of which the operator then has as many.
            previous: the Σ in force before, None at the start. Only its directions may count, not its scale.
            generator: for a Σ that is estimated by chance.
        """

    def at_step(self, covariance: SymmetricOperator, step: int) -> SymmetricOperator | None:
        """The covariance of the noise at this step (0-based) of a trajectory, by default the one in force.

        None for no noise.
        """
        return covariance

    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        """∇L(θ) + ε with ε ~ N(0, Σ), and the state after the step."""
        covariance, gradient = state.covariance, None
        if covariance is None or state.step % self.refresh == 0:
            covariance, gradient = self.noise(risk, theta, covariance, generator)
            if isinstance(covariance, HeldOperator):
                # as it comes back from a checkpoint: layout decides how products round
                covariance = covariance.of(covariance.tensor.contiguous())
        now = self.at_step(covariance, state.step)
        noise = None if now is None else now.sample(1, generator)[0]
        gradient = risk.gradient(theta) if gradient is None else gradient
        return gradient if noise is None else gradient + noise, state.next(covariance)

    def covariance(self, risk: EmpiricalRisk, theta: Tensor) -> SymmetricOperator:
        """Σ freshly and exactly computed at θ, whatever a trajectory estimates, sketches or follows.

        Gradient noise, (D, D), of as many replicas as θ.
        """
        self.check(risk)
        return self.noise(risk, theta, None, torch.Generator(theta.device))[0]


def check_dynamics(dynamics: object) -> None:
    """Refuse what is no dynamics, such as the class of one."""
    if not isinstance(dynamics, Dynamics):
        raise InvalidTypeError(
            f"dynamics must be one with its constants, such as SGD(batch_size), not {kind_of(dynamics)}"
        )


def check_rank(k: int, risk: EmpiricalRisk, dynamics: str) -> None:
    """Refuse a number of directions that θ does not have."""
    check_whole(f"{dynamics}: k", k)
    if not 1 <= k <= risk.dimension:
        raise InvalidValueError(f"{dynamics}: k = {k} directions, but k must lie in 1..D = {risk.dimension}")
