"""What a monitor costs: no waits, no copies, nothing at steps that are not measured."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import noisescape as ns
from training_loops import OPTIMIZERS, micro_batches, small_net, train


class Watch(TorchDispatchMode):
    """Notes what would make the host wait for a device, and the largest tensor made."""

    def __init__(self, host=()):
        super().__init__()
        self.waits, self.largest, self.calls, self.host = [], 0, 0, host

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        name = str(func)
        on_host = any(tensor.data_ptr() in self.host for tensor in args if isinstance(tensor, torch.Tensor))
        if not on_host and any(
            part in name for part in ("_local_scalar_dense", "nonzero", "is_nonzero", "_to_cpu", "equal.default")
        ):
            self.waits.append(name)
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize("name", ["sgd", "adamw", "fused-adam"])
def test_nothing_waits_for_the_device_between_reports(name):
    def waits(monitored):
        model = small_net()
        optimizer = OPTIMIZERS[name](model.parameters())
        monitor = ns.Monitor(model, optimizer, every=100, measure_every=1) if monitored else None
        train(model, optimizer, micro_batches(1, 3, 4), monitor=monitor)
        # torch keeps these on the host, wherever the parameters are, but for fused and capturable optimisers
        counts = [state["step"].data_ptr() for state in optimizer.state.values() if "step" in state]
        with Watch(host=counts) as watch:
            train(model, optimizer, micro_batches(6, 3, 4), monitor=monitor)
        return watch.waits

    assert waits(monitored=True) == waits(monitored=False)


def test_nothing_happens_at_steps_that_are_not_measured():
    def calls(monitored):
        model = small_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = ns.Monitor(model, optimizer, every=100) if monitored else None
        train(model, optimizer, micro_batches(1, 3, 4), monitor=monitor)
        with Watch() as watch:
            train(model, optimizer, micro_batches(9, 3, 4), monitor=monitor)
        return watch.calls

    assert calls(monitored=True) == calls(monitored=False)


def test_no_copy_of_all_gradients_is_made():
    model = nn.Sequential(*[nn.Linear(40, 40, bias=False) for _ in range(10)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    monitor = ns.Monitor(model, optimizer, every=3, measure_every=1)
    with Watch() as watch:
        for _ in range(3):
            for _ in range(2):
                (model(torch.randn(4, 40)).square().mean() / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
            report = monitor.step()
    assert report["noise/measured_steps"] == 3
    assert watch.largest == 1600, "no tensor is larger than the largest parameter"
