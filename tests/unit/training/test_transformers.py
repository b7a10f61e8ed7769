"""The monitor in transformers' Trainer: what its loop does to losses, gradients, logs and checkpoints."""

import json

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from transformers import Trainer, TrainerCallback

import noisescape as ns
from noisescape.training.noise_scale import smooth
from noisescape.training.transformers import _packed, _unpacked
from slowness import quick
from trainer_cases import CASES, Case, batched, conv_net, digits, language_model, sgd, text, transformers_trainer
from training_loops import of_weighted

TWO, ONE = CASES["conv net, two micro-steps"], CASES["conv net, one"]


def monitor(every, **options):
    return ns.training.TransformersNoiseMonitor(every=every, measure_every=1, **options)


def assert_found(report, wanted, rel=1e-6):
    wanted = np.array(wanted)
    expected = smooth(wanted[:, 0], wanted[:, 1])
    assert report["noise/trace_covariance"] == pytest.approx(expected.trace, rel=rel)
    assert report["noise/squared_gradient_norm"] == pytest.approx(expected.squared_norm, rel=rel)


def by_autograd(model, optimizer, windows, loss_of, weights_of):
    """(Tr Ĉ, ‖ĝ‖²) by step; ``loss_of`` a micro-batch is a mean, ``weights_of`` a window what each counts."""
    parameters, found = list(model.parameters()), []
    for window in windows:
        gradients = []
        for batch in window:
            parts = torch.autograd.grad(loss_of(model, batch), parameters)
            gradients.append(torch.cat([part.flatten() for part in parts]))
        gradients, weights = torch.stack(gradients), weights_of(window)
        found.append(of_weighted(gradients, [len(batch["labels"]) for batch in window], weights))
        total = (gradients * torch.tensor(weights, dtype=gradients.dtype)[:, None]).sum(0)
        at = 0
        for parameter in parameters:
            parameter.grad = total[at : at + parameter.numel()].view_as(parameter).clone()
            at += parameter.numel()
        optimizer.step()
    return found


def windows(batches, pieces):
    return [batches[at : at + pieces] for at in range(0, len(batches), pieces)]


# ---------------------------------------------------------------------- what the loop does


def of_mean(model, batch):
    return model(**batch)["loss"]


def test_a_shorter_last_window_is_divided_by_its_own_number(tmp_path):
    case, data = Case(conv_net, digits, sgd, pieces=3, size=4), digits(20)
    callback = monitor(every=2)
    transformers_trainer(case, tmp_path, [callback], data=data).train()
    model = conv_net()
    wanted = by_autograd(
        model, sgd(model.parameters()), windows(batched(data, 4), 3), of_mean, lambda w: [1 / len(w)] * len(w)
    )
    assert_found(callback.report, wanted, rel=1e-9)
    assert callback.report["noise/pieces"] == 2.5


def float_digits(count):
    return [{**sample, "pixel_values": sample["pixel_values"].float()} for sample in digits(count)]


def unequal_text(count):
    """Rows of which only a part is to be predicted, of unlike lengths."""
    rows = text(count)
    for number, row in enumerate(rows):
        labels = row["input_ids"].clone()
        labels[2 + 3 * (number % 5) :] = -100
        row["labels"] = labels
    return rows


def tokens(batch, shifted=True):
    labels = batch["labels"][:, 1:] if shifted else batch["labels"]
    return int((labels != -100).sum())


def test_pieces_weigh_as_many_labels_as_they_have(tmp_path):
    case = Case(language_model, unequal_text, sgd, size=3, pieces=2, steps=6)
    counts = [tokens(batch) for batch in case.batches]
    assert len(set(counts[:2])) == 2
    callback = monitor(every=6)
    transformers_trainer(case, tmp_path, [callback]).train()
    model = language_model()

    def weights(window):
        own = [tokens(batch) for batch in window]
        return [count / sum(own) for count in own]

    wanted = by_autograd(model, sgd(model.parameters()), windows(case.batches, 2), of_mean, weights)
    assert_found(callback.report, wanted)
    equal = by_autograd(
        language_model(), sgd(model.parameters()), windows(case.batches, 2), of_mean, lambda w: [0.5] * 2
    )
    with pytest.raises(AssertionError):
        assert_found(callback.report, equal)


def summed(outputs, labels, num_items_in_batch=None):
    loss = nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum")
    return loss / num_items_in_batch


class NoLabels(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = conv_net()

    def forward(self, pixel_values):
        return {"logits": self.inner.body(pixel_values)}


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_loss_function_of_the_users(tmp_path, pieces):
    case = Case(NoLabels, digits, sgd, pieces=pieces)
    callback = monitor(every=8)
    options = {"remove_unused_columns": False}
    trainer = transformers_trainer(case, tmp_path, [callback], **options)
    trainer.compute_loss_func = summed
    trainer.train()
    plain = Case(conv_net, digits, sgd, pieces=pieces)
    other = monitor(every=8)
    transformers_trainer(plain, tmp_path, [other]).train()
    assert callback.report == {key: pytest.approx(value, rel=1e-9) for key, value in other.report.items()}


def test_label_smoothing(tmp_path):
    case = Case(language_model, unequal_text, sgd, size=3, pieces=2, steps=6)
    callback = monitor(every=6)
    transformers_trainer(case, tmp_path, [callback], label_smoothing_factor=0.1).train()
    model = language_model()

    def loss_of(model, batch):
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
        return nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), label_smoothing=0.1)

    def weights(window):
        own = [tokens(batch) for batch in window]
        return [count / sum(own) for count in own]

    wanted = by_autograd(model, sgd(model.parameters()), windows(case.batches, 2), loss_of, weights)
    assert_found(callback.report, wanted)


@pytest.mark.parametrize("scaled", quick([True], [False]))
def test_a_trainer_that_computes_its_loss_itself(tmp_path, scaled):
    class Own(Trainer):
        loss_is_scaled_for_ga = scaled

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            logits = model(input_ids=inputs["input_ids"]).logits[:, :-1].flatten(0, 1)
            labels = inputs["labels"][:, 1:].flatten()
            if not scaled:
                return nn.functional.cross_entropy(logits, labels)
            return nn.functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch

    case = Case(language_model, unequal_text, sgd, size=3, pieces=2, steps=6)
    callback = monitor(every=6)
    transformers_trainer(case, tmp_path, [callback], kind=Own).train()
    model = language_model()

    def weights(window):
        own = [tokens(batch) for batch in window]
        return [count / sum(own) for count in own] if scaled else [1 / 2] * 2

    wanted = by_autograd(model, sgd(model.parameters()), windows(case.batches, 2), of_mean, weights)
    assert_found(callback.report, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [1, 2])
def test_half_precision(tmp_path, pieces):
    """Outputs are converted, but the loss within the model has what was converted."""
    reports = []
    for half in (False, True):
        case = Case(lambda: language_model().float(), text, sgd, size=4, pieces=pieces)
        callback = monitor(every=8)
        transformers_trainer(case, tmp_path, [callback], bf16=half).train()
        reports.append(callback.report)
    for key in ("noise/trace_covariance", "noise/squared_gradient_norm"):
        assert reports[1][key] == pytest.approx(reports[0][key], rel=0.05), "the signs are the same"


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_gradient_scaler(tmp_path, pieces):
    """Accelerate makes one on accelerators only; here it is given one. The first step overflows: it is skipped."""
    reports = []
    for scaled in (False, True):
        case = Case(lambda: conv_net().float(), float_digits, sgd, pieces=pieces)
        data = case.data if scaled else case.data[case.size * pieces :]
        callback = monitor(every=7)
        trainer = transformers_trainer(case, tmp_path, [callback], data=data)
        if scaled:
            data[0]["pixel_values"] = torch.full((1, 8, 8), torch.inf)
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        trainer.train()
        reports.append(callback.report)
    assert trainer.accelerator.scaler.get_scale() == 2.0**9
    assert reports[1]["noise/skipped_steps"] == 1
    if pieces == 1:  # other signs, since the skipped step drew some too
        assert reports[1]["noise/measured_steps"] == 7
        return
    for key in ("noise/trace_covariance", "noise/squared_gradient_norm"):
        assert reports[1][key] == pytest.approx(reports[0][key], rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model(tmp_path):
    torch._dynamo.reset()
    reports = []
    for compiled in ({}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}):
        callback = monitor(every=8)
        transformers_trainer(TWO, tmp_path, [callback], **compiled).train()
        reports.append(callback.report)
    assert reports[1] == {key: pytest.approx(value, rel=1e-9) for key, value in reports[0].items()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_without_accumulation_says_why(tmp_path):
    torch._dynamo.reset()
    callback = monitor(every=8)
    trainer = transformers_trainer(ONE, tmp_path, [callback], torch_compile=True, torch_compile_backend="inductor")
    with pytest.warns(UserWarning, match="a step is one piece, and no gradient came back to an output"):
        trainer.train()
    assert callback.report == {}


@pytest.mark.slow
def test_evaluation_between_is_no_piece(tmp_path):
    reports = []
    for options in ({}, {"eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 50}):
        callback = monitor(every=8)
        transformers_trainer(TWO, tmp_path, [callback], evaluated=digits(50), **options).train()
        reports.append(callback.report)
    assert reports[0] == reports[1]


# ---------------------------------------------------------------------- logs


def test_the_trainers_own_log_and_tensorboard_receive_the_figures(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    callback = monitor(every=4)
    trainer = transformers_trainer(
        TWO,
        tmp_path / "out",
        [callback],
        report_to="tensorboard",
        logging_strategy="steps",
        logging_steps=2,
        save_strategy="steps",
        save_steps=8,
    )
    trainer.train()
    history = trainer.state.log_history
    figures = {entry["step"]: entry for entry in history if "noise/scale" in entry}
    assert sorted(figures) == [4, 8]
    assert figures[8] == {**callback.report, "step": 8, "epoch": 1.0}
    assert [entry["step"] for entry in history if "loss" in entry] == [2, 4, 6, 8], "its own log goes on"
    saved = json.loads((tmp_path / "out" / "checkpoint-8" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in saved["log_history"] if "noise/scale" in entry] == [4, 8]
    assert list(ns.training.read_log(tmp_path / "out" / "checkpoint-8" / "trainer_state.json").steps) == [4, 8]
    events = EventAccumulator(str(next((tmp_path / "board").rglob("events*")).parent))
    events.Reload()
    for key in ("noise/trace_covariance", "noise/squared_gradient_norm", "noise/scale_low"):
        assert [scalar.step for scalar in events.Scalars(f"train/{key}")] == [4, 8]
        for scalar in events.Scalars(f"train/{key}"):
            assert scalar.value == pytest.approx(figures[scalar.step][key], rel=1e-6)


def loss_of_logits(outputs, labels):
    return nn.functional.cross_entropy(outputs.logits, labels, reduction="none")


@pytest.mark.slow
def test_probed_figures_of_held_out_samples(tmp_path):
    case = CASES["vision transformer, two micro-steps"]
    (held_out,) = batched(digits(140)[120:], 20)
    samples = ({"pixel_values": held_out["pixel_values"]}, held_out["labels"])
    callback = monitor(every=8, loss=loss_of_logits, probe=samples, overhead=None)
    trainer = transformers_trainer(case, tmp_path, [callback])
    trainer.train()
    with torch.no_grad():
        loss = trainer.model.eval()(**held_out).loss
    assert callback.report["noise/probe/samples"] == 20
    assert callback.report["noise/probe/loss"] == pytest.approx(float(loss), rel=1e-6)


def test_probes_need_held_out_samples():
    with pytest.raises(ValueError, match="give held-out samples too: probe="):
        monitor(every=8, loss=loss_of_logits)


# ---------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("rebuilt", quick([True], [False]))
@pytest.mark.parametrize("case", quick([pytest.param(TWO, id="two")], [pytest.param(ONE, id="one")]))
def test_a_resumed_training_goes_on_exactly(tmp_path, case, rebuilt):
    saving = {"save_strategy": "steps", "save_steps": 3, "restore_callback_states_from_checkpoint": rebuilt}
    whole = transformers_trainer(case, tmp_path, [monitor(every=8, window=50)], **saving)
    whole.train()
    resumed = transformers_trainer(case, tmp_path, [monitor(every=8, window=50)], **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    reports = [
        [entry for entry in trainer.state.log_history if "noise/scale" in entry] for trainer in (whole, resumed)
    ]
    assert reports[0] == reports[1]
    assert reports[0][0]["noise/measured_steps"] == 8


@pytest.mark.slow
def test_a_run_that_had_no_monitor_can_be_resumed_with_one(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 3}
    transformers_trainer(TWO, tmp_path, [], **saving).train()
    callback = monitor(every=2)
    trainer = transformers_trainer(TWO, tmp_path, [callback], **saving)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [entry["step"] for entry in trainer.state.log_history if "noise/scale" in entry] == [5, 7]


@pytest.mark.slow
def test_training_again_begins_again(tmp_path):
    callback = monitor(every=8)
    trainer = transformers_trainer(TWO, tmp_path, [callback])
    trainer.train()
    trainer.train()
    assert callback.report["noise/step"] == callback.report["noise/measured_steps"] == 8


@pytest.mark.slow
def test_an_option_that_a_checkpoint_cannot_hold(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 3}

    def rows(inputs):
        return len(inputs["labels"])

    whole = transformers_trainer(TWO, tmp_path, [monitor(every=8, batch_size=rows)], **saving)
    whole.train()
    again = transformers_trainer(TWO, tmp_path, [monitor(every=8, batch_size=rows)], **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.state.log_history[-2] == whole.state.log_history[-2]
    rebuilt = transformers_trainer(
        TWO, tmp_path, [monitor(every=8, batch_size=rows)], restore_callback_states_from_checkpoint=True, **saving
    )
    with pytest.raises(ValueError, match="without its option batch_size, which a checkpoint cannot hold"):
        rebuilt.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


@pytest.mark.slow
def test_a_state_of_other_parameter_groups_is_refused_and_nothing_is_left(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 3}
    transformers_trainer(TWO, tmp_path, [monitor(every=8)], **saving).train()
    path = tmp_path / "checkpoint-3" / "trainer_state.json"
    callback = monitor(every=2)
    again = transformers_trainer(TWO, tmp_path, [callback], **saving)
    state = json.loads(path.read_text())
    kept = _unpacked(state["stateful_callbacks"]["TransformersNoiseMonitor"]["attributes"]["_kept"])
    kept["window"] = [[samples, pieces, [[[1.0, 1.0]] * 2] * 2] for samples, pieces, _ in kept["window"]]
    state["stateful_callbacks"]["TransformersNoiseMonitor"]["attributes"]["_kept"] = _packed(kept)
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match="the monitor's state has 2 parameter groups, the optimiser 1"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert not hooks_of(again.model)
    assert "training_step" not in vars(again)


# ---------------------------------------------------------------------- what is refused


def test_deepspeed_is_refused(tmp_path):
    trainer = transformers_trainer(TWO, tmp_path, [monitor(every=2)])

    class AsIfDeepspeed(TrainerCallback):  # which needs an accelerator to run at all
        def on_train_begin(self, *args, **kwargs):
            trainer.is_deepspeed_enabled = True

    trainer.callback_handler.callbacks.insert(0, AsIfDeepspeed())
    with pytest.raises(ValueError, match="DeepSpeed accumulates gradients in buffers of its own"):
        trainer.train()


def test_ranks_that_share_samples_are_refused(tmp_path):
    class Shared:
        tp_size, cp_size, sp_size = 1, 2, 1

    callback = monitor(every=2)
    trainer = transformers_trainer(TWO, tmp_path, [callback])
    trainer.accelerator.state.parallelism_config = Shared()
    try:
        with pytest.raises(ValueError, match="with cp_size above 1 ranks share samples"):
            callback._check(trainer)
    finally:
        trainer.accelerator.state.parallelism_config = None


def test_two_monitors_are_refused(tmp_path):
    with pytest.raises(ValueError, match="several callbacks TransformersNoiseMonitor: give it one"):
        transformers_trainer(TWO, tmp_path, [monitor(every=2), monitor(every=3)]).train()


def test_a_trainer_must_be_there():
    with pytest.raises(RuntimeError, match="called by no Trainer"):
        monitor(every=2).on_train_begin(None, None, None)


@pytest.mark.parametrize("name", ["accumulation", "scaler", "outputs", "announced"])
def test_what_the_trainer_does_is_not_an_option(name):
    with pytest.raises(TypeError, match=f"{name} is what the Trainer does"):
        ns.training.TransformersNoiseMonitor(**{name: None})


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(1, 1)

    def forward(self, words):
        return {"loss": self.inner(torch.tensor([[float(len(word))] for word in words])).square().mean()}


def test_batches_without_a_tensor(tmp_path):
    case = Case(Words, digits, sgd, pieces=2, size=3, steps=2)

    def collate(samples):
        return {"words": [sample["word"] for sample in samples]}

    def run(callback):
        trainer = transformers_trainer(
            case, tmp_path, [callback], data=[{"word": "a" * n} for n in range(12)], remove_unused_columns=False
        )
        trainer.data_collator = collate
        trainer.train()

    callback = monitor(every=2, batch_size=3)
    run(callback)
    assert callback.report["noise/batch_size"] == 6
    with pytest.raises(ValueError, match="the number of samples of a dict is not known: give batch_size="):
        run(monitor(every=2))


# ---------------------------------------------------------------------- what is left behind


def hooks_of(module):
    return [
        hook
        for part in module.modules()
        for hooks in (part._forward_hooks, part._forward_pre_hooks)
        for hook in hooks.values()
    ] + [hook for parameter in module.parameters() for hook in (parameter._backward_hooks or {}).values()]


@pytest.mark.parametrize("breaks", quick([True], [False]))
def test_nothing_is_left_after_the_training_or_after_an_error(tmp_path, breaks):
    seen = []

    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = conv_net()

        def forward(self, pixel_values, labels):
            seen.append(bool(hooks_of(self)))
            if breaks and len(seen) == 5:
                raise RuntimeError("broken")
            return self.inner(pixel_values, labels)

    case = Case(Breaks, digits, sgd)
    trainer = transformers_trainer(case, tmp_path, [monitor(every=2)])
    if breaks:
        with pytest.raises(RuntimeError, match="broken"):
            trainer.train()
    else:
        trainer.train()
    assert seen
    assert all(seen)
    assert not hooks_of(trainer.model)
    assert "training_step" not in vars(trainer)


@pytest.mark.parametrize("case", quick([pytest.param(TWO, id="two")], [pytest.param(ONE, id="one")]))
def test_training_is_the_same_with_a_monitor(tmp_path, case):
    weights = []
    for callbacks in ([], [monitor(every=2)]):
        trainer = transformers_trainer(case, tmp_path, callbacks)
        trainer.train()
        weights.append(list(trainer.model.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
