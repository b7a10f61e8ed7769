"""Reads a step's micro-gradients and their sum, by hooks, while training computes them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from noisescape.training.data_parallel import DataParallel
from noisescape.training.gradient_norms import GradientNorms, differ, norm, sum_of_squares
from noisescape.training.halves import Halves
from noisescape.training.hooks import GradientHook, ModuleHook, backward_pass, when_backward_ends
from noisescape.training.loss_scale import scale_of_step
from noisescape.training.nested import tensors
from noisescape.training.observed_step import DISAGREE, GradientState, ObservedStep, Piece, Split, StepRecord
from noisescape.training.sharded_parameters import own_parameters, places

Accumulation = Literal["mean", "sum"] | int
BatchSize = int | Callable[[tuple[Any, ...], Mapping[str, Any]], int]
IN_VAIN = 100
"""Times that gradients are thrown away, with no step between them, before that is said."""
GIVE = "give batch_size="


class PieceRecorder:
    """Reads the pieces of those steps that it is told to measure, from hooks on the parameters.

    A piece is what one forward pass of the model and its backward pass add to the gradients: a micro-step on one
    rank. Hooks see it before it is accumulated, averaged over ranks, unscaled or clipped; the sum of all is read
    when its last backward pass has ended, so before clipping too. Nothing is copied, and nothing waits for the
    device.

    Args:
        model: as the loop calls it.
        optimizer: whose parameters are looked at.
        parallel: how gradients are averaged.
        accumulation: ``"mean"`` where the loss of each of K micro-steps is divided by K, ``"sum"`` where it is not,
            a number where it is divided by that.
        batch_size: samples of one forward pass; None: the first dimension of its first tensor.
        scaler: the gradient scaler; None: found when it steps.
        halves: how to split a step that is one piece; None: not at all.
        outputs: the modules whose output may have a row for each sample, one within another; the outermost that is
            called counts. None: the model's.
        announced: whether the loop says where pieces begin, instead of the model's forward passes.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        parallel: DataParallel,
        *,
        accumulation: Accumulation,
        batch_size: BatchSize | None,
        scaler: GradScaler | None,
        halves: Halves | None,
        outputs: Sequence[nn.Module] | None,
        announced: bool,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._parallel = parallel
        self._accumulation = accumulation
        self._batch_size = batch_size
        self._scaler = scaler
        self._halves = halves
        self._outputs = list(outputs) if outputs is not None else [model]
        self._announced = announced
        self._places = places(model, optimizer) if parallel.sharded else {}
        self._handles: list[RemovableHandle] = []
        self._hooked: dict[int, RemovableHandle] = {}
        self._unsharded: set[int] = set()
        self._awaited = False  # the end of the present backward pass
        self._last_count = 1
        self._in_vain = 0
        self._step: ObservedStep | None = None
        self.discarded = 0
        """Steps of which something was measured, and which were thrown away before the optimiser took them."""

    # ------------------------------------------------------------------ which steps

    def arm(self) -> None:
        """Measure the step that begins now."""
        self._begin()
        if self._handles:
            return
        before, enter, leave, sharded = (
            ModuleHook(call) for call in (self._before_forward, self._enter, self._leave, self._hook_unsharded)
        )
        self._handles = [self._model.register_forward_pre_hook(before, with_kwargs=True)]
        if self._halves is not None:
            for module in self._outputs:
                self._handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        if self._parallel.sharded:
            self._handles += [
                module.register_forward_pre_hook(sharded)
                for module in self._model.modules()
                if isinstance(module, FSDPModule)
            ]
        self._hook_parameters()

    @property
    def armed(self) -> bool:
        """Whether the present step is measured."""
        return self._step is not None

    def disarm(self) -> None:
        """Take every hook off."""
        for handle in (*self._handles, *self._hooked.values()):
            handle.remove()
        self._handles, self._hooked = [], {}
        self._unsharded = set()
        self._step = None
        if self._halves is not None:
            self._halves.release()

    def finish(self) -> StepRecord | None:
        """The record of the step that the optimiser just took; None where it was not measured.

        To be called within the optimiser's step, after it has updated.
        """
        if self._step is None:
            return None
        self._in_vain = 0
        record = self._record(self._step)
        self._begin()
        return record

    def _begin(self) -> ObservedStep:
        self._step = step = ObservedStep(self._no_norms())
        self._awaited = False
        if self._halves is not None:
            self._halves.release()
        return step

    def _ready(self, step: ObservedStep) -> ObservedStep:
        """The step to which a forward pass belongs, with what was changed since attended to.

        Groups that were added, parameters that train now, others' hooks.
        """
        if self._awaited and backward_pass() < 0:  # its end never came, so it was stopped by an error
            self._discard()
            step = self._begin()
        if not step.pieces:
            if step.groups != len(self._optimizer.param_groups):
                self._places = places(self._model, self._optimizer) if self._parallel.sharded else {}
                step = self._begin()
            self._hook_parameters()
        return step

    def _discard(self) -> None:
        self.discarded += 1
        self._in_vain += 1
        if self._in_vain == IN_VAIN:
            warnings.warn(
                f"gradients were thrown away {IN_VAIN} times and the monitor's optimiser never made a step: give "
                "the monitor the one whose step() the loop calls (of a wrapper, the optimiser inside)",
                UserWarning,
                stacklevel=2,
            )

    # ------------------------------------------------------------------ forward passes

    def begin_piece(self, size: int, weight: float | Tensor | None = None) -> None:
        """Say that a piece of ``size`` samples begins, with this weight in the step."""
        step = self._step
        if step is None:
            return
        step = self._ready(step)
        if step.waits:  # a micro-step without a backward pass
            step.pieces.pop()
        self._append(step, size, weight)

    def _append(self, step: ObservedStep, size: int, weight: float | Tensor | None = None) -> None:
        step.pieces.append(Piece(size, weight, self._no_norms()))
        step.depth = 0
        step.split = Split(self._no_norms())
        if self._halves is not None:
            self._halves.release()

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        step = self._step
        if step is None or self._announced or module is not self._model or not torch.is_grad_enabled():
            return
        step = self._ready(step)
        # a checkpoint of the whole model calls it once more in the backward pass
        last = step.pieces[-1] if step.pieces else None
        step.recomputing = last is not None and not last.done and not last.stray and backward_pass() >= 0
        if step.recomputing:
            return
        size = self._size(args, kwargs)
        if step.waits and step.pieces[-1].asked:
            step.pieces.pop()
        if step.waits:  # an earlier forward pass, with no backward pass since
            step.pieces[-1].forwards += 1
            step.pieces[-1].size = size
        else:
            self._append(step, size)

    def _size(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
        if isinstance(self._batch_size, int):
            return self._batch_size
        if self._batch_size is not None:
            return int(self._batch_size(args, kwargs))
        sizes = [tensor.shape[0] for tensor in tensors([args, kwargs]) if tensor.ndim]
        if not sizes:
            self._refuse(f"the model is called without a tensor that has a batch dimension; {GIVE}")
            return 1
        if any(size not in (1, sizes[0]) for size in sizes):
            self._refuse(f"the model is called with tensors of {sizes} rows; {GIVE}")
        elif time_first := _time_first(self._model):
            self._refuse(f"the model has {time_first}, so the batch may not be its input's first dimension; {GIVE}")
        return sizes[0]

    def _refuse(self, reason: str) -> None:
        if self._step is not None:
            self._step.fault = reason

    def _may_be_split(self, module: nn.Module) -> bool:
        return (
            self._step is not None
            and not self._step.recomputing
            and torch.is_grad_enabled()
            and any(module is output for output in self._outputs)
            and self._last_count == 1
            and bool(self._step.pieces)
        )

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._step is not None and self._may_be_split(module):
            self._step.depth += 1

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        step = self._step
        if step is None or self._halves is None or not self._may_be_split(module):
            return
        step.depth -= 1
        if step.depth == 0:
            watched = [parameter for _, parameter in self._trainable()]
            self._halves.watch(module, output, step.pieces[-1].size, watched, self._note_halves)

    # ------------------------------------------------------------------ gradients

    def _no_norms(self) -> GradientNorms:
        return GradientNorms(self._optimizer, sharded=self._parallel.sharded)

    def _parameters(self) -> Iterator[tuple[int, Tensor]]:
        for index, group in enumerate(self._optimizer.param_groups):
            for parameter in group["params"]:
                yield index, parameter

    def _trainable(self) -> Iterator[tuple[int, Tensor]]:
        return (pair for pair in self._parameters() if pair[1].requires_grad)

    def _hook_parameters(self) -> None:
        """A hook on each, after those of others, which may return another gradient."""
        if self._parallel.sharded:
            return
        for group, parameter in self._trainable():
            handle = self._hooked.get(id(parameter))
            hooks = parameter._backward_hooks or {}  # noqa: SLF001  torch has no public way
            if handle is not None and next(reversed(hooks), None) == handle.id:
                continue
            if handle is not None:
                handle.remove()
            self._hooked[id(parameter)] = parameter.register_hook(self._hook(group, parameter, parameter))

    def _hook_unsharded(self, module: nn.Module, args: Any) -> None:
        """Sharded parameters are whole from here to their backward pass, in tensors that live on."""
        if not torch.is_grad_enabled():
            return
        for inner, name, whole in own_parameters(module):
            place = self._places.get((id(inner), name))
            if place is not None and whole.requires_grad and id(whole) not in self._unsharded:
                self._unsharded.add(id(whole))
                self._handles.append(whole.register_hook(self._hook(place[0], whole, place[1])))

    def _hook(self, group: int, parameter: Tensor, held: Tensor) -> GradientHook:
        """What sees a parameter's new gradient; ``held`` is the tensor that the optimiser has of it."""
        key = id(parameter)

        def see(gradient: Tensor) -> Tensor | None:
            step = self._step
            if step is None:
                return None
            if self._halves is None or not self._halves.at_work:
                self._see(step, gradient.detach(), key, group, held)
                return None
            if self._halves.signed:
                step.split.of.add(key)
                step.split.contrast.add(group, held, gradient)
            else:
                step.split.through.append(norm(gradient))
            if gradient.is_sparse:
                return None
            return gradient.new_zeros(()).expand(gradient.shape)  # or all would be held until the pass has ended

        return GradientHook(see)

    def _see(self, step: ObservedStep, gradient: Tensor, key: int, group: int, held: Tensor) -> None:
        if not self._awaited:
            self._awaited = True
            when_backward_ends(self._note_sum)
            step = self._continued(step, held)
            step.split.elsewhere = step.split.backward != backward_pass()
            if not step.pieces or (self._announced and step.pieces[-1].done):
                step.pieces.append(Piece(1, 0.0, self._no_norms(), stray=True))
        piece = step.pieces[-1]
        if key in piece.seen:
            step.fault = (
                "a parameter received two gradients after one forward pass (two backward passes, or a tensor that "
                "a reentrant checkpoint shares)"
            )
        if piece.forwards > 1 and not isinstance(self._batch_size, int):
            step.fault = f"{piece.forwards} forward passes came before one backward pass; {GIVE}"
        piece.seen.add(key)
        piece.norms.add(group, held, gradient)

    def _continued(self, step: ObservedStep, held: Tensor) -> ObservedStep:
        """The step to which this backward pass adds: the same one if the gradients are as its last piece left."""
        if step.after is not None and not step.after.untouched:
            # set to None or to 0, so what came before was thrown away, as of a step that a scaler skips
            self._discard()
            anew = ObservedStep(self._no_norms())
            anew.pieces = [piece for piece in step.pieces[-1:] if not piece.done]
            anew.split = step.split
            self._step = step = anew
        elif step.after is not None and step.after.norm is not None:
            now = step.after.norm_now
            if now is not None:  # a write to .data leaves no other trace
                step.wrong.append(differ(now.square(), step.after.norm.square()))
        if step.after is None and len(step.pieces) <= 1:  # what is there already belongs to no piece
            left = [norm(parameter.grad) for _, parameter in self._parameters() if parameter.grad is not None]
            step.wrong = [torch.stack([each.to(left[0].device) for each in left]).sum() > 0] if left else []
        step.before = GradientState.of(held)
        return step

    def _note_sum(self) -> None:
        """The gradients as they stand when a backward pass has ended, averaged over ranks."""
        self._awaited = False
        step = self._step
        if step is None or not step.pieces:  # a step made within the backward pass began the present one
            return
        if step.before is not None and step.before.untouched and not self._parallel.sharded:
            self._put_back(step)
            return
        if step.pieces[-1].stray:
            step.fault = (
                "gradients were accumulated beside those of the announced micro-steps"
                if self._announced
                else "the loop does not call the module that the monitor was given (but one around it, a compiled "
                "one say, or a part of it): give it the one it calls"
            )
        step.pieces[-1].done = True
        step.after = None
        step.sums = self._no_norms()
        metric = any(piece.norms.has_metric for piece in step.pieces)
        for index, parameter in self._parameters():
            gradient = parameter.grad
            if gradient is not None:
                found = step.sums.add(index, parameter, gradient, metric=metric)
                step.after = step.after or GradientState.of(parameter, found)
        if len(step.pieces) == 1 and self._parallel.ranks == 1:
            seen, there = (norms.squared(self._device)[0] for norms in (step.pieces[0].norms, step.sums))
            step.wrong.append(differ(seen, there))
        if step.split.through and step.split.sizes is not None and len(step.pieces) == 1:
            self._check_halves(step)

    def _put_back(self, step: ObservedStep) -> None:
        """Drop gradients that were asked for, not accumulated; their forward pass may get its backward pass yet."""
        piece = step.pieces.pop()
        if not step.pieces:
            step.wrong = []
        if not piece.stray:
            step.pieces.append(
                Piece(piece.size, piece.weight, self._no_norms(), forwards=piece.forwards, asked=True)
            )

    def _note_halves(self, sizes: list[int]) -> None:
        if self._step is not None:
            self._step.split.sizes = sizes
            self._step.split.backward = backward_pass()

    def _check_halves(self, step: ObservedStep) -> None:
        """Whether all of the gradient comes through the output. Once in a training; waits for the device."""
        if self._halves is None:
            return
        through = sum_of_squares(step.split.through, self._device)
        self._halves.check(float(through), float(sum_of_squares(step.pieces[0].norms.parts, self._device)))
        if self._halves.refusal is not None:
            step.split.sizes = None

    # ------------------------------------------------------------------ records

    @property
    def _device(self) -> torch.device:
        return next(parameter.device for _, parameter in self._parameters())

    def _record(self, step: ObservedStep) -> StepRecord:
        scale = scale_of_step(self._optimizer, self._scaler)
        if step.waits:  # a forward pass without a backward pass
            step.pieces.pop()
        ranks, count = self._parallel.ranks, len(step.pieces)
        split = step.split if count == 1 and step.split.sizes is not None else None
        fault = self._fault(step, split)
        self._last_count = count
        usual = 1 / (ranks * self._divisor(count))
        shares = [usual if piece.weight is None else piece.weight / ranks for piece in step.pieces]
        sizes = [max(piece.size, 1) for piece in step.pieces]
        if fault is not None or step.sums is None:
            nothing = torch.full((2, 2, step.groups), torch.nan, device=self._device)
            return StepRecord(nothing, sizes, shares, count, fault)
        sums = step.sums.squared(self._device)
        if split is not None and split.sizes is not None:
            pieces = (sums + split.contrast.squared(self._device)) / 2
            shares = [shares[0] * size / sum(split.sizes) for size in split.sizes]
            sizes = split.sizes
        else:
            pieces = torch.stack([piece.norms.squared(self._device) for piece in step.pieces]).sum(0) / ranks**2
        norms = torch.stack([pieces, sums], 1) / torch.as_tensor(scale, device=self._device) ** 2
        if not any(piece.norms.has_metric for piece in step.pieces):
            norms[1] = torch.nan
        for wrong in step.wrong:
            norms = norms.masked_fill(wrong.to(self._device), DISAGREE)
        return StepRecord(norms, sizes, shares, count, None)

    def _divisor(self, count: int) -> int:
        """By what the loss of each of so many micro-steps was divided."""
        if isinstance(self._accumulation, int):
            return self._accumulation
        return max(count, 1) if self._accumulation == "mean" else 1

    def _fault(self, step: ObservedStep, split: Split | None) -> str | None:
        """Why a step that was taken cannot be used, as far as the host knows."""
        pieces = step.pieces
        if any(piece.size < 1 for piece in pieces):
            return "a micro-step has no samples"
        if self._awaited:
            return "a backward pass had not ended when the optimiser stepped"
        fault = step.fault or self._parallel.fault or (split.fault(pieces[0]) if split is not None else None)
        if fault is not None:
            return fault
        if any(piece.stray for piece in pieces):
            return "gradients came from outside of the model before those of its own forward pass"
        to_split = (
            self._halves is not None and self._halves.refusal is None and self._last_count == len(pieces) == 1
        )
        if to_split and split is None and pieces[0].size > 1:
            return (
                "a step is one piece, and no gradient came back to an output of the whole model by which its batch "
                "could be split: accumulate over two micro-steps or more"
            )
        return None if step.sums is not None else "no gradient arrived before the optimiser stepped"


def _time_first(model: nn.Module) -> str | None:
    """A module in it whose inputs have their batch in the second dimension."""
    return next(
        (type(each).__name__ for each in model.modules() if getattr(each, "batch_first", None) is False), None
    )
