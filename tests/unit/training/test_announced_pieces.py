"""Pieces that the loop announces, weights and hooks of its own, activation checkpointing."""

import contextlib
import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import noisescape as ns
from training_loops import (
    FIGURES,
    assert_found,
    loss_of,
    micro_batches,
    of_weighted,
    piece_gradients,
    small_net,
    textbook,
    train,
)


def test_announced_pieces_are_weighted_as_the_loop_says():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = ns.Monitor(nn.ModuleList([model]), optimizer, every=4, measure_every=1, announced=True)
    sizes, weights = (5, 3), (0.5, 0.2)
    wanted, report = [], {}
    for pieces in micro_batches(4, 2, 5):
        cut = [(inputs[:size], targets[:size]) for (inputs, targets), size in zip(pieces, sizes, strict=True)]
        wanted.append(of_weighted(piece_gradients(model, cut), sizes, weights))
        optimizer.zero_grad()
        monitor.begin_piece(99)  # a micro-step that came to nothing
        for (inputs, targets), weight in zip(cut, weights, strict=True):
            monitor.begin_piece(len(inputs), torch.tensor(weight, dtype=torch.float64))
            (weight * loss_of(model, inputs, targets)).backward()
        optimizer.step()
        report = monitor.step() or report
    assert_found(report, np.array(wanted))
    assert report["noise/batch_size"] == 8


def test_one_announced_piece_of_a_smaller_weight_is_split():
    reports = []
    for weight in (1.0, 0.25):
        model = small_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05 / weight)
        monitor = ns.Monitor(model, optimizer, every=4, measure_every=1, announced=True)
        for ((inputs, targets),) in micro_batches(4, 1, 6):
            optimizer.zero_grad()
            monitor.begin_piece(6, weight)
            (weight * loss_of(model, inputs, targets)).backward()
            optimizer.step()
            report = monitor.step()
        reports.append(report)
    for figure in FIGURES:
        assert reports[0][f"noise/{figure}"] == pytest.approx(reports[1][f"noise/{figure}"], rel=1e-9)


def test_gradients_beside_announced_pieces():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = ns.Monitor(model, optimizer, every=4, measure_every=1, announced=True)
    steps = micro_batches(4, 2, 5)

    def loop():
        report = {}
        for number, pieces in enumerate(steps):
            optimizer.zero_grad()
            for inputs, targets in pieces:
                torch.autograd.grad(loss_of(model, inputs, targets), list(model.parameters()))  # asked for only
                monitor.begin_piece(5)
                (loss_of(model, inputs, targets) / 2).backward()
            if number == 2:
                loss_of(model, inputs, targets).backward()
            optimizer.step()
            report = monitor.step() or report
        return report

    with pytest.warns(UserWarning, match="gradients were accumulated beside those of the announced micro-steps"):
        report = loop()
    assert report["noise/measured_steps"] == 3
    assert report["noise/pieces"] == 2


def test_a_micro_step_without_samples():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = ns.Monitor(model, optimizer, every=3, measure_every=1, announced=True)

    def loop():
        for number, pieces in enumerate(micro_batches(3, 2, 5)):
            optimizer.zero_grad()
            for inputs, targets in pieces:
                monitor.begin_piece(0 if number == 1 else 5)
                (loss_of(model, inputs, targets) / 2).backward()
            optimizer.step()
            report = monitor.step()
        return report

    with pytest.warns(UserWarning, match="a micro-step has no samples"):
        report = loop()
    assert report["noise/measured_steps"] == 2
    assert report["noise/skipped_steps"] == 1


def test_a_monitor_that_counts_itself_takes_no_announcements():
    model = small_net()
    monitor = ns.Monitor(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="make it with announced=True, or announce none"):
        monitor.begin_piece(3)


@pytest.mark.parametrize("single", [1, 2])
def test_one_step_of_one_piece_among_others_is_left_out_and_two_in_a_row_are_told(single):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = ns.Monitor(model, optimizer, every=6, measure_every=1, split=False)
    steps = micro_batches(3, 2, 4) + micro_batches(single, 1, 4) + micro_batches(3 - single, 2, 4)
    told = pytest.warns(UserWarning, match="a step is one piece") if single == 2 else contextlib.nullcontext()
    with told:
        _, report = train(model, optimizer, steps, monitor=monitor)
    assert report["noise/measured_steps"] == 6 - single
    assert report["noise/skipped_steps"] == single


def test_others_backward_hooks_never_see_half_batches():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    model[0].weight.register_hook(lambda gradient: seen.append(gradient.norm()))
    monitor = ns.Monitor(model, optimizer, every=2, measure_every=1)
    with pytest.warns(UserWarning, match="other backward hooks"):
        train(model, optimizer, micro_batches(2, 1, 4), monitor=monitor)
    assert len(seen) == 2


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("pieces", [1, 3])
def test_activation_checkpointing(reentrant, pieces):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small_net()

        def forward(self, inputs):
            hidden = self.inner[0](inputs)
            return torch.utils.checkpoint.checkpoint(self.inner[1:], hidden, use_reentrant=reentrant)

    model = Checkpointed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = ns.Monitor(model, optimizer, every=4, measure_every=1)
    wanted, report = [], {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in micro_batches(4, pieces, 6):
            wanted.append(textbook(piece_gradients(copy.deepcopy(model.inner), step), 6))
            optimizer.zero_grad()
            for inputs, targets in step:
                (loss_of(model, inputs, targets) / pieces).backward()
            bare = piece_gradients(copy.deepcopy(model.inner), step).mean(0)
            now = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
            assert torch.allclose(now, bare, rtol=1e-12, atol=0)
            optimizer.step()
            report = monitor.step() or report
    if pieces > 1:
        assert_found(report, np.array(wanted))
    else:
        assert bool(report) != reentrant
