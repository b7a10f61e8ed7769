"""The monitor as a callback of the transformers Trainer."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from noisescape.errors import FailedError, InvalidValueError, MissingPackageError
from noisescape.training.call_stack import running
from noisescape.training.monitor import Monitor, Report
from noisescape.training.nested import tensors
from noisescape.training.trainer_options import check_left_to_the_trainer

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
else:
    try:
        from transformers import Trainer, TrainerCallback
        from transformers.trainer_callback import ExportableState
    except ImportError:
        raise MissingPackageError(
            "TransformersNoiseMonitor needs transformers' Trainer: pip install 'noisescape[transformers]'"
        ) from None

DEPTH = 10
"""Frames looked through; three are between the Trainer's loop and its callbacks."""


class TransformersNoiseMonitor(TrainerCallback, ExportableState):
    """The monitor for transformers, in one line: ``Trainer(callbacks=[TransformersNoiseMonitor()])``.

    The figures are those of :class:`~noisescape.training.monitor.Monitor`: Tr C, ‖ḡ‖² and the simple noise scale of
    one sample's gradient (a row of the batch), not divided by B. Pieces are the micro-batches of
    ``gradient_accumulation_steps`` and the ranks of distributed training; where the Trainer normalises the loss by
    the labels of the whole step, each weighs as many as it has. A step of one batch on one device is split at the
    model's output. The report goes through ``Trainer.log``, so into ``log_history`` and to every integration, the
    state into ``trainer_state.json``, from which ``train(resume_from_checkpoint=...)`` goes on exactly.

    While it trains, ``Trainer.training_step`` is wrapped, which shows where micro-batches begin.

    Args:
        every: optimiser steps between reports.
        batch_size: rows of a batch, or a function of the batch that gives them; None: the first dimension of the
            batch's first tensor.
        options: of the monitor: ``measure_every``, ``window``, ``split``, ``prefix``, ``seed``; with ``loss`` and
            ``probe``, probed figures.

    Attributes:
        report: the last report; empty before the first.

    Raises:
        ValueError, TypeError: when training starts, where its gradients cannot be read: DeepSpeed, FSDP1,
            ``DataParallel``, tensor, context or sequence parallelism, LBFGS.
    """

    def __init__(
        self, every: int = 100, *, batch_size: int | Callable[[Any], int] | None = None, **options: Any
    ) -> None:
        check_left_to_the_trainer(options)
        if options.get("loss") is not None and options.get("probe") is None:
            raise InvalidValueError(
                "with a loss, figures are probed, and a batch of the Trainer does not say what of it are targets: "
                "give held-out samples too: probe=(inputs, targets)"
            )
        self.report: Report = {}
        self._options = {"every": every, "batch_size": batch_size, **options}
        self._monitor: Monitor | None = None
        self._trainer: Trainer | None = None
        self._kept = ""
        self._lost: list[str] = []

    # ------------------------------------------------------------------ training

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Begin to monitor: the model is wrapped by now."""
        self._close()
        trainer = _trainer_that_calls()
        self._check(trainer)
        options = {name: value for name, value in self._options.items() if name != "batch_size"}
        monitor = Monitor(
            trainer.model_wrapped,
            optimizer,
            scaler=getattr(trainer.accelerator, "scaler", None),
            announced=True,
            **options,
        )
        self._follow(trainer, monitor)
        saved: Any = state.stateful_callbacks
        name = type(self).__name__
        if state.global_step and name in saved and saved[name]["attributes"]["_kept"]:
            try:
                monitor.load_state_dict(_unpacked(saved[name]["attributes"]["_kept"]))
            except BaseException:
                self._close()
                raise
        saved.setdefault(name, self.state())  # the Trainer misses it where it resumes a run that had no monitor

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log the report when it is due."""
        if self._monitor is None or self._trainer is None:
            return
        if report := self._monitor.step():
            self.report = report
            due = control.should_log  # which a log of any kind clears
            self._trainer.log(dict(report))
            control.should_log = due

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take every hook off."""
        if self._monitor is not None:
            self._kept = _packed(self._monitor.state_dict())
        self._close()

    # ------------------------------------------------------------------ checkpoints

    def state(self) -> dict[str, Any]:
        """What ``trainer_state.json`` keeps: the monitor's state, and by which arguments to build the callback."""
        kept = self._kept if self._monitor is None else _packed(self._monitor.state_dict())
        plain = {
            name: value
            for name, value in self._options.items()
            if value is None or isinstance(value, (bool, int, float, str))
        }
        lost = sorted(set(self._options) - set(plain))
        return {"args": plain, "attributes": {"_kept": kept, "_lost": lost}}

    # ------------------------------------------------------------------ inside

    def _check(self, trainer: Trainer) -> None:
        if self._lost:
            raise InvalidValueError(
                f"restore_callback_states_from_checkpoint built TransformersNoiseMonitor anew without its option "
                f"{self._lost[0]}, which a checkpoint cannot hold: leave it off, the figures go on all the same"
            )
        if sum(isinstance(callback, type(self)) for callback in trainer.callback_handler.callbacks) > 1:
            raise InvalidValueError(f"the Trainer has several callbacks {type(self).__name__}: give it one")
        if trainer.is_deepspeed_enabled:
            raise InvalidValueError(
                "DeepSpeed accumulates gradients in buffers of its own, which cannot be read: use distributed data "
                "parallel or FSDP2"
            )
        parallelism = getattr(trainer.accelerator, "parallelism_config", None)
        for kind in ("tp", "cp", "sp"):
            if (getattr(parallelism, f"{kind}_size", None) or 1) > 1:
                raise InvalidValueError(
                    f"with {kind}_size above 1 ranks share samples, and their gradients are not independent: "
                    "monitor a data-parallel run"
                )

    def _follow(self, trainer: Trainer, monitor: Monitor) -> None:
        """Have the Trainer say where each piece begins."""
        self._trainer, self._monitor = trainer, monitor
        original = trainer.training_step

        @functools.wraps(original)
        def training_step(
            model: Any, inputs: Any, num_items_in_batch: Tensor | int | None = None, **others: Any
        ) -> Tensor:
            try:
                if monitor.measuring:
                    monitor.begin_piece(self._size(inputs), _weight(trainer, inputs, num_items_in_batch))
                return original(model, inputs, num_items_in_batch, **others)
            except BaseException:
                self._close()  # no callback is told
                raise

        vars(trainer)["training_step"] = training_step

    def _size(self, inputs: Any) -> int:
        given = self._options["batch_size"]
        if isinstance(given, int):
            return given
        if given is not None:
            return int(given(inputs))
        first = next((tensor for tensor in tensors(inputs) if tensor.ndim), None)
        if first is None:
            raise InvalidValueError(
                f"the number of samples of a {type(inputs).__name__} is not known: give batch_size="
            )
        return first.shape[0]

    def _close(self) -> None:
        if self._trainer is not None:
            vars(self._trainer).pop("training_step", None)
            self._trainer = None
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None


def _weight(trainer: Trainer, inputs: Any, items: Tensor | int | None) -> Tensor | float:
    """The weight of a micro-batch's mean gradient in that of this process's step, as the Trainer has it.

    Where the loss is normalised by the labels of the whole step, it is n_k/n, with n_k labels of its own. Nothing
    waits for the device.
    """
    scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
    if scaled is None:
        of_labels = trainer.model_accepts_loss_kwargs and items is not None
        scaled = of_labels or trainer.compute_loss_func is not None
    if not scaled:
        return 1 / trainer.current_gradient_accumulation_steps
    if items is None or not isinstance(inputs, Mapping):
        return 1.0
    if "shift_labels" in inputs:
        labels = inputs["shift_labels"]
    else:
        labels = inputs["labels"]
        labels = labels[..., 1:] if getattr(trainer, "_loss_shifts_labels", False) else labels
    own = labels.ne(-100).sum()
    own = own.to(items.device, non_blocking=True) if isinstance(items, Tensor) else own
    of_all_ranks = trainer.args.average_tokens_across_devices
    return own / items * (trainer.accelerator.num_processes if of_all_ranks else 1)


def _trainer_that_calls() -> Trainer:
    """The Trainer whose event this is; callbacks are not given it."""
    trainer = running(Trainer, DEPTH)
    if trainer is None:
        raise FailedError("TransformersNoiseMonitor is called by no Trainer: give it to one, callbacks=[...]")
    return trainer


def _packed(state: dict[str, Any]) -> str:
    """A monitor's state as JSON can hold it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def _unpacked(packed: str) -> dict[str, Any]:
    return torch.load(io.BytesIO(base64.b64decode(packed)), weights_only=True)
