"""Gaussian noise of one covariance wherever θ is: the noise that diffusion near a minimum is calculated for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics.base import Dynamics, NoiseState
from noisescape.errors import InvalidTypeError, InvalidValueError
from noisescape.linops import SymmetricOperator
from noisescape.risk import EmpiricalRisk


@dataclass(frozen=True, eq=False)
class Additive(Dynamics):
    """ε ~ N(0, Σ), Σ the same all along.

    With Σ = Σ_B(θ₀) it is SGD's noise as it is at θ₀, kept while the iterate moves. SGD's own grows where θ moves
    away from samples it had fitted, and that alone can drive it off; beside :class:`Additive` one sees which it
    was.

    Args:
        covariance_operator: Σ of the gradient noise, positive semi-definite, (D, D):
            ``risk.noise_covariance(theta, batch_size)``, say.

    Raises:
        TypeError: no operator.

    >>> import noisescape as ns
    >>> bowl = ns.landscapes.quadratic(torch.eye(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> frozen = Additive(bowl.noise_covariance(torch.zeros(2), 1))
    >>> ns.simulate(bowl, frozen, torch.zeros(2), lr=0.1, steps=3, progress=False).theta[1]
    tensor(0.)
    """

    name: ClassVar[str] = "additive"
    memoryless: ClassVar[bool] = True

    covariance_operator: SymmetricOperator

    def __post_init__(self) -> None:
        if not isinstance(self.covariance_operator, SymmetricOperator):
            found = type(self.covariance_operator).__name__
            raise InvalidTypeError(f"the covariance must be an operator (risk.noise_covariance(...)), not {found}")

    def __repr__(self) -> str:
        """With a checksum of Σ applied to a fixed vector, by which a checkpoint knows it again."""
        operator = self.covariance_operator
        probe = torch.linspace(-1, 1, operator.size, dtype=operator.dtype, device=operator.device)
        content = (operator @ probe).double().cpu().numpy().tobytes()
        return f"Additive({operator.name}, {hashlib.sha256(content).hexdigest()[:16]})"

    @override
    def check(self, risk: EmpiricalRisk) -> None:
        super().check(risk)
        if self.covariance_operator.size != risk.dimension:
            raise InvalidValueError(
                f"additive: the covariance is of {self.covariance_operator.size} parameters, the risk has "
                f"{risk.dimension}"
            )

    @override
    def noise(
        self, risk: EmpiricalRisk, theta: Tensor, previous: SymmetricOperator | None, generator: torch.Generator
    ) -> tuple[SymmetricOperator, Tensor | None]:
        return self.covariance_operator, None

    @override
    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        drawn = self.covariance_operator.sample(theta.shape[:-1].numel(), generator)
        return risk.gradient(theta) + drawn.to(theta).view(theta.shape), state.next()
