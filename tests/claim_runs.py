"""Hand-made runs whose verdict on each claim is known beforehand."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType
from scipy import stats

from noisescape.experiments.claims import CLAIMS, Claim, Evidence, Result
from noisescape.experiments.statistics import wilson
from noisescape.runs.run import Run, tidy
from slowness import quick

CLAIM: dict[str, Claim] = {claim.name: claim for claim in CLAIMS}
STEPS, GD_STEPS, NOISE_SEEDS = 10, 50, 3
RATE = 0.25
Rows = list[dict[str, Any]]


def written(
    path: Path,
    experiment: str,
    config: dict[str, Any],
    rows: Rows,
    summary: dict[str, Any] | None = None,
    data: dict[str, str] | None = None,
) -> Run:
    run = Run.create(path, experiment=experiment, config=config, seed=config.get("seed", 0), data=data)
    if rows:
        run.write_metrics(tidy(rows))
    run.write_summary(summary or {})
    return run


def row(
    phase: str, seed: int, dynamics: str, step: int, metric: str, value: float, replica: int = 0
) -> dict[str, Any]:
    return {
        "phase": phase,
        "seed": seed,
        "dynamics": dynamics,
        "replica": replica,
        "step": step,
        "metric": metric,
        "value": value,
    }


def traces(phase: str, seed: int, dynamics: str, ratio: float) -> Rows:
    """Injected noise of which a ratio to its target comes out, at each of three steps."""
    return [
        *(row(phase, seed, dynamics, step, "injected", ratio * step) for step in (3, 6, 9)),
        *(row(phase, seed, dynamics, step, "trace_target", step) for step in (3, 6, 9)),
    ]


def accuracy(phase: str, seed: int, dynamics: str, value: float, ratio: float = 1.0) -> Rows:
    return [
        row(phase, seed, dynamics, 0, "test_accuracy", 0.1),
        row(phase, seed, dynamics, STEPS, "test_accuracy", value),
        *([] if dynamics.startswith("gd") else traces(phase, seed, dynamics, ratio)),
    ]


@dataclass(frozen=True)
class Case:
    """A claim, and rows for one seed from which its statistic comes out as given.

    Attributes:
        claim: its name.
        dynamics: those of the run; the first one's trace is set off its target where that is asked for.
        rows: (seed, statistic, injected over target trace of the first dynamics) ↦ rows.
        verdicts: statistics of three seeds, and the verdict they must give.
        case: what the finding says it is of.
        experiment: whose run.
        scale: from a statistic to what is averaged.
        effect: back from that mean to the reported effect.
        noisy: whether an injected trace is among what is judged.
        level: the training loss at which the run compares, if it has one.
    """

    claim: str
    dynamics: tuple[str, ...]
    rows: Callable[[int, float, float], Rows]
    verdicts: dict[str, tuple[float, float, float]]
    case: str = ""
    experiment: str = "digits"
    scale: Callable[[float], float] = float
    effect: Callable[[float], float] = float
    noisy: bool = True
    level: float | None = None

    def run(self, path: Path, values: Sequence[float], ratios: Sequence[float] | None = None) -> Run:
        ratios = [1.0] * len(values) if ratios is None else ratios
        config = {
            "seeds": len(values),
            "steps": STEPS,
            "gd_steps": GD_STEPS,
            "noise_seeds": NOISE_SEEDS,
            "rates": [RATE / 2, RATE],
            "edge_from": RATE,
            "dynamics": [*self.dynamics],
            "level": self.level,
        }
        rows = [
            entry
            for seed, (value, ratio) in enumerate(zip(values, ratios, strict=True))
            for entry in self.rows(seed, value, ratio)
        ]
        return written(path, self.experiment, config, rows)

    def judged(self, path: Path, values: Sequence[float], ratios: Sequence[float] | None = None) -> Result:
        [result] = CLAIM[self.claim].judge(Evidence.of(self.run(path, values, ratios)))
        assert result.case == self.case
        return result


FALLS = {
    "supported": (-0.30, -0.20, -0.25),
    "contradicted": (0.30, 0.20, 0.25),
    "undecided": (-0.30, 0.10, -0.05),
}
RISES = {
    "supported": (0.03, 0.02, 0.025),
    "contradicted": (-0.03, -0.02, -0.025),
    "undecided": (0.03, -0.01, 0.0),
}
SAME = {
    "supported": (0.001, -0.001, 0.0005),
    "contradicted": (0.03, 0.031, 0.029),
    "undecided": (0.01, -0.005, 0.004),
}
DOUBLE_SAME = {verdict: tuple(2 * value for value in values) for verdict, values in SAME.items()}
LARGE_SAME = {verdict: tuple(10 * value for value in values) for verdict, values in SAME.items()}


def accuracies(
    claim: str, more: str, less: str, verdicts: dict[str, Any], joint: str, experiment: str = "svhn"
) -> Case:
    def rows(seed: int, value: float, ratio: float) -> Rows:
        base = 0.3 + 0.1 * seed  # differences are taken within seeds, so this must not count
        return [
            *accuracy("training", seed, more, base + value, ratio),
            *accuracy("training", seed, less, base),
        ]

    return Case(claim, (more, less), rows, verdicts, case=f"{more} {joint} {less}", experiment=experiment)


LEVEL = 1.0
"""The training loss of runs that compare at one."""


def at_level(
    seed: int, dynamics: str, accuracy: float, sharpness: float = 2e-4, ratio: float = 1.0, reached: float = 1.0
) -> Rows:
    """Where a dynamics is compared at one training loss; at the last step of its training it was elsewhere."""
    found = {"reached": reached}
    if reached == 1:
        found |= {"test_accuracy": accuracy, "sharpness": sharpness, "loss": LEVEL}
    return [
        *(row("matched", seed, dynamics, STEPS, metric, value) for metric, value in found.items()),
        row("training", seed, dynamics, STEPS, "test_accuracy", 0.9 - 0.1 * seed * len(dynamics)),
        *([] if dynamics == "gd" else traces("training", seed, dynamics, ratio)),
    ]


def accuracies_at_level(claim: str, more: str, less: str, verdicts: dict[str, Any], joint: str) -> Case:
    def rows(seed: int, value: float, ratio: float) -> Rows:
        base = 0.3 + 0.1 * seed
        return [*at_level(seed, more, base + value, ratio=ratio), *at_level(seed, less, base)]

    case = f"{more} {joint} {less}"
    return Case(claim, (more, less), rows, verdicts, case=case, experiment="cifar10", level=LEVEL)


def flatter_from_initialisation(seed: int, value: float, ratio: float) -> Rows:
    base = 1e-4 * (1 + seed)
    return [
        *at_level(seed, "sgd", 0.5, base * math.exp(value), ratio),
        *at_level(seed, "gd", 0.6, base),
    ]


def ranked_at_level(seed: int, value: float, _: float) -> Rows:
    order = ORDERS.get(value, (math.nan,) * 3)
    return [
        entry
        for name, sharpness, accuracy in zip(("gd", "sgd", "gld-full"), (0.1, 0.2, 0.7), order, strict=True)
        for entry in at_level(seed, name, accuracy, sharpness)
    ]


def at_minimum(claim: str, metric: str, verdicts: dict[str, Any], case: str = "", **scales: Any) -> Case:
    def rows(seed: int, value: float, _: float) -> Rows:
        return [row("minimum", seed, "gd", GD_STEPS, metric, value)]

    return Case(claim, ("gd",), rows, verdicts, case=case, noisy=False, **scales)


CONTROLS = ("gd-after-sgd", "sgd-from-initialisation", "sgd-small-rate")
UNTRACED = ("sgd", "gld-full", "gd-gradient-penalty", *CONTROLS)
"""Arms whose noise is not given a trace."""
AT_LEVEL = {"reached": 1.0, "sharpness": 2.0, "test_accuracy": 0.7, "barrier": 0.0}
"""Gradient descent at a run's loss."""


def matched(
    seed: int,
    dynamics: str,
    ends: Sequence[dict[str, float]],
    ratio: float = 1.0,
    descent: dict[str, float] = AT_LEVEL,
    settled: float = 1.0,
) -> Rows:
    """Where an arm's runs came to, gradient descent beside each, and the trace of what was injected."""
    return [
        row("minimum", seed, "gd", GD_STEPS, "settled", settled),
        *(
            row("minimum", seed, "gd", GD_STEPS, metric, value)
            for metric, value in descent.items()
            if metric == "relative_sharpness"
        ),
        *(
            row("matched", seed, dynamics, STEPS, metric, value, replica)
            for replica, end in enumerate(ends)
            for metric, value in (
                {"reached": 1.0} | end | {f"gd_{name}": number for name, number in descent.items()}
            ).items()
        ),
        *([] if dynamics in UNTRACED else traces("escape", seed, dynamics, ratio)),
    ]


def beside_descent(claim: str, dynamics: str, metric: str, verdicts: dict[str, Any]) -> Case:
    """Three runs a seed of the arm, around what its statistic is to be; gradient descent at its own level."""

    def end(base: float, value: float) -> dict[str, float]:
        return {
            "sharpness": base * math.exp(value if metric == "sharpness" else 3.0),
            "relative_sharpness": base * math.exp(value if metric == "relative_sharpness" else 3.0),
            "test_accuracy": base + (value if metric == "test_accuracy" else 3.0),
            "barrier": 0.05 * 10 ** (value if metric == "barrier" else 3.0),
        }

    def rows(seed: int, value: float, ratio: float) -> Rows:
        base = 0.3 + 0.1 * seed
        ends = [end(base, value + noise) for noise in (0.02, -0.03, 0.01)]
        level = {"reached": 1.0, "sharpness": base, "relative_sharpness": base, "test_accuracy": base}
        return matched(seed, dynamics, ends, ratio, level)

    noisy = dynamics not in UNTRACED
    return Case(claim, (dynamics, "gd"), rows, verdicts, case=dynamics, experiment="matched-loss", noisy=noisy)


def beside_sgd(claim: str, dynamics: str, verdicts: dict[str, Any]) -> Case:
    """What SGD's log sharpness has over the arm's; gradient descent's does not count."""

    def rows(seed: int, value: float, ratio: float) -> Rows:
        own = 0.5 + 0.2 * seed
        sgd = [{"sharpness": own * math.exp(value + noise)} for noise in (0.02, -0.03, 0.01)]
        return [*matched(seed, dynamics, [{"sharpness": own}], ratio), *matched(seed, "sgd", sgd)]

    case, noisy = f"sgd and {dynamics}", dynamics not in UNTRACED
    return Case(claim, (dynamics, "sgd", "gd"), rows, verdicts, case=case, experiment="matched-loss", noisy=noisy)


ORDERS = {-1.0: (3, 2, 1), -0.5: (2, 3, 1), 0.5: (2, 1, 3), 1.0: (1, 2, 3)}
"""Three ranks by their Spearman correlation with 1, 2, 3."""


def ranked(seed: int, value: float, _: float) -> Rows:
    order = ORDERS.get(value, (math.nan,) * 3)
    return [
        row("training", seed, name, STEPS, metric, number)
        for name, *numbers in zip(("gd", "sgd", "gld-full"), (0.1, 0.2, 0.7), order, strict=True)
        for metric, number in zip(("sharpness/signed", "test_accuracy"), numbers, strict=True)
    ]


def along(seed: int, value: float, _: float) -> Rows:
    """Two steps and the minimum, logarithms of the ratios 0, 2 and 1 times their mean."""
    places = (("descent", 10, "along/", 0.0), ("descent", 20, "along/", 2.0), ("minimum", GD_STEPS, "", 1.0))
    return [
        row(phase, seed, "gd", step, prefix + metric, number)
        for phase, step, prefix, share in places
        for metric, number in (("trace_h_sigma", 5 * math.exp(share * value)), ("isotropic_reference", 5.0))
    ]


def hidden(seed: int, value: float, _: float) -> Rows:
    shares = (0.0, 2.0, 1.0)
    return [
        {
            "width": 32,
            "optimiser": "adam",
            "seed": seed,
            "step": 10 * (epoch + 1),
            "metric": metric,
            "value": number,
        }
        for epoch, share in enumerate(shares)
        for metric, number in (("loss", 0.1), ("anisotropy", math.exp(share * value)))
    ]


def knob_arms(seed: int, ends: dict[str, float], ratio: float, off: str = "") -> Rows:
    """Test accuracies at the end; every arm's noise of its trace, but that of ``off``."""
    return [
        entry
        for name, value in ends.items()
        for entry in accuracy("training", seed, name, value, ratio if name == off else 1.0)
        if name != "gradient-penalty" or entry["metric"] == "test_accuracy"
    ]


def knob_trace(seed: int, value: float, _: float) -> Rows:
    return traces("training", seed, "as-if-small", 1 + value)


def at_edge(seed: int, value: float, _: float) -> Rows:
    """λ₁·η/2 as given at the last step; far off on the way, and at the rate that is not expected to get there."""
    return [
        row("training", seed, "gd", step, "largest_eigenvalue", 2 * (share if rate == RATE else 0.1) / rate)
        | {"rate": rate}
        for rate in (RATE / 2, RATE)
        for step, share in ((0, 0.1), (3 * STEPS // 4, value), (STEPS, value))
    ]


def beside_a_gap(claim: str, arm: str, verdicts: dict[str, Any], share: float, *, noisy: bool = True) -> Case:
    """What an arm ends at over large plus a share of the gap of about 8 points between large and small."""

    def rows(seed: int, value: float, ratio: float) -> Rows:
        large = 0.5 + 0.1 * seed
        small = large + 0.08 + 0.01 * seed
        own = large + share * (small - large) + value
        return knob_arms(seed, {arm: own, "large-batch": large, "small-batch": small}, ratio, arm)

    return Case(claim, (arm, "large-batch", "small-batch"), rows, verdicts, experiment="noise-knob", noisy=noisy)


def knob_gain(claim: str, one: str, other: str, *, noisy: bool) -> Case:
    def rows(seed: int, value: float, ratio: float) -> Rows:
        base = 0.5 + 0.1 * seed
        return knob_arms(seed, {one: base + value, other: base}, ratio, one)

    return Case(claim, (one, other), rows, RISES, experiment="noise-knob", noisy=noisy)


LOGS = {"supported": (1.0, 1.2, 0.9), "contradicted": (-1.0, -1.2, -0.9), "undecided": (1.0, -0.3, 0.2)}
WIDE_SAME = {"supported": (0.1, -0.1, 0.05), "contradicted": (0.7, 0.72, 0.69), "undecided": (0.5, 0.3, 0.4)}
ARMS = (
    "gld-full",
    "gld-dynamic",
    "gld-diagonal",
    "gld-shuffled",
    "gld-shuffled-within-layers",
    "gld-leading",
    "gld-hessian",
    "gld-top-eigenvector",
    "gd-gradient-penalty",
    *CONTROLS,
)
UNALIGNED = ("gld-dynamic", "gld-diagonal", "gld-shuffled", "gld-shuffled-within-layers")
CASES = [
    Case(
        "indicator-one-hidden-layer",
        (),
        hidden,
        LOGS,
        case="adam, width 32",
        experiment="one-hidden-layer",
        effect=math.exp,
        noisy=False,
    ),
    Case("indicator-along", ("gd",), along, LOGS, experiment="fashion-mnist", effect=math.exp, noisy=False),
    at_minimum(
        "ill-conditioned",
        "decay_exponent",
        {"supported": (0.6, 0.62, 0.64), "contradicted": (0.4, 0.38, 0.36), "undecided": (0.4, 0.6, 0.55)},
        "k = 20",
    ),
    at_minimum(
        "aligned",
        "projection_coefficient",
        {"supported": (3.0, 0.7, 3.7), "contradicted": (0.04, 0.05, 0.06), "undecided": (0.05, 0.2, 0.1)},
        scale=lambda a: math.log(a) if a > 0 else math.nan,
        effect=math.exp,
    ),
    *(
        beside_descent(claim, name, metric, verdicts)
        for names, claims in (
            (("sgd",), ("flatter-at-matched-loss", "leaves-the-basin", "generalises-at-matched-loss")),
            (ARMS, ("arm-flatter-at-matched-loss", "arm-leaves-the-basin", "arm-generalises-at-matched-loss")),
        )
        for claim, metric, verdicts in zip(
            claims, ("sharpness", "barrier", "test_accuracy"), (FALLS, LOGS, RISES), strict=True
        )
        for name in names
    ),
    *(beside_sgd("only-aligned-noise-flattens", name, FALLS) for name in UNALIGNED),
    beside_sgd("gaussian-as-flat-as-sgd", "gld-full", WIDE_SAME),
    beside_sgd("noise-on-the-way-flattens", "gd-after-sgd", FALLS),
    beside_sgd("start-makes-no-difference", "sgd-from-initialisation", WIDE_SAME),
    beside_descent("flatter-on-the-layers-scale", "sgd", "relative_sharpness", FALLS),
    beside_descent("flatter-on-the-layers-scale", "gld-diagonal", "relative_sharpness", FALLS),
    accuracies("accuracy-order", "sgd", "gld-diagonal", RISES, "over"),
    accuracies("accuracy-order", "gld-diagonal", "gld-dynamic", RISES, "over", "cifar10"),
    accuracies("accuracy-order", "gld-diagonal", "gld-constant", RISES, "over"),
    accuracies("isotropic-as-gd", "gld-constant", "gd", SAME, "and"),
    accuracies("isotropic-as-gd", "gld-dynamic", "gd", SAME, "and", "cifar10"),
    Case(
        "flatter-generalises",
        ("gd", "sgd", "gld-full"),
        ranked,
        # of three ranks 1 counts as 0.75: the interval is that of their artanh
        {"supported": (-1.0, -1.0, -0.5), "contradicted": (0.5, 1.0, 1.0), "undecided": (-1.0, 1.0, 0.5)},
        experiment="svhn",
        scale=lambda r: math.atanh(max(-0.75, min(r, 0.75))) if math.isfinite(r) else math.nan,
        effect=math.tanh,
        noisy=False,
    ),
    accuracies_at_level("accuracy-order", "sgd", "gld-diagonal", RISES, "over"),
    accuracies_at_level("accuracy-order", "gld-diagonal", "gld-dynamic", RISES, "over"),
    accuracies_at_level("isotropic-as-gd", "gld-dynamic", "gd", SAME, "and"),
    Case(
        "flatter-from-initialisation",
        ("sgd", "gd"),
        flatter_from_initialisation,
        FALLS,
        case="sgd and gd",
        experiment="cifar10",
        level=LEVEL,
    ),
    Case(
        "flatter-generalises",
        ("gd", "sgd", "gld-full"),
        ranked_at_level,
        {"supported": (-1.0, -1.0, -0.5), "contradicted": (0.5, 1.0, 1.0), "undecided": (-1.0, 1.0, 0.5)},
        experiment="cifar10",
        scale=lambda r: math.atanh(max(-0.75, min(r, 0.75))) if math.isfinite(r) else math.nan,
        effect=math.tanh,
        noisy=False,
        level=LEVEL,
    ),
    accuracies("gaussian-generalises-as-sgd", "gld-full", "sgd", SAME, "and"),
    Case("knob-trace", ("as-if-small",), knob_trace, LARGE_SAME, experiment="noise-knob", noisy=False),
    knob_gain("batch-gap", "small-batch", "large-batch", noisy=False),
    knob_gain("knob-over-large", "as-if-small", "large-batch", noisy=True),
    beside_a_gap("knob-as-small", "as-if-small", DOUBLE_SAME, 1.0),
    beside_a_gap("isotropic-does-not-recover", "isotropic", FALLS, 0.5),
    beside_a_gap("penalty-recovers", "gradient-penalty", RISES, 0.5, noisy=False),
    Case(
        "gd-settles-at-edge",
        (),
        at_edge,
        {"supported": (0.97, 1.0, 0.98), "contradicted": (0.8, 0.82, 0.81), "undecided": (0.88, 0.98, 0.93)},
        case=f"η = {RATE:g}",
        experiment="gd-sharpness",
        noisy=False,
    ),
]


def by_case(cases: Sequence[Case] = CASES, *, quick_share: int = 1) -> pytest.MarkDecorator:
    """One in so many is quick."""
    named = [pytest.param(case, id=f"{case.claim} {case.case}".strip()) for case in cases]
    return pytest.mark.parametrize("case", quick(named[::quick_share], named))


ALL = ("gd", "sgd", *ARMS)


def all_at_once(seed: int, name: str) -> Rows:
    """What an arm of a matched-loss run leaves behind."""
    end = {"sharpness": 2.0 + 0.01 * seed, "test_accuracy": 0.5, "barrier": 0.1 + 0.01 * seed}
    if name == "gd":
        return []  # it is measured beside every other arm
    return matched(seed, name, [end] * (NOISE_SEEDS if name == "sgd" else 1))


def minimum(seed: int) -> Rows:
    """What every run to a minimum measures there, and on the way."""
    found = {"decay_exponent": 0.3 + 0.01 * seed, "projection_coefficient": 2.0 + 0.1 * seed}
    measured = [row("minimum", seed, "gd", GD_STEPS, metric, value) for metric, value in found.items()]
    return [*along(seed, 1.0 + 0.1 * seed, 1.0), *measured]


SIX = ("gd", "gld-constant", "gld-diagonal", "gld-leading", "gld-hessian", "gld-top-eigenvector")
INDICATORS = dict(zip(SIX, (0.0, 44_000.0, 44_000.0, 70_000.0, 73_455.0, 80_000.0), strict=True))
RATES = dict(zip(SIX, (0.0, 0.1, 0.12, 0.3, 0.31, 0.5), strict=True))


def toy(
    path: Path,
    rates: dict[str, float] = RATES,
    indicators: dict[str, float] = INDICATORS,
    *,
    n: int = 4000,
    **controls: dict[str, float],
) -> Evidence:
    def of(shares: dict[str, float]) -> dict[str, Any]:
        return {
            "success": {name: asdict(wilson(round(share * n), n)) for name, share in shares.items()},
            "trace_h_sigma": {name: {"value": indicators[name]} for name in shares},
        }

    summary = {**of(rates), "controls": {geometry: of(shares) for geometry, shares in controls.items()}}
    return Evidence.of(written(path, "toy-2d", {"replicas": n}, [], summary))


def newcombe(one: tuple[int, int], other: tuple[int, int], level: float) -> tuple[float, float]:
    """Hybrid score interval of p₁ − p₂, Newcombe (1998), method 10, written out."""
    z = float(stats.norm.ppf(0.5 + level / 2))
    ends = []
    for successes, trials in (one, other):
        p = successes / trials
        half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
        centre = p + z * z / (2 * trials)
        ends.append((p, (centre - half) / (1 + z * z / trials), (centre + half) / (1 + z * z / trials)))
    (p1, low1, high1), (p2, low2, high2) = ends
    return (
        p1 - p2 - math.sqrt((p1 - low1) ** 2 + (high2 - p2) ** 2),
        p1 - p2 + math.sqrt((high1 - p1) ** 2 + (p2 - low2) ** 2),
    )


def in_terminal(shown: RenderableType, width: int = 300) -> str:
    """As printed in a terminal of so many columns, without the blanks at the ends of lines."""
    printed = io.StringIO()
    Console(width=width, file=printed, color_system=None).print(shown)
    return "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines())
