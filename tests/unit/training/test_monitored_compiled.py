"""The monitor on compiled models."""

import copy

import numpy as np
import pytest
import torch

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


def test_compiled_models_without_compiling_again():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    monitor = ns.Monitor(compiled, optimizer, every=6, measure_every=2)
    wanted, report = [], {}
    for pieces in micro_batches(6, 3, 4):
        wanted.append(textbook(piece_gradients(copy.deepcopy(model), pieces), 4))
        for inputs, targets in pieces:
            (loss_of(compiled, inputs, targets) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
        report = monitor.step() or report
    assert_found(report, np.array(wanted)[::2])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_steps_of_one_piece_say_why_they_cannot_be_split():
    torch._dynamo.reset()
    steps = [[(inputs.float(), targets) for inputs, targets in step] for step in micro_batches(3, 1, 4)]
    model = small_net().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    compiled = torch.compile(model, backend="inductor", dynamic=True)
    monitor = ns.Monitor(compiled, optimizer, every=3, measure_every=1)
    with pytest.warns(UserWarning, match="its backward pass can be run once only"):
        train(compiled, optimizer, steps, monitor=monitor)
    bare = small_net().float()
    train(bare, torch.optim.SGD(bare.parameters(), lr=0.05), steps)
    for left, right in zip(model.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(left, right)


def test_the_module_inside_of_a_compiled_one_is_refused():
    torch._dynamo.reset()
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    monitor = ns.Monitor(model, optimizer, every=3, measure_every=1)
    with pytest.warns(UserWarning, match="a compiled one say.*give it the one it calls"):
        train(compiled, optimizer, micro_batches(3, 2, 4), monitor=monitor)
