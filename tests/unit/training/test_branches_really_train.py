"""A branch is the user's own training gone on with, and leaves the user's things as they were."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

import noisescape as ns
from branch_cases import Lively, lively, lively_data, train_a_little
from cases import F64
from noisescape.training.branch_samples import sample_order
from noisescape.training.branch_training import Plan, seed_all
from slowness import quick

OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True, foreach=True),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.5),
}
SETTINGS: dict[str, Any] = {"batch_size": 4, "multiples": (1, 2), "samples": 64, "tolerance": 0.1, "seeds": (3, 5)}


def everything(model: nn.Module) -> Tensor:
    return torch.cat([each.detach().double().flatten() for each in model.state_dict().values()])


def weights_of(branches: list[Tensor], model: nn.Module) -> float:
    """An evaluation that only notes what a branch has come to."""
    branches.append(everything(model))
    return 1.0


def checkpoint(name: str) -> tuple[Lively, torch.optim.Optimizer]:
    model = lively()
    optimizer = OPTIMISERS[name](model.parameters())
    with torch.random.fork_rng():
        train_a_little(model, optimizer, lively_data())
    return model, optimizer


def by_hand(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    size: int,
    factor: float,
    seed: int,
    *,
    part: int | None = None,
) -> Tensor:
    """What going on with batches of so many samples comes to, written out."""
    model, optimizer = copy.deepcopy((model, optimizer))
    inputs, targets = lively_data()
    of_order, of_training = (int(word) for word in np.random.SeedSequence(seed).generate_state(2, np.uint32))
    order = sample_order(len(inputs), 64, torch.Generator().manual_seed(of_order))
    for group in optimizer.param_groups:
        group["lr"] *= factor
    with torch.random.fork_rng():
        seed_all(of_training)
        for start in range(0, 64, size):
            batch = order[start : start + size]
            optimizer.zero_grad()
            for chosen in batch.split(part or size):
                (cross_entropy(model(inputs[chosen]), targets[chosen]) * len(chosen) / size).backward()
            optimizer.step()
    return everything(model)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_branch_is_the_training_gone_on_with(name: str) -> None:
    """Momentum, moments, running statistics and dropout masks included, to the bit."""
    model, optimizer = checkpoint(name)
    seen: list[Tensor] = []
    found = ns.branched_check(
        model, optimizer, cross_entropy, lively_data(), **SETTINGS, evaluation=lambda m: weights_of(seen, m)
    )
    factor = 2.0 if name in ("SGD", "momentum") else 2**0.5
    assert found.branches[1].lr == pytest.approx(optimizer.param_groups[0]["lr"] * factor)
    assert torch.equal(seen[0], everything(model)), "the checkpoint itself"
    # two evaluations a branch, the last at its end
    ends = seen[2::2]
    expected = [
        by_hand(model, optimizer, size, times, seed) for seed in (3, 5) for size, times in ((4, 1), (8, factor))
    ]
    assert len(ends) == len(expected) == 4
    for one, other in zip(ends, expected, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_a_batch_in_parts_is_the_mean_over_all_of_it() -> None:
    model, optimizer = checkpoint("momentum")
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.BatchNorm1d):
            module.eval()
    seen: list[Tensor] = []
    given = SETTINGS | {"micro_batch_size": 3}
    ns.branched_check(
        model, optimizer, cross_entropy, lively_data(), **given, evaluation=lambda m: weights_of(seen, m)
    )
    assert torch.equal(seen[2], by_hand(model, optimizer, 4, 1.0, 3, part=3))
    torch.testing.assert_close(seen[2], by_hand(model, optimizer, 4, 1.0, 3), rtol=1e-12, atol=1e-12)


def states(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return copy.deepcopy(
        {
            "model": model.state_dict(),
            "gradients": [each.grad for each in model.parameters()],
            "modes": [module.training for module in model.modules()],
            "optimizer": optimizer.state_dict(),
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state(),  # noqa: NPY002
            "python": random.getstate(),
        }
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("training", quick([True], [False]))
def test_nothing_of_the_users_changes(name: str, training: bool) -> None:
    model, optimizer = checkpoint(name)
    model.train(training)
    data = lively_data()
    before, held = states(model, optimizer), [id(each) for each in model.parameters()]
    drawn = copy.deepcopy(data)
    ns.branched_check(model, optimizer, nn.CrossEntropyLoss(), data, **SETTINGS, evaluation=lively_data(20))
    assert same(states(model, optimizer), before)
    assert [id(each) for each in model.parameters()] == held
    assert same(data, drawn)
    train_a_little(model, optimizer, data)  # and it goes on
    assert not same(model.state_dict(), before["model"])


def test_a_model_in_evaluation_mode_is_trained_all_the_same() -> None:
    """Handed over as for an evaluation: dropout and BatchNorm are on in its branches."""
    model, optimizer = checkpoint("SGD")
    trained = ns.branched_check(model, optimizer, cross_entropy, lively_data(), **SETTINGS)
    evaluated = ns.branched_check(model.eval(), optimizer, cross_entropy, lively_data(), **SETTINGS)
    assert trained == evaluated


def test_branches_are_compared_in_evaluation_mode() -> None:
    model, optimizer = checkpoint("SGD")
    modes: set[bool] = set()

    def evaluation(tried: nn.Module) -> float:
        modes.update(module.training for module in tried.modules())
        assert not torch.is_grad_enabled()
        return 1.0

    ns.branched_check(model, optimizer, cross_entropy, lively_data(), **SETTINGS, evaluation=evaluation)
    assert modes == {False}


def test_what_an_evaluation_draws_changes_no_branch() -> None:
    model, optimizer = checkpoint("Adam")
    found: list[list[Tensor]] = [[], []]

    def evaluation(place: int, tried: nn.Module) -> float:
        torch.rand(place)
        return weights_of(found[place], tried)

    for place in (0, 1):
        given = SETTINGS | {"evaluation": lambda tried, place=place: evaluation(place, tried)}
        ns.branched_check(model, optimizer, cross_entropy, lively_data(), **given)
    assert same(*found)


@pytest.mark.parametrize("count", [20, 5000])
def test_the_default_evaluation_is_the_loss_of_a_fixed_subset(count: int) -> None:
    model, optimizer = checkpoint("SGD")
    inputs, targets = lively_data(count)
    found = ns.branched_check(model, optimizer, cross_entropy, (inputs, targets), **SETTINGS)
    chosen = torch.arange(count)
    if count > 2048:
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:2048]
    model.eval()
    assert found.start == pytest.approx(cross_entropy(model(inputs[chosen]), targets[chosen]).item(), rel=1e-12)


def test_held_out_data_are_evaluated_whole() -> None:
    model, optimizer = checkpoint("SGD")
    inputs, targets = lively_data(3001)
    given = SETTINGS | {"evaluation": TensorDataset(inputs, targets)}
    found = ns.branched_check(model, optimizer, cross_entropy, lively_data(), **given)
    model.eval()
    assert found.start == pytest.approx(cross_entropy(model(inputs), targets).item(), rel=1e-12)


def test_hooks_on_the_users_parameters_and_optimiser_see_no_branch() -> None:
    model, optimizer = checkpoint("SGD")
    called: list[str] = []
    for parameter in model.parameters():
        parameter.register_hook(lambda _gradient: called.append("gradient"))
        parameter.register_post_accumulate_grad_hook(lambda _parameter: called.append("accumulated"))
    optimizer.register_step_post_hook(lambda *_: called.append("step"))
    ns.branched_check(model, optimizer, cross_entropy, lively_data(), **SETTINGS)
    assert called == []
    train_a_little(model, optimizer, lively_data())
    assert set(called) == {"gradient", "accumulated", "step"}


def test_a_monitor_on_the_model_sees_no_branch_and_changes_none() -> None:
    model, optimizer = checkpoint("momentum")
    plain = ns.branched_check(model, optimizer, cross_entropy, lively_data(), **SETTINGS)
    with ns.Monitor(model, optimizer, measure_every=1) as monitor:
        train_a_little(model, optimizer, lively_data())
        report, state = monitor.report(), monitor.state_dict()
        monitored = ns.branched_check(model, optimizer, cross_entropy, lively_data(), **SETTINGS)
        assert monitor.report() == report
        after = monitor.state_dict()
        assert same(after.pop("halves"), state.pop("halves"))
        assert repr(after) == repr(state)
    unwatched = ns.branched_check(model, optimizer, cross_entropy, lively_data(), **SETTINGS)
    assert monitored == unwatched
    assert unwatched != plain, "the training went on in between"


def test_tied_frozen_and_unused_parameters_stay_so() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4, dtype=F64), nn.Linear(4, 4, dtype=F64)
            self.second.weight = self.first.weight
            self.last = nn.Linear(4, 3, dtype=F64).requires_grad_(False)
            self.unused = nn.Parameter(torch.ones(2, dtype=F64))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))

    model, ends = Tied(), []

    def evaluation(tried: Tied) -> float:
        assert tried.first.weight is tried.second.weight
        ends.append(copy.deepcopy(tried))
        return 1.0

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ns.branched_check(model, optimizer, cross_entropy, lively_data(), **SETTINGS, evaluation=evaluation)
    assert torch.equal(ends[-1].last.weight, model.last.weight)
    assert torch.equal(ends[-1].unused, model.unused)
    assert not torch.equal(ends[-1].first.weight, model.first.weight)


def test_every_parameter_group_is_scaled() -> None:
    model = lively()
    groups = [
        {"params": list(model.layers[0].parameters()), "lr": 0.0},
        {"params": list(model.layers[4].parameters())},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    seen: list[Tensor] = []
    ns.branched_check(
        model, optimizer, cross_entropy, lively_data(), **SETTINGS, evaluation=lambda m: weights_of(seen, m)
    )
    expected = [
        by_hand(model, optimizer, size, factor, seed) for seed in (3, 5) for size, factor in ((4, 1), (8, 2))
    ]
    assert all(map(torch.equal, seen[2::2], expected))


def test_a_compiled_model_trains_as_it_does_otherwise() -> None:
    model, optimizer = checkpoint("momentum")
    plain = ns.branched_check(model, optimizer, cross_entropy, lively_data(), **SETTINGS)
    compiled = torch.compile(model, backend="eager")
    assert ns.branched_check(compiled, optimizer, cross_entropy, lively_data(), **SETTINGS) == plain


@pytest.mark.parametrize("lr", [0.05, 1e200], ids=["to the end", "diverged"])
def test_the_progress_bar_ends_full(lr: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bars: list[list[int]] = []

    @contextmanager
    def bar(title: str, total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
        bars.append([total, 0])

        def advance(count: int) -> None:
            bars[-1][1] += count

        yield advance

    monkeypatch.setattr("noisescape.training.branches.steps_bar", bar)
    monkeypatch.setattr(Plan, "factor", lambda self, multiple: 1.0 if multiple == 1 else lr / 0.05)
    for _ in range(2):
        model, optimizer = checkpoint("SGD")
        found = ns.branched_check(model, optimizer, cross_entropy, lively_data(), **SETTINGS, out=tmp_path / "kept")
    assert bars == [[256, 256], [256, 256]]
    assert found.branches[1].diverged == (2 if lr > 1 else 0)


# ---------------------------------------------------------------------- forms of data


def collated(rows: list[Any]) -> tuple[dict[str, Tensor], Tensor]:
    return {"x": torch.stack([row[0] for row in rows])}, torch.stack([row[1] for row in rows])


@pytest.mark.parametrize(
    "form",
    quick(
        [lambda x, y: TensorDataset(x, y), lambda x, y: DataLoader(TensorDataset(x, y), collate_fn=collated)],
        [
            lambda x, y: (x, y),
            lambda x, y: list(zip(x, y, strict=True)),
            lambda x, y: DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True),
            lambda x, y: ({"x": x}, y),
            lambda x, y: ((x,), y),
        ],
    ),
)
def test_the_form_of_the_data_does_not_matter(form: Callable[[Tensor, Tensor], Any]) -> None:
    model, optimizer = checkpoint("momentum")
    data = lively_data()
    expected = ns.branched_check(model, optimizer, cross_entropy, data, **SETTINGS)
    assert ns.branched_check(model, optimizer, cross_entropy, form(*data), **SETTINGS) == expected


class Augmented(Dataset[Any]):
    """Noise from the global generators, and from one of its own."""

    def __init__(self) -> None:
        self.inputs, self.targets = lively_data()
        self.own = torch.Generator().manual_seed(1)
        self.seen: list[float] = []

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = random.random() + np.random.random() + torch.rand(()) + torch.rand((), generator=self.own)  # noqa: NPY002
        self.seen.append(float(noise))
        return self.inputs[index] + 0.1 * noise.to(F64), self.targets[index]


def test_data_that_draw_go_on_to_and_are_put_back() -> None:
    model, optimizer = checkpoint("SGD")
    data = Augmented()
    before = data.own.get_state()
    state = states(model, optimizer)
    first = ns.branched_check(model, optimizer, cross_entropy, data, **SETTINGS)
    assert len(set(data.seen)) > 64, "drawn anew each time"
    assert torch.equal(data.own.get_state(), before)
    assert same(states(model, optimizer), state)
    torch.rand(5)
    assert ns.branched_check(model, optimizer, cross_entropy, data, **SETTINGS) == first
