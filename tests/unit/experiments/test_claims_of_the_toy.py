"""The claims on the toy: order and controls."""

from __future__ import annotations

from pathlib import Path

import pytest

from claim_runs import (
    CLAIM,
    INDICATORS,
    RATES,
    SIX,
    newcombe,
    toy,
)
from noisescape.experiments.claims import ledger


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


def test_a_pair_too_close_to_order_leaves_the_order_undecided(tmp_path: Path) -> None:
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
    assert [finding.claim.name for finding in ledger([*evidence.pool.runs])] == ["toy-order"]


def test_a_toy_without_noise_predicts_no_order(tmp_path: Path) -> None:
    """As with update_trace = 0: every indicator is 0, and there is no pair to compare."""
    nothing = dict.fromkeys(SIX, 0.0)
    assert all(
        found.verdict == "undecided" for found in CLAIM["toy-order"].judge(toy(tmp_path / "run", nothing, nothing))
    )
