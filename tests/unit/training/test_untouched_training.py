"""What the loop may do beside: no more than pieces is read, what cannot be is refused, training is the same."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import noisescape as ns
from training_loops import (
    assert_found,
    loss_of,
    micro_batches,
    piece_gradients,
    small_net,
    textbook,
    train,
)


def test_gradients_asked_for_without_accumulating_are_no_piece():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = ns.Monitor(model, optimizer, every=3, measure_every=1)
    wanted, report = train(
        model,
        optimizer,
        micro_batches(3, 3, 4),
        monitor=monitor,
        reference=lambda pieces: textbook(piece_gradients(model, pieces), 4),  # autograd.grad, of the same module
    )
    assert_found(report, wanted)


def test_evaluation_between_the_steps_is_no_piece():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = ns.Monitor(model, optimizer, every=3, measure_every=1)

    def reference(pieces):
        with torch.no_grad():
            model(torch.randn(50, 3, dtype=torch.float64))
        return textbook(piece_gradients(copy.deepcopy(model), pieces), 4)

    wanted, report = train(model, optimizer, micro_batches(3, 3, 4), monitor=monitor, reference=reference)
    assert_found(report, wanted)
    assert report["noise/batch_size"] == 12


def test_a_step_thrown_away_is_not_mixed_into_the_next():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = ns.Monitor(model, optimizer, every=3, measure_every=1)
    wanted, report = [], {}
    for pieces in micro_batches(3, 3, 4):
        loss_of(model, *pieces[0]).backward()
        optimizer.zero_grad()
        wanted.append(textbook(piece_gradients(copy.deepcopy(model), pieces), 4))
        for inputs, targets in pieces:
            (loss_of(model, inputs, targets) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
        report = monitor.step() or report
    assert_found(report, np.array(wanted))
    assert report["noise/skipped_steps"] == 3


def test_gradients_that_were_never_zeroed_are_not_used():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = ns.Monitor(model, optimizer, every=4, measure_every=1)
    reports = []

    def loop():
        for pieces in micro_batches(4, 3, 4):
            for inputs, targets in pieces:
                (loss_of(model, inputs, targets) / 3).backward()
            optimizer.step()
            reports.append(monitor.step())

    with pytest.warns(UserWarning, match="others were there before"):
        loop()
    report = reports[-1]
    assert report["noise/measured_steps"] == 1
    assert report["noise/skipped_steps"] == 3


def test_clipping_each_micro_step_is_not_used():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = ns.Monitor(model, optimizer, every=2, measure_every=1, split=False)
    reports = []

    def loop():
        for pieces in micro_batches(2, 3, 4):
            optimizer.zero_grad()
            for inputs, targets in pieces:
                (loss_of(model, inputs, targets) / 3).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
            reports.append(monitor.step())

    with pytest.warns(UserWarning, match="a step is one piece"):
        loop()
    assert reports == [{}, {}]


@pytest.mark.parametrize("trap", ["two backward passes", "two forward passes", "a part of the model"])
def test_loops_that_cannot_be_read_are_refused_and_train_on(trap):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = model[2] if trap == "a part of the model" else model
    monitor = ns.Monitor(nn.Sequential(given) if given is not model else model, optimizer, every=2, measure_every=1)
    match = {
        "two backward passes": "two gradients after one forward pass",
        "two forward passes": "2 forward passes came before one backward pass; give batch_size=",
        "a part of the model": "give it the one it calls",
    }[trap]

    def loop():
        for ((inputs, targets),) in micro_batches(2, 1, 4):
            optimizer.zero_grad()
            loss = loss_of(model, inputs, targets)
            if trap == "two forward passes":
                loss = loss + loss_of(model, inputs + 1, targets)
            if trap == "two backward passes":
                loss.backward(retain_graph=True)
            loss.backward()
            optimizer.step()
            assert monitor.step() == {}

    with pytest.warns(UserWarning, match=match):
        loop()


def test_two_forward_passes_of_the_same_samples_with_their_number_given():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = ns.Monitor(model, optimizer, every=2, measure_every=1, batch_size=4)
    for pieces in micro_batches(2, 3, 4):
        optimizer.zero_grad()
        for inputs, targets in pieces:
            ((loss_of(model, inputs, targets) + loss_of(model, inputs + 1, targets)) / 3).backward()
        optimizer.step()
        report = monitor.step()
    assert report["noise/batch_size"] == 12


def test_batch_norm_and_dropout_are_read_as_they_train():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).double()
    other = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = ns.Monitor(model, optimizer, every=3, measure_every=1)
    wanted, report = [], {}
    for pieces in micro_batches(3, 3, 6):
        state = torch.get_rng_state()
        other.load_state_dict(model.state_dict())
        wanted.append(textbook(piece_gradients(other, pieces), 6))
        torch.set_rng_state(state)
        optimizer.zero_grad()
        for inputs, targets in pieces:
            (loss_of(model, inputs, targets) / 3).backward()
        optimizer.step()
        report = monitor.step() or report
    assert_found(report, np.array(wanted))


def test_training_is_the_same_with_a_monitor():
    results = []
    for monitored in (False, True):
        for pieces in (1, 3):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).double()
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
            monitor = ns.Monitor(model, optimizer, every=5, measure_every=1) if monitored else None
            train(model, optimizer, micro_batches(10, pieces, 6), monitor=monitor)
            results.append([*model.state_dict().values(), torch.get_rng_state()])
    for plain, watched in zip(results[:2], results[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_nothing_is_left_on_the_model_after_closing():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ns.Monitor(model, optimizer, every=3, measure_every=1) as monitor:
        train(model, optimizer, micro_batches(2, 1, 4), monitor=monitor)
    assert not any(parameter._backward_hooks for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not optimizer._optimizer_step_post_hooks
    train(model, optimizer, micro_batches(2, 1, 4))


def test_a_monitored_model_can_be_copied_and_saved_whole():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = ns.Monitor(model, optimizer, every=2, measure_every=1)
    average = copy.deepcopy(model)
    again = pickle.loads(pickle.dumps(model))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    for pieces in micro_batches(2, 3, 4):
        optimizer.zero_grad()
        for inputs, targets in pieces:
            average(inputs)  # is no piece of the other model
            again(inputs)
            (loss_of(model, inputs, targets) / 3).backward()
        optimizer.step()
        report = monitor.step()
    assert report["noise/pieces"] == 3
    assert report["noise/batch_size"] == 12
