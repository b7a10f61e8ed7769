"""The monitor as a callback of Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from noisescape.errors import InvalidValueError, MissingPackageError
from noisescape.training.monitor import Monitor, Report
from noisescape.training.trainer_options import check_left_to_the_trainer

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities.data import extract_batch_size
else:
    try:
        from lightning.pytorch import Callback
        from lightning.pytorch.utilities.data import extract_batch_size
    except ModuleNotFoundError:
        try:
            from pytorch_lightning import Callback
            from pytorch_lightning.utilities.data import extract_batch_size
        except ModuleNotFoundError:
            raise MissingPackageError(
                "LightningNoiseMonitor needs Lightning: pip install 'noisescape[lightning]'"
            ) from None


class LightningNoiseMonitor(Callback):
    """The monitor for Lightning, in one line: ``Trainer(callbacks=[LightningNoiseMonitor()])``.

    The figures are those of :class:`~noisescape.training.monitor.Monitor`: Tr C, ‖ḡ‖² and the simple noise scale of
    one sample's gradient, not divided by B. Pieces are the micro-batches of ``accumulate_grad_batches`` and the
    ranks of ``ddp``. A step of one batch on one device is split at the output of the LightningModule or, where its
    training step does not call that, of the one child that has all trainable parameters. The report goes to every
    logger of the Trainer at ``trainer.global_step``, the state into checkpoints, from which ``fit(ckpt_path=...)``
    goes on exactly. For Trainers of ``lightning`` and of ``pytorch_lightning``.

    Args:
        every: optimiser steps between reports.
        batch_size: samples of a batch, or a function of the batch that gives it; None: as Lightning finds it for
            its own logs.
        options: of the monitor: ``measure_every``, ``window``, ``split``, ``prefix``, ``seed``; with ``loss``,
            probed figures of ``probe``, or else of the present batch.

    Attributes:
        report: the last report; empty before the first.

    Raises:
        ValueError, TypeError: when training starts, where its gradients cannot be read: manual optimisation, no or
            several optimisers, LBFGS, strategies other than of one device, ``ddp`` and FSDP2.
    """

    def __init__(
        self, every: int = 100, *, batch_size: int | Callable[[Any], int] | None = None, **options: Any
    ) -> None:
        check_left_to_the_trainer(options)
        self.report: Report = {}
        self._options = {"every": every, **options}
        self._batch_size = batch_size
        self._monitor: Monitor | None = None
        self._kept: dict[str, Any] = {}
        self._loaded: dict[str, Any] = {}

    # ------------------------------------------------------------------ training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to monitor: the strategy has wrapped the model by now."""
        self._close()
        if not pl_module.automatic_optimization:
            raise InvalidValueError(
                "LightningNoiseMonitor follows automatic optimisation only: in a module that steps by itself "
                "(automatic_optimization=False) call noisescape.Monitor in training_step"
            )
        if trainer.strategy.handles_gradient_accumulation:
            raise InvalidValueError(
                f"{type(trainer.strategy).__name__} accumulates gradients in buffers of its own, which cannot be "
                "read: use the strategy 'ddp'"
            )
        if len(trainer.optimizers) != 1:
            raise InvalidValueError(
                f"configure_optimizers gave {len(trainer.optimizers)} optimisers; LightningNoiseMonitor follows one"
            )
        self._monitor = Monitor(
            trainer.model if trainer.model is not None else pl_module,
            trainer.optimizers[0],
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            outputs=_outputs(pl_module),
            announced=True,
            **self._options,
        )
        loaded, self._loaded = self._loaded, {}
        if loaded:
            self._monitor.load_state_dict(loaded)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Announce the batch as a piece: its loss is divided by ``accumulate_grad_batches``, also by the last."""
        if self._monitor is not None and self._monitor.measuring:
            self._monitor.begin_piece(self._size(batch), 1 / trainer.accumulate_grad_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the report when it is due."""
        if self._monitor is None:
            return
        if report := self._monitor.step(batch):
            self.report = report
            for logger in trainer.loggers:
                logger.log_metrics(report, step=trainer.global_step)
                logger.save()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take every hook off."""
        if self._monitor is not None:
            self._kept = self._monitor.state_dict()
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take every hook off."""
        self._close()

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The monitor's state, for the checkpoint."""
        return self._monitor.state_dict() if self._monitor is not None else self._kept

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint when training starts."""
        self._loaded = state_dict

    # ------------------------------------------------------------------ inside

    def _size(self, batch: Any) -> int:
        if isinstance(self._batch_size, int):
            return self._batch_size
        if self._batch_size is not None:
            return int(self._batch_size(batch))
        try:
            return extract_batch_size(batch)
        except Exception as error:  # Lightning's own kind, of the package that it comes from
            raise InvalidValueError(
                f"the number of samples of a {type(batch).__name__} is not known: give batch_size="
            ) from error

    def _close(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None


def _outputs(module: nn.Module) -> list[nn.Module]:
    """The module, and the one child that has all its trainable parameters, if any."""
    trainable = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    whole = [child for child in module.children() if trainable <= {id(held) for held in child.parameters()}]
    return [module, *whole] if len(whole) == 1 else [module]
