"""Figures of the gradient noise in a training loop, from what the loop computes anyway."""

from __future__ import annotations

import dataclasses
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from noisescape.errors import InvalidTypeError, InvalidValueError, kind_of
from noisescape.risk.criterion import Loss
from noisescape.scalars import check_flag, check_seed, check_whole
from noisescape.training.data_parallel import data_parallel
from noisescape.training.halves import Halves
from noisescape.training.measured_steps import MeasuredSteps
from noisescape.training.noise_scale import Weights, moments
from noisescape.training.observed_step import StepRecord
from noisescape.training.pieces import Accumulation, BatchSize, PieceRecorder
from noisescape.training.probe import Probe
from noisescape.training.probe_schedule import ProbeSchedule
from noisescape.training.time_budget import TimeBudget

Report = dict[str, float]
MEASURED_SHARE = 25
"""One step in so many is read where its pieces are there anyway; docs/decisions/0016-monitor.md."""
SPLIT_SHARE = 80
"""The same where it takes a backward pass more."""


class Monitor:
    """The gradient noise of a training loop, in one line: ``if report := monitor.step(): log(report)``.

    With G_k the gradients of a step's K independent pieces (micro-steps of accumulation, data-parallel ranks, or
    both; where a step is one piece, the halves of its batch), unbiased estimates of Tr C and ‖ḡ‖² are made at
    measured steps, averaged over a window of them, and divided: the simple noise scale is a ratio of means. C is
    the covariance of one sample's gradient: gradient noise at batch size B has the trace Tr C/B; nothing here is
    divided by B. See :func:`~noisescape.training.noise_scale.moments` and
    :func:`~noisescape.training.noise_scale.smooth`.

    It reads gradients by hooks on the parameters, before they are averaged over ranks, unscaled or clipped, and
    only at measured steps; no gradient is copied, nothing waits for the device, and processes exchange nothing,
    but every ``every`` steps. Batch-norm and dropout are what they are in training: where samples see one
    another, a piece is its micro-batch.

    =============================== ================================================================================
    ``noise/step``                  optimiser steps so far
    ``noise/batch_size``            B, samples of a step over all micro-steps and ranks; mean of the measured steps
    ``noise/pieces``                K, likewise; of a split step, 2
    ``noise/measured_steps``        steps in the window
    ``noise/skipped_steps``         measured steps that could not be used, so far: not finite under a gradient
                                    scaler, thrown away, or not understood (a warning says why)
    ``noise/trace_covariance``      Tr C, with ``_stderr``; may be negative
    ``noise/squared_gradient_norm`` ‖ḡ‖², with ``_stderr``; may be negative
    ``noise/scale``                 Tr C/‖ḡ‖² in samples, with ``_stderr`` and an interval of 95 %, ``_low`` and
                                    ``_high``; infinite where ‖ḡ‖² cannot be told from 0
    ``noise/preconditioned/…``      the last three in an adaptive optimiser's metric: Tr(DC), ḡᵀDḡ and their ratio;
                                    of Adam, AdamW, NAdam, RMSprop and Adagrad, not with sharded parameters. See
                                    :func:`~noisescape.training.preconditioner.preconditioner`
    ``noise/group/NAME/…``          all of these of each parameter group, where there are several; NAME is its
                                    ``"name"``, or its number
    ``noise/lr``                    learning rate of the first group
    ``noise/probe/…``               with ``loss``, when the time budget allows: per-sample Tr C, Tr(HΣ_B), λ₁ and
                                    the edge of stability, batch sharpness, projection coefficient. See
                                    :class:`~noisescape.training.Probe`
    ``noise/overhead``              share of the training's time that probes have taken
    =============================== ================================================================================

    Args:
        model: the module that the loop calls, in its wrappers (compiled, DistributedDataParallel, fully_shard).
            Call it once for each backward pass. A gradient that reaches the parameters by another way, or is
            changed by hooks, is refused.
        optimizer: any torch optimiser but LBFGS; its parameters are looked at.
        every: optimiser steps between reports.
        measure_every: optimiser steps between measured ones; None: 25, and 80 while a step is one piece, which
            costs a backward pass more; or ``every``, where that is less.
        window: measured steps that are averaged over.
        accumulation: ``"mean"`` where the loss of each of K micro-steps is divided by K, ``"sum"`` where it is not,
            a number where it is divided by that, also in a step of fewer (an epoch's last). The noise scale of a
            step does not depend on it. Of losses summed over b samples, Tr C and ‖ḡ‖² are b² times as large.
        batch_size: samples of one forward pass, or a function of the model's ``(args, kwargs)`` that gives it;
            None: the first dimension of the tensors that the model is given, if it is the same in all, and the
            model has no layer with ``batch_first=False``.
        scaler: the gradient scaler; None: found when it steps. Give it where the loop itself steps the optimiser
            after ``unscale_``.
        split: whether to split a step that is one piece. If not, such steps give no figures. The backward pass more
            that this takes runs hooks on activations (``register_hook``, ``retain_grad``), too.
        outputs: the modules whose output may have a row for each sample, by which such a step is split; where one
            calls another, the outermost counts. None: the model itself.
        announced: whether the loop says where each micro-step begins, with :meth:`begin_piece`, so that the model's
            forward passes are not counted.
        alone: whether this process trains by itself although others run.
        loss: ``loss(outputs, targets)``, for probed figures; None: none. With several processes the first one
            probes.
        probe: held-out samples for them, ``(inputs, targets)`` or a Dataset; None: the batch given to :meth:`step`.
        overhead: the most that probes take of the training's time; None: they are made at every report, whatever
            they take.
        prefix: of the report's keys.
        seed: of the splits and of the probes.

    Raises:
        TypeError, ValueError: an optimiser or a model whose gradients cannot be read, or arguments out of range.

    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <...>
    >>> model = nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> monitor = Monitor(model, optimizer, every=20, measure_every=1)
    >>> for _ in range(20):
    ...     optimizer.zero_grad()
    ...     for _ in range(4):
    ...         (model(torch.randn(8, 3)).square().mean() / 4).backward()
    ...     optimizer.step()
    ...     if report := monitor.step():
    ...         print(report["noise/batch_size"], report["noise/pieces"], report["noise/measured_steps"])
    32.0 4.0 20.0
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        every: int = 100,
        measure_every: int | None = None,
        window: int = 30,
        accumulation: Accumulation = "mean",
        batch_size: BatchSize | None = None,
        scaler: GradScaler | None = None,
        split: bool = True,
        outputs: Sequence[nn.Module] | None = None,
        announced: bool = False,
        alone: bool = False,
        loss: Loss | nn.Module | None = None,
        probe: Any = None,
        overhead: float | None = 0.05,
        prefix: str = "noise/",
        seed: int = 0,
    ) -> None:
        self._optimizer = _bare(optimizer)
        for name, value, least in (("every", every, 1), ("measure_every", measure_every, 1), ("window", window, 2)):
            optional = name == "measure_every" and value is None
            if not optional and (type(value) is not int or value < least):
                raise InvalidValueError(f"{name} is {value!r}; give a whole number of steps, {least} at least")
        divisor = isinstance(accumulation, int) and not isinstance(accumulation, bool) and accumulation >= 1
        if accumulation not in ("mean", "sum") and not divisor:
            raise InvalidValueError(
                f"accumulation is {accumulation!r}; it is 'mean' or 'sum', or what losses are divided by"
            )
        if batch_size is not None and not callable(batch_size):
            check_whole("batch_size", batch_size)
        for name, flag in (("split", split), ("announced", announced), ("alone", alone)):
            check_flag(name, flag)
        if not isinstance(prefix, str):
            raise InvalidTypeError(f"prefix must be text, such as 'noise/', not {kind_of(prefix)}")
        if outputs is not None and not all(isinstance(each, nn.Module) for each in outputs):
            raise InvalidTypeError("outputs must be modules of the model, such as [model.head]")
        check_seed(seed)
        budget = TimeBudget(overhead)
        if not isinstance(model, nn.Module):
            raise InvalidTypeError(f"the model is of type {type(model).__name__}, not a torch module")
        held = {id(parameter) for parameter in model.parameters()}
        if not any(id(each) in held for group in self._optimizer.param_groups for each in group["params"]):
            raise InvalidValueError(
                "the optimiser has none of the model's parameters: make it from those of the model that trains"
            )
        self._announced = announced
        self._every = every
        self._measure_every = measure_every
        self._prefix = prefix
        self._parallel = data_parallel(model, alone=alone)
        self._probes = self._probing(model, loss, probe, budget, seed)
        self._halves = Halves(seed) if split and self._parallel.ranks == 1 else None
        self._recorder = PieceRecorder(
            model,
            self._optimizer,
            self._parallel,
            accumulation=accumulation,
            batch_size=batch_size,
            scaler=scaler,
            halves=self._halves,
            outputs=outputs,
            announced=announced,
        )
        self._window = MeasuredSteps(window)
        # bounded where nobody asks for reports any more
        self._pending: deque[StepRecord] = deque(maxlen=max(window, every))
        self._warned: set[str] = set()
        self._steps = self._reported = self._skipped = 0
        self._closed = False
        self._single = 0  # measured steps of one piece in a row
        self._micro_steps = 1
        self._hook = _after_each_step(self._optimizer, self)
        self._recorder.arm()

    # ------------------------------------------------------------------ in the loop

    def step(self, batch: Any = None) -> Report:
        """After the optimiser's step (or after any micro-step): the report when one is due, else an empty one.

        Any process may ask: what they exchange they exchange in the optimiser's step.

        Args:
            batch: the present ``(inputs, targets)``, for probed figures without held-out samples.
        """
        if self._steps == self._reported or self._steps % self._every:
            return {}
        self._reported = self._steps
        return self.report(batch)

    def report(self, batch: Any = None) -> Report:
        """The figures now, whether due or not; empty where there are none yet. Collective."""
        self._take_in()
        found = self._free_figures()
        if self._probes is not None:
            size = round(found["batch_size"]) if "batch_size" in found else None
            found |= self._probes.step(self._optimizer, batch=batch, batch_size=size)
        if not found:
            return {}
        found = {"step": float(self._steps), **found, "lr": float(self._optimizer.param_groups[0]["lr"])}
        if self._probes is not None:
            found["overhead"] = self._probes.budget.share
        return {self._prefix + key: value for key, value in found.items()}

    def _free_figures(self) -> Report:
        if not self._window:
            return {}
        skipped = {"skipped_steps": float(self._skipped + self._recorder.discarded)}
        groups = [str(group.get("name", index)) for index, group in enumerate(self._optimizer.param_groups)]
        return self._window.counts() | skipped | self._window.figures(groups)

    def _probing(
        self, model: nn.Module, loss: Loss | nn.Module | None, probe: Any, budget: TimeBudget, seed: int
    ) -> ProbeSchedule | None:
        if loss is None:
            if probe is not None:
                raise InvalidValueError("there are samples to probe but no loss: give loss= too")
            return None
        probes = ProbeSchedule(Probe(model, loss, probe, seed=seed), budget)
        return None if self._parallel.ranks > 1 and dist.get_rank(self._parallel.group) else probes

    def close(self) -> None:
        """Take every hook off; the monitor measures nothing more. One that is dropped does so by itself."""
        self._recorder.disarm()
        self._hook.remove()

    def __del__(self) -> None:
        # the optimiser does not keep it, so one that is dropped (for another, say) stops listening; one that was
        # refused never began, and where Python ends modules may be gone
        if "_hook" in vars(self) and sys is not None and not sys.is_finalizing():
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def measuring(self) -> bool:
        """Whether the present step is measured."""
        return self._recorder.armed

    def begin_piece(self, size: int, weight: float | Tensor | None = None) -> None:
        """Say that a micro-step begins, in a loop for which the monitor was made with ``announced=True``.

        Args:
            size: samples of this process.
            weight: of its mean gradient in the gradient of this process's step; None: as ``accumulation`` says.

        Raises:
            ValueError: a monitor that counts forward passes itself.
        """
        if not self._announced:
            raise InvalidValueError(
                "the monitor counts forward passes: make it with announced=True, or announce none"
            )
        self._recorder.begin_piece(size, weight)

    # ------------------------------------------------------------------ what it keeps

    def state_dict(self) -> dict[str, Any]:
        """What to save beside the model, for ``torch.load(..., weights_only=True)`` too.

        Steps measured since the last report are in it only with one process: ranks know only their own share of
        them.
        """
        if self._parallel.ranks == 1:
            self._take_in()
        return {
            "steps": self._steps,
            "reported": self._reported,
            "skipped": self._skipped + self._recorder.discarded,
            "micro_steps": self._micro_steps,
            "window": self._window.state_dict(),
            "halves": self._halves.state_dict() if self._halves is not None else None,
            "probes": self._probes.state_dict() if self._probes is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; the schedule of measured steps too.

        Raises:
            ValueError: a state of another number of parameter groups.
        """
        try:
            window = self._window.like(state["window"])
            steps, reported, skipped, micro_steps = (
                int(state[name]) for name in ("steps", "reported", "skipped", "micro_steps")
            )
            halves, probes = state["halves"], state["probes"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidValueError(
                f"this is no state of a Monitor ({type(error).__name__}: {error}); pass what its state_dict() "
                "returned"
            ) from error
        groups = len(self._optimizer.param_groups)
        if window and window.groups != groups:
            raise InvalidValueError(
                f"the monitor's state has {window.groups} parameter groups, the optimiser {groups}"
            )
        self._window = window
        self._steps, self._reported, self._skipped = steps, reported, skipped
        self._micro_steps = micro_steps
        self._pending.clear()
        self._recorder.discarded = 0
        if self._halves is not None and halves is not None:
            self._halves.load_state_dict(halves)
        if self._probes is not None and probes is not None:
            self._probes.load_state_dict(probes)
        self._schedule()

    # ------------------------------------------------------------------ measured steps

    def _after_step(self) -> None:
        self._steps += 1
        if self._parallel.joins and not self._closed:
            self._warn(
                "ranks may end at different steps (join), so they cannot exchange what they saw: the "
                "monitor is closed"
            )
            self._pending.clear()
            self._recorder.disarm()
            self._closed = True
        if self._closed:
            return
        if self._probes is not None:
            self._probes.tick()
        record = self._recorder.finish()
        if record is not None:
            self._pending.append(record)
            self._micro_steps = record.micro_steps
        self._schedule()
        if self._parallel.ranks > 1 and self._steps % self._every == 0:
            self._take_in()  # here, where all ranks come by, whoever asks for the report

    def _schedule(self) -> None:
        split = self._halves is not None and self._micro_steps == 1
        usual = SPLIT_SHARE if split else MEASURED_SHARE
        if self._steps % (self._measure_every or min(usual, self._every)) == 0:
            self._recorder.arm()
        else:
            self._recorder.disarm()

    def _take_in(self) -> None:
        """Bring what was measured since the last report to the host, summed over ranks, and into the window."""
        if not self._pending:
            return
        records = list(self._pending)
        self._pending.clear()
        count = records[-1].norms.shape[-1]
        records = [record for record in records if record.norms.shape[-1] == count]
        if self._window and self._window.groups != count:
            self._window.clear()  # parameter groups were added, and with them the noise is another
        copies = torch.tensor([1.0, self._parallel.copies])
        norms = torch.stack([record.norms for record in records])
        norms = norms / copies.to(norms)[:, None]
        known = torch.tensor(
            [dataclasses.astuple(record.weights) for record in records], dtype=norms.dtype, device=norms.device
        )
        flat = self._parallel.sum(torch.cat([norms.flatten(1), known], 1))
        values = flat.cpu().double().numpy()
        shape = (2, 2, count)
        size = int(np.prod(shape))
        for record, row in zip(records, values, strict=True):
            weights = Weights(*row[size:].tolist())
            self._take(row[:size].reshape(shape), weights, record.fault)

    def _take(self, norms: Any, weights: Weights, fault: str | None) -> None:
        if fault is None and not weights.informative:
            self._single += 1
            if self._window and self._single == 1:  # an epoch's last step, say: the others are of several pieces
                self._skipped += 1
                return
            refusal = self._halves.refusal if self._halves is not None else "split=False"
            fault = (
                "a step is one piece, so nothing in it can be compared"
                + (f" ({refusal})" if refusal else "")
                + ": accumulate over two micro-steps or more, or probe"
            )
        if fault is None and np.isneginf(norms[0]).any():
            fault = (
                "gradients were not what the backward passes of the step brought: others were there before (zero "
                "them first), or a hook or a write to .data changed them"
            )
        if fault is not None:
            self._warn(fault)
        if fault is not None or not np.isfinite(norms[0]).all():
            self._skipped += 1
            return
        self._single = 0
        noise, signal = moments(norms[:, 0], norms[:, 1], weights)
        self._window.add(weights.samples, weights.pieces, np.stack([noise, signal], 1))

    def _warn(self, fault: str) -> None:
        if fault not in self._warned:
            self._warned.add(fault)
            warnings.warn(f"no gradient noise could be measured at a step: {fault}", UserWarning, stacklevel=4)


def _after_each_step(optimizer: Optimizer, monitor: Monitor) -> RemovableHandle:
    """Tell a monitor of each step, without keeping it alive."""
    reference = weakref.ref(monitor)

    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        present = reference()
        if present is not None:
            present._after_step()  # noqa: SLF001

    return optimizer.register_step_post_hook(after)


def _bare(optimizer: Any) -> Optimizer:
    """The torch optimiser inside of what Lightning or accelerate wraps it in."""
    seen = optimizer
    # one that never called Optimizer.__init__ has no hooks; it is a wrapper in an optimiser's clothes
    while (
        not isinstance(seen, Optimizer)
        or type(seen).__module__.split(".")[0] in ("accelerate", "lightning")
        or not hasattr(seen, "_optimizer_step_post_hooks")
    ):
        inner = getattr(seen, "optimizer", None)
        if inner is None:
            break
        seen = inner
    if not isinstance(seen, Optimizer) or not hasattr(seen, "_optimizer_step_post_hooks"):
        raise InvalidTypeError(f"the optimiser is of type {type(optimizer).__name__}, not a torch optimiser")
    if isinstance(seen, LBFGS):
        raise InvalidTypeError(
            "LBFGS runs several backward passes in a step: their gradients are not one step's noise"
        )
    return seen
