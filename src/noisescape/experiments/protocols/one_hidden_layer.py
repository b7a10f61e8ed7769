"""One hidden layer: does Tr(HΣ) exceed its isotropic reference all along training?

Points x ~ U[−2, 2]², labels y = 1[x₁ ≥ x₂]; a hidden layer of ReLU units whose output weights are fixed at ±1,
the output clipped, squared loss. After every epoch Tr(HΣ) of minibatch noise stands beside TrH·TrΣ/D.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisescape.experiments.curves import Curves
from noisescape.experiments.one_hidden_layer import OneHiddenLayerConfig, Optimiser
from noisescape.experiments.protocols.session import Session, rows_of
from noisescape.experiments.statistics import derived_seed, mean_over
from noisescape.linops import FunctionOperator, eigenpairs
from noisescape.measurement.bounds import projection_coefficient
from noisescape.risk import EmpiricalRisk, ample_budget
from noisescape.risk.gradient_covariance import covariance_factor
from noisescape.runs.run import Run
from noisescape.runs.storage import read_bundle, write_bundle
from noisescape.runs.tasks import Engine, Outcome, Task


class FixedOutput(nn.Module):
    """clip(Σ ±ReLU(Wx + b)): the hidden layer is trained, the signs are not.

    The weights start from N(0, init_std²/width), and the biases so that the output is ½ at x = 0: a network whose
    output happens to start below 0 on the points labelled 1 is clipped there, gets no gradient from them, and never
    learns. With ``init_bound`` both start from U(−init_bound, init_bound)/√width instead, as in the published code.
    """

    def __init__(
        self, width: int, clip: float, init_std: float, seed: int, *, init_bound: float | None = None
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.hidden = nn.Linear(2, width)
        signs = torch.ones(width)
        signs[width // 2 :] = -1
        if init_bound is None:
            nn.init.normal_(self.hidden.weight, std=init_std / width**0.5, generator=generator)
            with torch.no_grad():
                self.hidden.bias.copy_(signs.clamp_min(0) / width)
        else:
            bound = init_bound / width**0.5
            for parameter in self.hidden.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        self.signs: Tensor
        self.register_buffer("signs", signs)
        self.clip = clip

    def forward(self, x: Tensor) -> Tensor:
        """Outputs in [clip, 1 − clip], (n,)."""
        return (torch.relu(self.hidden(x)) @ self.signs).clamp(self.clip, 1 - self.clip)


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """(f − y)², (n,)."""
    return (outputs - targets).square()


def one_hidden_layer_risk(config: OneHiddenLayerConfig, width: int, repetition: int) -> EmpiricalRisk:
    """The risk of one repetition, the network freshly initialised; every width has the same points."""
    generator = torch.Generator().manual_seed(derived_seed(config.seed, repetition, 0))
    points = 4 * torch.rand(config.points, 2, generator=generator) - 2
    labels = (points[:, 0] >= points[:, 1]).float()
    seed = derived_seed(config.seed, repetition, 1)
    model = FixedOutput(width, config.clip, config.init_std, seed, init_bound=config.init_bound)
    data = points.to(config.device), labels.to(config.device)
    return EmpiricalRisk(model.to(config.device), squared, data, memory_budget=ample_budget(config.device))


def run_one_hidden_layer(
    config: OneHiddenLayerConfig, out: Path, *, engine: Engine, resume: bool, progress: bool
) -> Run:
    """Train every width with every optimiser for every seed and write the run directory."""
    session = Session.begin(config, out, engine=engine, resume=resume, progress=progress)
    if session.run.complete:
        return session.run
    tasks = [
        Task(f"{optimiser}-{width}-{repetition}", train, (config, optimiser, width, repetition))
        for width in sorted(config.widths, reverse=True)  # the longest first
        for optimiser in config.optimisers
        for repetition in range(config.seeds)
    ]
    rows = rows_of(session.perform(tasks))
    return session.finish(rows, _summary(config, rows))


def train(
    config: OneHiddenLayerConfig, optimiser: Optimiser, width: int, repetition: int, *, checkpoint: Path
) -> Outcome:
    """One network with one optimiser, measured after every epoch."""
    risk = one_hidden_layer_risk(config, width, repetition)
    theta = risk.parameters().requires_grad_()
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.Adam if optimiser == "adam" else torch.optim.SGD
    stepper = kind([theta], lr=config.rate(optimiser, width, 0))
    rows: list[dict[str, Any]] = []
    first = 0
    if checkpoint.exists():
        # Adam's moments are part of the trajectory, so here the optimiser's state is kept too
        kept = read_bundle(checkpoint)
        first, rows = kept.notes["epoch"], kept.notes["rows"]
        theta.data.copy_(kept.tensors["theta"])
        stepper.load_state_dict(_unflatten(stepper, kept.tensors, optimiser))
    for epoch in range(first, config.epochs):
        rate = config.rate(optimiser, width, epoch)
        for group in stepper.param_groups:
            group["lr"] = rate
        for _ in range(config.steps_per_epoch):
            theta.grad = risk.gradient(theta.detach())
            stepper.step()
        found = measured(risk, theta.detach(), config)
        rows += [
            {
                "width": width,
                "optimiser": optimiser,
                "seed": repetition,
                "step": (epoch + 1) * config.steps_per_epoch,
                "metric": metric,
                "value": value,
            }
            for metric, value in found.items()
        ]
        state = stepper.state.get(theta, {})
        moments = {f"optimiser/{k}": v for k, v in state.items() if isinstance(v, Tensor)}
        write_bundle(checkpoint, {"theta": theta.detach(), **moments}, {"epoch": epoch + 1, "rows": rows})
    checkpoint.unlink(missing_ok=True)
    return Outcome(rows, {"theta": theta.detach()})


def _unflatten(stepper: torch.optim.Optimizer, tensors: Any, optimiser: Optimiser) -> dict[str, Any]:
    stored = stepper.state_dict()
    if optimiser == "adam":
        moments = {
            key.removeprefix("optimiser/"): value for key, value in tensors.items() if key.startswith("optimiser/")
        }
        stored["state"] = {0: moments}
    return stored


def measured(risk: EmpiricalRisk, theta: Tensor, config: OneHiddenLayerConfig) -> dict[str, float]:
    """Tr(HΣ), its reference and condition (2), exact: H of what is piecewise linear in θ is its Gauss–Newton one.

    In the terms of single samples, H = (2/N) Σ_active J_nJ_nᵀ, so TrH = (2/N) Σ ‖J_n‖² and
    Tr(HΣ) = (2/N) Σ J_nᵀΣJ_n over the samples whose output is not clipped. λ₁ and u₁ are those of the matrix of the
    J_n, found in float64 to rounding.
    """
    rows = risk.per_sample_gradients(theta)
    residual = 2 * risk.losses(theta).sqrt()  # |∂ℓ/∂f|
    active = rows.abs().sum(1) > 0
    jacobians = rows[active] / residual[active, None]  # up to sign
    centred = rows - rows.mean(0)
    number = risk.sample_count
    factor = covariance_factor(config.batch_size, number, replacement=config.replacement) / number
    trace_sigma = factor * float(centred.double().square().sum())
    trace_h = 2 / number * float(jacobians.double().square().sum())
    overlaps = (jacobians @ centred.T).double().square().sum()
    trace_h_sigma = 2 / number * factor * float(overlaps)
    reference = trace_h * trace_sigma / risk.dimension
    top_curvature, first = _top_pair(jacobians.double(), 2 / number)
    top_noise = factor * float((centred.double() @ first).square().sum())
    return {
        "loss": float(risk.loss(theta)),
        "trace_h": trace_h,
        "trace_sigma": trace_sigma,
        "trace_h_sigma": trace_h_sigma,
        "isotropic_reference": reference,
        "anisotropy": trace_h_sigma / reference if reference else float("nan"),
        "active_share": float(active.double().mean()),
        "largest_eigenvalue": top_curvature,
        "top_noise": top_noise,
        "projection_coefficient": projection_coefficient(top_noise, top_curvature, trace_h, trace_sigma),
    }


def _top_pair(rows: Tensor, scale: float) -> tuple[float, Tensor]:
    """The largest eigenvalue of scale·XᵀX and its eigenvector (D,), by products with X, (n, D); 0 of no rows."""
    size = rows.shape[1]
    if len(rows) == 0:
        return 0.0, rows.new_zeros(size)
    curvature = FunctionOperator(
        lambda block: scale * (rows.mT @ (rows @ block)),
        size,
        dtype=rows.dtype,
        device=rows.device,
        psd=True,
        name="Gauss–Newton",
    )
    pairs = eigenpairs(curvature, 1, tol=1e-13)
    return float(pairs.values[0]), pairs.vectors[:, 0]


def _summary(config: OneHiddenLayerConfig, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Geometric mean over epochs of the anisotropy, its extremes, and the mean of a, over seeds."""
    curves = Curves(rows, config.seeds, by=("optimiser", "width", "metric"))
    ratios: dict[str, Any] = {}
    for optimiser in config.optimisers:
        for width in config.widths:
            found = curves.of(optimiser, width, "anisotropy")
            by_seed = [[value for value in curve.values() if value > 0] for curve in found]
            logs = [sum(map(math.log, own)) / len(own) if own else math.nan for own in by_seed]
            projections = [
                [value for value in curve.values() if math.isfinite(value)]
                for curve in curves.of(optimiser, width, "projection_coefficient")
            ]
            means = [sum(own) / len(own) if own else math.nan for own in projections]
            ratios[f"{optimiser}/{width}"] = {
                "log_anisotropy": mean_over(logs).to_dict(),
                "projection_coefficient": mean_over(means).to_dict(),
                "least": min((value for own in by_seed for value in own), default=math.nan),
                "greatest": max((value for own in by_seed for value in own), default=math.nan),
            }
    return {"seeds": config.seeds, "anisotropy": ratios}
