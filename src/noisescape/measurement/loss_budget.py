"""The escaping-efficiency identity for one step: what the expected change of the loss is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from noisescape.dynamics import SGD
from noisescape.errors import InvalidValueError
from noisescape.linops import Estimate, SymmetricOperator, mean_of_draws, product_trace
from noisescape.linops.probing import check_tolerance
from noisescape.risk import EmpiricalRisk, gauss_newton_control, in_operator_precision
from noisescape.risk.arguments import check_hessian, check_point
from noisescape.risk.passes import unchecked_losses
from noisescape.scalars import check_positive, check_seed, check_whole


@dataclass(frozen=True)
class LossBudget:
    """What one step θ' = θ − η(ḡ + ε), Cov ε = Σ_B, changes of the loss in expectation, to second order in η.

    E L(θ') − L(θ) = −η‖ḡ‖² + (η²/2) ḡᵀHḡ + (η²/2) Tr(HΣ_B) + O(η³), in units of the loss. The remainder is 0 for a
    quadratic L.

    It is of second order, not third, where L has kinks that a step crosses, as with ReLU: the slope changes there,
    which raises the loss on average, and no second derivative sees it. :func:`drawn_loss_change` measures how much.

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
        NonFiniteLossError: the loss at θ is not finite.
        TypeError: a hessian that is no operator.
        ValueError: lr ≤ 0, or B, rtol or max_products out of range.

    Source: Zhu, Wu, Yu, Wu & Ma (2019), in discrete time; their integral is the limit η → 0 of its sum.

    >>> import torch
    >>> from noisescape.theory import landscapes
    >>> bowl = landscapes.quadratic(torch.eye(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> budget = loss_budget(bowl, torch.tensor([0.0, 1.0]), lr=0.1, batch_size=1)
    >>> [round(term.value, 4) for term in (budget.descent, budget.curvature, budget.noise, budget.change)]
    [-0.1, 0.005, 0.005, -0.09]
    """
    risk, theta = in_operator_precision(risk, theta)
    check_positive("lr", lr)
    check_tolerance(rtol, max_products, seed)
    risk.loss(theta)  # refuses what is not finite: no derivative there means anything
    covariance = risk.noise_covariance(theta, batch_size, replacement=replacement)
    hessian = risk.hessian(theta) if hessian is None else hessian
    check_hessian(hessian, risk)
    squared_norm, curvature = gradient_forms(risk, theta, hessian)
    control = gauss_newton_control(risk, theta)
    trace = product_trace(hessian, covariance, control=control, rtol=rtol, max_products=max_products, seed=seed)
    half = lr**2 / 2
    return LossBudget(Estimate(-lr * squared_norm, 0.0), Estimate(half * curvature, 0.0), trace.scaled(half))


def gradient_forms(risk: EmpiricalRisk, theta: Tensor, hessian: SymmetricOperator) -> tuple[float, float]:
    """‖ḡ‖² and ḡᵀHḡ at θ, (D,)."""
    gradient = risk.gradient(theta)
    along = (hessian @ gradient).double()
    return float(gradient.double().square().sum()), float(gradient.double() @ along)


def drawn_loss_change(
    risk: EmpiricalRisk,
    theta: Tensor,
    *,
    lr: float,
    batch_size: int,
    replacement: bool = True,
    draws: int = 100,
    seed: int = 0,
) -> Estimate:
    """E L(θ') − L(θ) over steps of SGD that are really taken: what :func:`loss_budget` is the second order of.

    Batches are drawn and the whole loss is evaluated after each step. To the change ηḡᵀε is added, whose mean is 0
    and which carries most of the chance. The cost is counted in evaluations of the loss.

    Args:
        risk: L.
        theta: where the steps start, (D,).
        lr: η.
        batch_size: B.
        replacement: the sampling law of the batches.
        draws: how many batches.
        seed: of the batches.

    Raises:
        NonFiniteLossError: the loss at θ is not finite.
        ValueError: lr ≤ 0, fewer than 2 draws, B out of range, or several θ.
    """
    check_point(risk, theta)
    check_positive("lr", lr)
    check_whole("draws", draws)
    check_seed(seed)
    if theta.ndim != 1:
        raise InvalidValueError(f"the change is that of one θ (D,), not of shape {tuple(theta.shape)}")
    if draws < 2:
        raise InvalidValueError(f"draws = {draws}, but a standard error needs at least 2")
    sgd = SGD(batch_size, replacement=replacement)
    sgd.check(risk)
    generator = torch.Generator(theta.device).manual_seed(seed)
    before, mean = risk.losses(theta).double().mean(), risk.gradient(theta)
    changes = torch.empty(draws, dtype=torch.float64)
    for draw in range(draws):
        gradient = risk.minibatch_gradient(theta, sgd.draw_batch(risk, torch.Size(), generator))
        after = unchecked_losses(risk, theta - lr * gradient).double().mean()
        by_chance = lr * (mean.double() @ (gradient - mean).double())
        changes[draw] = (after - before + by_chance).cpu()
    return mean_of_draws(changes, draws + 1)
