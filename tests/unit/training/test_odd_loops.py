"""The monitor in loops that do odd things: figures as by autograd, or a refusal that says why."""

import copy
import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import noisescape as ns
from noisescape.training.noise_scale import smooth
from training_loops import micro_batches, of_weighted, small_net, textbook

SIZE = 4


def loss_of(model, inputs, targets):
    return nn.functional.cross_entropy(model(inputs), targets)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def train(model, optimizer, monitor, *, pieces=3, steps=4, loss=loss_of, before=None, retain=False):
    """What autograd finds at each step on a copy, and the last report; ``before(step)`` meddles."""
    wanted, report = [], {}
    for index, step in enumerate(micro_batches(steps, pieces, SIZE)):
        if before is not None:
            before(index)
        wanted.append(textbook(gradients(model, step, loss), SIZE) if pieces > 1 else (0.0, 0.0))
        for inputs, targets in step:
            (loss(model, inputs, targets) / pieces).backward(create_graph=retain)
        optimizer.step()
        optimizer.zero_grad()
        report = monitor.step() or report
    return np.array(wanted), report


def gradients(model, step, loss=loss_of):
    """(K, D), on a copy, which has no hooks on its parameters."""
    model = copy.deepcopy(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = []
    for inputs, targets in step:
        found = torch.autograd.grad(loss(model, inputs, targets), parameters, allow_unused=True)
        dense = [torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(parameters, found, strict=True)]
        rows.append(torch.cat([torch.view_as_real(g).flatten() if g.is_complex() else g.flatten() for g in dense]))
    return torch.stack(rows)


def assert_found(report, wanted, place="noise/"):
    expected = smooth(wanted[:, 0], wanted[:, 1])
    assert report[f"{place}trace_covariance"] == pytest.approx(expected.trace, rel=1e-9)
    assert report[f"{place}squared_gradient_norm"] == pytest.approx(expected.squared_norm, rel=1e-9)


def watched(model, optimizer=None, every=4, **options):
    optimizer = optimizer or sgd(model)
    return model, optimizer, ns.Monitor(model, optimizer, every=every, measure_every=1, **options)


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
@pytest.mark.parametrize("make", [sgd, lambda model: torch.optim.Adam(model.parameters(), lr=0.01)])
def test_gradients_with_a_graph_of_their_own(make):
    model = small_net()
    wanted, report = train(*watched(model, make(model)), retain=True)
    assert_found(report, wanted)


# ---------------------------------------------------------------------- what trains changes


def test_a_parameter_that_trains_from_some_step_on():
    model = small_net()
    model[2].weight.requires_grad_(False)

    def before(step):
        model[2].weight.requires_grad_(step > 1)

    wanted, report = train(*watched(model), before=before)
    assert_found(report, wanted)
    assert report["noise/measured_steps"] == 4


@pytest.mark.parametrize("measure_every", [1, 2])
def test_a_parameter_group_that_is_added(measure_every):
    class Grown(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.more = small_net(), None

        def forward(self, inputs):
            return self.body(inputs) + (self.more(inputs) if self.more is not None else 0)

    model = Grown()
    optimizer = sgd(model)
    monitor = ns.Monitor(model, optimizer, every=4, measure_every=measure_every)

    def before(step):
        if step == 2:
            model.more = nn.Linear(3, 2).double()
            optimizer.add_param_group({"params": model.more.parameters()})

    wanted, report = train(model, optimizer, monitor, before=before)
    assert_found(report, wanted[2::measure_every])
    assert report["noise/group/1/trace_covariance"] > 0
    assert report["noise/measured_steps"] == 2 / measure_every


def test_a_hook_registered_later_that_returns_another_gradient():
    model, optimizer, monitor = watched(small_net())
    model[0].weight.register_hook(lambda gradient: 3 * gradient)
    wanted, report = [], {}
    for step in micro_batches(4, 3, SIZE):
        found = gradients(model, step)
        found[:, :15] *= 3
        wanted.append(textbook(found, SIZE))
        for inputs, targets in step:
            (loss_of(model, inputs, targets) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
        report = monitor.step() or report
    assert_found(report, np.array(wanted))


def test_gradients_that_are_changed_as_they_are_accumulated_are_refused():
    model, optimizer, monitor = watched(small_net())

    def clamp(parameter):
        parameter.grad.clamp_(-0.01, 0.01)

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(clamp)
    with pytest.warns(UserWarning, match="were not what the backward passes of the step brought"):
        _, report = train(model, optimizer, monitor)
    assert not report


# ---------------------------------------------------------------------- passes that failed or were not for training


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(context, inputs):
        return inputs.clone()

    @staticmethod
    def backward(context, gradient):
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("zeroed", [True, False])
def test_a_step_tried_again_after_its_backward_pass_failed(zeroed):
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fails = small_net(), False

        def forward(self, inputs):
            hidden = self.body[0](inputs)
            return self.body[2](self.body[1](Fails.apply(hidden) if self.fails else hidden))

    model, optimizer, monitor = watched(Failing(), split=False)

    def before(step):
        if step != 1:
            return
        ((first, second),) = micro_batches(1, 2, SIZE, seed=9)
        loss_of(model, *first).backward()
        model.fails = True
        with pytest.raises(RuntimeError, match="out of memory"):
            loss_of(model, *second).backward()
        model.fails = False
        if zeroed:
            optimizer.zero_grad()

    with warnings.catch_warnings():
        warnings.filterwarnings("error" if zeroed else "ignore", category=UserWarning)
        wanted, report = train(model, optimizer, monitor, before=before)
    if not zeroed:  # the partial gradients are in the step: the trainings of monitor and autograd part, too
        assert report["noise/measured_steps"] == 3
        assert report["noise/skipped_steps"] == 2
        return
    assert_found(report, wanted)
    assert report["noise/skipped_steps"] == 1


def test_a_step_begun_and_thrown_away_through_data_is_refused():
    model, optimizer, monitor = watched(small_net(), split=False)

    def before(step):
        if step == 0:
            loss_of(model, *micro_batches(1, 1, SIZE, seed=9)[0][0]).backward()
            for parameter in model.parameters():
                parameter.grad.data.zero_()

    with pytest.warns(UserWarning, match=r"a write to \.data"):
        wanted, report = train(model, optimizer, monitor, before=before)
    assert_found(report, wanted[1:])


def penalised(model, inputs, targets):
    """A penalty on the gradient with respect to the inputs."""
    inputs = inputs.clone().requires_grad_()
    outputs = model(inputs)
    (slope,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
    return nn.functional.cross_entropy(outputs, targets) + slope.square().sum(1).mean()


def parameters_penalised(model, inputs, targets):
    loss = loss_of(model, inputs, targets)
    return loss + sum(g.square().sum() for g in torch.autograd.grad(loss, model.parameters(), create_graph=True))


@pytest.mark.parametrize("loss", [penalised, parameters_penalised])
def test_gradient_penalties(loss):
    wanted, report = train(*watched(small_net()), loss=loss)
    assert_found(report, wanted)
    with pytest.warns(UserWarning, match="part of the gradient does not come through the model's output"):
        _, report = train(*watched(small_net()), loss=loss, pieces=1)
    assert not report


@pytest.mark.parametrize("loss", [penalised, parameters_penalised])
def test_penalties_at_some_steps_only(loss):
    """As lazy regularisation is: the first step, at which a split is checked, has none."""
    model, optimizer, monitor = watched(small_net())
    calls = iter([loss_of, loss, loss_of, loss])
    with pytest.warns(UserWarning, match="asked for by themselves too"):
        _, report = train(model, optimizer, monitor, loss=lambda *args: next(calls)(*args), pieces=1)
    assert report["noise/measured_steps"] == 2
    assert report["noise/skipped_steps"] == 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_the_model(reentrant):
    def checkpointed(model, inputs, targets):
        inputs = inputs.clone().requires_grad_()
        return nn.functional.cross_entropy(checkpoint(model, inputs, use_reentrant=reentrant), targets)

    model, optimizer, monitor = watched(small_net())
    wanted, report = [], {}
    for step in micro_batches(4, 3, SIZE):
        wanted.append(textbook(gradients(model, step), SIZE))
        for inputs, targets in step:
            (checkpointed(model, inputs, targets) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
        report = monitor.step() or report
    assert_found(report, np.array(wanted))


def test_gradients_that_come_before_the_models_own_are_refused():
    class Headed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = small_net()[:2], nn.Linear(5, 2).double()

    whole = Headed()
    optimizer = sgd(whole)
    monitor = ns.Monitor(whole.body, optimizer, every=4, measure_every=1)

    def loss(model, inputs, targets):  # the checkpoint calls its body in the backward pass only
        hidden = checkpoint(model.body, inputs.clone().requires_grad_(), use_reentrant=True)
        return nn.functional.cross_entropy(model.head(hidden), targets)

    def loop():
        for step in micro_batches(4, 3, SIZE):
            for inputs, targets in step:
                (loss(whole, inputs, targets) / 3).backward()
            optimizer.step()
            optimizer.zero_grad()
            assert not monitor.step()

    with pytest.warns(UserWarning, match="came from outside of the model before those of its own"):
        loop()


def test_gradients_looked_at_before_the_backward_pass():
    def looked_at(model, inputs, targets):
        loss = loss_of(model, inputs, targets)
        torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        return loss

    wanted, report = train(*watched(small_net()), loss=looked_at)
    assert_found(report, wanted)


class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.last = small_net(), []

    def forward(self, inputs):
        hidden = self.body[0](inputs)
        self.last[:] = [hidden.square().mean()]
        return self.body[2](self.body[1](hidden))


def test_a_loss_that_goes_around_the_output_is_not_split():
    model, optimizer, monitor = watched(Auxiliary())

    def loss(model, inputs, targets):
        return loss_of(model, inputs, targets) + model.last[0]

    with pytest.warns(UserWarning, match="does not come through the model's output"):
        _, report = train(model, optimizer, monitor, loss=loss, pieces=1)
    assert not report


# ---------------------------------------------------------------------- how many samples


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.recurrent, self.head = nn.GRU(3, 4), nn.Linear(4, 2)
        self.double()

    def forward(self, inputs):
        return self.head(self.recurrent(inputs.expand(7, -1, -1))[0][-1])


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = small_net()

    def forward(self, mask, inputs):
        return self.body(mask * inputs)


@pytest.mark.parametrize(
    ("make", "call", "match"),
    [
        (TimeFirst, lambda model, inputs: model(inputs[None]), "the model has GRU"),
        (Masked, lambda model, inputs: model(inputs.new_ones(3), inputs), r"tensors of \[3, 4\] rows"),
    ],
)
def test_a_batch_dimension_that_is_not_plain_must_be_given(make, call, match):
    def loss(model, inputs, targets):
        return nn.functional.cross_entropy(call(model, inputs), targets)

    with pytest.warns(UserWarning, match=match):
        _, report = train(*watched(make()), loss=loss)
    assert not report
    wanted, report = train(*watched(make(), batch_size=SIZE), loss=loss)
    assert_found(report, wanted)


def test_a_last_step_of_fewer_micro_steps_with_a_loss_divided_as_ever():
    model, optimizer, monitor = watched(small_net(), accumulation=3)
    wanted, report = [], {}
    for count, step in zip((3, 3, 3, 2), micro_batches(4, 3, SIZE), strict=True):
        step = step[:count]
        wanted.append(of_weighted(gradients(model, step), [SIZE] * count, [1 / 3] * count))
        for inputs, targets in step:
            (loss_of(model, inputs, targets) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
        report = monitor.step() or report
    assert_found(report, np.array(wanted))


@pytest.mark.parametrize("accumulation", [0, True, 1.5])
def test_no_such_divisor(accumulation):
    model = small_net()
    with pytest.raises(ValueError, match="or what losses are divided by"):
        ns.Monitor(model, sgd(model), accumulation=accumulation)


# ---------------------------------------------------------------------- kinds of parameters


def assert_metric_found(model, optimizer, monitor, metric, loss):
    """``metric()`` is D, (D,), before each step but the first."""
    wanted, report = [], {}
    for index, step in enumerate(micro_batches(4, 3, SIZE)):
        if index:
            wanted.append(textbook(gradients(model, step, loss) * metric().sqrt(), SIZE))
        for inputs, targets in step:
            (loss(model, inputs, targets) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
        report = monitor.step() or report
    assert_found(report, np.array(wanted), "noise/preconditioned/")


def test_adams_metric_of_complex_parameters():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.weight = nn.Parameter(torch.randn(3, 2, dtype=torch.complex128))

        def forward(self, inputs):
            return (inputs.to(torch.complex128) @ self.weight).abs()

    model = Complex()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, eps=1e-3)

    def metric():
        state = optimizer.state[model.weight]
        second = torch.view_as_real(state["exp_avg_sq"]) / (1 - 0.999 ** float(state["step"]))
        return (1 / (second.sqrt() + 1e-3)).flatten()

    assert_metric_found(*watched(model, optimizer), metric, loss_of)


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2)
        self.double()

    def forward(self, inputs):
        return self.head(self.table((inputs > 0).sum(1)))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_adagrads_metric_of_sparse_gradients():
    model = Sparse()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.01, eps=1e-3)

    def metric():
        return torch.cat(
            [(1 / (optimizer.state[parameter]["sum"].sqrt() + 1e-3)).flatten() for parameter in model.parameters()]
        )

    assert_metric_found(*watched(model, optimizer), metric, loss_of)


def test_a_batch_with_sparse_gradients_is_split():
    model, optimizer, monitor = watched(Sparse(), every=1)
    ((step,),) = micro_batches(1, 1, 2)
    halves = [(step[0][:1], step[1][:1]), (step[0][1:], step[1][1:])]
    wanted = textbook(gradients(model, halves), 1)
    loss_of(model, *step).backward()
    optimizer.step()
    assert_found(monitor.step(), np.array([wanted]))


# ---------------------------------------------------------------------- what is kept


def test_a_monitor_that_is_dropped_is_gone_and_so_is_its_model():
    model, optimizer, monitor = watched(small_net())
    train(model, optimizer, monitor, pieces=1)
    held = [weakref.ref(each) for each in (monitor, model, optimizer)]
    del monitor
    assert held[0]() is None
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not any(parameter._backward_hooks for parameter in model.parameters())
    again = ns.Monitor(model, optimizer, every=4, measure_every=1)
    _, report = train(model, optimizer, again, pieces=1)
    assert report["noise/pieces"] == 2, "split, with no other monitor's hooks in the way"
    del model, optimizer, again
    gc.collect()
    assert [each() for each in held] == [None] * 3


def test_what_nobody_asks_for_does_not_pile_up():
    model = small_net()
    optimizer = sgd(model)
    monitor = ns.Monitor(model, optimizer, every=8, measure_every=1, window=5)
    for step in micro_batches(20, 2, SIZE):
        for inputs, targets in step:
            (loss_of(model, inputs, targets) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(monitor._pending) == 8
    assert monitor.report()["noise/measured_steps"] == 5


@pytest.mark.parametrize("state", [{}, [], None, {"steps": 1, "window": [[1, 2]]}])
def test_a_foreign_state_is_refused(state):
    _, _, monitor = watched(small_net())
    with pytest.raises(ValueError, match="this is no state of a Monitor"):
        monitor.load_state_dict(state)


# ---------------------------------------------------------------------- optimisers


def test_the_optimiser_in_a_wrapper_that_never_was_one():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            self.optimizer, self.param_groups, self.state = inner, inner.param_groups, inner.state

        def step(self):
            self.optimizer.step()

        def zero_grad(self):
            self.optimizer.zero_grad()

    model = small_net()
    wanted, report = train(*watched(model, Wrapper(sgd(model))))
    assert_found(report, wanted)


def test_an_optimiser_that_never_steps_is_said():
    model = small_net()
    idle, steps = sgd(model), sgd(model)
    monitor = ns.Monitor(model, idle, every=4)

    def loop():
        for ((inputs, targets),) in micro_batches(103, 1, SIZE):
            loss_of(model, inputs, targets).backward()
            steps.step()
            steps.zero_grad()
            assert not monitor.step()

    with pytest.warns(UserWarning, match="thrown away 100 times and the monitor's optimiser never made a step"):
        loop()


def test_an_optimiser_that_steps_within_the_backward_pass_is_refused_and_trains_on():
    def trained(*, monitored):
        model = small_net()
        optimizers = [torch.optim.SGD([parameter], lr=0.05) for parameter in model.parameters()]
        owner = dict(zip(model.parameters(), optimizers, strict=True))

        def update(parameter):
            owner[parameter].step()
            owner[parameter].zero_grad()

        monitor = ns.Monitor(model, optimizers[0], every=1, measure_every=1) if monitored else None
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(update)
        for ((inputs, targets),) in micro_batches(3, 1, SIZE):
            loss_of(model, inputs, targets).backward()
            assert monitor is None or not monitor.step()
        return nn.utils.parameters_to_vector(model.parameters())

    with pytest.warns(UserWarning, match="had not ended when the optimiser stepped"):
        found = trained(monitored=True)
    assert torch.equal(found, trained(monitored=False))
