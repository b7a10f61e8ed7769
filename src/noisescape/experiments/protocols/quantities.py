"""The quantities of the theory of escaping, measured along SGD from a minimum, at several batch sizes.

Gradient descent finds a minimum of a small network; from there SGD runs at each batch size, on the same data. Along
it: the loss budget of every step added up beside the loss really seen; Tr(HΣ), its reference and condition (2); A
beside its shuffled control; C, F and H beside each other; sharpness beside test accuracy.

What scales with B by c(B) alone is recorded, but never read as a finding: what differs along runs is the iterate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from noisescape.dynamics import GD, SGD
from noisescape.experiments.curves import Curves
from noisescape.experiments.problem import MakeProblem, data_identity, data_tensors
from noisescape.experiments.protocols.comparison import refuse_divergence
from noisescape.experiments.protocols.session import Session, rows_of
from noisescape.experiments.quantities import QuantitiesConfig
from noisescape.experiments.statistics import derived_seed, fisher_z, mean_over, rank_correlation
from noisescape.measurement import compare_noise_and_curvature, drawn_loss_change, loss_budget
from noisescape.risk import EmpiricalRisk
from noisescape.runs.run import Run
from noisescape.runs.tasks import Engine, Outcome, Task
from noisescape.simulation import recorders
from noisescape.simulation.loop import simulate
from noisescape.simulation.records import Trajectory
from noisescape.theory import loss_account

TERMS = ("descent", "curvature", "noise", "predicted", "actual", "remainder")
"""Of the account, in the order in which they are shown."""
MATRICES = ("C", "F", "H")
PAIRS = ("C/F", "C/H", "F/H")
NO_BATCH = 0
"""In the column of batch sizes: what is no run of SGD."""


def run_quantities(
    config: QuantitiesConfig, problem: MakeProblem, out: Path, *, engine: Engine, resume: bool, progress: bool
) -> Run:
    """Measure for every seed and batch size and write the run directory.

    Returns:
        The run, complete: metrics, checkpoints of the minima and of every end point, summary.
    """
    problems = [problem(config, repetition) for repetition in range(config.seeds)]  # before anything is written
    splits = [made.split for made in problems]
    identity = data_identity(splits)
    session = Session.begin(config, out, engine=engine, resume=resume, progress=progress, data=identity)
    run = session.run
    if run.complete:
        return run
    repetitions = range(config.seeds)
    descents = session.perform(
        [Task(f"descent-{r}", descend, (config, problem, r)) for r in repetitions], "to the minimum"
    )
    minima = [descent.tensors["theta"] for descent in descents]
    keys = [(r, size) for r in repetitions for size in config.batch_sizes]
    leaving = [Task(f"sgd-{size}-{r}", leave, (config, problem, r, minima[r], size)) for r, size in keys]
    surveys = [Task(f"survey-{r}", survey, (config, problem, r, minima[r])) for r in repetitions]
    outcomes = session.perform([*leaving, *surveys], "from there")
    left, surveyed = outcomes[: len(keys)], outcomes[len(keys) :]

    rows = rows_of([*descents, *surveyed, *left])
    run.write_tensors("data", data_tensors(splits))
    run.write_tensors("minima", {f"seed-{r}": theta for r, theta in enumerate(minima)})
    run.write_tensors(
        "final",
        {f"batch-{size}/seed-{r}": found.tensors["theta"] for (r, size), found in zip(keys, left, strict=True)},
    )
    return session.finish(rows, summarise(config, rows, splits[0].facts))


def descend(config: QuantitiesConfig, problem: MakeProblem, repetition: int, *, checkpoint: Path) -> Outcome:
    """Gradient descent from the initialisation to a minimum."""
    made = problem(config, repetition)
    trajectory = simulate(
        made.risk,
        GD(),
        made.risk.parameters(),
        lr=config.gd_rate,
        steps=config.gd_steps,
        record={
            "loss": recorders.loss,
            "train_accuracy": recorders.accuracy,
            "test_accuracy": recorders.on(made.test, recorders.accuracy),
            "gradient": recorders.at_steps(recorders.gradient, {config.gd_steps}),
        },
        every=max(1, config.gd_steps // 50),
        checkpoint=checkpoint,
        progress=False,
    )
    refuse_divergence(trajectory, repetition, config.gd_lr)
    rows = trajectory.rows(phase="descent", seed=repetition, batch_size=NO_BATCH)
    return Outcome(list(rows), {"theta": trajectory.theta})


def survey(
    config: QuantitiesConfig, problem: MakeProblem, repetition: int, minimum: Tensor, *, checkpoint: Path
) -> Outcome:
    """At the minimum: C, F and H, and single steps of several sizes against their budgets."""
    risk = problem(config, repetition).risk
    minimum = minimum.to(config.device)
    common = {"phase": "minimum", "seed": repetition, "dynamics": "gd", "replica": 0, "step": config.gd_steps}
    probes = probe_seed(config, repetition)
    found = recorders.tolerant(compared(config, probes))(risk, minimum)
    rows = [{**common, "batch_size": NO_BATCH, "metric": name, "value": value} for name, value in found.items()]
    for size in config.batch_sizes:
        for rate in config.rates:
            found = recorders.tolerant(single_step(config, size, rate, probes))(risk, minimum)
            rows += [
                {**common, "batch_size": size, "metric": f"step-{rate:g}/{name}", "value": value}
                for name, value in found.items()
            ]
    return Outcome(rows)


def leave(
    config: QuantitiesConfig,
    problem: MakeProblem,
    repetition: int,
    minimum: Tensor,
    size: int,
    *,
    checkpoint: Path,
) -> Outcome:
    """SGD with batches of one size from the minimum, with all that is measured along it."""
    made = problem(config, repetition)
    probes = probe_seed(config, repetition)
    options: dict[str, Any] = {"rtol": config.rtol, "max_products": config.max_products, "seed": probes}
    often: dict[str, recorders.Recorder] = {
        "indicator": recorders.indicator(size, **options),
        "sharpness": recorders.sharpness(config.sharpness_delta, draws=config.sharpness_draws, seed=probes),
        "test_accuracy": recorders.on(made.test, recorders.accuracy),
    }
    rarely = {
        "conditions": recorders.conditions(size, k=config.k, **options),
        "trace_c": trace_of_noise,
        "alignment": recorders.alignment(**options),
        "step": single_step(config, size, 1.0, probes),
    }
    trajectory = simulate(
        made.risk,
        SGD(size),
        minimum.to(config.device),
        lr=config.lr,
        steps=config.steps,
        record={
            "loss": recorders.loss,
            "gradient": recorders.gradient,
            **{name: _at(recorder, config.measured) for name, recorder in often.items()},
            **{name: _at(recorder, config.landmark_steps) for name, recorder in rarely.items()},
            "matrices": _at(compared(config, probes), [config.steps]),
        },
        every=1,
        seed=derived_seed(config.seed, repetition, 2),
        checkpoint=checkpoint,
        progress=False,
    )
    labels = {"phase": "sgd", "seed": repetition, "batch_size": size}
    rows = [*trajectory.rows(**labels), *account_rows(trajectory, config, labels)]
    return Outcome(rows, {"theta": trajectory.theta})


def account_rows(
    trajectory: Trajectory, config: QuantitiesConfig, labels: Mapping[str, Any]
) -> Iterable[dict[str, Any]]:
    """The account of a run as rows, at the steps at which Tr(HΣ) was measured."""
    account = loss_account(trajectory)
    shown = set(config.measured)
    for index, step in enumerate(account.steps.tolist()):
        if step in shown:
            for term in (*TERMS, "noise_stderr"):
                value = float(getattr(account, term)[index])
                common = {"dynamics": trajectory.dynamics.name, "replica": 0, "step": step}
                yield {**labels, **common, "metric": f"account/{term}", "value": value}


def _at(recorder: recorders.Recorder, steps: Iterable[int]) -> recorders.Recorder:
    return recorders.at_steps(recorders.tolerant(recorder), steps)


def probe_seed(config: QuantitiesConfig, repetition: int) -> int:
    """Of a repetition's probes: with those of another its errors would not average out over seeds."""
    return derived_seed(config.seed, repetition, 3)


def trace_of_noise(risk: EmpiricalRisk, theta: Tensor) -> Tensor:
    """TrC, of single gradients."""
    return risk.noise_covariance(theta, 1).trace()


def single_step(config: QuantitiesConfig, size: int, rate: float, seed: int) -> recorders.Recorder:
    """What a step of ``rate`` times the learning rate is expected to change, and what drawn steps do change."""

    def record(risk: EmpiricalRisk, theta: Tensor) -> dict[str, float]:
        constants: dict[str, Any] = {"lr": rate * config.lr, "batch_size": size, "seed": seed}
        budget = loss_budget(risk, theta, rtol=config.rtol, max_products=config.max_products, **constants)
        drawn = drawn_loss_change(risk, theta, draws=config.draws, **constants)
        return {
            "predicted": budget.change.value,
            "predicted_stderr": budget.change.stderr,
            "drawn": drawn.value,
            "drawn_stderr": drawn.stderr,
        }

    return record


def compared(config: QuantitiesConfig, seed: int) -> recorders.Recorder:
    """C, F and H beside each other, as figures by name."""

    def record(risk: EmpiricalRisk, theta: Tensor) -> dict[str, float]:
        found = compare_noise_and_curvature(
            risk, theta, k=config.compared, rtol=config.rtol, max_products=config.max_products, seed=seed
        )
        figures = {f"trace/{name}": found.traces[name] for name in MATRICES}
        figures |= {f"largest/{name}": found.largest[name] for name in MATRICES}
        figures |= {f"cosine/{pair}": found.cosines[pair] for pair in PAIRS}
        return {
            **{name: figure.value for name, figure in figures.items()},
            **{f"{name}_stderr": figure.stderr for name, figure in figures.items()},
            **{f"overlap/{pair}": found.overlaps[pair] for pair in PAIRS},
        }

    return record


# ---------------------------------------------------------------------- the summary


def summarise(
    config: QuantitiesConfig, rows: Sequence[Mapping[str, Any]], data: Mapping[str, Any]
) -> dict[str, Any]:
    """The summary of a run, from its rows: means over seeds with t intervals, by batch size."""
    curves = Curves(rows, config.seeds, by=("phase", "batch_size", "metric"))
    last = config.steps

    def ends(size: int, metrics: Mapping[str, str]) -> dict[str, Any]:
        return {name: mean_over(curves.at(last, "sgd", size, m)).to_dict() for name, m in metrics.items()}

    def matrices(phase: str, size: int, step: int, prefix: str) -> dict[str, Any]:
        names = [f"{figure}/{name}" for figure in ("trace", "largest") for name in MATRICES]
        bounded = [f"{figure}/{pair}" for figure in ("cosine", "overlap") for pair in PAIRS]
        found = {
            name: mean_over(curves.at(step, phase, size, prefix + name)).to_dict() for name in (*names, *bounded)
        }
        return {name: _within_one(one) if name in bounded else one for name, one in found.items()}

    sizes = config.batch_sizes
    alignment = {kind: f"alignment/{kind}" for kind in ("noise", "shuffled", "gain")}
    return {
        "seeds": config.seeds,
        "data": data,
        "minimum": {
            metric: mean_over(curves.at(config.gd_steps, "descent", NO_BATCH, metric)).to_dict()
            for metric in ("loss", "test_accuracy", "gradient/squared_norm")
        },
        "account": {str(size): ends(size, {term: f"account/{term}" for term in TERMS}) for size in sizes},
        "single_steps": {
            str(size): {f"{rate:g}": _single_steps(config, curves, size, rate) for rate in config.rates}
            for size in sizes
        },
        "alignment": {str(size): ends(size, alignment) for size in sizes},
        "matrices": {
            "minimum": matrices("minimum", NO_BATCH, config.gd_steps, ""),
            **{str(size): matrices("sgd", size, last, "matrices/") for size in sizes},
        },
        "batch_size": {str(size): _settled(config, curves, size) for size in sizes},
        "correlation": {
            **{str(size): _correlation(config, curves, [size]) for size in sizes},
            "all": _correlation(config, curves, sizes),
        },
    }


def _within_one(found: Mapping[str, float]) -> dict[str, float]:
    """A mean of cosines or overlaps: its interval ends where they do, which it covers no less for."""
    return {**found, "low": max(found["low"], -1.0), "high": min(found["high"], 1.0)}


def _single_steps(config: QuantitiesConfig, curves: Curves, size: int, rate: float) -> dict[str, Any]:
    """Predicted and drawn changes of a step from the minimum, over seeds, and their quotient."""
    predicted, drawn = (
        curves.at(config.gd_steps, "minimum", size, f"step-{rate:g}/{name}") for name in ("predicted", "drawn")
    )
    quotients = [seen / said if said else math.nan for said, seen in zip(predicted, drawn, strict=True)]
    return {
        "predicted": mean_over(predicted).to_dict(),
        "drawn": mean_over(drawn).to_dict(),
        "drawn_over_predicted": mean_over(quotients).to_dict(),
    }


def _settled(config: QuantitiesConfig, curves: Curves, size: int) -> dict[str, Any]:
    """What differs between batch sizes beyond c(B): over the second half of the run, or at its end."""
    half = config.steps // 2

    def mean_late(metric: str) -> list[float]:
        late = [[v for step, v in curve.items() if step >= half] for curve in curves.of("sgd", size, metric)]
        return [sum(own) / len(own) if own else math.nan for own in late]

    def grown(metric: str) -> list[float]:
        """By how much a sum has grown over the second half."""
        start = max(step for step in config.measured if step <= half)
        both = (curves.at(step, "sgd", size, metric) for step in (config.steps, start))
        return [end - before for end, before in zip(*both, strict=True)]

    terms = zip(*(grown(f"account/{term}") for term in ("noise", "descent", "curvature")), strict=True)
    balance = [noise / -(fall + over) if fall + over else math.nan for noise, fall, over in terms]
    # of Tr(HΣ_B) the part without B: Σ_B = C/B, with replacement
    unscaled = [size * value for value in mean_late("indicator/value")]
    ends = {
        name: mean_over(curves.at(config.steps, "sgd", size, metric)).to_dict()
        for name, metric in {
            "trace_c": "trace_c",
            "largest_eigenvalue": "conditions/largest_eigenvalue",
            "projection_coefficient": "conditions/projection_coefficient",
            "test_accuracy": "test_accuracy",
        }.items()
    }
    return {
        "factor": 1 / size,
        "loss": mean_over(mean_late("loss")).to_dict(),
        "balance": mean_over(balance).to_dict(),
        "trace_hc": mean_over(unscaled).to_dict(),
        **ends,
    }


def _correlation(config: QuantitiesConfig, curves: Curves, sizes: Sequence[int]) -> dict[str, float]:
    """Rank correlation of sharpness and test accuracy over a seed's iterates, mean over seeds by Fisher's z.

    Iterates of a run depend on each other, so a seed counts once, however many it has; the 95 % t interval is over
    seeds alone.
    """
    values = []
    for seed in range(config.seeds):
        pairs = [
            (sharp, curves.of("sgd", size, "test_accuracy")[seed][step])
            for size in sizes
            for step, sharp in curves.of("sgd", size, "sharpness/signed")[seed].items()
            if step > 0  # the minimum, which they share, once or not at all
        ]
        finite = [pair for pair in pairs if all(map(math.isfinite, pair))]
        known = len(finite) > 1
        values.append(fisher_z(rank_correlation(*zip(*finite, strict=True)), len(finite)) if known else math.nan)
    found = mean_over(values)
    low, high = found.interval()
    return {"value": math.tanh(found.value), "low": math.tanh(low), "high": math.tanh(high)}
