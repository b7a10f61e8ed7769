"""Squared norms of a step's micro-gradients and of their sum, read by hooks while training computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from noisescape.training.data_parallel import DataParallel
from noisescape.training.halves import Halves
from noisescape.training.hooks import GradientHook, ModuleHook, when_backward_ends
from noisescape.training.loss_scale import scale_of_step
from noisescape.training.nested import tensors
from noisescape.training.noise_scale import Weights
from noisescape.training.preconditioner import preconditioner

Accumulation = Literal["mean", "sum"]
BatchSize = int | Callable[[tuple[Any, ...], Mapping[str, Any]], int]
Norms = list[list[list[Tensor]]]
"""By metric (the Euclidean one, the optimiser's) and group: norms of the parameters' parts."""


@dataclass(frozen=True)
class StepRecord:
    """One measured step as this rank saw it.

    Attributes:
        norms: (2 metrics, 2, groups): in each metric, Σ‖piece‖² and ‖P‖², in the units of the loss; NaN where the
            step cannot be used, and in the optimiser's metric where it has none. On the parameters' device.
        sizes: samples of each of this rank's pieces.
        shares: each piece's weight in the step's gradient.
        micro_steps: how many of these training made, a split step being one.
        fault: why it cannot be used.
    """

    norms: Tensor
    sizes: Sequence[int]
    shares: Sequence[float | Tensor]
    micro_steps: int
    fault: str | None

    @property
    def weights(self) -> Weights:
        """What is known of the pieces; waits for the device where a share is there."""
        return Weights.of(self.sizes, [float(share) for share in self.shares])


@dataclass
class _Piece:
    """A forward pass of ``size`` samples, and the gradients that its backward pass brought so far.

    Attributes:
        done: whether its backward pass has ended.
        stray: whether it is a backward pass that no forward pass was seen for.
    """

    size: int
    weight: float | Tensor | None
    norms: Norms
    forwards: int = 1
    done: bool = False
    stray: bool = False
    seen: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _Gradient:
    """A parameter's gradient at a moment, so that it can be told whether anyone wrote to it since."""

    parameter: Tensor
    gradient: Tensor | None
    version: int

    @staticmethod
    def of(parameter: Tensor) -> _Gradient:
        gradient = parameter.grad
        return _Gradient(parameter, gradient, 0 if gradient is None else gradient._version)  # noqa: SLF001

    @property
    def untouched(self) -> bool:
        return self.gradient is self.parameter.grad and self.version == _Gradient.of(self.parameter).version


class _Step:
    """What was seen of a step so far.

    Attributes:
        pieces: the last of them is the present one.
        sums: norms of the accumulated gradients, when the last backward pass had ended.
        contrast: norms of the difference of two halves.
        through: the same of all the gradient that comes through the output, where that is to be checked.
        contrasted: the parameters that it is of.
        halves: their sizes.
        depth: how many of the modules whose output can be split are being called.
        carried: the norm of what the gradients held before the first piece.
        before: a parameter's gradient before the present backward pass.
        after: the same when the last one had ended.
        fault: why the step cannot be used.
    """

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self.pieces: list[_Piece] = []
        self.sums: Norms | None = None
        self.contrast = _empty(groups)
        self.through: list[Tensor] = []
        self.contrasted: set[int] = set()
        self.halves: list[int] | None = None
        self.depth = 0
        self.carried: Tensor | None = None
        self.before: _Gradient | None = None
        self.after: _Gradient | None = None
        self.fault: str | None = None


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
        accumulation: ``"mean"`` where the loss of each of K micro-steps is divided by K, ``"sum"`` where it is not.
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
        self._places = _places(model, optimizer) if parallel.sharded else {}
        self._handles: list[RemovableHandle] = []
        self._unsharded: set[int] = set()
        self._awaited = False  # the end of the present backward pass
        self._last_count = 1
        self._step: _Step | None = None
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
        else:
            self._handles += [
                parameter.register_hook(self._hook(group, parameter, parameter))
                for group, parameter in self._trainable()
            ]

    @property
    def armed(self) -> bool:
        """Whether the present step is measured."""
        return self._step is not None

    def disarm(self) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
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
        record = self._record(self._step)
        self._begin()
        return record

    def _begin(self) -> None:
        self._step = _Step(len(self._optimizer.param_groups))
        self._awaited = False
        if self._halves is not None:
            self._halves.release()

    # ------------------------------------------------------------------ pieces

    def begin_piece(self, size: int, weight: float | Tensor | None = None) -> None:
        """Say that a piece of ``size`` samples begins, with this weight in the step."""
        step = self._step
        if step is None:
            return
        if step.pieces and not step.pieces[-1].seen:  # a micro-step without a backward pass
            step.pieces.pop()
        self._append(step, _Piece(size, weight, _empty(step.groups)))

    def _append(self, step: _Step, piece: _Piece) -> None:
        step.pieces.append(piece)
        step.depth = 0
        step.contrast, step.through, step.contrasted, step.halves = _empty(step.groups), [], set(), None
        if self._halves is not None:
            self._halves.release()

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        step = self._step
        if step is None or self._announced or module is not self._model or not torch.is_grad_enabled():
            return
        size = self._size(args, kwargs)
        if step.pieces and not step.pieces[-1].seen:  # an earlier forward pass, with no backward pass since
            step.pieces[-1].forwards += 1
            step.pieces[-1].size = size
        else:
            self._append(step, _Piece(size, None, _empty(step.groups)))

    def _size(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
        if isinstance(self._batch_size, int):
            return self._batch_size
        if self._batch_size is not None:
            return int(self._batch_size(args, kwargs))
        first = next((tensor for tensor in tensors([args, kwargs]) if tensor.ndim), None)
        if first is None:
            self._refuse("the model is called without a tensor that has a batch dimension; give batch_size=")
            return 1
        return first.shape[0]

    def _may_be_split(self, module: nn.Module) -> bool:
        return (
            self._step is not None
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

    def _refuse(self, reason: str) -> None:
        if self._step is not None:
            self._step.fault = reason

    # ------------------------------------------------------------------ gradients

    def _parameters(self) -> Iterator[tuple[int, Tensor]]:
        for index, group in enumerate(self._optimizer.param_groups):
            for parameter in group["params"]:
                yield index, parameter

    def _trainable(self) -> Iterator[tuple[int, Tensor]]:
        return (pair for pair in self._parameters() if pair[1].requires_grad)

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
                step.contrasted.add(key)
                step.contrast[0][group].append(norm(gradient))
                step.contrast[1][group] += self._metric_norm(group, held, gradient)
            else:
                step.through.append(norm(gradient))
            return gradient.new_zeros(()).expand(gradient.shape)  # or all would be held until the pass has ended

        return GradientHook(see)

    def _hook_unsharded(self, module: nn.Module, args: Any) -> None:
        """Sharded parameters are whole from here to their backward pass, in tensors that live on."""
        if not torch.is_grad_enabled():
            return
        for inner, name, whole in _own(module):
            place = self._places.get((id(inner), name))
            if place is not None and whole.requires_grad and id(whole) not in self._unsharded:
                self._unsharded.add(id(whole))
                self._handles.append(whole.register_hook(self._hook(place[0], whole, place[1])))

    def _see(self, step: _Step, gradient: Tensor, key: int, group: int, held: Tensor) -> None:
        if not self._awaited:
            self._awaited = True
            when_backward_ends(self._note_sum)
            step = self._continued(step, held)
            if not step.pieces or (self._announced and step.pieces[-1].done):
                step.pieces.append(_Piece(1, 0.0, _empty(step.groups), stray=True))
        piece = step.pieces[-1]
        if key in piece.seen:
            step.fault = (
                "a parameter received two gradients after one forward pass (two backward passes, or a tensor that "
                "a reentrant checkpoint shares)"
            )
        if piece.forwards > 1 and not isinstance(self._batch_size, int):
            step.fault = f"{piece.forwards} forward passes came before one backward pass; give batch_size="
        piece.seen.add(key)
        piece.norms[0][group].append(norm(gradient))
        if not self._parallel.sharded:
            piece.norms[1][group] += self._metric_norm(group, held, gradient)

    def _metric_norm(self, group: int, held: Tensor, gradient: Tensor) -> list[Tensor]:
        """‖D^½ gradient‖, where the optimiser has a metric D."""
        if gradient.is_sparse:
            return []
        metric = preconditioner(self._optimizer, self._optimizer.param_groups[group], held)
        return [] if metric is None else [norm(gradient * metric.sqrt_())]

    def _continued(self, step: _Step, held: Tensor) -> _Step:
        """The step to which this backward pass adds: the same one if the gradients are as its last piece left."""
        if step.after is not None and not step.after.untouched:
            # set to None or to 0, so what came before was thrown away, as of a step that a scaler skips
            self.discarded += 1
            anew = _Step(step.groups)
            anew.pieces = [piece for piece in step.pieces[-1:] if not piece.done]
            anew.contrast, anew.through = step.contrast, step.through
            anew.contrasted, anew.halves = step.contrasted, step.halves
            self._step = step = anew
        if step.after is None and len(step.pieces) <= 1:
            left = [parameter.grad for _, parameter in self._parameters() if parameter.grad is not None]
            if left:
                step.carried = torch.stack([norm(gradient) for gradient in left]).sum()
        step.before = _Gradient.of(held)
        return step

    def _note_sum(self) -> None:
        """The gradients as they stand when a backward pass has ended, averaged over ranks."""
        self._awaited = False
        step = self._step
        if step is None:
            return
        if step.before is not None and step.before.untouched and not self._parallel.sharded:
            step.pieces = step.pieces[:-1]  # gradients that were asked for, and not accumulated
            step.carried = step.carried if step.pieces else None
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
        step.sums = _empty(step.groups)
        metric = any(any(piece.norms[1]) for piece in step.pieces)
        for index, parameter in self._parameters():
            gradient = parameter.grad
            if gradient is None:
                continue
            if step.after is None:
                step.after = _Gradient.of(parameter)
            step.sums[0][index].append(norm(gradient))
            if metric:
                step.sums[1][index] += self._metric_norm(index, parameter, gradient)

        if step.through and step.halves is not None and len(step.pieces) == 1:
            self._check_halves(step)

    def _check_halves(self, step: _Step) -> None:
        """Once in a training; waits for the device."""
        if self._halves is None:
            return
        through, whole = (
            float(torch.stack([one.to(norms[0].device) for one in norms]).square().sum())
            for norms in (step.through, [one for of in step.pieces[0].norms[0] for one in of])
        )
        self._halves.check(through, whole)
        if self._halves.refusal is not None:
            step.halves = None

    def _note_halves(self, sizes: list[int]) -> None:
        if self._step is not None:
            self._step.halves = sizes

    # ------------------------------------------------------------------ records

    def _record(self, step: _Step) -> StepRecord:
        scale = scale_of_step(self._optimizer, self._scaler)
        if step.pieces and not step.pieces[-1].seen:  # a forward pass without a backward pass
            step.pieces.pop()
        ranks, count = self._parallel.ranks, len(step.pieces)
        to_split = self._halves is not None and self._halves.refusal is None and self._last_count == count == 1
        self._last_count = count
        usual = 1 / (ranks * max(count, 1)) if self._accumulation == "mean" else 1 / ranks
        shares = [usual if piece.weight is None else piece.weight / ranks for piece in step.pieces]
        sizes = [piece.size for piece in step.pieces]
        device = next(parameter.device for _, parameter in self._parameters())
        split = step.halves if count == 1 else None
        if split is not None and not step.pieces[0].seen <= step.contrasted:
            step.fault = (
                "part of the gradient does not come through the model's output, so its batch cannot be split: "
                "accumulate over two micro-steps or more"
            )
        if min(sizes, default=1) < 1:
            step.fault = "a micro-step has no samples"
            sizes = [max(size, 1) for size in sizes]
        if to_split and split is None and sizes[0] > 1:
            step.fault = step.fault or (
                "a step is one piece, and no gradient came back to an output of the whole model by which its batch "
                "could be split: accumulate over two micro-steps or more"
            )
        if step.fault is not None or step.sums is None:
            fault = step.fault or "no gradient arrived before the optimiser stepped"
            nothing = torch.full((2, 2, step.groups), torch.nan, device=device)
            return StepRecord(nothing, sizes, shares, count, fault)
        sums = _squared(step.sums, device)
        if split is not None:
            pieces = (sums + _squared(step.contrast, device)) / 2
            shares = [shares[0] * size / sum(split) for size in split]
            sizes = split
        else:
            pieces = torch.stack([_squared(piece.norms, device) for piece in step.pieces]).sum(0) / ranks**2
        norms = torch.stack([pieces, sums], 1) / torch.as_tensor(scale, device=device) ** 2
        if step.carried is not None:  # what was there before belongs to no piece
            norms = torch.where(step.carried.to(device) == 0, norms, torch.nan)
        if not any(any(piece.norms[1]) for piece in step.pieces):
            norms[1] = torch.nan
        return StepRecord(norms, sizes, shares, count, None)


def norm(gradient: Tensor) -> Tensor:
    """‖gradient‖, of half precision in single; of a shard, its own."""
    if isinstance(gradient, DTensor):
        gradient = gradient.to_local()
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    half = gradient.dtype in (torch.float16, torch.bfloat16)
    return torch.linalg.vector_norm(gradient, dtype=torch.float32 if half else None)


def _empty(groups: int) -> Norms:
    return [[[] for _ in range(groups)] for _ in range(2)]


def _squared(norms: Norms, device: torch.device) -> Tensor:
    """Σ of squares, by metric and group."""
    zero = torch.zeros((), device=device)
    return torch.stack(
        [
            torch.stack(
                [torch.stack([one.to(device) for one in of]).square().sum() if of else zero for of in groups]
            )
            for groups in norms
        ]
    )


def _own(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Parameters in ``module`` but not in a sharded module within it: holder, name, and the parameter."""
    yield from ((module, name, parameter) for name, parameter in module.named_parameters(recurse=False))
    for child in module.children():
        if not isinstance(child, FSDPModule):
            yield from _own(child)


def _places(model: nn.Module, optimizer: Optimizer) -> dict[tuple[int, str], tuple[int, Tensor]]:
    """Where each parameter of the optimiser is held, with its group."""
    groups = {
        id(parameter): index for index, group in enumerate(optimizer.param_groups) for parameter in group["params"]
    }
    return {
        (id(module), name): (groups[id(parameter)], parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) in groups
    }
