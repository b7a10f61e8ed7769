"""The escaping-efficiency identity for one step: what the expected change of the loss is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from noisescape.errors import InvalidValueError
from noisescape.linops import Estimate, SymmetricOperator, product_trace
from noisescape.risk import EmpiricalRisk, gauss_newton_control, in_operator_precision


@dataclass(frozen=True)
class StepMoments:
    """The three numbers at one θ that the expected change of the loss in a step is made of, whatever η.

    Attributes:
        squared_gradient: ‖ḡ‖².
        gradient_curvature: ḡᵀHḡ.
        trace_h_sigma: Tr(HΣ_B), of gradient noise.
    """

    squared_gradient: float
    gradient_curvature: float
    trace_h_sigma: Estimate

    def budget(self, lr: float) -> LossBudget:
        """What they make of a step of size η = ``lr``."""
        half = lr**2 / 2
        return LossBudget(
            descent=Estimate(-lr * self.squared_gradient, 0.0),
            curvature=Estimate(half * self.gradient_curvature, 0.0),
            noise=self.trace_h_sigma.scaled(half),
        )


@dataclass(frozen=True)
class LossBudget:
    """What one step θ' = θ − η(ḡ + ε), Cov ε = Σ_B, changes of the loss in expectation, to second order in η.

    E L(θ') − L(θ) = −η‖ḡ‖² + (η²/2) ḡᵀHḡ + (η²/2) Tr(HΣ_B) + O(η³), in units of the loss. The remainder is 0 for a
    quadratic L.

    Attributes:
        descent: −η‖ḡ‖², exact.
        curvature: (η²/2) ḡᵀHḡ, exact: what the full gradient overshoots.
        noise: (η²/2) Tr(HΣ_B), what the noise adds: the only term in which B stands.
    """

    descent: Estimate
    curvature: Estimate
    noise: Estimate

    @property
    def change(self) -> Estimate:
        """The sum of the three."""
        known = self.descent.value + self.curvature.value
        return Estimate(known + self.noise.value, self.noise.stderr, self.noise.cost, self.noise.dof)

    @property
    def balance(self) -> Estimate:
        """noise / −(descent + curvature): 1 where the loss is expected to stay, over 1 where it rises.

        Σ_B is c(B)·C, so at a given θ this is c(B) times a number without B. Along runs of several B it is not:
        that all of them settle at 1 says that θ, not Tr(HΣ_B), took up the difference. Infinite at a stationary
        point, negative where the full step itself raises the loss.
        """
        fall = -(self.descent.value + self.curvature.value)
        if fall == 0:
            return Estimate(math.inf if self.noise.value else math.nan, math.nan)
        return self.noise.scaled(1 / fall)


def step_moments(
    risk: EmpiricalRisk,
    theta: Tensor,
    *,
    batch_size: int,
    replacement: bool = True,
    rtol: float = 0.01,
    max_products: int = 10_000,
    seed: int = 0,
    hessian: SymmetricOperator | None = None,
) -> StepMoments:
    """‖ḡ‖², ḡᵀHḡ and Tr(HΣ_B) at θ; arguments and errors as for :func:`loss_budget`."""
    risk, theta = in_operator_precision(risk, theta)
    covariance = risk.noise_covariance(theta, batch_size, replacement=replacement)
    hessian = risk.hessian(theta) if hessian is None else hessian
    gradient = risk.gradient(theta)
    control = gauss_newton_control(risk, theta)
    return StepMoments(
        squared_gradient=float(gradient.double().square().sum()),
        gradient_curvature=float(gradient.double() @ (hessian @ gradient).double()),
        trace_h_sigma=product_trace(
            hessian, covariance, control=control, rtol=rtol, max_products=max_products, seed=seed
        ),
    )


def loss_budget(
    risk: EmpiricalRisk,
    theta: Tensor,
    *,
    lr: float,
    batch_size: int,
    replacement: bool = True,
    rtol: float = 0.01,
    max_products: int = 10_000,
    seed: int = 0,
    hessian: SymmetricOperator | None = None,
) -> LossBudget:
    """The expected change of the loss in one step of SGD from θ, in its three terms.

    Args:
        risk: L.
        theta: where the step starts, (D,).
        lr: η.
        batch_size: B; Σ_B is the covariance of its mean gradient.
        replacement: the sampling law of the batch.
        rtol: relative standard error asked of Tr(HΣ_B).
        max_products: bound on its cost.
        seed: of its probes.
        hessian: H; by default ``risk.hessian(theta)``.

    Raises:
        ValueError: lr ≤ 0, or B, rtol or max_products out of range.

    Source: Zhu, Wu, Yu, Wu & Ma (2019), in discrete time; their integral is the limit η → 0 of its sum.

    >>> import torch
    >>> from noisescape.theory import landscapes
    >>> bowl = landscapes.quadratic(torch.eye(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> budget = loss_budget(bowl, torch.tensor([0.0, 1.0]), lr=0.1, batch_size=1)
    >>> [round(term.value, 4) for term in (budget.descent, budget.curvature, budget.noise, budget.change)]
    [-0.1, 0.005, 0.005, -0.09]
    """
    if not lr > 0:
        raise InvalidValueError(f"lr must be positive, not {lr}")
    moments = step_moments(
        risk,
        theta,
        batch_size=batch_size,
        replacement=replacement,
        rtol=rtol,
        max_products=max_products,
        seed=seed,
        hessian=hessian,
    )
    return moments.budget(lr)
