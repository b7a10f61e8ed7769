"""Passages over the barriers of double wells, and over rises of a network's training loss; two laws fitted to each.

In a well the answer is known, additive noise exponential and noise of variance cL a power: the control. On the
network SGD stands beside Gaussian noise with the covariance that SGD has at the minimum, kept fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics import SGD, Additive, Dynamics, GLDConstant
from noisescape.errors import InvalidValueError
from noisescape.experiments.lab.exits import ExitsConfig
from noisescape.experiments.problem import small_images
from noisescape.experiments.protocols.lab.seeds import figures, minimum, perform_seeds
from noisescape.experiments.statistics import derived_seed
from noisescape.linops import DeviationsOperator, SymmetricOperator
from noisescape.risk import EmpiricalRisk
from noisescape.runs.run import Run
from noisescape.runs.tasks import Engine, Outcome
from noisescape.theory import ExitTimes, exit_rate, exit_times, fit_exit_law, mean_square_threshold

FLOOR = 0.5
"""The loss at the bottom of a well: the smaller, the longer noise of variance cL stays there."""


def run(config: ExitsConfig, out: Path, *, engine: Engine, resume: bool, progress: bool) -> Run:
    """Measure for every seed and write the run directory."""
    return perform_seeds(config, measure, out, engine=engine, resume=resume, progress=progress)


@dataclass(frozen=True)
class LossNoise(Dynamics):
    """ε ~ N(0, cL(θ)I): what multiplicative noise of a squared loss near a minimum is like."""

    share: float

    name: ClassVar[str] = "loss-noise"

    @override
    def noise(
        self, risk: EmpiricalRisk, theta: Tensor, previous: SymmetricOperator | None, generator: torch.Generator
    ) -> tuple[SymmetricOperator, Tensor | None]:
        deviation = (self.share * risk.loss(theta)).sqrt()[..., None].expand_as(theta)
        return DeviationsOperator(deviation.contiguous(), name=self.name), None


def measure(config: ExitsConfig, repetition: int, *, checkpoint: Path) -> Outcome:
    """All passages of one seed."""
    rows: list[dict[str, Any]] = []
    spread = (2 / config.well_lr) ** 0.5  # ησ²/2 = 1
    noises: dict[str, Dynamics] = {
        "well, additive": GLDConstant(spread), "well, multiplicative": LossNoise(config.share)
    }  # fmt: skip
    for place, (case, noise) in enumerate(noises.items()):
        groups = [
            over_well(config, noise, height, derived_seed(config.seed, repetition, 20 + place, number))
            for number, height in enumerate(config.heights)
        ]
        floors = [FLOOR] * len(groups)
        power = 2 / (config.well_lr * config.share) + 0.5
        rows += passages(repetition, case, groups, config.heights, floors, predicted_power=power)
    made = small_images(config, repetition)
    theta = minimum(config, made)
    return Outcome(rows + on_network(config, made.risk, theta, repetition), {"theta": theta})


def over_well(config: ExitsConfig, noise: Dynamics, height: float, seed: int) -> ExitTimes:
    """From one minimum of FLOOR + (x² − h)²/h over the barrier of height h: curvatures do not depend on h."""
    risk = EmpiricalRisk.from_losses(
        lambda x: FLOOR + (x.square() - height).square() / height, torch.ones(1, dtype=torch.float64)
    )
    return exit_times(
        risk,
        noise,
        torch.full((1,), height**0.5, dtype=torch.float64),
        lr=config.well_lr,
        steps=config.well_steps,
        replicas=config.replicas,
        inside=lambda x: x[:, 0] > 0,
        seed=seed,
        progress=False,
    )


def on_network(config: ExitsConfig, risk: EmpiricalRisk, theta: Tensor, repetition: int) -> list[dict[str, Any]]:
    """First passages of the training loss over several rises, on the way up from a minimum."""
    size = config.batch_size
    lr = config.below * mean_square_threshold(risk, theta, batch_size=size).threshold
    covariance = risk.noise_covariance(theta, size)
    kept = lr / 4 * float(covariance.trace())  # the mean rise in the long run, to first order in η
    rises = [kept * level for level in config.levels]
    start = float(risk.loss(theta))
    rows = figures(repetition, "network", {"lr": lr, "kept": kept, "loss": start})
    noises: dict[str, Dynamics] = {"SGD": SGD(size), "fixed noise": Additive(covariance)}
    for place, (name, noise) in enumerate(noises.items()):
        highest = torch.stack(
            [
                climbed(config, risk, noise, theta, lr, derived_seed(config.seed, repetition, 30 + place, number))
                for number in range(config.runs)
            ]
        )
        groups = [first_passage(highest - start, rise, lr) for rise in rises]
        rows += passages(repetition, f"network, {name}", groups, rises, [start] * len(rises))
    return rows


def climbed(
    config: ExitsConfig, risk: EmpiricalRisk, noise: Dynamics, theta: Tensor, lr: float, seed: int
) -> Tensor:
    """The highest loss so far, at every step of a run, float64, (T,)."""
    generator = torch.Generator(theta.device).manual_seed(seed)
    state = noise.init(risk)
    losses = []
    for _ in range(config.steps):
        gradient, state = noise.noisy_gradient(risk, theta, state, generator)
        theta = theta - lr * gradient
        losses.append(float(risk.losses(theta[None]).mean()))
    return torch.tensor(losses, dtype=torch.float64).nan_to_num(float("inf")).cummax(0).values


def first_passage(risen: Tensor, rise: float, lr: float) -> ExitTimes:
    """When each run was first so high, from the highest rise so far, (R, T)."""
    beyond = risen >= rise
    left = beyond.any(1)
    times = torch.where(left, beyond.int().argmax(1) + 1, risen.shape[1])
    return ExitTimes(times, left, lr)


def passages(
    repetition: int,
    case: str,
    groups: Sequence[ExitTimes],
    rises: Sequence[float],
    floors: Sequence[float],
    predicted_power: float | None = None,
) -> list[dict[str, Any]]:
    """Mean times over all rises, and which law is nearer."""
    rows: list[dict[str, Any]] = []
    for number, (group, rise) in enumerate(zip(groups, rises, strict=True)):
        rate = exit_rate(group).per_step
        shown = {"rise": rise, "left": group.events / len(group.times)}
        rows += figures(repetition, case, shown | ({"time": 1 / rate} if rate else {}), number)
    try:
        fits = fit_exit_law(groups, rises, minima=floors)
    except InvalidValueError:  # too few left
        return rows
    found = {
        "difference": fits.difference,
        "exponential_misfit": fits.saturated - fits.additive.log_likelihood,
        "power_misfit": fits.saturated - fits.multiplicative.log_likelihood,
        "exponential_slope": fits.additive.slope.value,
        "power_slope": fits.multiplicative.slope.value,
    }
    if predicted_power is not None:
        found["relative_slope"] = fits.multiplicative.slope.value / predicted_power
    return rows + figures(repetition, case, found)
