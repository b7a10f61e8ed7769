"""The monitor in plain loops: figures of every step against autograd, whatever the loop does to its gradients."""

import numpy as np
import pytest
import torch
from torch import nn

import noisescape as ns
from noisescape.training.noise_scale import smooth
from training_loops import (
    OPTIMIZERS,
    assert_found,
    micro_batches,
    of_weighted,
    piece_gradients,
    small_net,
    textbook,
    textbook_of,
    train,
)

SPOILERS = {
    "nothing": None,
    "norm-clipping": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 1e-3),
    "value-clipping": lambda model: nn.utils.clip_grad_value_(model.parameters(), 1e-3),
}


@pytest.mark.parametrize("zero", ["none", "zeros"])
@pytest.mark.parametrize("spoil", SPOILERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_step_is_read_before_clipping(optimizer, spoil, zero):
    model = small_net()
    built = OPTIMIZERS[optimizer](model.parameters())
    monitor = ns.Monitor(model, built, every=6, measure_every=1)
    wanted, report = train(
        model,
        built,
        micro_batches(6, 4, 5),
        monitor=monitor,
        reference=textbook_of(model, 5),
        spoil=SPOILERS[spoil],
        zero=zero,
    )
    assert_found(report, wanted)
    assert report["noise/batch_size"] == 20
    assert report["noise/pieces"] == 4
    assert report["noise/measured_steps"] == 6
    assert report["noise/skipped_steps"] == 0


def test_loss_not_divided_by_the_micro_steps():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = ns.Monitor(model, optimizer, every=4, measure_every=1, accumulation="sum")
    steps = micro_batches(4, 3, 5)
    wanted, report = train(model, optimizer, steps, monitor=monitor, divide=False, reference=textbook_of(model, 5))
    assert_found(report, wanted)


def test_the_noise_scale_does_not_depend_on_how_the_loss_is_scaled():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = ns.Monitor(model, optimizer, every=4, measure_every=1)
    steps = micro_batches(4, 3, 5)
    wanted, report = train(model, optimizer, steps, monitor=monitor, divide=False, reference=textbook_of(model, 5))
    assert report["noise/scale"] == pytest.approx(smooth(wanted[:, 0], wanted[:, 1]).scale, rel=1e-9)


def test_the_last_micro_batch_may_be_smaller():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = ns.Monitor(model, optimizer, every=4, measure_every=1)
    steps = [[*step[:2], (step[2][0][:2], step[2][1][:2])] for step in micro_batches(4, 3, 5)]
    wanted, report = train(
        model,
        optimizer,
        steps,
        monitor=monitor,
        reference=lambda pieces: of_weighted(piece_gradients(model, pieces), (5, 5, 2), [1 / 3] * 3),
    )
    assert_found(report, wanted)
    assert report["noise/batch_size"] == 12


def test_frozen_and_unused_parameters():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small_net()
            self.unused = nn.Linear(3, 3).double()
            self.sometimes = nn.Linear(3, 2, bias=False).double()
            self.calls = 0

        def forward(self, inputs):
            used = inputs[:, 0].sum() > 0  # by the batch, as experts are
            return self.body(inputs) + (self.sometimes(inputs) if used else 0)

    model = Partly()
    model.body[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = ns.Monitor(model, optimizer, every=5, measure_every=1)
    wanted, report = train(
        model, optimizer, micro_batches(5, 4, 5), monitor=monitor, reference=textbook_of(model, 5)
    )
    assert_found(report, wanted)


def test_parameter_groups_add_up():
    model = small_net()
    groups = [{"params": model[0].parameters(), "name": "first"}, {"params": model[2].parameters(), "lr": 0.01}]
    optimizer = torch.optim.SGD(groups, lr=0.05)
    monitor = ns.Monitor(model, optimizer, every=5, measure_every=1)
    cut = sum(parameter.numel() for parameter in model[0].parameters())
    per_group = []

    def reference(pieces):
        gradients = piece_gradients(model, pieces)
        per_group.append((textbook(gradients[:, :cut], 4), textbook(gradients[:, cut:], 4)))
        return textbook(gradients, 4)

    wanted, report = train(model, optimizer, micro_batches(5, 3, 4), monitor=monitor, reference=reference)
    assert_found(report, wanted)
    per_group = np.array(per_group)
    assert_found(report, per_group[:, 0], "noise/group/first/")
    assert_found(report, per_group[:, 1], "noise/group/1/")
    assert report["noise/lr"] == 0.05


@pytest.mark.parametrize("name", ["adamw", "amsgrad", "rmsprop", "adagrad", "nadam"])
def test_the_preconditioned_figures_are_in_the_optimisers_metric(name):
    model = small_net()
    parameters = list(model.parameters())
    built = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.95), eps=1e-3),
        "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, eps=1e-3),
        "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, eps=1e-3),
        "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, eps=1e-3),
        "nadam": lambda p: torch.optim.NAdam(p, lr=0.01, eps=1e-3),
    }[name](parameters)
    train(model, built, micro_batches(3, 2, 5, seed=1))  # a state to begin with
    monitor = ns.Monitor(model, built, every=5, measure_every=1)

    def metric():
        """D from what a step of a steady gradient would do, without the momentum of the present state."""
        rows = []
        for parameter in parameters:
            state = built.state[parameter]
            group = built.param_groups[0]
            if name == "rmsprop":
                second = state["square_avg"] - state["grad_avg"] ** 2
            elif name == "adagrad":
                second = state["sum"]
            else:
                second = state["max_exp_avg_sq" if name == "amsgrad" else "exp_avg_sq"]
                second = second / (1 - group["betas"][1] ** float(state["step"]))
            rows.append((1 / (second.sqrt() + group["eps"])).flatten())
        return torch.cat(rows)

    def reference(pieces):
        return textbook(piece_gradients(model, pieces) * metric().sqrt(), 5)

    wanted, report = train(model, built, micro_batches(5, 3, 5), monitor=monitor, reference=reference)
    assert_found(report, wanted, "noise/preconditioned/")


def test_no_preconditioned_figures_without_a_metric():
    model = small_net()
    for optimizer in (torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.RAdam(model.parameters(), lr=0.1)):
        with ns.Monitor(model, optimizer, every=3, measure_every=1) as monitor:
            _, report = train(model, optimizer, micro_batches(3, 2, 4), monitor=monitor)
        assert not [key for key in report if "preconditioned" in key]
        assert "noise/scale" in report
