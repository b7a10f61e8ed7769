"""The monitor in Lightning's Trainer: what its loop does to losses, gradients, logs and checkpoints."""

import csv

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

import noisescape as ns
from noisescape.training.noise_scale import smooth
from trainer_cases import LIGHTNING_SAYS, QUIET
from training_loops import micro_batches, of_weighted, piece_gradients, small_net, textbook

pytestmark = [
    *(pytest.mark.filterwarnings(text) for text in LIGHTNING_SAYS),
    pytest.mark.filterwarnings("ignore:.*ended before the epoch ended and your dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Module(pl.LightningModule):
    """Calls a child; what the tests change is in ``loss`` and ``optimizer``."""

    def __init__(self, net=None, lr=0.05):
        super().__init__()
        self.net = net if net is not None else small_net()
        self.lr = lr

    def loss(self, batch, batch_idx):
        inputs, targets = batch
        return nn.functional.cross_entropy(self.net(inputs), targets)

    def training_step(self, batch, batch_idx):
        return self.loss(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=self.lr)


def loader(steps):
    return DataLoader([batch for step in steps for batch in step], batch_size=None)


def trainer(*callbacks, package=pl, **options):
    return package.Trainer(
        **{**QUIET, "max_epochs": 1, "accelerator": "cpu", "devices": 1, **options}, callbacks=list(callbacks)
    )


def monitor(every, **options):
    return ns.training.LightningNoiseMonitor(every=every, measure_every=1, **options)


def assert_found(report, wanted, rel=1e-9):
    expected = smooth(wanted[:, 0], wanted[:, 1])
    assert report["noise/trace_covariance"] == pytest.approx(expected.trace, rel=rel)
    assert report["noise/squared_gradient_norm"] == pytest.approx(expected.squared_norm, rel=rel)
    assert report["noise/scale_low"] == pytest.approx(expected.scale_low, rel=1e3 * rel)


def by_autograd(steps, windows, lr=0.05, clip=None):
    """(Tr Ĉ, ‖ĝ‖²) by step, of windows of micro-batches with their weights."""
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    batches = [batch for step in steps for batch in step]
    found, at = [], 0
    for weights in windows:
        window = batches[at : at + len(weights)]
        at += len(weights)
        window = [(inputs.double(), targets) for inputs, targets in window]
        gradients = piece_gradients(model, window)
        found.append(of_weighted(gradients, [len(inputs) for inputs, _ in window], weights))
        total = (gradients * torch.tensor(weights, dtype=gradients.dtype)[:, None]).sum(0)
        start = 0
        for parameter in model.parameters():
            parameter.grad = total[start : start + parameter.numel()].view_as(parameter).clone()
            start += parameter.numel()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return np.array(found)


# ---------------------------------------------------------------------- what the loop does


@pytest.mark.parametrize("clip", [None, 0.01])
def test_a_shorter_last_window_is_divided_by_the_full_number(clip):
    steps = micro_batches(1, 5, 4)
    callback = monitor(every=4)
    fit = trainer(callback, accumulate_grad_batches=3, max_epochs=2, gradient_clip_val=clip)
    fit.fit(Module(), loader(steps))
    wanted = by_autograd(steps * 2, [[1 / 3] * 3, [1 / 3] * 2] * 2, clip=clip)
    assert_found(callback.report, wanted)
    assert callback.report["noise/step"] == fit.global_step == 4
    assert callback.report["noise/batch_size"] == 10
    assert callback.report["noise/pieces"] == 2.5


def test_a_last_window_of_one_batch_is_left_out():
    """It is split only where the steps before were of one batch."""
    steps = micro_batches(1, 5, 4)
    callback = monitor(every=3)
    trainer(callback, accumulate_grad_batches=2).fit(Module(), loader(steps))
    assert_found(callback.report, by_autograd(steps, [[0.5] * 2] * 2))
    assert callback.report["noise/skipped_steps"] == 1


def test_a_schedule_of_accumulation_is_followed():
    steps = micro_batches(1, 6, 4)
    callback = monitor(every=5)
    trainer(GradientAccumulationScheduler({0: 2, 1: 3}), callback, max_epochs=2).fit(Module(), loader(steps))
    assert_found(callback.report, by_autograd(steps * 2, [[1 / 2] * 2] * 3 + [[1 / 3] * 3] * 2))


def test_training_steps_without_a_loss_are_no_pieces():
    class Skips(Module):
        def training_step(self, batch, batch_idx):
            return None if batch_idx in (1, 3, 5) else self.loss(batch, batch_idx)

    steps = micro_batches(2, 4, 4)
    callback = monitor(every=2)
    module = Skips()
    with pytest.warns(UserWarning, match="`training_step` returned `None`"):
        trainer(callback, accumulate_grad_batches=4).fit(module, loader(steps))
    kept = [[batch for n, batch in enumerate(steps[0]) if n not in (1, 3)], [steps[1][n] for n in (0, 2, 3)]]
    assert_found(callback.report, by_autograd(kept, [[1 / 4] * 2, [1 / 4] * 3]))


def test_validation_between_is_no_piece():
    class Validates(Module):
        def validation_step(self, batch, batch_idx):
            self.net(batch[0])

    steps = micro_batches(4, 2, 4)
    callback = monitor(every=4)
    fit = trainer(callback, accumulate_grad_batches=2, val_check_interval=3)
    fit.fit(Validates(), loader(steps), loader(micro_batches(1, 1, 50)))
    assert_found(callback.report, by_autograd(steps, [[1 / 2] * 2] * 4))


def test_the_scale_of_a_gradient_scaler_is_divided_out():
    steps = [[(inputs.float(), targets) for inputs, targets in step] for step in micro_batches(4, 2, 4)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    callback = monitor(every=4)
    trainer(callback, plugins=[plugin], accumulate_grad_batches=2).fit(Module(small_net().float()), loader(steps))
    assert scaler.get_scale() > 2.0**8, "the scale changed on the way"
    assert_found(callback.report, by_autograd(steps, [[1 / 2] * 2] * 4), rel=0.02)


@pytest.mark.parametrize("pieces", [1, 2])
def test_steps_that_the_scaler_skips_are_skipped(pieces):
    steps = [[(inputs.float(), targets) for inputs, targets in step] for step in micro_batches(5, pieces, 8)]
    steps[0][0][0][0, 0] = torch.inf
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**8))
    callback = monitor(every=4)
    fit = trainer(callback, plugins=[plugin], accumulate_grad_batches=pieces)
    fit.fit(Module(small_net().float()), loader(steps))
    assert callback.report["noise/measured_steps"] == 4
    assert callback.report["noise/skipped_steps"] == 1
    if pieces == 2:
        assert_found(callback.report, by_autograd(steps[1:], [[1 / 2] * 2] * 4), rel=0.02)


@pytest.mark.parametrize("pieces", [1, 2])
def test_half_precision(pieces):
    steps = [[(inputs.float(), targets) for inputs, targets in step] for step in micro_batches(4, pieces, 8)]
    reports = []
    for precision in ("bf16-mixed", "32-true"):
        callback = monitor(every=4)
        fit = trainer(callback, precision=precision, accumulate_grad_batches=pieces)
        fit.fit(Module(small_net().float()), loader(steps))
        reports.append(callback.report)
    for key in ("noise/trace_covariance", "noise/squared_gradient_norm"):
        assert reports[0][key] == pytest.approx(reports[1][key], rel=0.03), "the signs are the same"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_module():
    torch._dynamo.reset()
    steps = micro_batches(4, 2, 4)
    callback = monitor(every=4)
    compiled = torch.compile(Module(), backend="aot_eager")
    trainer(callback, accumulate_grad_batches=2).fit(compiled, loader(steps))
    assert_found(callback.report, by_autograd(steps, [[1 / 2] * 2] * 4))


def test_a_trainer_of_pytorch_lightning():
    other = pytest.importorskip("pytorch_lightning")

    class Other(other.LightningModule):
        loss, configure_optimizers = Module.loss, Module.configure_optimizers
        training_step = Module.training_step

        def __init__(self):
            super().__init__()
            self.net, self.lr = small_net(), 0.05

    steps = micro_batches(4, 2, 4)
    callback = monitor(every=4)
    trainer(callback, package=other, accumulate_grad_batches=2).fit(Other(), loader(steps))
    assert_found(callback.report, by_autograd(steps, [[1 / 2] * 2] * 4))


# ---------------------------------------------------------------------- steps of one batch


def of_halves(steps):
    """What a plain loop reports of the same splits."""
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    plain = ns.Monitor(model, optimizer, every=len(steps), measure_every=1)
    report = {}
    for ((inputs, targets),) in steps:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        report = plain.step() or report
    return report


class CallsItself(Module):
    def forward(self, inputs):
        return self.net(inputs)

    def loss(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


@pytest.mark.parametrize("kind", [Module, CallsItself])
def test_a_step_of_one_batch_is_split(kind):
    steps = micro_batches(3, 1, 6)
    callback = monitor(every=3)
    trainer(callback).fit(kind(), loader(steps))
    assert callback.report == of_halves(steps)
    assert callback.report["noise/pieces"] == 2


class TwoChildren(Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2).double()

    def loss(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.net(batch[0])), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class HeadOutside(TwoChildren):
    def forward(self, inputs):
        return self.net(inputs)

    def loss(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self(batch[0])), batch[1])


class CalledTwice(Module):
    def loss(self, batch, batch_idx):
        return super().loss(batch, batch_idx) + super().loss((batch[0] + 1, batch[1]), batch_idx)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (TwoChildren, "no gradient came back to an output of the whole model"),
        (HeadOutside, "part of the gradient does not come through the model's output"),
        (CalledTwice, "several of its outputs went into one backward pass"),
    ],
)
def test_a_step_of_one_batch_that_cannot_be_split_says_why_and_accumulated_it_is_read(kind, match):
    steps = micro_batches(2, 1, 6)
    callback = monitor(every=2)
    with pytest.warns(UserWarning, match=match):
        trainer(callback).fit(kind(), loader(steps))
    assert callback.report == {}

    steps = micro_batches(2, 3, 4)
    module = kind()
    wanted = []

    class Notes(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx % 3 == 0:
                losses = [pl_module.loss(batch, batch_idx) for batch in steps[batch_idx // 3]]
                parameters = list(pl_module.parameters())
                gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
                rows = [torch.cat([part.flatten() for part in of_piece]) for of_piece in gradients]
                wanted.append(textbook(torch.stack(rows), 4))

    callback = monitor(every=2)
    trainer(Notes(), callback, accumulate_grad_batches=3).fit(module, loader(steps))
    assert_found(callback.report, np.array(wanted))


# ---------------------------------------------------------------------- logs


@pytest.mark.slow
def test_loggers_receive_the_figures_at_the_global_step(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    steps = micro_batches(6, 2, 4)
    callback = monitor(every=3)
    loggers = [
        CSVLogger(tmp_path, name="csv"),
        TensorBoardLogger(tmp_path, name="board"),
        WandbLogger(offline=True, save_dir=tmp_path),
    ]
    reports, unpatched = [], ns.Monitor.report
    monkeypatch.setattr(
        ns.Monitor, "report", lambda self, batch=None: reports.append(unpatched(self, batch)) or reports[-1]
    )
    fit = trainer(callback, logger=loggers, accumulate_grad_batches=2, log_every_n_steps=1)
    fit.fit(Module(), loader(steps))
    loggers[2].experiment.finish()
    assert len(reports) == 2
    with next((tmp_path / "csv").rglob("metrics.csv")).open() as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file) if row.get("noise/scale")}
    assert sorted(rows) == [3, 6]
    events = EventAccumulator(str(next((tmp_path / "board").glob("version_*"))))
    events.Reload()
    for step, report in zip((3, 6), reports, strict=True):
        for key, value in report.items():
            assert float(rows[step][key]) == value
            (scalar,) = [scalar for scalar in events.Scalars(key) if scalar.step == step]
            assert scalar.value == pytest.approx(value, rel=1e-6)
    log = ns.training.read_log(next((tmp_path / "wandb").rglob("*.wandb")))
    assert list(log.steps) == [3, 6]


def test_without_a_logger_the_report_is_on_the_callback():
    callback = monitor(every=2)
    assert callback.report == {}
    trainer(callback, accumulate_grad_batches=2).fit(Module(), loader(micro_batches(2, 2, 4)))
    assert callback.report["noise/step"] == 2


@pytest.mark.parametrize("held_out", [True, False])
def test_probed_figures_of_held_out_samples_or_of_the_present_batch(held_out):
    steps = micro_batches(2, 1, 12)
    (samples,) = micro_batches(1, 1, 40, seed=5)[0]
    callback = monitor(
        every=2, loss=nn.functional.cross_entropy, overhead=None, **({"probe": samples} if held_out else {})
    )
    module = CallsItself()
    trainer(callback).fit(module, loader(steps))
    risk = ns.EmpiricalRisk(module.net, nn.functional.cross_entropy, samples if held_out else steps[1][0])
    assert callback.report["noise/probe/samples"] == (40 if held_out else 12)
    assert callback.report["noise/probe/loss"] == pytest.approx(float(risk.loss(risk.parameters())), rel=1e-6)


# ---------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_resumed_training_goes_on_exactly(tmp_path, pieces):
    steps = micro_batches(6, pieces, 6)
    whole = monitor(every=6)
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1)
    options = {"accumulate_grad_batches": pieces, "enable_checkpointing": True}
    trainer(whole, saver, **options).fit(Module(), loader(steps))
    (path,) = tmp_path.glob("*.ckpt")
    resumed = monitor(every=6)
    again = trainer(resumed, ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1), **options)
    again.fit(Module(), loader(steps[4:] + steps[:4]), ckpt_path=path, weights_only=True)
    assert again.global_step == 6
    assert resumed.report == whole.report
    assert resumed.report["noise/measured_steps"] == 6


def test_a_checkpoint_saved_after_the_training_has_the_state(tmp_path):
    callback = monitor(every=2)
    fit = trainer(callback, accumulate_grad_batches=2)
    fit.fit(Module(), loader(micro_batches(2, 2, 4)))
    fit.save_checkpoint(tmp_path / "end.ckpt")
    kept = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]
    assert kept["LightningNoiseMonitor"]["steps"] == 2


# ---------------------------------------------------------------------- what is refused


class Manual(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class NoOptimizer(Module):
    def configure_optimizers(self):
        return None


class SecondOrder(Module):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class Accumulates(SingleDeviceStrategy):
    @property
    def handles_gradient_accumulation(self):
        return True


@pytest.mark.parametrize(
    ("kind", "options", "error", "match"),
    [
        (Manual, {}, ValueError, "automatic optimisation only.*call noisescape.Monitor in training_step"),
        (SecondOrder, {}, TypeError, "LBFGS"),
        (
            Module,
            {"strategy": Accumulates(device="cpu")},
            ValueError,
            "Accumulates accumulates gradients in buffers",
        ),
    ],
)
def test_trainings_that_cannot_be_read_are_refused(kind, options, error, match):
    callback = monitor(every=2)
    with pytest.raises(error, match=match):
        trainer(callback, **options).fit(kind(), loader(micro_batches(2, 2, 4)))


@pytest.mark.filterwarnings("ignore:.*returned `None`, this fit will run with no optimizer")
def test_a_module_without_an_optimiser_is_refused():
    with pytest.raises(ValueError, match="the optimiser has none of the model's parameters"):
        trainer(monitor(every=2)).fit(NoOptimizer(), loader(micro_batches(2, 2, 4)))


@pytest.mark.parametrize("name", ["accumulation", "scaler", "outputs", "announced"])
def test_what_the_trainer_does_is_not_an_option(name):
    with pytest.raises(TypeError, match=f"{name} is what the Trainer does"):
        ns.training.LightningNoiseMonitor(**{name: None})


def test_wrong_options_are_named_when_training_starts():
    with pytest.raises(ValueError, match="every is 0; give a whole number"):
        trainer(ns.training.LightningNoiseMonitor(every=0)).fit(Module(), loader(micro_batches(2, 2, 4)))


class Words(Module):
    def loss(self, batch, batch_idx):
        inputs = torch.tensor([[float(len(word))] * 3 for word in batch["words"]], dtype=torch.float64)
        return self.net(inputs).square().mean()


@pytest.mark.parametrize("given", [3, lambda batch: len(batch["words"])])
def test_batches_of_which_lightning_cannot_tell_the_size(given):
    batches = DataLoader([{"words": ["a", "bcd", "ef"]} for _ in range(4)], batch_size=None)
    callback = monitor(every=2, batch_size=given)
    trainer(callback, accumulate_grad_batches=2).fit(Words(), batches)
    assert callback.report["noise/batch_size"] == 6
    with pytest.raises(ValueError, match="the number of samples of a dict is not known: give batch_size="):
        trainer(monitor(every=2)).fit(Words(), batches)


# ---------------------------------------------------------------------- what is left behind


def hooks_of(module):
    return [
        hook
        for part in module.modules()
        for hooks in (part._forward_hooks, part._forward_pre_hooks)
        for hook in hooks.values()
    ] + [hook for parameter in module.parameters() for hook in (parameter._backward_hooks or {}).values()]


class Breaks(Module):
    def training_step(self, batch, batch_idx):
        if batch_idx == 2:
            raise RuntimeError("broken")
        assert hooks_of(self)
        return self.loss(batch, batch_idx)


def test_hooks_are_gone_after_the_training_and_after_an_error():
    module = Module()
    trainer(monitor(every=2)).fit(module, loader(micro_batches(2, 1, 4)))
    assert not hooks_of(module)
    module = Breaks()
    with pytest.raises(RuntimeError, match="broken"):
        trainer(monitor(every=2)).fit(module, loader(micro_batches(2, 2, 4)))
    assert not hooks_of(module)


def test_training_is_the_same_with_a_monitor():
    weights = []
    for callbacks in ([], [monitor(every=2)]):
        for pieces in (1, 2):
            module = Module()
            trainer(*callbacks, accumulate_grad_batches=pieces).fit(module, loader(micro_batches(4, pieces, 6)))
            weights.append(list(module.state_dict().values()))
    for plain, watched in zip(weights[:2], weights[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
