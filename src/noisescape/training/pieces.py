"""Squared norms of a step's micro-gradients and of their sum, read by hooks while training computes them."""

from __future__ import annotations

import warnings
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
from noisescape.training.hooks import GradientHook, ModuleHook, backward_pass, when_backward_ends
from noisescape.training.loss_scale import scale_of_step
from noisescape.training.nested import tensors
from noisescape.training.noise_scale import Weights
from noisescape.training.preconditioner import preconditioner

Accumulation = Literal["mean", "sum"] | int
BatchSize = int | Callable[[tuple[Any, ...], Mapping[str, Any]], int]
Norms = list[list[list[Tensor]]]
"""By metric (the Euclidean one, the optimiser's) and group: norms of the parameters' parts."""


DISAGREE = -torch.inf
"""In place of a squared norm: what the device found, which the host learns at the next report."""
IN_VAIN = 100
"""Times that gradients are thrown away, with no step between them, before that is said."""
TOLERANCE = 1e-3
"""Of squared norms that are equal but for rounding."""
GIVE = "give batch_size="


@dataclass(frozen=True)
class StepRecord:
    """One measured step as this rank saw it.

    Attributes:
        norms: (2 metrics, 2, groups): in each metric, Σ‖piece‖² and ‖P‖², in the units of the loss; NaN where the
            step cannot be used, and in the optimiser's metric where it has none; ``DISAGREE`` where the gradients
            are not what the backward passes brought. On the parameters' device.
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
        asked: whether gradients of it were asked for that were not accumulated.
    """

    size: int
    weight: float | Tensor | None
    norms: Norms
    forwards: int = 1
    done: bool = False
    stray: bool = False
    asked: bool = False
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
        split_in: the backward pass in which they were told apart.
        split_elsewhere: whether that is another than the one that brought the gradients.
        recomputing: whether the present forward pass is one that a checkpoint does again.
        depth: how many of the modules whose output can be split are being called.
        carried: the norm of what the gradients held before the first piece.
        first_differs: whether the gradients after the first piece are not what hooks saw of it, on the device.
        written_to: the same of a parameter's gradient between two pieces.
        before: a parameter's gradient before the present backward pass.
        after: the same when the last one had ended, with its norm.
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
        self.split_in = -1
        self.split_elsewhere = False
        self.recomputing = False
        self.depth = 0
        self.carried: Tensor | None = None
        self.first_differs: Tensor | None = None
        self.written_to: list[Tensor] = []
        self.before: _Gradient | None = None
        self.after: _Gradient | None = None
        self.after_norm: Tensor | None = None
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
        self._places = _places(model, optimizer) if parallel.sharded else {}
        self._handles: list[RemovableHandle] = []
        self._hooked: dict[int, RemovableHandle] = {}
        self._unsharded: set[int] = set()
        self._awaited = False  # the end of the present backward pass
        self._last_count = 1
        self._in_vain = 0
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

    def _begin(self) -> _Step:
        self._step = step = _Step(len(self._optimizer.param_groups))
        self._awaited = False
        if self._halves is not None:
            self._halves.release()
        return step

    def _ready(self, step: _Step) -> _Step:
        """The step to which a forward pass belongs, with what was changed since attended to.

        Groups that were added, parameters that train now, others' hooks.
        """
        if self._awaited and backward_pass() < 0:  # its end never came, so it was stopped by an error
            self._discard()
            step = self._begin()
        if not step.pieces:
            if step.groups != len(self._optimizer.param_groups):
                self._places = _places(self._model, self._optimizer) if self._parallel.sharded else {}
                step = self._begin()
            self._hook_parameters()
        return step

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

    # ------------------------------------------------------------------ pieces

    def begin_piece(self, size: int, weight: float | Tensor | None = None) -> None:
        """Say that a piece of ``size`` samples begins, with this weight in the step."""
        step = self._step
        if step is None:
            return
        step = self._ready(step)
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
        step = self._ready(step)
        # a checkpoint of the whole model calls it once more in the backward pass
        last = step.pieces[-1] if step.pieces else None
        step.recomputing = last is not None and not last.done and not last.stray and backward_pass() >= 0
        if step.recomputing:
            return
        size = self._size(args, kwargs)
        if step.pieces and step.pieces[-1].asked and not step.pieces[-1].seen:
            step.pieces.pop()
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
        sizes = [tensor.shape[0] for tensor in tensors([args, kwargs]) if tensor.ndim]
        if not sizes:
            self._refuse(f"the model is called without a tensor that has a batch dimension; {GIVE}")
            return 1
        if any(size not in (1, sizes[0]) for size in sizes):
            self._refuse(f"the model is called with tensors of {sizes} rows; {GIVE}")
        elif time_first := _time_first(self._model):
            self._refuse(f"the model has {time_first}, so the batch may not be its input's first dimension; {GIVE}")
        return sizes[0]

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
            if gradient.is_sparse:
                return None
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
            step.split_elsewhere = step.split_in != backward_pass()
            if not step.pieces or (self._announced and step.pieces[-1].done):
                step.pieces.append(_Piece(1, 0.0, _empty(step.groups), stray=True))
        piece = step.pieces[-1]
        if key in piece.seen:
            step.fault = (
                "a parameter received two gradients after one forward pass (two backward passes, or a tensor that "
                "a reentrant checkpoint shares)"
            )
        if piece.forwards > 1 and not isinstance(self._batch_size, int):
            step.fault = f"{piece.forwards} forward passes came before one backward pass; {GIVE}"
        piece.seen.add(key)
        piece.norms[0][group].append(norm(gradient))
        if not self._parallel.sharded:
            piece.norms[1][group] += self._metric_norm(group, held, gradient)

    def _metric_norm(self, group: int, held: Tensor, gradient: Tensor) -> list[Tensor]:
        """‖D^½ gradient‖, where the optimiser has a metric D."""
        metric = preconditioner(self._optimizer, self._optimizer.param_groups[group], held)
        if metric is None:
            return []
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            return [norm(gradient.values() * metric[tuple(gradient.indices())].sqrt_())]
        if gradient.is_complex():  # real and imaginary parts are parameters of their own to an optimiser
            gradient = torch.view_as_real(gradient.resolve_conj())
        return [norm(gradient * metric.sqrt_())]

    def _continued(self, step: _Step, held: Tensor) -> _Step:
        """The step to which this backward pass adds: the same one if the gradients are as its last piece left."""
        if step.after is not None and not step.after.untouched:
            # set to None or to 0, so what came before was thrown away, as of a step that a scaler skips
            self._discard()
            anew = _Step(step.groups)
            anew.pieces = [piece for piece in step.pieces[-1:] if not piece.done]
            anew.contrast, anew.through = step.contrast, step.through
            anew.contrasted, anew.halves, anew.split_in = step.contrasted, step.halves, step.split_in
            self._step = step = anew
        elif step.after is not None and step.after.gradient is not None and step.after_norm is not None:
            # a write to .data leaves no other trace
            step.written_to.append(_differ(norm(step.after.gradient).square(), step.after_norm.square()))
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
        if step is None or not step.pieces:  # a step made within the backward pass began the present one
            return
        if step.before is not None and step.before.untouched and not self._parallel.sharded:
            # gradients that were asked for, not accumulated; the forward pass may have its backward pass yet
            piece = step.pieces.pop()
            step.carried = step.carried if step.pieces else None
            if not piece.stray:
                step.pieces.append(
                    _Piece(piece.size, piece.weight, _empty(step.groups), piece.forwards, asked=True)
                )
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
            found = norm(gradient)
            if step.after is None:
                step.after, step.after_norm = _Gradient.of(parameter), found
            step.sums[0][index].append(found)
            if metric:
                step.sums[1][index] += self._metric_norm(index, parameter, gradient)
        if len(step.pieces) == 1 and self._parallel.ranks == 1:
            device = next(parameter.device for _, parameter in self._parameters())
            seen, there = (_squared(norms[:1], device) for norms in (step.pieces[0].norms, step.sums))
            step.first_differs = _differ(seen, there)
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
            self._step.split_in = backward_pass()

    # ------------------------------------------------------------------ records

    def _record(self, step: _Step) -> StepRecord:
        scale = scale_of_step(self._optimizer, self._scaler)
        step.fault = step.fault or self._parallel.fault
        if step.pieces and not step.pieces[-1].seen:  # a forward pass without a backward pass
            step.pieces.pop()
        ranks, count = self._parallel.ranks, len(step.pieces)
        to_split = self._halves is not None and self._halves.refusal is None and self._last_count == count == 1
        self._last_count = count
        divisor = 1
        if isinstance(self._accumulation, int):
            divisor = self._accumulation
        elif self._accumulation == "mean":
            divisor = max(count, 1)
        usual = 1 / (ranks * divisor)
        shares = [usual if piece.weight is None else piece.weight / ranks for piece in step.pieces]
        sizes = [piece.size for piece in step.pieces]
        device = next(parameter.device for _, parameter in self._parameters())
        split = step.halves if count == 1 else None
        if split is not None and not step.pieces[0].seen <= step.contrasted:
            step.fault = (
                "part of the gradient does not come through the model's output, so its batch cannot be split: "
                "accumulate over two micro-steps or more"
            )
        if step.fault is None and split is not None and step.split_elsewhere:
            step.fault = (
                "gradients at the model's output were asked for by themselves too (for a penalty, say), so its "
                "batch cannot be split: accumulate over two micro-steps or more"
            )
        if any(piece.stray for piece in step.pieces):
            step.fault = (
                step.fault or "gradients came from outside of the model before those of its own forward pass"
            )
        if self._awaited:
            step.fault = "a backward pass had not ended when the optimiser stepped"
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
        if not any(any(piece.norms[1]) for piece in step.pieces):
            norms[1] = torch.nan
        wrong = [step.first_differs, *step.written_to]
        if step.carried is not None:  # what was there before belongs to no piece
            wrong.append(step.carried > 0)
        for each in wrong:
            if each is not None:
                norms = norms.masked_fill(each.to(device), DISAGREE)
        return StepRecord(norms, sizes, shares, count, None)


def norm(gradient: Tensor) -> Tensor:
    """‖gradient‖, of half precision in single; of a shard, its own."""
    if gradient.requires_grad:  # under create_graph=True
        gradient = gradient.detach()
    if isinstance(gradient, DTensor):
        gradient = gradient.to_local()
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    half = gradient.dtype in (torch.float16, torch.bfloat16)
    return torch.linalg.vector_norm(gradient, dtype=torch.float32 if half else None)


def _time_first(model: nn.Module) -> str | None:
    """A module in it whose inputs have their batch in the second dimension."""
    return next(
        (type(each).__name__ for each in model.modules() if getattr(each, "batch_first", None) is False), None
    )


def _differ(found: Tensor, expected: Tensor) -> Tensor:
    """Whether squared norms are not the same; of what is not finite that is not said."""
    return ((found - expected).abs() > TOLERANCE * expected.abs().clamp_min(torch.finfo(expected.dtype).tiny)).any()


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
