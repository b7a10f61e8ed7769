"""When a monitor reports, what it keeps over a stop, and what it refuses."""

import io
import math

import pytest
import torch
from torch import nn

import noisescape as ns
from training_loops import assert_found, loss_of, micro_batches, small_net, textbook_of, train


def test_it_reports_when_due_and_only_after_a_step():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = ns.Monitor(model, optimizer, every=2, measure_every=1)
    reports = []
    for pieces in micro_batches(4, 3, 4):
        for index, (inputs, targets) in enumerate(pieces):
            (loss_of(model, inputs, targets) / 3).backward()
            if index == 2:
                optimizer.step()
                optimizer.zero_grad()
            reports.append(bool(monitor.step()))
    assert [index for index, report in enumerate(reports) if report] == [5, 11]


def test_the_default_reads_every_twenty_fifth_step():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = ns.Monitor(model, optimizer)
    _, report = train(model, optimizer, micro_batches(100, 2, 3), monitor=monitor)
    assert report["noise/measured_steps"] == 4
    assert report["noise/step"] == 100


def test_steps_of_one_piece_are_split_every_eightieth_time():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = ns.Monitor(model, optimizer)
    _, report = train(model, optimizer, micro_batches(100, 1, 4), monitor=monitor)
    assert report["noise/measured_steps"] == 2
    assert report["noise/batch_size"] == 4


def test_the_window_forgets():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = ns.Monitor(model, optimizer, every=6, measure_every=1, window=4)
    wanted, report = train(
        model, optimizer, micro_batches(6, 3, 4), monitor=monitor, reference=textbook_of(model, 4)
    )
    assert report["noise/measured_steps"] == 4
    assert_found(report, wanted[-4:])


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_resumed_monitor_goes_on_exactly(at, pieces):
    def setup():
        model = small_net()
        return model, torch.optim.AdamW(model.parameters(), lr=0.05)

    steps = micro_batches(10, pieces, 6)
    model, optimizer = setup()
    monitor = ns.Monitor(model, optimizer, every=5, measure_every=2)
    _, whole = train(model, optimizer, steps, monitor=monitor)

    model, optimizer = setup()
    monitor = ns.Monitor(model, optimizer, every=5, measure_every=2)
    train(model, optimizer, steps[:at], monitor=monitor)
    buffer = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), monitor.state_dict()], buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    model, optimizer = setup()
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    monitor = ns.Monitor(model, optimizer, every=5, measure_every=2)
    monitor.load_state_dict(saved[2])
    _, resumed = train(model, optimizer, steps[at:], monitor=monitor)
    assert resumed == whole


def test_a_state_of_other_groups_is_refused():
    model = small_net()
    monitor = ns.Monitor(model, torch.optim.SGD(model.parameters(), lr=0.1), every=1, measure_every=1)
    other = torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[2].parameters()}], lr=0.1)
    another = ns.Monitor(model, other, every=1, measure_every=1)
    train(model, other, micro_batches(2, 3, 4), monitor=another)
    with pytest.raises(ValueError, match="the monitor's state has 2 parameter groups, the optimiser 1"):
        monitor.load_state_dict(another.state_dict())


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"every": 0}, "every is 0; give a whole number"),
        ({"every": 1.5}, "every is 1.5"),
        ({"measure_every": 0}, "measure_every is 0"),
        ({"window": 1}, "window is 1"),
        ({"accumulation": "average"}, "accumulation is 'average'; it is 'mean' or 'sum'"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
    ],
)
def test_arguments_out_of_range(given, match):
    model = small_net()
    with pytest.raises(ValueError, match=match):
        ns.Monitor(model, torch.optim.SGD(model.parameters(), lr=0.1), **given)


def test_things_that_are_no_model_or_optimiser():
    model = small_net()
    with pytest.raises(TypeError, match="the optimiser is of type Sequential"):
        ns.Monitor(model, model)
    with pytest.raises(TypeError, match="the model is of type SGD"):
        ns.Monitor(torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="LBFGS"):
        ns.Monitor(model, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ValueError, match="the optimiser has none of the model's parameters"):
        ns.Monitor(model, torch.optim.SGD(small_net().parameters(), lr=0.1))
    with pytest.raises(ValueError, match="DataParallel"):
        ns.Monitor(nn.DataParallel(model), torch.optim.SGD(model.parameters(), lr=0.1))


def test_an_infinite_scale_is_infinite_not_nan():
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = ns.Monitor(model, optimizer, every=2, measure_every=1)
    for _ in range(2):
        for sign in (1.0, -1.0):
            (model(sign * torch.ones(3, 2)).mean() / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        report = monitor.step()
    assert report["noise/squared_gradient_norm"] < 0
    assert report["noise/scale"] == math.inf
    assert not any(math.isnan(value) for value in report.values())
