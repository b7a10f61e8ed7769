"""The local learning coefficient: how much room nearly as good parameters have around θ, by sampling."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics import SGD, Dynamics
from noisescape.errors import FailedError, InvalidValueError
from noisescape.linops import DeviationsOperator, Estimate, SymmetricOperator
from noisescape.risk import EmpiricalRisk
from noisescape.risk.arguments import check_risk, check_theta
from noisescape.risk.passes import unchecked_losses
from noisescape.scalars import check_positive, check_real, check_seed, check_whole
from noisescape.simulation import recorders, simulate
from noisescape.theory.chains import SHORTEST, ChainMean, chain_mean

MIXED = 1.05
"""R̂ up to which chains count as mixed."""
ENOUGH = 100.0
"""Effective draws below which their own number is hardly known."""


@dataclass(frozen=True)
class LearningCoefficient:
    """λ̂, with what speaks for and against it.

    Attributes:
        estimate: λ̂ = Nβ(E L − L(θ)), without unit; the error bar is that of sampling alone, not of the biases.
        r_hat: rank-normalised split R̂ of the chains' losses.
        effective_sample_size: of the chains' losses, all chains together.
        shortfall: Nβ(L(θ) − min L over all draws) where that is positive, else 0: λ̂ is too low by as much, or more.
        losses: L along the chains after burn-in, float64, (chains, draws).
        loss: L(θ).
        scale: Nβ.
        doubts: in words, what makes the estimate doubtful; each was also warned of.
    """

    estimate: Estimate
    r_hat: float
    effective_sample_size: float
    shortfall: float
    losses: Tensor
    loss: float
    scale: float
    doubts: tuple[str, ...]


def local_learning_coefficient(
    risk: EmpiricalRisk,
    theta: Tensor,
    *,
    localisation: float,
    lr: float,
    steps: int = 2_000,
    burn_in: int = 500,
    chains: int = 4,
    inverse_temperature: float | None = None,
    batch_size: int | None = None,
    every: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> LearningCoefficient:
    """λ̂ = Nβ(E L(θ′) − L(θ)), the mean over draws from the density ∝ exp(−NβL(θ′) − (γ/2)‖θ′ − θ‖²) around θ.

    The chains are θ′ ← θ′ − (ε/2)(Nβ∇L(θ′) + γ(θ′ − θ)) + √ε ξ with ξ ~ N(0, I): gradient descent at η = εNβ/2 on
    L + (γ/2Nβ)‖θ′ − θ‖² with gradient noise of covariance (4/(εN²β²))I. They are replicas, moved at once.

    Where the nearby parameters with L − L(θ) < t have a volume ∝ t^λ(−log t)^(m−1), λ̂ → λ − (m−1)/log Nβ for large
    Nβ. A regular minimum in D dimensions has λ = D/2, m = 1; a singular one has less. ℓ_n is taken for a negative
    log-likelihood.

    What λ̂ is off by, besides chance:

    * γ > 0: a direction of curvature h adds ½Nβh/(Nβh + γ) in place of ½; flat ones are cut off at a distance 1/√γ.
    * ε > 0: the same direction is drawn too wide, by 1/(1 − ε(Nβh + γ)/4); see :func:`expected_on_quadratic`.
      Halve ε, double the steps, and look whether λ̂ stays.
    * minibatches: their noise adds its share, Σ_B(ε²N²β²/4) beside εI a step; it goes with ε too.
    * finite Nβ: (m−1)/log Nβ, and where L is not its leading form at the distance that NβL ≈ λ is at.
    * a θ that is no minimum: λ̂ is too low by Nβ(L(θ) − L at the minimum).

    Args:
        risk: L, a mean over N samples.
        theta: θ, a minimum, (D,).
        localisation: γ ≥ 0.
        lr: ε, the step of the chains: the variance of a step, in the units of θ².
        steps: of each chain, after ``burn_in``.
        burn_in: first steps of each of the chains, which do not count.
        chains: how many.
        inverse_temperature: β, default 1/log N.
        batch_size: B, of samples drawn with replacement for every ∇L; default all samples.
        every: steps between two evaluations of L, a pass over all samples each.
        seed: of the chains.
        progress: show a bar on the terminal's error stream.

    Warns:
        UserWarning: R̂ > 1.05; effective sample size < 100; a loss below L(θ) by more than the error bar.

    Raises:
        ValueError: constants out of range, too few draws, one sample without a β, replicas.
        NonFiniteLossError: L(θ) is not finite.
        FailedError: a chain diverged, or no loss changed.

    Source: Lau, Furman, Wang, Murfet & Wei (arXiv 2308.12108); Watanabe (2013) for β and (m−1)/log Nβ.

    >>> from noisescape.theory import landscapes
    >>> bowl = landscapes.quadratic(torch.eye(4), torch.zeros(100, 4))
    >>> found = local_learning_coefficient(bowl, torch.zeros(4), localisation=0.1, lr=0.01, progress=False)
    >>> found.estimate.interval()[0] < 2 < found.estimate.interval()[1]
    True
    """
    check_risk(risk)
    check_theta(theta, risk.dimension, risk.dtype, risk.device, replicas=False)
    scale = _scale(risk.sample_count, inverse_temperature)
    check_real("localisation", localisation, 0)
    check_positive("lr, the variance of a step of the chains,", lr)
    for name, value, least in (
        ("steps", steps, 1),
        ("burn_in", burn_in, 0),
        ("chains", chains, 1),
        ("every", every, 1),
    ):
        check_whole(name, value, least)
    check_seed(seed)
    if steps // every < SHORTEST:
        raise InvalidValueError(
            f"{steps} steps with a loss every {every} are {steps // every} draws a chain, and at least {SHORTEST} "
            "are needed: raise steps or lower every"
        )
    own = float(risk.losses(theta).double().mean())
    langevin = _Langevin(theta, localisation / scale, 2 / (scale * math.sqrt(lr)), batch_size)
    drawn = range(burn_in + every, burn_in + steps + 1, every)
    run = simulate(
        risk,
        langevin,
        theta,
        lr=lr * scale / 2,
        steps=burn_in + steps,
        replicas=chains,
        record={"loss": recorders.at_steps(_loss, drawn)},
        seed=seed,
        progress=progress,
    )
    record = run.records.get("loss")  # none where all chains diverged before the first draw
    lost = run.diverged if record is None else ~record.values.isfinite().all(0)
    if record is None or bool(lost.any()):
        raise FailedError(
            f"{int(lost.sum())} of {chains} chains diverged at lr = {lr:g}: lower it, and raise steps and burn_in "
            "by as much; or raise localisation, which keeps them near θ"
        )
    losses = record.values.mT.contiguous()
    if bool((losses == losses[0, 0]).all()):
        raise FailedError(f"no chain found a loss other than {own:g} at lr = {lr:g}: raise it")
    mean = chain_mean(scale * (losses - own))
    shortfall = max(0.0, scale * (own - float(losses.min())))
    doubts = tuple(_doubts(mean, shortfall))
    for doubt in doubts:
        warnings.warn(doubt, UserWarning, stacklevel=2)
    found = (mean.estimate, mean.r_hat, mean.effective_sample_size)
    return LearningCoefficient(*found, shortfall, losses, own, scale, doubts)


def expected_on_quadratic(curvatures: Tensor, *, scale: float, localisation: float, lr: float = 0.0) -> float:
    """What λ̂ is expected to be where L is quadratic, biases of γ and ε included: all gradients full.

    Σ_i ½ Nβh_i/((Nβh_i + γ)(1 − ε(Nβh_i + γ)/4)), which is D/2 for γ = ε = 0 and curvatures h_i > 0. With the
    largest curvature it says how large ε may be; with all of them, what of a λ̂ is not quadratic.

    Args:
        curvatures: h, eigenvalues of H, (D,), none negative.
        scale: Nβ.
        localisation: γ.
        lr: ε; 0 for the density itself.

    Raises:
        ValueError: a negative curvature; an ε at which the chains diverge, ε(Nβh + γ) ≥ 4.

    >>> expected_on_quadratic(torch.tensor([2.0, 1.0, 0.0]), scale=10.0, localisation=0.0)
    1.0
    """
    check_positive("scale", scale)
    check_real("localisation", localisation, 0)
    check_real("lr", lr, 0)
    pulls = scale * curvatures.double()
    if bool((pulls < 0).any()):
        raise InvalidValueError(f"θ is no minimum: it has the curvature {float(curvatures.min()):.3g}")
    stiffness = pulls + localisation
    if float(stiffness.max()) * lr >= 4:
        raise InvalidValueError(
            f"chains diverge at lr = {lr:g} where the curvature is {float(curvatures.max()):.3g}: it must be below "
            f"4/(Nβh + γ) = {4 / float(stiffness.max()):.3g}"
        )
    shares = torch.where(pulls > 0, pulls / stiffness.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    return float((shares / (1 - lr * stiffness / 4)).sum() / 2)


@dataclass(frozen=True)
class _Langevin(Dynamics):
    """Gradient descent on L + (pull/2)‖θ′ − anchor‖² with isotropic noise."""

    anchor: Tensor
    pull: float
    deviation: float
    batch_size: int | None
    name: ClassVar[str] = "sgld"

    @override
    def check(self, risk: EmpiricalRisk) -> None:
        super().check(risk)
        if self.batch_size is not None:
            SGD(self.batch_size).check(risk)

    @override
    def noise(
        self, risk: EmpiricalRisk, theta: Tensor, previous: SymmetricOperator | None, generator: torch.Generator
    ) -> tuple[SymmetricOperator, Tensor | None]:
        if self.batch_size is None:
            gradient = risk.gradient(theta)
        else:
            batch = SGD(self.batch_size).draw_batch(risk, theta.shape[:-1], generator)
            gradient = risk.minibatch_gradient(theta, batch)
        isotropic = DeviationsOperator(torch.full_like(theta, self.deviation), name=f"{self.name} covariance")
        return isotropic, gradient + self.pull * (theta - self.anchor)


def _loss(risk: EmpiricalRisk, theta: Tensor) -> Tensor:
    return unchecked_losses(risk, theta).double().mean(-1)  # Nβ times a small difference of it is wanted


def _scale(count: int, inverse_temperature: float | None) -> float:
    """Nβ."""
    if inverse_temperature is None and count == 1:
        raise InvalidValueError("of one sample 1/log N is no inverse temperature: pass inverse_temperature")
    if inverse_temperature is None:
        return count / math.log(count)
    check_positive("inverse_temperature", inverse_temperature)
    return count * inverse_temperature


def _doubts(mean: ChainMean, shortfall: float) -> list[str]:
    found, worth = [], mean.effective_sample_size
    if not mean.r_hat <= MIXED:
        found.append(
            f"R̂ = {mean.r_hat:.3f}: chains have not mixed; more burn_in and steps, or a larger localisation"
        )
    if worth < ENOUGH:
        found.append(f"the draws are worth {worth:.0f} independent ones: their error bar is rough; more steps")
    if shortfall > mean.estimate.stderr:
        found.append(
            f"a chain found a loss below L(θ) by {shortfall:.3g}/(Nβ): θ is no minimum, and λ̂ too low by at least "
            f"{shortfall:.3g}; train on to a minimum first, or raise localisation if the chain left for another"
        )
    return found
