"""The branched check on quadratics, where the loss of every branch and the critical batch size are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import noisescape as ns
from branch_cases import Bowl, Drawn, expected_excess, half_square
from cases import F64
from noisescape.errors import FailedError
from noisescape.training import branches
from noisescape.training.branches import BranchedCheck
from slowness import quick

CURVATURE = torch.tensor([1.0, 0.2], dtype=F64)
START = torch.tensor([0.5, -1.0], dtype=F64)
SPREAD = torch.tensor([2.0, 3.0], dtype=F64)


def still(*curvature: float) -> Bowl:
    return Bowl(torch.tensor(curvature, dtype=F64), torch.ones(len(curvature), dtype=F64))


def noiseless(lr: float, **given: object) -> BranchedCheck:
    """All samples are alike: steps are those of gradient descent."""
    bowl = still(1.0)
    data = (torch.zeros(64, 1, dtype=F64), torch.zeros(64, 1, dtype=F64))
    settings = {"batch_size": 2, "samples": 16, "tolerance": 1e-9, "seeds": 3, "evaluation": lambda m: m.excess}
    return ns.branched_check(bowl, torch.optim.SGD(bowl.parameters(), lr=lr), half_square, data, **settings | given)


def test_without_noise_every_loss_is_gradient_descents() -> None:
    found = noiseless(0.3)
    for branch in found.branches:
        k = branch.multiple
        assert (branch.batch_size, branch.steps, branch.samples) == (2 * k, 8 // k, 16)
        assert branch.lr == pytest.approx(0.3 * k)
        assert branch.loss.value == pytest.approx(0.5 * (1 - 0.3 * k) ** (2 * 8 // k), rel=1e-12)
        assert branch.loss.stderr < 1e-15 * branch.loss.value
    assert found.start == 0.5


def test_without_noise_larger_batches_are_fine_up_to_the_curvature() -> None:
    """8η > 2/λ while 4η < 2/λ: only the largest branch climbs."""
    found = noiseless(0.3, tolerance=0.01)
    assert [branch.verdict for branch in found.branches] == ["base", "not worse", "not worse", "worse"]
    assert (found.bracket, found.answer) == ("between", "between 8 and 16")
    assert noiseless(0.01, tolerance=0.01).answer == "at least 16"
    assert noiseless(0.3, tolerance=0.01, rule="constant").answer == "below 4"


@pytest.mark.slow
def test_what_diverges_is_worse_and_no_accident() -> None:
    found = noiseless(0.9, samples=8 * 400, tolerance=0.01, multiples=(1, 2, 4), seeds=2)
    last = found.branches[-1]
    assert (last.verdict, last.diverged, last.loss.value, last.difference.value) == ("worse", 2, math.inf, math.inf)
    assert found.answer == "between 4 and 8"
    assert "B = 8, lr 3.6, 400 steps: diverged with 2 seeds: worse" in str(found)
    assert found.branches[1].diverged == 0


def test_a_base_branch_that_diverges_ends_the_check() -> None:
    with pytest.raises(FailedError, match="base branch, batch size 2, diverged with seed 0"):
        noiseless(8.0, samples=16 * 25)


def checked(lr: float, **given: object) -> tuple[BranchedCheck, Bowl]:
    bowl = Bowl(CURVATURE, START)
    settings = {"batch_size": 2, "samples": 64, "tolerance": 0.05, "seeds": 40, "evaluation": lambda m: m.excess}
    optimizer = torch.optim.SGD(bowl.parameters(), lr=lr)
    return ns.branched_check(bowl, optimizer, half_square, Drawn(500, SPREAD), **settings | given), bowl


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "factor"), [("linear", 1.0), ("sqrt", 0.5), ("constant", 0.0)])
def test_with_noise_every_loss_is_the_expected_one(rule: str, factor: float) -> None:
    """Smoothed over the last quarter, as is its closed form."""
    found, bowl = checked(0.1, rule=rule, seeds=100, samples=128)
    for branch in found.branches:
        expected = np.mean(
            [
                expected_excess(
                    bowl,
                    SPREAD,
                    batch_size=branch.batch_size,
                    lr=0.1 * branch.multiple**factor,
                    steps=samples // branch.batch_size,
                )
                for samples in (112, 128)
            ]
        )
        assert abs(branch.loss.value - expected) < 3 * branch.loss.stderr
        assert branch.loss.stderr < 0.2 * expected


def difference(bowl: Bowl, multiple: int, lr: float, samples: int) -> float:
    """Of the expected final losses of a branch and of the base, batch size 2, linear rule."""

    def smoothed(k: int) -> float:
        places = {"batch_size": 2 * k, "lr": lr * k}
        return expected_excess(bowl, SPREAD, steps=samples // (2 * k), **places)

    return smoothed(multiple) - smoothed(1)


@pytest.mark.parametrize(
    ("lr", "answer"),
    quick(
        [pytest.param(0.02, "at least 16", id="beyond the largest")],
        [
            pytest.param(0.25, "between 8 and 16", id="inside"),
            pytest.param(0.5, "between 4 and 8", id="lower"),
            pytest.param(0.8, "below 4", id="at the base"),
        ],
    ),
)
def test_the_critical_batch_size_is_the_known_one(lr: float, answer: str) -> None:
    found, bowl = checked(lr, tolerance=0.5, seeds=100 if lr == 0.8 else 40)
    known = [difference(bowl, k, lr, 64) for k in (2, 4, 8)]
    fine = [2 * k for k, apart in zip((2, 4, 8), known, strict=True) if apart <= 0.5]
    worse = [2 * k for k, apart in zip((2, 4, 8), known, strict=True) if apart > 0.5]
    expected = " and ".join(str(end) for end in (*fine[-1:], *worse[:1]))
    words = "between" if fine and worse else "at least" if fine else "below"
    assert f"{words} {expected}" == answer, "by the closed form"
    assert found.answer == answer, "by training"


@pytest.mark.slow
def test_pairing_by_seed_makes_differences_sharp() -> None:
    found, _ = checked(0.05)
    for branch in found.branches[1:3]:
        apart = math.hypot(branch.loss.stderr, found.branches[0].loss.stderr)
        assert branch.difference.stderr < 0.5 * apart
        assert branch.difference.value == pytest.approx(branch.loss.value - found.branches[0].loss.value)


def test_the_interval_of_a_difference_is_students() -> None:
    found, _ = checked(0.1, seeds=4)
    again = {seed: checked(0.1, seeds=(seed, 99))[0] for seed in range(4)}
    losses = np.array([[2 * b.loss.value for b in each.branches] for each in again.values()])
    # each of these means has seed 99 in it, which drops out of the spread
    apart = losses - losses[:, :1]
    for place, branch in enumerate(found.branches[1:], start=1):
        spread = apart[:, place].std(ddof=1) / 2
        low, high = branch.difference.interval()
        assert branch.difference.stderr == pytest.approx(spread)
        assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 3) * spread)


@pytest.mark.slow
def test_a_few_seeds_decide_nothing_that_more_would() -> None:
    assert checked(0.1, tolerance=1e-3, seeds=2, multiples=(1, 2))[0].answer == "undecided"
    assert checked(0.1, tolerance=1e-3, seeds=60, multiples=(1, 4))[0].answer == "below 8"


def test_evaluations_are_in_the_last_quarter_at_places_common_to_all() -> None:
    seen: list[float] = []
    bowl = Bowl(CURVATURE, START)

    def evaluation(model: Bowl) -> float:
        seen.append(model.excess)
        return model.excess

    optimizer = torch.optim.SGD(bowl.parameters(), lr=0.01)
    data = (torch.zeros(64, 2, dtype=F64), torch.zeros(64, 2, dtype=F64))
    found = ns.branched_check(
        bowl,
        optimizer,
        half_square,
        data,
        batch_size=1,
        multiples=(1, 2),
        samples=33,
        tolerance=1,
        seeds=2,
        evaluation=evaluation,
    )
    assert len(seen) == 1 + 2 * 2 * 4
    shrink = (1 - 0.01 * CURVATURE) ** 2
    expected = [float(0.5 * (CURVATURE * START.square() * shrink**steps).sum()) for steps in (26, 28, 30, 32)]
    assert seen[1:5] == pytest.approx(expected)
    assert found.branches[0].loss.value == pytest.approx(np.mean(expected))
    assert found.branches[0].samples == 32


def test_verdicts_that_contradict_each_other_bound_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worse at 2B, fine at 4B: no batch size lies between."""
    monkeypatch.setattr(
        "noisescape.training.branch_training.Laboratory.train",
        lambda self, multiple, seed, advance: [{1: 1.0, 2: 2.0, 4: 1.0}[multiple]],
    )
    found, _ = checked(0.1, multiples=(1, 2, 4))
    assert [branch.verdict for branch in found.branches] == ["base", "worse", "not worse"]
    assert (found.bracket, found.at_least, found.below) == ("undecided", None, None)


@pytest.mark.parametrize(
    ("differences", "answer"),
    [
        ({2: (0, 0.1), 4: (0, 0.1), 8: (0, 0.1)}, "at least 16"),
        ({2: (0, 0.1), 4: (0, 5), 8: (0, 0.1)}, "at least 4"),
        ({2: (0, 0.1), 4: (0, 5), 8: (9, 0.1)}, "between 4 and 16"),
        ({2: (0, 5), 4: (0, 0.1), 8: (9, 0.1)}, "below 16"),
        ({2: (9, 0.1), 4: (9, 5), 8: (9, 0.1)}, "below 4"),
        ({2: (0, 5), 4: (0, 5), 8: (0, 5)}, "undecided"),
    ],
)
def test_the_bracket_goes_up_to_the_first_branch_that_is_not_shown_to_be_fine(
    differences: dict[int, tuple[float, float]], answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each branch's mean excess over the base, and how far its seeds lie around it."""
    around = {1: (0.0, 0.0), **differences}

    def train(self: object, multiple: int, seed: int, advance: object) -> list[float]:
        mean, spread = around[multiple]
        return [mean + spread * (seed - 1)]

    monkeypatch.setattr("noisescape.training.branch_training.Laboratory.train", train)
    found, _ = checked(0.1, seeds=3, tolerance=1.0)
    assert found.answer == answer
    mean, spread = differences[2]
    assert found.branches[1].difference.value == pytest.approx(mean)
    assert found.branches[1].difference.stderr == pytest.approx(spread / math.sqrt(3))


def test_the_interval_covers_the_true_difference() -> None:
    """Of losses with common noise by seed; at a difference of just the tolerance both verdicts are as rare."""
    generator = np.random.default_rng(0)
    plan = branches.Plan(4, 16, (16,), None, "linear")
    covered, verdicts = 0, []
    for _ in range(1000):
        common, own = generator.normal(size=(2, 5))
        base = 3 + common
        found = branches._branch(2, plan, 0.1, base + 0.25 + 0.1 * own, base, tolerance=0.25)
        low, high = found.difference.interval()
        covered += low <= 0.25 <= high
        verdicts.append(found.verdict)
    assert 930 <= covered <= 970
    assert 10 <= verdicts.count("worse") <= 45
    assert 10 <= verdicts.count("not worse") <= 45
