"""Steps of one piece: halves of the batch are read where they can be told apart, or the reason is said."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import noisescape as ns
from training_loops import FIGURES, loss_of, micro_batches, of_weighted, piece_gradients, small_net


def test_halves_of_a_batch_are_unbiased_by_enumeration():
    """Over every way to halve the batch and every draw of it, Tr C and ‖ḡ‖² of the population."""
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, 2, (5,), generator=generator)
    singles = piece_gradients(model, [(inputs[n : n + 1], targets[n : n + 1]) for n in range(5)])
    monitor = ns.Monitor(model, optimizer, every=10**6, measure_every=1, window=10**6)
    pairs = [(a, b) for a in range(5) for b in range(5)]
    for pair in pairs:  # of two samples each half is one, so every split is the same
        optimizer.zero_grad()
        loss_of(model, inputs[list(pair)], targets[list(pair)]).backward()
        optimizer.step()
    report = monitor.report()
    mean = singles.mean(0)
    assert report["noise/measured_steps"] == 25
    assert report["noise/batch_size"] == 2
    assert report["noise/trace_covariance"] == pytest.approx(float((singles - mean).square().sum() / 5), rel=1e-9)
    assert report["noise/squared_gradient_norm"] == pytest.approx(float(mean.square().sum()), rel=1e-9)


@pytest.mark.parametrize("size", [2, 5, 8])
def test_a_split_step_is_one_of_the_ways_to_halve_it(size):
    import itertools

    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    ((pieces,),) = micro_batches(1, 1, size)
    inputs, targets = pieces
    monitor = ns.Monitor(model, optimizer, every=1, measure_every=1)
    ways = []
    for half in itertools.combinations(range(size), size // 2):
        rest = [n for n in range(size) if n not in half]
        halves = [(inputs[rest], targets[rest]), (inputs[list(half)], targets[list(half)])]
        sizes = (len(rest), len(half))
        ways.append(of_weighted(piece_gradients(copy.deepcopy(model), halves), sizes, [n / size for n in sizes]))
    loss_of(model, inputs, targets).backward()
    gradient = [parameter.grad.clone() for parameter in model.parameters()]
    optimizer.step()
    report = monitor.step()
    found = [report[f"noise/{figure}"] for figure in FIGURES]
    assert min(np.abs(np.array(ways) - found).max(1)) < 1e-12
    bare = small_net()
    loss_of(bare, inputs, targets).backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(gradient, bare.parameters(), strict=True))


def test_a_step_of_one_piece_that_cannot_be_split_says_why():
    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small_net()

        def forward(self, inputs, targets):
            return nn.functional.cross_entropy(self.inner(inputs), targets)

    model = Summed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = ns.Monitor(model, optimizer, every=2, measure_every=1)
    reports = []

    def loop():
        for ((inputs, targets),) in micro_batches(2, 1, 5):
            optimizer.zero_grad()
            model(inputs, targets).backward()
            optimizer.step()
            reports.append(monitor.step())

    with pytest.warns(UserWarning, match="0 tensors with a row for each of 5 samples.*accumulate over two"):
        loop()
    assert reports == [{}, {}]


@pytest.mark.parametrize("trap", ["a head outside", "two outputs", "an auxiliary loss"])
def test_a_batch_that_the_output_does_not_tell_apart_is_not_split(trap):
    model, head = small_net(), nn.Linear(2, 2).double()
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1)
    monitor = ns.Monitor(model, optimizer, every=2, measure_every=1, batch_size=5)
    match = {
        "a head outside": "part of the gradient does not come through the model's output",
        "two outputs": "several of its outputs went into one backward pass",
        "an auxiliary loss": "part of the gradient does not come through the model's output",
    }[trap]
    hidden = []
    model[1].register_forward_hook(lambda module, args, output: hidden.append(output))

    def loop():
        for ((inputs, targets),) in micro_batches(2, 1, 5):
            optimizer.zero_grad()
            outputs = model(inputs)
            outputs = head(outputs) if trap == "a head outside" else outputs
            outputs = outputs + model(inputs + 1) if trap == "two outputs" else outputs
            auxiliary = hidden[-1].square().mean() if trap == "an auxiliary loss" else 0
            (nn.functional.cross_entropy(outputs, targets) + auxiliary).backward()
            optimizer.step()
            assert monitor.step() == {}

    with pytest.warns(UserWarning, match=match):
        loop()


def test_an_output_that_is_converted_after_the_loss_had_it():
    class Converts(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small_net()

        def forward(self, inputs, targets):
            logits = self.inner(inputs)
            return nn.functional.cross_entropy(logits, targets), logits.float().to(torch.bfloat16)

    reports = []
    for converts in (False, True):
        model = Converts()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = ns.Monitor(model if converts else model.inner, optimizer, every=3, measure_every=1)
        for ((inputs, targets),) in micro_batches(3, 1, 6):
            optimizer.zero_grad()
            (model(inputs, targets)[0] if converts else loss_of(model.inner, inputs, targets)).backward()
            optimizer.step()
            report = monitor.step()
        reports.append(report)
    assert reports[0] == reports[1]
    assert reports[0]["noise/measured_steps"] == 3


def test_where_a_step_of_one_piece_was_skipped_the_next_is_split():
    model = small_net().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    monitor = ns.Monitor(model, optimizer, every=3, measure_every=1)
    report = {}
    for number, ((inputs, targets),) in enumerate(micro_batches(4, 1, 6)):
        loss = loss_of(model, inputs.float(), targets) * (torch.inf if number == 1 else 1)
        optimizer.zero_grad()  # when the next forward pass is over
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        report = monitor.step() or report
    assert report["noise/measured_steps"] == 3
    assert report["noise/skipped_steps"] == 1
