"""A run that ends where its records say so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import noisescape as ns
from cases import F64, bowl_risk
from resuming import assert_resumes

START = torch.tensor([0.5, -1.0, 0.3], dtype=F64)


def below_half(records):
    losses = records["loss"].values
    return bool(losses[-1] < losses[0] / 2)


def test_a_run_ends_at_the_first_record_that_says_so() -> None:
    whole = ns.simulate(bowl_risk(), ns.GD(), START, lr=0.05, steps=40, every=3, progress=False)
    found = ns.simulate(bowl_risk(), ns.GD(), START, lr=0.05, steps=40, every=3, progress=False, until=below_half)
    losses = whole.records["loss"].values
    row = int((losses < losses[0] / 2).nonzero()[0])
    assert 0 < row < len(losses) - 1
    assert found.taken == whole.records["loss"].steps[row]
    assert torch.equal(found.records["loss"].values, losses[: row + 1])
    assert (found.steps, whole.taken) == (40, 40)
    short = ns.simulate(bowl_risk(), ns.GD(), START, lr=0.05, steps=found.taken, progress=False)
    assert torch.equal(found.theta, short.theta)


def test_it_is_asked_only_where_something_was_recorded() -> None:
    asked = []

    def never(records):
        asked.append(int(records["loss"].steps[-1]))
        return False

    ns.simulate(bowl_risk(), ns.GD(), START, lr=0.05, steps=8, every=3, progress=False, until=never)
    assert asked == [3, 6, 8]


@pytest.mark.parametrize("dynamics", [ns.SGD(3), ns.GLDLeading(3, k=2, refresh=3)], ids=repr)
def test_a_run_that_ends_early_goes_on_to_the_same_bits(dynamics: ns.Dynamics, checkpoint: Path) -> None:
    found = assert_resumes(
        checkpoint, bowl_risk(), dynamics, START, stops=((1,), (2,)), until=below_half, lr=0.05, steps=30
    )
    assert 2 < found.taken < 30


def test_replicas_do_not_end_together() -> None:
    with pytest.raises(ValueError, match="until ends the run of a single θ"):
        ns.simulate(bowl_risk(), ns.GD(), START, lr=0.1, steps=3, replicas=2, until=below_half, progress=False)
