"""The later laws' claims, held to hand-made runs whose verdict is known beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from claim_runs import CLAIM, Rows, written
from noisescape.experiments.claims import Evidence
from noisescape.experiments.claims.lab_catalogue import LAB_CLAIMS

CONFIG = {
    "stability": {"batch_sizes": (5, 20), "multiples": (0.5, 1.0, 1.5)},
    "budget": {"batch_sizes": (8, 32), "momenta": (0.0, 0.9)},
    "exits": {},
    "svag": {"below": (0.2, 0.8)},
    "noise-law": {"batch_sizes": (5, 50)},
    "alignment": {},
    "implicit-bias": {},
    "llc": {},
}
PLACES = ("initialisation", "GD minimum", "SGD")
TAILS = tuple(f"{place}, B = {size}" for place in ("initialisation", "minimum") for size in (5, 50))
KNOWN = ("quadratic, D = 2", "x⁴", "x²y²")
NETWORKS = ("network, GD minimum", "network, SGD")


def around(threshold: float, spread: float = 0.01) -> dict[str, tuple[float, float, float]]:
    """Three seeds over a threshold, under it, and on both sides of it."""
    return {
        "above": (threshold + 0.3, threshold + 0.3 + spread, threshold + 0.3 - spread),
        "below": (threshold - 0.3, threshold - 0.3 + spread, threshold - 0.3 - spread),
        "astride": (threshold - 0.3, threshold + 0.3, threshold + 0.1),
    }


def over(threshold: float) -> dict[str, tuple[float, float, float]]:
    found = around(threshold)
    return {"supported": found["above"], "contradicted": found["below"], "undecided": found["astride"]}


def under(threshold: float) -> dict[str, tuple[float, float, float]]:
    found = around(threshold)
    return {"supported": found["below"], "contradicted": found["above"], "undecided": found["astride"]}


def inside(least: float, most: float) -> dict[str, tuple[float, float, float]]:
    middle, width = (least + most) / 2, (most - least) / 2
    return {
        "supported": (middle, middle + 0.1 * width, middle - 0.1 * width),
        "contradicted": (most + width, most + 1.1 * width, most + 0.9 * width),
        "undecided": (middle, most + width, most),
    }


@dataclass(frozen=True)
class Law:
    """A claim, the cases it is judged in, and the figures of a seed that make its statistic what it is."""

    cases: tuple[str, ...]
    figures: Callable[[float], dict[tuple[str, str], float]]
    verdicts: dict[str, tuple[float, float, float]]


def each(cases: tuple[str, ...], metric: str) -> Callable[[float], dict[tuple[str, str], float]]:
    return lambda value: {(case, metric): value for case in cases}


def logged(case: str, threshold: float) -> Callable[[float], dict[tuple[str, str], float]]:
    return lambda value: {(case, "error"): threshold * 10**value}


def with_rest(cases: tuple[str, ...]) -> Callable[[float], dict[tuple[str, str], float]]:
    return lambda value: {(case, name): value for case in cases for name in ("settled", "before")}


AT = ("B = 5, 1 η*", "B = 20, 1 η*")
SQUARED, MOMENTUM = ("B = 8", "B = 32"), ("B = 8, β = 0.9", "B = 32, β = 0.9")
LAWS = {
    "unstable-not-diffusing": Law(
        AT,
        lambda value: {
            (case, f"left/{name}"): found for case in AT for name, found in (("sgd", value), ("additive", 0.0))
        },
        over(0.0),
    ),
    "threshold-parts": Law(
        ("B = 5", "B = 20"),
        lambda value: {
            **{
                (f"B = {size}, {multiple} η*", "left/sgd"): found
                for size in (5, 20)
                for multiple, found in (("1.5", value), ("0.5", 0.0))
            },
            **{(f"B = {size}, 1.5 η*", "over_descent"): 0.9 for size in (5, 20)},
        },
        over(0.5),
    ),
    "batch-sharpness-settles": Law(SQUARED, with_rest(SQUARED), inside(0.8, 1.2)),
    "momentum-lowers-batch-sharpness": Law(MOMENTUM, with_rest(MOMENTUM), inside(0.8, 1.2)),
    "batch-sharpness-of-cross-entropy": Law(
        ("B = 8, cross-entropy",), with_rest(("B = 8, cross-entropy",)), inside(0.8, 1.2)
    ),
    "fixed-noise-exponential": Law(("well, additive",), each(("well, additive",), "difference"), over(0.0)),
    "loss-noise-power-law": Law(
        ("well, multiplicative",), each(("well, multiplicative",), "difference"), under(0.0)
    ),
    "kramers-slope": Law(("well, additive",), each(("well, additive",), "exponential_slope"), inside(0.9, 1.1)),
    "power-slope": Law(
        ("well, multiplicative",), each(("well, multiplicative",), "relative_slope"), inside(0.9, 1.1)
    ),
    "sgd-is-where-its-equation-is": Law(
        ("η = 0.2 η*, ℓ = 1", "η = 0.8 η*, ℓ = 1"),
        each(("η = 0.2 η*, ℓ = 1", "η = 0.8 η*, ℓ = 1"), "gap"),
        inside(-0.25, 0.25),
    ),
    "heavy-over-iterations": Law(TAILS, each(TAILS, "index_over_iterations/beyond"), under(-0.1)),
    "noise-is-stable": Law(
        ("initialisation", "minimum"),
        lambda value: {
            (f"{place}, B = {size}", "index_over_iterations"): 1.5 + value * (size == 50)
            for place in ("initialisation", "minimum")
            for size in (5, 50)
        },
        inside(-0.1, 0.1),
    ),
    "heavy-over-coordinates-by-covariance": Law(
        TAILS, each(TAILS, "index_over_coordinates/beyond"), inside(-0.1, 0.1)
    ),
    "epochs-as-predicted": Law(
        ("epochs, flat",), each(("epochs, flat",), "log_excess"), inside(-math.log10(2), math.log10(2))
    ),
    "epochs-quieten": Law(("epochs, all",), each(("epochs, all",), "variance_share"), under(1.0)),
    "alignment-exponent": Law(PLACES, each(PLACES, "exponent"), inside(1.0, 2.0)),
    "aligned-beyond-chance": Law(PLACES, each(PLACES, "beyond_null"), over(0.0)),
    "alignment-factor": Law(PLACES, each(PLACES, "mu"), over(0.1)),
    "label-noise-recovers": Law(("label noise",), logged("label noise", 0.1), under(0.0)),
    "spherical-noise-does-not": Law(("spherical, the best",), logged("spherical, the best", 0.5), over(0.0)),
    "penalty-recovers-too": Law(("penalty, no noise",), logged("penalty, no noise", 0.1), under(0.0)),
    "coefficient-where-known": Law(KNOWN, each(KNOWN, "off"), inside(-0.1, 0.1)),
    "network-is-singular": Law(
        NETWORKS,
        lambda value: {
            (case, name): found
            for case in NETWORKS
            for name, found in (("log_over_quadratic", value), ("r_hat", 1.0), ("shortfall", 0.0))
        },
        under(0.0),
    ),
}


def run(path: Path, name: str, values: tuple[float, ...], **changed: float):
    """A run from which the claim's statistic comes out as given; some figures changed by name."""
    [experiment] = CLAIM[name].experiments
    rows: Rows = [
        {"seed": seed, "case": case, "metric": metric, "step": 0, "value": changed.get(metric, value)}
        for seed, statistic in enumerate(values)
        for (case, metric), value in LAWS[name].figures(statistic).items()
    ]
    return written(path, experiment, {"seeds": len(values), **CONFIG[experiment]}, rows)


def judged(path: Path, name: str, values: tuple[float, ...], **changed: float):
    return CLAIM[name].judge(Evidence.of(run(path, name, values, **changed)))


def test_every_claim_of_the_lab_has_its_hand_made_runs():
    assert {claim.name for claim in LAB_CLAIMS} == LAWS.keys()


@pytest.mark.parametrize("verdict", ["supported", "contradicted", "undecided"])
@pytest.mark.parametrize("name", LAWS)
def test_the_verdict_is_the_known_one(name, verdict, tmp_path):
    values = LAWS[name].verdicts[verdict]
    results = judged(tmp_path / "run", name, values)
    assert [result.case for result in results] == [*LAWS[name].cases]
    for result in results:
        assert (result.verdict, result.n, result.veto) == (verdict, 3, None)
        assert result.effect == pytest.approx(sum(values) / 3, abs=1e-9)


@pytest.mark.parametrize("name", LAWS)
def test_one_seed_decides_nothing(name, tmp_path):
    results = judged(tmp_path / "run", name, LAWS[name].verdicts["supported"][:1])
    assert all(result.verdict == "undecided" for result in results)


@pytest.mark.parametrize("name", LAWS)
def test_a_figure_that_is_missing_leaves_it_undecided(name, tmp_path):
    whole = run(tmp_path / "whole", name, LAWS[name].verdicts["supported"])
    rows = [row for row in whole.metrics().to_pylist() if row["seed"] != 1]
    missing = written(tmp_path / "missing", whole.info["experiment"], whole.info["config"], rows)
    for result in CLAIM[name].judge(Evidence.of(missing)):
        assert (result.verdict, result.n) == ("undecided", 2)


def test_what_still_rises_has_not_settled(tmp_path):
    name = "batch-sharpness-settles"
    for result in judged(tmp_path / "run", name, LAWS[name].verdicts["supported"], before=0.8):
        assert result.verdict == "undecided"
        assert result.veto == "it still rose, by 25% over the last quarter of the steps"


def test_chains_that_do_not_agree_decide_nothing(tmp_path):
    for result in judged(tmp_path / "run", "network-is-singular", (-0.3, -0.31, -0.29), r_hat=1.2):
        assert result.verdict == "undecided"
        assert result.veto == "the chains do not agree: R̂ = 1.20, over 1.05"


def test_chains_below_the_minimum_decide_nothing(tmp_path):
    for result in judged(tmp_path / "run", "network-is-singular", (-0.3, -0.31, -0.29), shortfall=2.0):
        assert result.verdict == "undecided"
        assert result.veto == "chains went below the minimum: λ̂ is too low by 2 or more"


def test_a_rate_at_which_gradient_descent_leaves_decides_nothing(tmp_path):
    for result in judged(tmp_path / "run", "threshold-parts", (0.9, 0.91, 0.89), over_descent=1.2):
        assert result.verdict == "undecided"
        assert result.veto == "gradient descent leaves as well, at 1.20 times its own limit"


def test_an_arm_that_diverged_recovers_nothing(tmp_path):
    for result in judged(tmp_path / "run", "label-noise-recovers", (-1.0, math.inf, -1.0)):
        assert result.verdict == "undecided"
