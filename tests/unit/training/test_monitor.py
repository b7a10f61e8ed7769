"""The monitor in plain loops: figures of every step against autograd, whatever the loop does to its gradients."""

import contextlib
import copy
import io
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import noisescape as ns
from noisescape.training.noise_scale import smooth
from training_loops import micro_batches, of_weighted, piece_gradients, small_net, textbook

FIGURES = ("trace_covariance", "squared_gradient_norm")


def loss_of(model, inputs, targets):
    return nn.functional.cross_entropy(model(inputs), targets)


def train(model, optimizer, steps, *, monitor=None, divide=True, reference=None, spoil=None, zero="none"):
    """A plain loop; what the monitor should have found at each step, and its last report."""
    wanted, report = [], {}
    for pieces in steps:
        if reference is not None:
            wanted.append(reference(pieces))
        optimizer.zero_grad(set_to_none=zero == "none")
        for inputs, targets in pieces:
            loss = loss_of(model, inputs, targets)
            (loss / len(pieces) if divide else loss).backward()
        if spoil is not None:
            spoil(model)
        optimizer.step()
        if monitor is not None:
            report = monitor.step() or report
    return np.array(wanted), report


def assert_found(report, wanted, place="noise/"):
    expected = smooth(wanted[:, 0], wanted[:, 1])
    assert report[f"{place}trace_covariance"] == pytest.approx(expected.trace, rel=1e-9)
    assert report[f"{place}squared_gradient_norm"] == pytest.approx(expected.squared_norm, rel=1e-9)
    assert report[f"{place}trace_covariance_stderr"] == pytest.approx(expected.trace_stderr, rel=1e-6)
    assert report[f"{place}scale"] == pytest.approx(expected.scale, rel=1e-6)
    assert report[f"{place}scale_low"] == pytest.approx(expected.scale_low, rel=1e-6)


def textbook_of(model, size):
    return lambda pieces: textbook(piece_gradients(model, pieces), size)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "fused": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "fused-adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}
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


# ---------------------------------------------------------------------- gradient scalers


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("unscale_first", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_the_scale_of_a_gradient_scaler_is_divided_out(fused, unscale_first, known):
    model = small_net().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    monitor = ns.Monitor(model, optimizer, every=6, measure_every=1, scaler=scaler if known else None)
    wanted = []
    report = {}
    for pieces in micro_batches(6, 3, 5):
        pieces = [(inputs.float(), targets) for inputs, targets in pieces]
        wanted.append(textbook(piece_gradients(model, pieces).double(), 5))
        for inputs, targets in pieces:
            scaler.scale(loss_of(model, inputs, targets) / 3).backward()
        if unscale_first:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        report = monitor.step() or report
    assert scaler.get_scale() > 2.0**12, "the scale changed on the way"
    wanted = np.array(wanted)
    assert report["noise/trace_covariance"] == pytest.approx(wanted[:, 0].mean(), rel=1e-4)
    assert report["noise/squared_gradient_norm"] == pytest.approx(wanted[:, 1].mean(), rel=1e-4)


@pytest.mark.parametrize("zero", ["none", "zeros"])
@pytest.mark.parametrize("fused", [True, False])
def test_steps_that_the_scaler_skips_are_skipped(fused, zero):
    model = small_net().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-110)
    monitor = ns.Monitor(model, optimizer, every=4, measure_every=1)
    wanted, report = [], {}
    for index, pieces in enumerate(micro_batches(5, 3, 5)):
        pieces = [(inputs.float(), targets) for inputs, targets in pieces]
        before = [parameter.clone() for parameter in model.parameters()]
        if index:
            wanted.append(textbook(piece_gradients(model, pieces).double(), 5))
        for inputs, targets in pieces:
            scaler.scale(100 * loss_of(model, inputs, targets) / 3).backward()
        scaler.step(optimizer)
        scaler.update()
        moved = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert moved == (index > 0), "the first step overflows"
        optimizer.zero_grad(set_to_none=zero == "none")
        report = monitor.step() or report
    if fused:  # its step is entered, and does nothing
        report = monitor.report()
    wanted = 1e4 * np.array(wanted)
    assert report["noise/measured_steps"] == 4
    assert report["noise/skipped_steps"] == 1
    assert report["noise/trace_covariance"] == pytest.approx(wanted[:, 0].mean(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    model = small_net().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = ns.Monitor(model, optimizer, every=4, measure_every=1)
    wanted, report = [], {}
    for pieces in micro_batches(4, 3, 5):
        pieces = [(inputs.float(), targets) for inputs, targets in pieces]
        with torch.autocast("cpu", dtype=dtype):
            wanted.append(textbook(piece_gradients(model, pieces).double(), 5))
        for inputs, targets in pieces:
            with torch.autocast("cpu", dtype=dtype):
                loss = loss_of(model, inputs, targets) / 3
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        report = monitor.step() or report
    assert report["noise/trace_covariance"] == pytest.approx(np.array(wanted)[:, 0].mean(), rel=0.02)


def test_half_precision_parameters_are_summed_in_single():
    model = nn.Linear(4096, 1, bias=False).to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = ns.Monitor(model, optimizer, every=1, measure_every=1)
    inputs = torch.randn(2, 3, 4096, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    for piece in inputs:
        (model(piece).float().mean() / 2).backward()
    gradients = [piece.double().mean(0) for piece in inputs]
    optimizer.step()
    report = monitor.step()
    wanted = textbook(torch.stack(gradients), 3)
    assert report["noise/trace_covariance"] == pytest.approx(wanted[0], rel=0.02)


# ---------------------------------------------------------------------- one piece


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


# ---------------------------------------------------------------------- announced by the loop


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


# ---------------------------------------------------------------------- compiled


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


# ---------------------------------------------------------------------- what the loop may do beside


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


# ---------------------------------------------------------------------- cost


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


# ---------------------------------------------------------------------- schedule, state


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
        ({"batch_size": 0}, "batch_size is 0"),
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


# ---------------------------------------------------------------------- probes


def test_probed_figures_come_with_the_free_ones():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    ((held,),) = micro_batches(1, 1, 40, seed=5)
    monitor = ns.Monitor(
        model, optimizer, every=5, measure_every=1, loss=nn.functional.cross_entropy, probe=held, overhead=None
    )
    _, report = train(model, optimizer, micro_batches(5, 3, 4), monitor=monitor)
    risk = ns.EmpiricalRisk(model, nn.functional.cross_entropy, held)
    theta = risk.parameters()
    top = torch.linalg.eigvalsh(risk.hessian(theta).dense())[-1]
    assert report["noise/probe/samples"] == 40
    assert report["noise/probe/top_eigenvalue"] == pytest.approx(float(top), rel=1e-3)
    assert report["noise/probe/stability_edge"] == pytest.approx(40)
    assert report["noise/probe/loss"] == pytest.approx(float(risk.loss(theta)))
    assert report["noise/batch_size"] == 12
    assert report["noise/overhead"] > 0
    assert next(iter(report)) == "noise/step"


def test_the_present_batch_is_probed_where_nothing_is_held_out():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = ns.Monitor(model, optimizer, every=1, split=False, loss=nn.functional.cross_entropy, overhead=None)
    ((batch,),) = micro_batches(1, 1, 16)
    loss_of(model, *batch).backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="a step is one piece"):
        report = monitor.step(batch)
    risk = ns.EmpiricalRisk(model, nn.functional.cross_entropy, batch)
    trace = risk.noise_covariance(risk.parameters(), batch_size=1).trace() * 16 / 15
    assert report["noise/probe/trace_covariance"] == pytest.approx(float(trace), rel=1e-6)
    assert "noise/scale" not in report


def test_probes_wait_until_they_can_be_paid_for():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    ((held,),) = micro_batches(1, 1, 16, seed=5)
    monitor = ns.Monitor(model, optimizer, every=5, measure_every=1, loss=nn.functional.cross_entropy, probe=held)
    _, report = train(model, optimizer, micro_batches(5, 3, 4), monitor=monitor)
    assert report["noise/overhead"] == 0
    assert not [key for key in report if "probe" in key]


def test_samples_to_probe_need_a_loss():
    model = small_net()
    with pytest.raises(ValueError, match="no loss: give loss= too"):
        ns.Monitor(model, torch.optim.SGD(model.parameters(), lr=0.1), probe=(torch.ones(9, 3), torch.ones(9)))
