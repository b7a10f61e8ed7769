"""The checkpoint of another run is refused and kept: other constants, another start, another risk."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import noisescape as ns
from cases import F64, normal
from noisescape.experiments.published import PublishedLeading
from noisescape.risk import EmpiricalRisk, fingerprint
from noisescape.runs.storage import read_bundle, write_bundle
from noisescape.simulation.identity import differing_losses, losses_near
from resuming import go, kept, larger_risk, network, outcome


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2}, r"seed 1 there, 2 now"),
        ({"lr": 0.06}, r"lr 0\.05 there, 0\.06 now"),
        ({"lr": lambda _step: 0.05}, r"lr 0\.05 there, a schedule from 0\.05 to 0\.05, [0-9a-f]+ now"),
        ({"steps": 9}, r"steps 8 there, 9 now"),
        ({"every": 4}, r"records loss, every 2 there, loss, every 4 now"),
        ({"noise_every": 2}, r"noise_every None there, 2 now"),
        ({"dynamics": ns.GLDDiagonal(4, refresh=2)}, r"dynamics GLDDiagonal\(batch_size=3.*batch_size=4"),
        ({"dynamics": ns.GLDDiagonal(3, refresh=3)}, r"refresh=2.* there, .*refresh=3.* now"),
        ({"dynamics": ns.SGD(3)}, r"dynamics GLDDiagonal\(.* there, SGD\("),
        ({"theta": torch.tensor([0.5, -1.0, 0.30001], dtype=F64)}, r"start .*[0-9a-f]+ there, .*[0-9a-f]+ now"),
        ({"seed": 2, "lr": 0.06}, r"lr 0\.05 there, 0\.06 now; seed 1 there, 2 now"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused_and_kept(
    changes: dict[str, Any], message: str, checkpoint: Path
) -> None:
    kept(checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=f"is of another run .*{message}.*: remove it to start afresh"):
        go(checkpoint, **changes)
    assert checkpoint.read_bytes() == before
    assert not go(checkpoint).diverged


def test_published_noise_is_not_continued_as_the_methods(checkpoint: Path) -> None:
    kept(checkpoint, dynamics=PublishedLeading(3, k=2, refresh=2))
    with pytest.raises(ValueError, match=r"dynamics PublishedLeading\(.* there, GLDLeading\("):
        go(checkpoint, dynamics=ns.GLDLeading(3, k=2, refresh=2))


@pytest.mark.parametrize(
    ("there", "now"),
    [
        ({"replicas": None}, {"replicas": 1}),
        ({"theta": torch.zeros(3, dtype=F64)}, {"theta": torch.zeros(3, dtype=F64), "replicas": 1}),
        ({"theta": torch.zeros(2, 3, dtype=F64)}, {"theta": torch.zeros(3, 3, dtype=F64)}),
        ({"replicas": 2}, {"replicas": 3}),
    ],
)
def test_another_number_of_replicas_is_another_run(
    there: dict[str, Any], now: dict[str, Any], checkpoint: Path
) -> None:
    kept(checkpoint, **there)
    with pytest.raises(ValueError, match=r"is of another run .*start"):
        go(checkpoint, **now)


def decaying(step: int) -> float:
    return 0.05 / (1 + step)


def decaying_otherwise_at_the_end(step: int) -> float:
    return 0.05 / (1 + step) * (1 + 1e-12 * (step == 7))


def test_another_schedule_is_another_run_and_the_same_values_are_not(checkpoint: Path) -> None:
    kept(checkpoint, lr=decaying)
    with pytest.raises(
        ValueError, match=r"is of another run \(lr a schedule from .* there, a schedule from .* now\)"
    ):
        go(checkpoint, lr=decaying_otherwise_at_the_end)
    assert not go(checkpoint, lr=lambda step: [0.05 / (1 + step) for step in range(8)][step]).diverged


def smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1, reduction="none")


@pytest.mark.parametrize("replicas", [None, 2])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_seed": 2}, r"\(risk EmpiricalRisk of N = 12, D = 32, \w+ there, .* \w+ now\)"),
        ({"scale": 1.0 + 1e-9}, r"\(risk .* there, .* now\)"),
        ({"labels": 1}, r"\(risk .* there, .* now\)"),
        ({"shift": 1e-9}, r"\(risk .* there, .* now\)"),
        ({"activation": torch.nn.ReLU}, r"\((loss .* there, .* now|risk .* there, .* now)\)"),
        ({"loss": smoothed}, r"\((loss .* there, .* now|risk .* there, .* now)\)"),
    ],
    ids=["data", "data by a digit", "one label", "a frozen tensor", "another model of as many", "another loss"],
)
def test_another_risk_is_another_run(
    changes: dict[str, Any], message: str, replicas: int | None, checkpoint: Path
) -> None:
    start = 1e-3 * normal(network().dimension, seed=4)
    options = {"theta": start, "dynamics": ns.SGD(3), "replicas": replicas}
    kept(checkpoint, risk=network(), **options)
    with pytest.raises(ValueError, match=f"is of another run {message}: remove it to start afresh"):
        go(checkpoint, risk=network(**changes), **options)
    found = outcome(go(checkpoint, risk=network(), **options))
    assert found == outcome(go(checkpoint, risk=network(), **options)), "the same everything is accepted"


class Scaled(torch.nn.Tanh):
    """Its constant is no tensor, so that nothing but its values tells it from another."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.scale * inputs)


@pytest.mark.parametrize("replicas", [None, 2])
def test_a_model_that_only_its_losses_tell_from_another_is_another_run(
    replicas: int | None, checkpoint: Path
) -> None:
    """Weights are so small that both have the loss of chance at the start, to eight digits; not so nearby."""
    first, second = (network(activation=functools.partial(Scaled, scale)) for scale in (1.0, 1.5))
    assert fingerprint(first) == fingerprint(second)
    start = 1e-4 * normal(first.dimension, seed=4)
    assert_close(first.loss(start), second.loss(start), rtol=1e-6, atol=0)
    options = {"theta": start, "dynamics": ns.SGD(3), "replicas": replicas}
    kept(checkpoint, risk=first, **options)
    with pytest.raises(ValueError, match=r"is of another run \(loss near the start [\d.]+ there, [\d.]+ now\)"):
        go(checkpoint, risk=second, **options)
    assert not go(checkpoint, risk=first, **options).diverged.any()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_another_number_of_threads_is_the_same_run(threads: int, checkpoint: Path) -> None:
    """The sums of a large batch round otherwise."""
    risk = larger_risk(torch.float32, 18, 5000)
    before = torch.get_num_threads()
    kept(checkpoint, risk=risk, theta=risk.parameters(), dynamics=ns.SGD(3))
    torch.set_num_threads(threads)
    try:
        assert not go(checkpoint, risk=risk, theta=risk.parameters(), dynamics=ns.SGD(3)).diverged
    finally:
        torch.set_num_threads(before)


def test_a_closed_form_that_is_another_function_of_the_same_numbers_is_another_run(checkpoint: Path) -> None:
    def bowl(width: float) -> EmpiricalRisk:
        return EmpiricalRisk.from_losses(lambda w: width * w.square(), torch.ones(3, dtype=F64))

    kept(checkpoint, risk=bowl(1.0), dynamics=ns.GD())
    with pytest.raises(
        ValueError, match=r"is of another run \(loss at the start .* there, .* now; loss near the start"
    ):
        go(checkpoint, risk=bowl(1.001), dynamics=ns.GD())
    assert not go(checkpoint, risk=bowl(1.0 + 1e-7), dynamics=ns.GD()).diverged, "as another machine would round"


def test_losses_that_cancel_or_are_not_finite_do_not_stand_in_the_way(checkpoint: Path) -> None:
    """Their mean is rounding error, or no number at all: neither tells of another run."""
    rows = torch.cat([normal(6, 3, seed=1), -normal(6, 3, seed=1)])
    for number, losses in enumerate(
        (lambda w: rows @ w, lambda w: (rows @ w).log(), lambda w: (rows @ w).abs() * torch.inf)
    ):
        place = checkpoint.with_stem(str(number))
        risk = EmpiricalRisk.from_losses(losses, torch.ones(3, dtype=F64))
        near = losses_near(risk, torch.ones(3, dtype=F64))
        write_bundle(place, {"near": near}, {})
        assert differing_losses(read_bundle(place).tensors["near"], near * (1 + 1e-9)) == []
        nudged = near.clone()
        nudged[:, 1] *= 1.01
        assert bool(differing_losses(near, nudged)) == bool(torch.isfinite(near[:, 1]).any())


def test_a_closed_form_without_a_value_nearby_can_be_kept(checkpoint: Path) -> None:
    def losses(theta: Tensor) -> Tensor:
        if not bool((theta - 1.0).abs().max() < 0.01):
            raise ValueError("outside the domain")
        return theta.square()

    def risk() -> EmpiricalRisk:
        return EmpiricalRisk.from_losses(losses, torch.ones(3, dtype=F64))

    options = {"dynamics": ns.GD(), "theta": torch.ones(3, dtype=F64), "lr": 1e-4}
    kept(checkpoint, risk=risk(), **options)
    assert not go(checkpoint, risk=risk(), **options).diverged
