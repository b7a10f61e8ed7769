"""The claims ledger: every judge held to hand-made runs whose verdict is known beforehand."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from noisescape.experiments.claims import CLAIMS, Claim, Evidence, Finding, Result, exceeds, ledger
from noisescape.experiments.statistics import rank_correlation, rate_difference, wilson
from noisescape.experiments.suite import RUNNERS, paper_suite
from noisescape.report.ledger import ledger_sections, rules_section, told
from noisescape.report.tables import ledger_text
from noisescape.runs.run import Run, strict_json, tidy

CLAIM: dict[str, Claim] = {claim.name: claim for claim in CLAIMS}
STEPS, GD_STEPS = 10, 50
Rows = list[dict[str, Any]]

# ---------------------------------------------------------------------- hand-made runs


def written(
    path: Path, experiment: str, config: dict[str, Any], rows: Rows, summary: dict[str, Any] | None = None
) -> Run:
    run = Run.create(path, experiment=experiment, config=config, seed=0)
    if rows:
        run.write_metrics(tidy(rows))
    run.write_summary(summary or {})
    return run


def row(phase: str, seed: int, dynamics: str, step: int, metric: str, value: float) -> dict[str, Any]:
    return {
        "phase": phase,
        "seed": seed,
        "dynamics": dynamics,
        "replica": 0,
        "step": step,
        "metric": metric,
        "value": value,
    }


def traces(phase: str, seed: int, dynamics: str, ratio: float) -> Rows:
    """Injected noise at two steps, twice as much as that between them, and the target of all three."""
    return [
        *(row(phase, seed, dynamics, step, "injected", ratio * step) for step in (3, 6)),
        *(row(phase, seed, dynamics, step, "trace_target", step) for step in (3, 6, 9)),
    ]


def sharpness(seed: int, dynamics: str, late: float, ratio: float = 1.0) -> Rows:
    """Five steps, of which those of the last half have the mean ``late``."""
    values = {0: 99.0, 4: 99.0, 5: late + 0.3, 8: late, STEPS: late - 0.3}
    return [
        *(row("escape", seed, dynamics, step, "sharpness/signed", value) for step, value in values.items()),
        *([] if dynamics.startswith("gd") else traces("escape", seed, dynamics, ratio)),
    ]


def losses(seed: int, dynamics: str, mean: float, ratio: float = 1.0) -> Rows:
    """The start and four steps whose mean is told, around a level of the seed's own."""
    bends = {5: 0.2, 8: -0.3, 9: 0.1, STEPS: 0.0}
    return [
        row("escape", seed, dynamics, 0, "loss", 99.0 if dynamics == "gd" else 1.0),
        *(row("escape", seed, dynamics, step, "loss", seed + mean + bend) for step, bend in bends.items()),
        *([] if dynamics.startswith("gd") else traces("escape", seed, dynamics, ratio)),
    ]


def accuracy(phase: str, seed: int, dynamics: str, value: float, ratio: float = 1.0) -> Rows:
    return [
        row(phase, seed, dynamics, 0, "test_accuracy", 0.1),
        row(phase, seed, dynamics, STEPS, "test_accuracy", value),
        *([] if dynamics.startswith("gd") else traces(phase, seed, dynamics, ratio)),
    ]


@dataclass(frozen=True)
class Case:
    """A claim, and rows for one seed from which its statistic comes out as told.

    Attributes:
        claim: its name.
        dynamics: those of the run; the first one's trace is set off its target where that is asked for.
        rows: (seed, statistic, injected over target trace of the first dynamics) ↦ rows.
        verdicts: statistics of three seeds, and the verdict they must give.
        case: what the finding says it is of.
        experiment: whose run.
        effect: from the mean of the statistics to the effect told.
        noisy: whether an injected trace is among what is judged.
    """

    claim: str
    dynamics: tuple[str, ...]
    rows: Callable[[int, float, float], Rows]
    verdicts: dict[str, tuple[float, float, float]]
    case: str = ""
    experiment: str = "digits"
    effect: Callable[[float], float] = float
    noisy: bool = True

    def run(self, path: Path, values: Sequence[float], ratios: Sequence[float] | None = None) -> Run:
        ratios = [1.0] * len(values) if ratios is None else ratios
        config = {
            "seeds": len(values),
            "steps": STEPS,
            "gd_steps": GD_STEPS,
            "dynamics": [*self.dynamics],
        }
        rows = [
            entry
            for seed, (value, ratio) in enumerate(zip(values, ratios, strict=True))
            for entry in self.rows(seed, value, ratio)
        ]
        return written(path, self.experiment, config, rows)

    def judged(self, path: Path, values: Sequence[float], ratios: Sequence[float] | None = None) -> Result:
        [result] = CLAIM[self.claim].judge(Evidence(self.run(path, values, ratios)))
        assert result.case == self.case
        return result


FALLS = {
    "supported": (-0.30, -0.20, -0.25),
    "contradicted": (0.30, 0.20, 0.25),
    "undecided": (-0.30, 0.10, -0.05),
}
STAYS = {
    "supported": (-0.02, 0.01, -0.01),
    "contradicted": (-0.30, -0.20, -0.25),
    "undecided": (-0.12, -0.04, -0.10),
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
LOSS_SAME = {verdict: tuple(5 * value for value in values) for verdict, values in SAME.items()}
LARGE_SAME = {verdict: tuple(10 * value for value in values) for verdict, values in SAME.items()}


def flattening(claim: str, dynamics: str, verdicts: dict[str, Any]) -> Case:
    def rows(seed: int, value: float, ratio: float) -> Rows:
        base = 2.0 + seed  # what counts is relative to gradient descent of the same seed
        return [*sharpness(seed, "gd", base), *sharpness(seed, dynamics, base * (1 + value), ratio)]

    noisy = not dynamics.startswith("gd")
    return Case(claim, (dynamics, "gd"), rows, verdicts, case=dynamics, noisy=noisy)


def leaving(claim: str, dynamics: str, verdicts: dict[str, Any]) -> Case:
    def rows(seed: int, value: float, ratio: float) -> Rows:
        return [*losses(seed, "gd", 0.1), *losses(seed, dynamics, 0.1 + value, ratio)]

    return Case(claim, (dynamics, "gd"), rows, verdicts, case=dynamics, experiment="fashion-mnist")


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


def at_minimum(claim: str, metric: str, verdicts: dict[str, Any]) -> Case:
    def rows(seed: int, value: float, _: float) -> Rows:
        return [row("minimum", seed, "gd", GD_STEPS, metric, value)]

    return Case(claim, ("gd",), rows, verdicts, noisy=False)


def followed(seed: int, value: float, ratio: float) -> Rows:
    base = 0.3 + 0.1 * seed
    means = {"sgd": base + value + 0.02, "gld-leading": base + value - 0.02, "gld-constant": base}
    return [
        entry
        for name, mean in means.items()
        for entry in accuracy("escape", seed, name, mean, ratio if name == "sgd" else 1.0)
    ]


def full_beside_sgd(seed: int, value: float, ratio: float) -> Rows:
    return [
        *sharpness(seed, "gld-full", 2.0 * (1 + 0.1 * seed + value), ratio),
        *sharpness(seed, "sgd", 2.0 * (1 + 0.1 * seed)),
        *sharpness(seed, "gd", 2.0),
    ]


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


LOGS = {"supported": (1.0, 1.2, 0.9), "contradicted": (-1.0, -1.2, -0.9), "undecided": (1.0, -0.3, 0.2)}
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
    ),
    at_minimum(
        "aligned",
        "projection_coefficient",
        {"supported": (0.6, 0.62, 0.64), "contradicted": (0.04, 0.05, 0.06), "undecided": (0.05, 0.2, 0.1)},
    ),
    *(leaving("escapes", name, RISES) for name in ("sgd", "gld-leading", "gld-hessian", "gld-top-eigenvector")),
    *(leaving("stays", name, LOSS_SAME) for name in ("gld-constant", "gld-dynamic", "gld-diagonal")),
    leaving("gaussian-escapes", "gld-full", RISES),
    leaving("shuffled-stays", "gld-shuffled", LOSS_SAME),
    *(flattening("flatter", name, FALLS) for name in ("sgd", "gld-leading", "gld-hessian", "gld-top-eigenvector")),
    *(flattening("not-flatter", name, STAYS) for name in ("gld-constant", "gld-dynamic", "gld-diagonal")),
    Case("accuracy-follows", ("sgd", "gld-leading", "gld-constant"), followed, RISES),
    accuracies("accuracy-order", "sgd", "gld-diagonal", RISES, "over"),
    accuracies("accuracy-order", "gld-diagonal", "gld-dynamic", RISES, "over", "cifar10"),
    accuracies("accuracy-order", "gld-diagonal", "gld-constant", RISES, "over"),
    accuracies("isotropic-as-gd", "gld-constant", "gd", SAME, "and"),
    accuracies("isotropic-as-gd", "gld-dynamic", "gd", SAME, "and", "cifar10"),
    Case(
        "flatter-generalises",
        ("gd", "sgd", "gld-full"),
        ranked,
        {"supported": (-1.0, -1.0, -0.5), "contradicted": (0.5, 1.0, 1.0), "undecided": (-1.0, 1.0, 0.5)},
        experiment="svhn",
        noisy=False,
    ),
    flattening("gaussian-flattens", "gld-full", FALLS),
    Case("gaussian-as-sgd", ("gld-full", "sgd", "gd"), full_beside_sgd, LARGE_SAME),
    flattening("shuffled-does-not-flatten", "gld-shuffled", STAYS),
    flattening("noise-is-needed", "gd-gradient-penalty", STAYS),
    accuracies("gaussian-generalises-as-sgd", "gld-full", "sgd", SAME, "and"),
]


def by_case(cases: Sequence[Case] = CASES) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[f"{case.claim} {case.case}".strip() for case in cases])


def test_every_claim_has_its_hand_made_runs() -> None:
    assert {case.claim for case in CASES} | {"toy-order", "turned-basin", "isotropic-basin"} == CLAIM.keys()


# ---------------------------------------------------------------------- verdicts over seeds


@by_case()
@pytest.mark.parametrize("verdict", ["supported", "contradicted", "undecided"])
def test_the_verdict_is_the_known_one(case: Case, verdict: str, tmp_path: Path) -> None:
    values = case.verdicts[verdict]
    found = case.judged(tmp_path / "run", values)
    assert found.verdict == verdict
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert found.effect == pytest.approx(case.effect(np.mean(values)), abs=1e-12)
    assert found.low == pytest.approx(case.effect(low), abs=1e-12)
    assert found.high == pytest.approx(case.effect(high), abs=1e-12)
    assert found.n == 3
    assert found.note == "" or found.note.startswith("at least ")


def test_what_rises_does_not_fall(tmp_path: Path) -> None:
    """ "Does not flatten" has a margin on one side only."""
    case = next(case for case in CASES if case.claim == "not-flatter")
    assert case.judged(tmp_path / "run", (3.0, 2.0, 2.5)).verdict == "supported"


@by_case()
def test_one_seed_decides_nothing(case: Case, tmp_path: Path) -> None:
    found = case.judged(tmp_path / "run", case.verdicts["supported"][:1])
    assert found.verdict == "undecided"
    assert "one seed decides nothing" in found.note
    assert found.effect == pytest.approx(case.effect(case.verdicts["supported"][0]), abs=1e-12)
    assert (found.n, found.high) == (1, math.inf)


@by_case()
@pytest.mark.parametrize("verdict", ["supported", "contradicted"])
def test_a_seed_that_is_not_a_number_leaves_it_undecided(case: Case, verdict: str, tmp_path: Path) -> None:
    values = case.verdicts[verdict]
    found = case.judged(tmp_path / "run", [*values, math.nan, *values])
    assert found.verdict == "undecided"
    assert "diverged or not defined in 1 of 7 seeds" in found.note
    assert found.n == 6
    assert found.effect == pytest.approx(case.effect(np.mean(values)), abs=1e-12), "that of the others"


@by_case([case for case in CASES if len(case.dynamics) > 1])
def test_a_seed_that_diverged_leaves_it_undecided(case: Case, tmp_path: Path) -> None:
    """As simulate leaves it: a last NaN where it left every bound, and nothing at later steps."""
    values = case.verdicts["supported"]
    whole = case.run(tmp_path / "whole", values)
    rows = []
    for entry in whole.metrics().to_pylist():
        lost = (entry["seed"], entry["dynamics"]) == (1, case.dynamics[0])
        if lost and entry["step"] == 8:
            rows.append({**entry, "step": 7, "value": math.nan})
        elif not (lost and entry["step"] > 7):
            rows.append(entry)
    run = written(tmp_path / "diverged", case.experiment, whole.info["config"], rows)
    [found] = CLAIM[case.claim].judge(Evidence(run))
    assert (found.verdict, found.n) == ("undecided", 2)
    assert "diverged or not defined in 1 of 3 seeds" in found.note


OFF = {
    "below": ((0.49, 0.51, 0.5), "{} was injected at 0.48 to 0.52 times its target trace"),
    "above": ((1.99, 2.01, 2.0), "{} was injected at 2 to 2 times its target trace"),
    "perhaps below": (
        (0.6, 0.8, 1.0),
        "too few seeds to show the trace of {}: {} was injected at 0.3 to 1.3 times",
    ),
    "perhaps above": (
        (1.1, 1.4, 1.8),
        "too few seeds to show the trace of {}: {} was injected at 0.56 to 2.3 times",
    ),
    "all but shown": (
        (0.9, 1.0, 1.13),
        "too few seeds to show the trace of {}: {} was injected at 0.72 to 1.3 times",
    ),
    "not measured": ((math.nan,) * 3, "the injected trace of {} was not measured"),
    "in one seed not": ((1.0, math.nan, 1.0), "the injected trace of {} was not measured in 1 of 3 seeds"),
}


@by_case([case for case in CASES if case.noisy])
@pytest.mark.parametrize("off", OFF)
def test_noise_not_shown_to_be_of_its_trace_vetoes_any_verdict(case: Case, off: str, tmp_path: Path) -> None:
    ratios, told = OFF[off]
    for verdict, values in case.verdicts.items():
        found = case.judged(tmp_path / verdict, values, ratios)
        assert found.verdict == "undecided"
        assert found.veto is not None
        assert found.veto.startswith(told.replace("{}", case.dynamics[0]))
        assert found.effect == pytest.approx(case.effect(np.mean(values)), abs=1e-12)


@by_case([case for case in CASES if case.noisy])
@pytest.mark.parametrize("ratios", [(0.85, 0.85, 0.85), (1.2, 1.2, 1.2), (1.06, 0.97, 1.02)])
def test_noise_shown_to_be_of_its_trace_is_judged(
    case: Case, ratios: tuple[float, float, float], tmp_path: Path
) -> None:
    for verdict, values in case.verdicts.items():
        found = case.judged(tmp_path / verdict, values, ratios)
        assert (found.verdict, found.veto) == (verdict, None)


def test_more_seeds_show_what_three_do_not(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.claim == "flatter")
    values, ratios = case.verdicts["supported"], (0.9, 1.0, 1.13)
    assert case.judged(tmp_path / "three", values, ratios).veto is not None
    assert case.judged(tmp_path / "nine", values * 3, ratios * 3).veto is None


def test_a_veto_and_a_verdict_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="a veto leaves a claim undecided"):
        Result("supported", 1.0, 0.5, 1.5, 3, veto="one seed decides nothing")
    assert Result("supported", 1.0, 0.5, 1.5, 3, remark="at least 7").note == "at least 7"
    assert Result("undecided", 1.0, 0.5, 1.5, 3, veto="a", remark="b").note == "a; b"


def test_what_is_noted_decides_nothing() -> None:
    """The indicator's remark stands beside every verdict."""
    for verdict, values in LOGS.items():
        found = exceeds(values, 0.0)
        assert (found.verdict, found.veto, found.remark) == (verdict, None, "")
        assert replace(found, remark="at least 7").verdict == verdict
        assert exceeds(values, 0.0, veto="not measured").verdict == "undecided"


def test_the_trace_ratio_is_that_of_sums_over_common_steps(tmp_path: Path) -> None:
    rows = [
        *traces("escape", 0, "sgd", 0.5),
        row("escape", 1, "sgd", 0, "injected", 3.0),
        row("escape", 1, "sgd", 3, "injected", 1.0),
        row("escape", 1, "sgd", 0, "trace_target", 2.0),
        row("escape", 1, "sgd", 3, "trace_target", 8.0),
        row("escape", 2, "sgd", 3, "trace_target", 8.0),
    ]
    evidence = Evidence(written(tmp_path / "run", "digits", {"seeds": 3}, rows))
    assert evidence.trace_ratio("escape", "sgd") == pytest.approx([0.5, 0.4, math.nan], nan_ok=True)


@pytest.mark.parametrize("missing", ["injected", "trace_target"])
def test_noise_that_was_not_measured_is_not_taken_for_matched(missing: str, tmp_path: Path) -> None:
    """As in runs from before a metric had its name."""
    case = next(case for case in CASES if case.claim == "flatter")
    whole = case.run(tmp_path / "whole", case.verdicts["supported"])
    rows = [entry for entry in whole.metrics().to_pylist() if entry["metric"] != missing]
    run = written(tmp_path / "run", case.experiment, whole.info["config"], rows)
    [found] = CLAIM[case.claim].judge(Evidence(run))
    assert found.verdict == "undecided"
    assert found.veto == "the injected trace of sgd was not measured"


# ---------------------------------------------------------------------- which dynamics are judged

ALL = (
    "gd",
    "sgd",
    "gld-constant",
    "gld-dynamic",
    "gld-diagonal",
    "gld-leading",
    "gld-hessian",
    "gld-top-eigenvector",
    "gld-full",
    "gld-shuffled",
    "gd-gradient-penalty",
)


def all_at_once(seed: int, name: str) -> Rows:
    return [
        *sharpness(seed, name, 2.0 + 0.01 * seed),
        *(entry for entry in losses(seed, name, 0.1) if entry["metric"] == "loss"),
        row("escape", seed, name, STEPS, "test_accuracy", 0.5),
    ]


@pytest.mark.parametrize("compared", [ALL, ALL[1:]], ids=["all", "without gradient descent"])
def test_every_claim_on_escapes_judges_its_dynamics_and_no_other(compared: tuple[str, ...], tmp_path: Path) -> None:
    config = {"seeds": 2, "steps": STEPS, "gd_steps": GD_STEPS, "dynamics": compared}
    rows = [entry for seed, name in itertools.product(range(2), compared) for entry in all_at_once(seed, name)]
    findings = ledger([written(tmp_path / "run", "fashion-mnist", config, rows)])
    cases = {name: [f.result.case for f in findings if f.claim.name == name] for name in CLAIM}
    whatever_ran = {"indicator-along": [""], "ill-conditioned": [""], "aligned": [""], "accuracy-follows": [""]}
    beside_gradient_descent = {
        "escapes": ["sgd", "gld-leading", "gld-hessian", "gld-top-eigenvector"],
        "stays": ["gld-constant", "gld-dynamic", "gld-diagonal"],
        "flatter": ["sgd", "gld-leading", "gld-hessian", "gld-top-eigenvector"],
        "not-flatter": ["gld-constant", "gld-dynamic", "gld-diagonal"],
        "gaussian-escapes": ["gld-full"],
        "shuffled-stays": ["gld-shuffled"],
        "gaussian-flattens": ["gld-full"],
        "gaussian-as-sgd": [""],
        "shuffled-does-not-flatten": ["gld-shuffled"],
        "noise-is-needed": ["gd-gradient-penalty"],
    }
    expected = whatever_ran | (beside_gradient_descent if "gd" in compared else {})
    assert {name: found for name, found in cases.items() if found} == expected


@pytest.mark.parametrize("base", [0.0, -1.0])
def test_where_gradient_descent_is_not_sharp_nothing_is_relative_to_it(base: float, tmp_path: Path) -> None:
    config = {"seeds": 2, "steps": STEPS, "dynamics": ["gd", "sgd"]}
    rows = [
        entry
        for seed, level in enumerate((base, 2.0))
        for entry in (*sharpness(seed, "gd", level), *sharpness(seed, "sgd", 1.0))
    ]
    [found] = CLAIM["flatter"].judge(Evidence(written(tmp_path / "run", "digits", config, rows)))
    assert (found.verdict, found.n) == ("undecided", 1)
    assert found.effect == pytest.approx(-0.5)


def test_accuracy_follows_compares_the_means_of_both_groups(tmp_path: Path) -> None:
    found = dict(zip(ALL, (0.0, 0.9, 0.3, 0.4, 0.8, 0.6, 0.7, 0.2, 0.0, 0.0, 0.0), strict=True))
    config = {"seeds": 2, "steps": STEPS, "gd_steps": GD_STEPS, "dynamics": ALL}
    rows = [
        entry
        for seed, name in itertools.product(range(2), ALL)
        for entry in accuracy("escape", seed, name, found[name] + 0.05 * seed)
    ]
    evidence = Evidence(written(tmp_path / "run", "digits", config, rows))
    [result] = CLAIM["accuracy-follows"].judge(evidence)
    assert result.effect == pytest.approx((0.9 + 0.6 + 0.7 + 0.2) / 4 - (0.3 + 0.4 + 0.8) / 3)
    assert result.verdict == "supported"


@pytest.mark.parametrize(
    ("experiment", "judged"),
    [
        ("fashion-mnist", {"indicator-along", "ill-conditioned", "aligned"}),
        ("svhn", {"flatter-generalises"}),
    ],
)
def test_what_did_not_run_is_not_judged(experiment: str, judged: set[str], tmp_path: Path) -> None:
    config = {"seeds": 2, "steps": STEPS, "gd_steps": GD_STEPS, "dynamics": ["gd"]}
    rows = [
        entry
        for seed in range(2)
        for entry in (
            *all_at_once(seed, "gd"),
            row("training", seed, "gd", STEPS, "test_accuracy", 0.5),
            row("training", seed, "gd", STEPS, "sharpness/signed", 0.5),
        )
    ]
    run = written(tmp_path / "run", experiment, config, rows)
    assert {finding.claim.name for finding in ledger([run])} == judged


# ---------------------------------------------------------------------- the indicator


def test_the_least_ratio_of_all_epochs_is_told(tmp_path: Path) -> None:
    case = CASES[0]
    found = case.judged(tmp_path / "high", [math.log(10), math.log(20), math.log(30)])
    assert found.note == ""  # every seed's first epoch has the ratio 1
    rows = [{**entry, "value": 7 * entry["value"]} for entry in hidden(0, 2.0, 1.0) + hidden(1, 2.5, 1.0)]
    run = written(tmp_path / "higher", "one-hidden-layer", {"seeds": 2}, rows)
    [found] = CLAIM[case.claim].judge(Evidence(run))
    assert found.note == "at least 7 at every epoch"
    assert found.effect == pytest.approx(7 * math.exp(2.25))


def test_every_width_and_optimiser_is_a_case_of_its_own(tmp_path: Path) -> None:
    rows = [
        {**entry, "width": width, "optimiser": optimiser}
        for seed in range(3)
        for width, optimiser, sign in ((32, "gd", 1), (512, "adam", 1), (32, "adam", -1))
        for entry in hidden(seed, sign * (1 + 0.1 * seed), 1.0)
    ]
    evidence = Evidence(written(tmp_path / "run", "one-hidden-layer", {"seeds": 3}, rows))
    found = {result.case: result.verdict for result in CLAIM["indicator-one-hidden-layer"].judge(evidence)}
    assert found == {
        "adam, width 32": "contradicted",
        "adam, width 512": "supported",
        "gd, width 32": "supported",
    }


@pytest.mark.parametrize("value", [0.0, -3.0, math.nan])
def test_a_ratio_without_logarithm_leaves_it_undecided(value: float, tmp_path: Path) -> None:
    for index, (name, rows) in enumerate((("indicator-one-hidden-layer", hidden), ("indicator-along", along))):
        case = CASES[index]
        table = [entry for seed in range(3) for entry in rows(seed, 1.0 + 0.1 * seed, 1.0)]
        metric = "anisotropy" if rows is hidden else "along/trace_h_sigma"
        broken = next(entry for entry in table if entry["metric"] == metric and entry["seed"] == 1)
        broken["value"] = value
        config = {"seeds": 3, "gd_steps": GD_STEPS}
        [found] = CLAIM[name].judge(Evidence(written(tmp_path / name, case.experiment, config, table)))
        assert found.verdict == "undecided"
        assert "diverged or not defined in 1 of 3 seeds" in found.note


@pytest.mark.parametrize("reference", [0.0, -2.0])
def test_where_the_curvature_is_not_positive_there_is_nothing_to_exceed(reference: float, tmp_path: Path) -> None:
    """TrH ≤ 0, as near the start: such a step is left out."""
    rows = [entry for seed in range(3) for entry in along(seed, 1.0 + 0.1 * seed, 1.0)]
    for entry in rows:
        if entry["metric"] == "along/isotropic_reference" and entry["step"] == 10:
            entry["value"] = reference
    [found] = CLAIM["indicator-along"].judge(
        Evidence(written(tmp_path / "run", "digits", {"seeds": 3, "gd_steps": GD_STEPS}, rows))
    )
    assert found.effect == pytest.approx(math.exp(1.5 * 1.1)), "the mean of 2 and 1 times each seed's"
    assert found.verdict == "supported"


def test_no_ratio_has_no_least(tmp_path: Path) -> None:
    rows = [entry for seed in range(3) for entry in along(seed, 1.0, 1.0)]
    for entry in rows:
        if entry["metric"].endswith("isotropic_reference"):
            entry["value"] = -1.0
    evidence = Evidence(written(tmp_path / "run", "digits", {"seeds": 3, "gd_steps": GD_STEPS}, rows))
    [found] = CLAIM["indicator-along"].judge(evidence)
    assert found.verdict == "undecided"
    assert found.note == "diverged or not defined in 3 of 3 seeds"


# ---------------------------------------------------------------------- the toy

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
    return Evidence(written(path, "toy-2d", {"replicas": n}, [], summary))


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


def test_the_order_of_the_toy_is_supported(tmp_path: Path) -> None:
    [found] = CLAIM["toy-order"].judge(toy(tmp_path / "run"))
    # of 15 pairs two are not compared: constant and diagonal are equal, leading and Hessian within 5 %
    assert (found.verdict, found.case, found.n) == ("supported", "13 pairs", 4000)
    assert found.note == "smallest between gld-constant and gd"
    assert found.effect == pytest.approx(0.1)
    expected = newcombe((400, 4000), (0, 4000), 1 - 0.05 / 13)
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)


def test_one_reversed_pair_contradicts_the_order(tmp_path: Path) -> None:
    """A sharper noise that escapes less often, though every other pair is in order."""
    rates = {**RATES, "gld-top-eigenvector": 0.25}
    [found] = CLAIM["toy-order"].judge(toy(tmp_path / "run", rates))
    assert found.verdict == "contradicted"
    assert found.effect == pytest.approx(0.25 - 0.31)
    assert found.high < 0
    assert found.note == (
        "smallest between gld-top-eigenvector and gld-hessian; "
        "against the order: gld-leading over gld-top-eigenvector, gld-hessian over gld-top-eigenvector"
    )


def test_a_pair_that_cannot_be_told_apart_leaves_the_order_undecided(tmp_path: Path) -> None:
    rates = {**RATES, "gld-top-eigenvector": 0.312}
    [found] = CLAIM["toy-order"].judge(toy(tmp_path / "run", rates))
    assert found.verdict == "undecided"
    assert found.note == (
        "smallest between gld-top-eigenvector and gld-hessian; not told apart: "
        "gld-top-eigenvector and gld-leading, gld-top-eigenvector and gld-hessian"
    )
    both = {**rates, "gld-constant": 0.4}
    [found] = CLAIM["toy-order"].judge(toy(tmp_path / "both", both))
    assert found.verdict == "contradicted", "what is against the order outweighs what is open"
    assert "not told apart" in found.note


def test_near_equal_indicators_predict_no_order(tmp_path: Path) -> None:
    rates = {**RATES, "gld-constant": 0.12, "gld-diagonal": 0.08, "gld-leading": 0.31, "gld-hessian": 0.30}
    [found] = CLAIM["toy-order"].judge(toy(tmp_path / "run", rates))
    assert (found.verdict, found.case) == ("supported", "13 pairs")
    apart = {**INDICATORS, "gld-diagonal": 44_000 * 1.051}
    [found] = CLAIM["toy-order"].judge(toy(tmp_path / "apart", rates, apart))
    assert (found.verdict, found.case) == ("contradicted", "14 pairs")


def test_pairs_are_compared_at_a_corrected_level(tmp_path: Path) -> None:
    """64 and 39 of 1,000: apart on their own, not beside twelve other pairs."""
    rates = {**RATES, "gld-constant": 0.064, "gld-diagonal": 0.064, "gd": 0.039}
    assert newcombe((64, 1000), (39, 1000), 0.95)[0] > 0
    assert newcombe((64, 1000), (39, 1000), 1 - 0.05 / 13)[0] < 0
    [found] = CLAIM["toy-order"].judge(toy(tmp_path / "run", rates, n=1000))
    assert found.verdict == "undecided"
    assert found.note.endswith("not told apart: gld-constant and gd, gld-diagonal and gd")


def shifted(by: dict[str, float]) -> dict[str, float]:
    return {name: rate + by.get(name, 0.0) for name, rate in RATES.items()}


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.0, "supported"), (0.02, "supported"), (0.05, "undecided"), (0.2, "contradicted")]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_turned_basin_is_compared_with_the_published(
    shift: float, verdict: str, sign: int, tmp_path: Path
) -> None:
    turned = shifted({"gld-leading": -sign * shift})
    results = {found.case: found for found in CLAIM["turned-basin"].judge(toy(tmp_path / "run", rotated=turned))}
    assert [*results] == [name for name in SIX if name != "gd"]
    assert {name: found.verdict for name, found in results.items()} == {
        **dict.fromkeys(results, "supported"),
        "gld-leading": verdict,
    }
    found = results["gld-leading"]
    assert found.effect == pytest.approx(sign * shift), "published minus turned"
    expected = newcombe((1200, 4000), (round(4000 * (0.3 - sign * shift)), 4000), 1 - 0.05 / 5)
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("rate", "verdict"), [(0.2, "supported"), (0.25, "undecided"), (0.4, "contradicted"), (0.05, "contradicted")]
)
def test_the_isotropic_basin_is_compared_with_constant_noise(rate: float, verdict: str, tmp_path: Path) -> None:
    shares = {**dict.fromkeys(SIX, 0.2), "gd": 0.0, "gld-hessian": rate}
    results = CLAIM["isotropic-basin"].judge(toy(tmp_path / "run", isotropic=shares))
    verdicts = {found.case: found.verdict for found in results}
    others = ("gld-diagonal", "gld-leading", "gld-hessian", "gld-top-eigenvector")
    assert verdicts == {
        f"{name} and gld-constant": verdict if name == "gld-hessian" else "supported" for name in others
    }
    found = results[2]
    assert found.effect == pytest.approx(rate - 0.2)
    expected = newcombe((round(4000 * rate), 4000), (800, 4000), 1 - 0.05 / 4)
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)


def test_a_toy_without_controls_is_judged_by_its_order_only(tmp_path: Path) -> None:
    evidence = toy(tmp_path / "run")
    assert [finding.claim.name for finding in ledger([evidence.run])] == ["toy-order"]


def test_a_toy_without_noise_predicts_no_order(tmp_path: Path) -> None:
    """As with update_trace = 0: every indicator is 0, and there is no pair to compare."""
    nothing = dict.fromkeys(SIX, 0.0)
    assert all(
        found.verdict == "undecided" for found in CLAIM["toy-order"].judge(toy(tmp_path / "run", nothing, nothing))
    )


# ---------------------------------------------------------------------- intervals of differences


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_a_difference_of_rates_is_newcombes(
    one: tuple[int, int], other: tuple[int, int], low: float, high: float
) -> None:
    """Table II of his paper, method 10."""
    found = rate_difference(one, other)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
    assert found.value == one[0] / one[1] - other[0] / other[1]
    back = rate_difference(other, one)
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


@pytest.mark.parametrize("comparisons", [1, 2, 15])
@pytest.mark.parametrize("one", [(0, 40), (13, 40), (40, 40)])
@pytest.mark.parametrize("other", [(0, 500), (250, 500), (499, 500)])
def test_a_difference_of_rates_is_the_textbook_formula(
    one: tuple[int, int], other: tuple[int, int], comparisons: int
) -> None:
    found = rate_difference(one, other, comparisons=comparisons)
    expected = newcombe(one, other, 1 - 0.05 / comparisons)
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)


def covered(first: float, second: float, trials: int, comparisons: int) -> float:
    """How often the interval holds the true difference: the sum over both binomials, exactly."""
    counts = np.arange(trials + 1)
    inside = np.zeros((trials + 1, trials + 1))
    for one, other in itertools.product(counts.tolist(), repeat=2):
        found = rate_difference((one, trials), (other, trials), comparisons=comparisons)
        inside[one, other] = found.low <= first - second <= found.high
    weights = np.outer(stats.binom.pmf(counts, trials, first), stats.binom.pmf(counts, trials, second))
    return float((inside * weights).sum())


def test_a_difference_of_rates_covers_the_truth_as_often_as_it_says() -> None:
    assert 0.935 < covered(0.5, 0.3, 20, comparisons=1) < 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"), [(0.5, 0.5), (0.4, 0.1), (0.05, 0.02), (0.9, 0.1), (0.01, 0.01), (0.3, 0.0)]
)
@pytest.mark.parametrize(("comparisons", "least"), [(1, 0.93), (13, 0.992)])
def test_a_difference_of_rates_covers_the_truth_at_many_rates(
    first: float, second: float, comparisons: int, least: float
) -> None:
    assert covered(first, second, 60, comparisons) > least


def test_a_family_of_corrected_intervals_holds_all_truths_together() -> None:
    """Thirteen differences of the toy's own rates at once, simulated."""
    generator = np.random.default_rng(0)
    pairs = [(a, b) for a, b in itertools.combinations(RATES.values(), 2)][:13]
    trials, draws, held = 500, 60, 0
    for _ in range(draws):
        counts = {share: int(generator.binomial(trials, share)) for share in RATES.values()}
        found = [
            rate_difference((counts[a], trials), (counts[b], trials), comparisons=len(pairs)) for a, b in pairs
        ]
        held += all(f.low <= a - b <= f.high for f, (a, b) in zip(found, pairs, strict=True))
    # at least 95 % are to hold: fewer than this many of 60 would be seen less than once in 10,000 times
    assert held >= stats.binom.ppf(1e-4, draws, 0.95)


def test_rank_correlation_shares_the_ranks_of_ties() -> None:
    """Ranks 1, 2½, 2½, 4 and 1, 3, 2, 4: 4.5/√(4.5·5)."""
    assert rank_correlation([1, 2, 2, 3], [10, 30, 20, 40]) == pytest.approx(4.5 / math.sqrt(22.5))
    # ranks 1½, 1½, 3½, 3½ and 2, 2, 2, 4: 1/√(4·3)·3
    assert rank_correlation([0, 0, 5, 5], [1, 1, 1, 9]) == pytest.approx(3 / math.sqrt(27))


def test_rank_correlation_without_ties_is_spearmans_formula() -> None:
    for order in itertools.permutations(range(1, 5)):
        squares = sum((rank - position) ** 2 for position, rank in enumerate(order, 1))
        found = rank_correlation([math.exp(value) for value in order], [-100.0, 0.0, 1.5, 9.0])
        assert found == pytest.approx(1 - 6 * squares / (4 * 15))


@pytest.mark.parametrize(
    ("one", "other"),
    [([1, 2, math.nan], [1, 2, 3]), ([1, 2, 3], [1, math.inf, 3]), ([2, 2, 2], [1, 2, 3]), ([], []), ([1], [1])],
)
def test_rank_correlation_of_what_has_no_ranks_is_none(one: list[float], other: list[float]) -> None:
    assert math.isnan(rank_correlation(one, other))


# ---------------------------------------------------------------------- claims and findings as text


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_every_claim_says_what_it_is_and_how_it_is_judged(claim: Claim) -> None:
    for text in (claim.statement, claim.where, claim.statistic, claim.rule):
        assert text.strip()
        assert "  " not in text
    assert claim.statement.endswith(".")
    assert claim.statistic.endswith(".")
    assert claim.rule.endswith(".")
    assert "upported" in claim.rule
    assert "contradicted" in claim.rule
    assert claim.name == claim.name.lower()
    assert claim.experiments
    assert set(claim.experiments) <= RUNNERS.keys()
    assert claim.form.format(0.5)


def test_claims_have_names_of_their_own_and_controls_come_last() -> None:
    assert len(CLAIM) == len(CLAIMS)
    assert len({claim.statement for claim in CLAIMS}) == len(CLAIMS)
    assert [claim.control for claim in CLAIMS] == sorted(claim.control for claim in CLAIMS)


def test_every_experiment_of_the_paper_bears_on_a_claim() -> None:
    for experiment in paper_suite("paper"):
        assert [claim for claim in CLAIMS if experiment in claim.experiments and not claim.control]


EXAMPLE = Finding(
    CLAIM["isotropic-as-gd"], "svhn", "svhn-1", "svhn", Result("supported", 0.00123, -0.004, 0.0061, 3, "a and b")
)


@pytest.mark.parametrize(
    ("claim", "result", "text"),
    [
        ("isotropic-as-gd", EXAMPLE.result, "+0.1% [-0.4%, +0.6%]"),
        ("toy-order", Result("supported", 0.5, 0.25, 1.0, 9), "+50.0% [+25.0%, +100.0%]"),
        ("flatter", Result("undecided", -0.504, -1.2, 0.2, 3), "-50% [-120%, +20%]"),
        ("indicator-along", Result("supported", 1234.5, 12.345, 123456.0, 3), "1234 [12.35, 1.235e+05]"),
        ("ill-conditioned", Result("supported", 0.61803, 0.6, 0.63, 3), "0.618 [0.6, 0.63]"),
        ("flatter-generalises", Result("undecided", -0.25, -1.0, 0.5, 3), "-0.25 [-1.00, +0.50]"),
        ("flatter", Result("undecided", 0.1, -math.inf, math.inf, 1), "+10%"),
        ("indicator-along", Result("undecided", 3.0, 0.0, math.inf, 1), "3"),
        ("flatter", Result("undecided", math.nan, math.nan, math.nan, 0), "–"),
        ("flatter", Result("undecided", math.inf, math.nan, math.nan, 0), "–"),
    ],
)
def test_effects_are_printed_with_their_interval(claim: str, result: Result, text: str) -> None:
    assert Finding(CLAIM[claim], "digits", "run", "digits", result).effect_text == text


def test_a_finding_is_strict_json() -> None:
    found = json.loads(strict_json(EXAMPLE.to_dict()), parse_constant=pytest.fail)
    claim = CLAIM["isotropic-as-gd"]
    assert found == {
        "name": "isotropic-as-gd",
        "statement": claim.statement,
        "where": claim.where,
        "statistic": claim.statistic,
        "rule": claim.rule,
        "control": False,
        "experiment": "svhn",
        "run": "svhn-1",
        **{key: value for key, value in asdict(EXAMPLE.result).items() if key != "remark"},
        "note": "",
    }
    endless = replace(EXAMPLE, result=Result("undecided", math.nan, -math.inf, math.inf, 1))
    found = json.loads(strict_json(endless.to_dict()), parse_constant=pytest.fail)
    assert (found["effect"], found["low"], found["high"]) == (None, None, None)


@pytest.fixture
def two_runs(tmp_path: Path) -> list[Run]:
    """An escape, where SGD and gradient descent ran, and a toy."""
    config = {"seeds": 2, "steps": STEPS, "gd_steps": GD_STEPS, "dynamics": ["gd", "sgd"]}
    rows = [entry for seed in range(2) for name in ("gd", "sgd") for entry in all_at_once(seed, name)]
    escape = written(tmp_path / "escape", "digits", config, rows)
    return [escape, toy(tmp_path / "toy", rotated=RATES).run]


def test_the_ledger_is_in_the_order_of_the_claims_then_of_the_runs(two_runs: list[Run], tmp_path: Path) -> None:
    other = toy(tmp_path / "other").run
    findings = ledger([*two_runs, other])
    places = [([*CLAIM].index(f.claim.name), ["escape", "toy", "other"].index(f.run)) for f in findings]
    assert places == sorted(places)
    assert [(f.claim.name, f.experiment, f.run) for f in findings[:3]] == [
        ("toy-order", "toy-2d", "toy"),
        ("toy-order", "toy-2d", "other"),
        ("indicator-along", "digits", "escape"),
    ]
    assert ledger([]) == []


def test_a_run_that_bears_on_no_claim_has_no_findings(tmp_path: Path) -> None:
    assert ledger([written(tmp_path / "run", "mnist", {}, [])]) == []


def test_the_ledger_in_a_terminal_names_each_claim_once(two_runs: list[Run]) -> None:
    findings = ledger(two_runs)
    text = ledger_text(findings).plain
    for claim in {finding.claim for finding in findings}:
        assert text.count(f"{'Control: ' if claim.control else ''}{claim.statement}\n") == 1
        assert claim.rule not in text
    for finding in findings:
        assert f"{finding.effect_text}, n = {finding.result.n}\n" in text
    assert text.count("toy-2d") == sum(finding.experiment == "toy-2d" for finding in findings)
    verbose = ledger_text(findings, verbose=True).plain
    for claim in {finding.claim for finding in findings}:
        assert f"  {claim.statistic}\n  {claim.rule}\n" in verbose
    alone = ledger_text(ledger(two_runs[:1])).plain
    assert "digits" not in alone, "one run need not be named"


def test_two_runs_of_one_experiment_are_told_apart(two_runs: list[Run], tmp_path: Path) -> None:
    findings = ledger([two_runs[1], toy(tmp_path / "another", {**RATES, "gld-constant": 0.45}).run])
    lines = [line for line in ledger_text(findings[:2]).plain.splitlines() if "n = " in line]
    assert ["another" in line for line in lines] == [False, True]
    cells = [" ".join(row) for row in ledger_sections(findings)[0].items[0].rows]
    assert sum("another" in row for row in cells) == 1


def test_the_ledger_on_a_page_parts_claims_from_controls(two_runs: list[Run]) -> None:
    findings = ledger(two_runs)
    [section] = ledger_sections(findings)
    tables = [item for item in section.items if item.kind == "table"]
    assert [len(table.rows) for table in tables] == [
        sum(not finding.claim.control for finding in findings),
        sum(finding.claim.control for finding in findings),
    ]
    assert section.text.startswith(told([f for f in findings if not f.claim.control]))
    [rules] = rules_section(findings)
    assert [rows[0] for rows in rules.items[0].rows] == list(dict.fromkeys(f.claim.name for f in findings))
    assert ledger_sections([]) == rules_section([]) == []


def test_verdicts_are_counted_in_a_sentence() -> None:
    def verdicts(*names: Any) -> list[Finding]:
        return [replace(EXAMPLE, result=replace(EXAMPLE.result, verdict=name)) for name in names]

    found = verdicts("undecided", "supported", "contradicted", "supported")
    assert told(found) == "Of 4 findings on the paper's claims: 2 supported, 1 contradicted, 1 undecided."
    assert told(verdicts("undecided")) == "Of 1 findings on the paper's claims: 1 undecided."
