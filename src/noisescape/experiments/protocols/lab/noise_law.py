"""Tail tests at the initialisation and the minimum; runs whose batches are dealt out by epochs beside others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisescape.dynamics import SGD
from noisescape.experiments.lab.noise_law import FLAT_SHARE, NoiseLawConfig
from noisescape.experiments.problem import small_images
from noisescape.experiments.protocols.lab.seeds import figures, minimum, perform_seeds
from noisescape.experiments.statistics import derived_seed
from noisescape.linops import eigenpairs
from noisescape.risk import EmpiricalRisk
from noisescape.runs.run import Run
from noisescape.runs.tasks import Engine, Outcome
from noisescape.theory import epoch_variance, tail_test

STATISTICS = (
    "kurtosis_over_iterations", "kurtosis_over_coordinates", "index_over_iterations", "index_over_coordinates"
)  # fmt: skip
LEADING = 40
"""Eigenvectors of H that the directions are picked from."""


def run(config: NoiseLawConfig, out: Path, *, engine: Engine, resume: bool, progress: bool) -> Run:
    """Measure for every seed and write the run directory."""
    return perform_seeds(config, measure, out, engine=engine, resume=resume, progress=progress)


def measure(config: NoiseLawConfig, repetition: int, *, checkpoint: Path) -> Outcome:
    """Tails and epochs of one seed."""
    made = small_images(config, repetition)
    places = {"initialisation": made.risk.parameters(), "minimum": minimum(config, made)}
    rows: list[dict[str, Any]] = []
    for name, theta in places.items():
        for size in config.batch_sizes:
            found = tail_test(
                made.risk,
                theta,
                batch_size=size,
                draws=config.draws,
                coordinates=config.coordinates,
                nulls=config.nulls,
                seed=derived_seed(config.seed, repetition, 2, size),
            )
            for statistic in STATISTICS:
                result = getattr(found, statistic)
                shown = {"": result.value, "/null": result.null, "/beyond": result.value - result.null}
                shown["/p"] = result.p
                case = f"{name}, B = {size}"
                rows += figures(repetition, case, {statistic + key: value for key, value in shown.items()})
    rows += epochs(config, made.risk, places["minimum"], repetition)
    return Outcome(rows, {"theta": places["minimum"]})


def epochs(config: NoiseLawConfig, risk: EmpiricalRisk, theta: Tensor, repetition: int) -> list[dict[str, Any]]:
    """The variance along eigenvectors of H at the end of an epoch, over that of independent batches."""
    pairs = eigenpairs(risk.hessian(theta), LEADING, tol=1e-3)
    ranks = torch.linspace(0, LEADING - 1, config.directions).round().long().unique()
    curvatures, vectors = pairs.values[ranks], pairs.vectors[:, ranks]
    batches = risk.sample_count // config.epoch_batch
    ends = {
        sampling: torch.stack(
            [
                ended(
                    config, risk, theta, batches, sampling, derived_seed(config.seed, repetition, 40 + place, run)
                )
                for run in range(config.runs)
            ]
        )
        for place, sampling in enumerate(("independent", "epoch"))
    }
    spread = {sampling: (end @ vectors).double().var(0) for sampling, end in ends.items()}
    rows: list[dict[str, Any]] = []
    for place, curvature in enumerate(curvatures.tolist()):
        ratio = float(spread["epoch"][place] / spread["independent"][place])
        found = {"curvature": curvature, "ratio": ratio}
        found["predicted"] = epoch_variance(config.epoch_lr, curvature, batches)
        rows += figures(repetition, "epochs", found, place)
    shares = (spread["epoch"] / spread["independent"]).double().cpu()
    predicted = torch.tensor(
        [epoch_variance(config.epoch_lr, value, batches) for value in curvatures.tolist()], dtype=torch.float64
    )
    flat = predicted < FLAT_SHARE
    found = {"variance_share": float(shares.mean()), "predicted_share": float(predicted.mean())}
    rows += figures(repetition, "epochs, all", found)
    if bool(flat.any()):
        excess = float((shares[flat] / predicted[flat]).log10().mean())
        rows += figures(repetition, "epochs, flat", {"log_excess": excess, "directions": float(flat.sum())})
    return rows


def ended(
    config: NoiseLawConfig, risk: EmpiricalRisk, theta: Tensor, batches: int, sampling: Any, seed: int
) -> Tensor:
    """Where a run of whole epochs ends, or of as many steps."""
    dynamics = SGD(config.epoch_batch, replacement=False, sampling=sampling)
    generator = torch.Generator(theta.device).manual_seed(seed)
    state = dynamics.init(risk)
    for _ in range(config.epochs * batches):
        gradient, state = dynamics.noisy_gradient(risk, theta, state, generator)
        theta = theta - config.epoch_lr * gradient
    return theta
