"""The per-sample losses of a PyTorch module as a pure function of one flat parameter vector."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import hessian, vmap

from noisescape.errors import BatchCouplingError, InvalidTypeError, InvalidValueError, kind_of
from noisescape.linops.precision import at_full_precision
from noisescape.risk.criterion import Criterion, Loss, Normalisation
from noisescape.risk.differentiation import gradient_of_sum
from noisescape.risk.kernels import DifferentiableKernels, unfused_attention
from noisescape.risk.module_checks import (
    RANDOM,
    check_buffers,
    check_deterministic,
    check_kind,
    check_own_parameters,
    check_sharded,
    check_uniform,
)
from noisescape.risk.samples import Batch, digest
from noisescape.risk.stateless import Stateless, bare
from noisescape.risk.trees import Tree, map_tensors, sample_axes, tensors_of
from noisescape.risk.whole_parameters import is_sharded, whole

OUTPUT_LIMIT = 4096
AGREES = {torch.float64: 1e-8, torch.float32: 3e-4}
"""Relative difference up to which two ways to a derivative give the same."""
CHANGED_IN_PLACE = (
    "the forward pass changes the trainable parameters in place (clamping or renormalising them, say), so the loss "
    "is no function of θ; do that after the optimiser's step, outside forward"
)
KEPT_PER_OUTPUT = 4
"""Bytes kept for the backward pass by each byte of a module's output, where they cannot be counted."""


class ModelLoss:
    """ℓ(θ; inputs, targets) of shape (n,), θ the trainable parameters in ``named_parameters()`` order.

    The module is evaluated with parts of θ in place of its parameters, in the parameters' own precision whatever
    autocast surrounds the call, and left as it was (:class:`Stateless`). The loss is evaluated while they are in
    place: one that reads the model's parameters (weight decay, an output layer of its own) reads θ. Frozen
    parameters and buffers are read at each call; shared parameters count once.

    Attributes:
        needs_graph: whether values, too, must be computed with gradients recorded, as where the forward pass
            differentiates.
        kernels: those the model needs in place of PyTorch's own choice, or None.
        gathered: of parameters that lie with several ranks, θ as it was when last put together, (D,).
    """

    def __init__(
        self, model: nn.Module, loss: Loss | nn.Module, normalisation: Normalisation = "criterion"
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidTypeError(
                f"model must be a torch.nn.Module, not {kind_of(model)}; for a plain function of θ use "
                "EmpiricalRisk.from_losses"
            )
        check_kind(model)
        self.model = model
        self.criterion = Criterion(loss, normalisation)
        self._module = bare(model)
        self.needs_graph = False
        self.gathered: Tensor | None = None
        self.kernels: DifferentiableKernels | None = None
        self._trying = False
        self._convert: Callable[[Tensor], Tensor] | None = None
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trainable:
            raise InvalidValueError(
                "the model has no trainable parameter: every requires_grad is False, or there are none (layers in "
                "a plain list are not registered: use nn.ModuleList)"
            )
        check_uniform(model, trainable)
        check_sharded(model)
        check_buffers(model)
        modules = [self._module]
        if isinstance(loss, nn.Module):
            check_own_parameters(loss, trainable)
            modules.append(loss)
        self._stateless = Stateless(modules, list(trainable.values()))
        self._random = [m for m in self._stateless.modules if isinstance(m, RANDOM)]
        self._check_modes()
        self.names = list(trainable)
        self.shapes = [p.shape for p in trainable.values()]
        self.sizes = [p.numel() for p in trainable.values()]
        first = next(iter(trainable.values()))
        self.dtype, self.device = first.dtype, first.device

    @property
    def dimension(self) -> int:
        """D, the number of trainable parameters."""
        return sum(self.sizes)

    @property
    def trainable(self) -> list[nn.Parameter]:
        """The module's own parameters that θ stands for."""
        return list(self._stateless.trainable)

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that are evaluated, each once."""
        return self._stateless.modules

    def flat_parameters(self) -> Tensor:
        """The module's present trainable parameters as a new flat vector, (D,); shards are gathered."""
        trainable = dict(self.model.named_parameters())
        found = torch.cat([whole(trainable[name].detach()).reshape(-1) for name in self.names])
        if any(map(is_sharded, trainable.values())):
            self.gathered = found.clone()
        return found

    def known_parameters(self) -> Tensor:
        """The parameters; of such as ranks share, as they were last gathered, so that no rank waits for another."""
        return self.flat_parameters() if self.gathered is None else self.gathered.clone()

    def parts(self, theta: Tensor) -> list[Tensor]:
        """θ, (D,), as parameter tensors (views)."""
        return [part.view(shape) for part, shape in zip(theta.split(self.sizes), self.shapes, strict=True)]

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """θ, (D,), as a dict of parameter tensors (views)."""
        return dict(zip(self.names, self.parts(theta), strict=True))

    # ------------------------------------------------------------------ values

    @contextlib.contextmanager
    def _evaluating(self, parts: list[Tensor]) -> Iterator[None]:
        if not self._stateless.active:  # within, its buffers are copies
            self.criterion.check_unchanged()
            self._stateless.check_structure()
        self._check_modes()  # it may have been switched to training since
        parts = list(map(_like_parameter, parts))
        with (
            at_full_precision(),
            unfused_attention(self.kernels),
            self._stateless.holding(parts, self._convert),
            _no_draws(),
        ):
            pointers = [part.data_ptr() for part in parts] if self._trying else []
            yield
            if any(part.data_ptr() != pointer for part, pointer in zip(parts, pointers, strict=bool(pointers))):
                raise InvalidValueError(CHANGED_IN_PLACE)

    @contextlib.contextmanager
    def held(self, theta: Tensor) -> Iterator[None]:
        """For a backward pass: what checkpointing evaluates again then meets θ, and the same kernels.

        Replicas are mapped only where nothing is evaluated again.
        """
        if theta.ndim == 2:
            with at_full_precision():
                yield
            return
        with torch.enable_grad():  # as they were, or other tensors would be saved
            parts = self.parts(theta.detach().requires_grad_())
        with self._evaluating(parts):
            yield

    def _call(self, inputs: Tree) -> Any:
        try:
            if isinstance(inputs, Mapping):
                return self._module(**inputs)
            return self._module(*inputs) if isinstance(inputs, (tuple, list)) else self._module(inputs)
        except RuntimeError as error:
            if "mixed torch.Tensor and DTensor" not in str(error):
                raise
            raise InvalidValueError(
                "the model computes with DTensors (tensor parallel: its forward pass or hooks divide activations), "
                "which no parameters in one piece can be put into; pass a whole model, its parameters gathered by "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True"
            ) from error

    def losses_of_parts(self, parts: list[Tensor], inputs: Tree, targets: Tree) -> Tensor:
        """Per-sample losses, (n,), as a function of the parameter tensors."""
        with self._evaluating(parts):
            return self.criterion.losses(self._call(inputs), targets)

    def outputs(self, theta: Tensor, inputs: Tree) -> Any:
        """The module's outputs for a batch."""
        with self._evaluating(self.parts(theta)):
            return self._call(inputs)

    def output_values(self, theta: Tensor, inputs: Tree) -> Any:
        """:meth:`outputs` without a graph."""
        with torch.set_grad_enabled(self.needs_graph):
            return detached(self.outputs(theta, inputs))

    def losses_of_outputs(self, theta: Tensor, outputs: Any, targets: Tree) -> Tensor:
        """Per-sample losses, (n,), as a function of the outputs."""
        with self._evaluating(self.parts(theta)):
            return self.criterion.losses(outputs, targets)

    def losses(self, theta: Tensor, batch: Batch, *, data_per_replica: bool = False) -> Tensor:
        """(D,) → (n,), (R, D) → (R, n); replicas are mapped by ``vmap``."""
        if theta.ndim == 1:
            return self.losses_of_parts(self.parts(theta), batch.inputs, batch.targets)
        data = (batch.inputs, batch.targets)
        axes = sample_axes(data) if data_per_replica else (None, None)

        def single(point: Tensor, inputs: Tree, targets: Tree) -> Tensor:
            return self.losses_of_parts(self.parts(point), inputs, targets)

        with mapping():
            return vmap(single, in_dims=(0, *axes))(theta, *data)

    def values(self, theta: Tensor, batch: Batch) -> Tensor:
        """:meth:`losses` without a graph."""
        with torch.set_grad_enabled(self.needs_graph):
            return self.losses(theta, batch).detach()

    def raw_values(self, theta: Tensor, batch: Batch) -> Any:
        """The unreduced loss as it comes, without a graph. The first call finds out whether values need one."""

        def evaluate() -> Any:
            with self._evaluating(self.parts(theta)):
                return detached(self.criterion.values(self._call(batch.inputs), batch.targets))

        try:
            with torch.set_grad_enabled(self.needs_graph):
                return evaluate()
        except RuntimeError as error:
            if self.needs_graph or "does not require grad" not in str(error):
                raise
        with torch.enable_grad():
            found = evaluate()
        self.needs_graph = True
        return found

    @torch.enable_grad()
    def loss_reads_parameters(self, theta: Tensor, batch: Batch) -> bool:
        """Whether the loss depends on θ other than through the outputs, so that there is no Gauss–Newton matrix."""
        leaf = theta.detach().requires_grad_()
        with self._evaluating(self.parts(leaf)):
            outputs = detached(self._call(batch.inputs))
            return bool(self.criterion.losses(outputs, batch.targets).requires_grad)

    @contextlib.contextmanager
    def moved_to(self, theta: Tensor) -> Iterator[None]:
        """Within, the module's own parameters have the values of θ, too."""
        own = [(parameter, parameter.data) for parameter in self._stateless.trainable]
        try:
            for (parameter, _), part in zip(own, self.parts(theta.detach()), strict=True):
                parameter.data = part.to(parameter)
            yield
        finally:
            for parameter, values in own:
                parameter.data = values

    def start_trial(self) -> None:
        """Evaluate by all differentiable kernels, and note which the model meets."""
        self.kernels = DifferentiableKernels()
        self._trying = True

    def end_trial(self) -> None:
        """Keep the kernels if the model met any."""
        self._trying = False
        if self.kernels is not None and not self.kernels.met:
            self.kernels = None

    def _check_modes(self) -> None:
        for module in self._random:
            check_deterministic(module, self._module)

    def gradients_one_by_one(self, theta: Tensor, batch: Batch) -> Tensor:
        """G, (n, D), each row by a reverse pass of its own: what every other way is held against."""
        rows = theta.new_empty(batch.size, len(theta))
        for row, gradient in zip(rows, self.single_gradients(theta, batch), strict=True):
            row.copy_(gradient)
        return rows

    def single_gradients(self, theta: Tensor, batch: Batch) -> Iterator[Tensor]:
        """The rows of :meth:`gradients_one_by_one`, one at a time."""
        return (gradient_of_sum(self, theta, single) for single in batch.singles())

    @property
    def tolerance(self) -> float:
        """Relative difference up to which two ways to a derivative give the same."""
        return AGREES.get(self.dtype, 3e-2)

    # ------------------------------------------------------------------ what it takes, what it becomes

    def bytes_per_sample(self, batch: Batch) -> int:
        """Memory a sample's forward pass keeps for the backward pass, counted on a small batch.

        Where it cannot be counted, a multiple of what the modules put out.
        """
        leaf = self.known_parameters().to(self.device, self.dtype).requires_grad_()
        kept: dict[int, int] = {}
        own = leaf.untyped_storage().data_ptr()

        def count(tensor: Tensor) -> Tensor:
            with contextlib.suppress(NotImplementedError, RuntimeError):  # a sparse tensor has no such storage
                storage = tensor.untyped_storage()
                if storage.data_ptr() != own:
                    kept[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # itself, it would keep the graph alive that keeps it

        # copies: a slice of the data set would count as the whole of it
        inputs, targets = map_tensors(torch.clone, (batch.inputs, batch.targets))
        copied = Batch(inputs, targets, batch.start, batch.size)
        try:
            # whoever asks first may well do so where gradients are off
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                self.losses(leaf, copied)
            total = sum(kept.values())
        except RuntimeError:
            total = KEPT_PER_OUTPUT * self._bytes_of_outputs(leaf.detach(), copied)
        return max(64, total // batch.size)

    def _bytes_of_outputs(self, theta: Tensor, batch: Batch) -> int:
        total = 0

        def note(_module: nn.Module, _given: Any, output: Any) -> None:
            nonlocal total
            total += sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(output))

        handles = [module.register_forward_hook(note) for module in self.modules]
        try:
            self.values(theta, batch)
        finally:
            for handle in handles:
                handle.remove()
        return total

    def output_hessian_root(self, theta: Tensor, outputs: Tensor, batch: Batch) -> Tensor:
        """The symmetric square roots of each sample's output-space Hessian, (n, F, F), F outputs a sample.

        Raises:
            ValueError: over 4,096 outputs a sample, or a loss that is not convex in the outputs.
        """
        shape = outputs.shape[1:]
        if shape.numel() > OUTPUT_LIMIT:
            raise InvalidValueError(
                f"drawing from N(0, Gauss–Newton) factors one {shape.numel()} × {shape.numel()} matrix a sample; "
                f"the limit is {OUTPUT_LIMIT} outputs"
            )

        def loss(flat_output: Tensor, targets: Any) -> Tensor:
            batched = map_tensors(with_batch_dimension, targets)
            return self.losses_of_outputs(theta, flat_output.view(1, *shape), batched)[0]

        curvature = vmap(hessian(loss), in_dims=(0, sample_axes(batch.targets)))(outputs.flatten(1), batch.targets)
        values, vectors = torch.linalg.eigh(curvature)
        floor = -1e-4 * values.abs().amax()
        if bool((values < floor).any()):
            raise InvalidValueError(
                "the loss is not convex in the model's outputs: its Gauss–Newton is no covariance"
            )
        return (vectors * values.clamp_min(0).sqrt()[:, None, :]) @ vectors.mT

    def cast(self, dtype: torch.dtype, device: torch.device) -> ModelLoss:
        """The same function for parameters of another dtype or on another device."""

        def convert(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

        other = copy.copy(self)
        other.dtype, other.device = dtype, device
        other._convert = convert
        other.criterion = self.criterion.converted(convert)
        return other

    def with_criterion(self, criterion: Criterion) -> ModelLoss:
        """The same model under another criterion; what tensors that has are those of the present loss."""
        other = copy.copy(self)
        other.criterion = criterion
        return other

    def with_scale(self, scale: float | None) -> ModelLoss:
        """The same function with another N/W; see :class:`Criterion`."""
        return self.with_criterion(self.criterion.with_scale(scale))

    def check_reduction(self, theta: Tensor, batch: Batch) -> None:
        """Warn if the loss, reduced as it came, is another mean than the risk; see :class:`Criterion`."""
        with torch.set_grad_enabled(self.needs_graph), self._evaluating(self.parts(theta)):
            outputs = self._call(batch.inputs)
            self.criterion.check_reduction(outputs, batch.targets, self.criterion.losses(outputs, batch.targets))

    def fingerprint(self) -> str:
        """A checksum of kinds, names, shapes, frozen parameters and buffers."""
        frozen = {name: p.detach() for name, p in self.model.named_parameters() if name not in self.names}
        constants = {**frozen, **dict(self.model.named_buffers())}
        dense = {name: t.to_dense() if t.layout is not torch.strided else t for name, t in constants.items()}
        kinds = [f"{name}:{type(module).__qualname__}" for name, module in self.model.named_modules()]
        loss = type(self.criterion.loss).__qualname__ + getattr(self.criterion.loss, "__qualname__", "")
        shapes = [tuple(shape) for shape in self.shapes]
        return digest(
            [kinds, list(zip(self.names, shapes, strict=True)), loss, self.criterion.normalisation, dense]
        )


def detached(outputs: Any) -> Any:
    """Outputs without their history, whatever holds them."""
    if isinstance(outputs, Tensor):
        return outputs.detach()
    if isinstance(outputs, Mapping):  # also transformers' outputs, which are ordered dicts with attributes
        changed = copy.copy(outputs)
        for name in outputs:
            changed[name] = detached(outputs[name])  # type: ignore[index]
        return changed
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        return type(outputs)(*map(detached, outputs))
    if isinstance(outputs, (tuple, list)):
        return type(outputs)(map(detached, outputs))
    return outputs


def tensor_outputs(outputs: Any) -> Tensor:
    """A model's outputs, refused unless they are one tensor."""
    if not isinstance(outputs, Tensor):
        raise InvalidTypeError(
            f"the Gauss–Newton and Fisher matrices need the model to return one tensor, not "
            f"{type(outputs).__name__}; wrap the model so that it returns its logits"
        )
    return outputs


def logits(outputs: Any) -> Tensor:
    """The tensor that a classifier's outputs are, or hold under the name ``logits``."""
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
    if not isinstance(found, Tensor):
        raise InvalidTypeError(
            f"accuracy needs outputs that are one tensor or have one named logits, not {type(outputs).__name__}; "
            "use risk.metric(theta, function) instead"
        )
    return found


@contextlib.contextmanager
def _no_draws() -> Iterator[None]:
    """Refuse an evaluation that draws from PyTorch's generator, as a rare sample may; its state is put back."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        yield
        return
    before = torch.get_rng_state()
    yield
    after = torch.get_rng_state()
    if type(before) is Tensor and not torch.equal(before, after):  # of a rehearsal without storage there is none
        torch.set_rng_state(before)
        raise BatchCouplingError(
            "the model or its loss draws random numbers; call model.eval(), remove the randomness or pass the "
            "noise as an input: the loss must be a function of θ"
        )


def _like_parameter(part: Tensor) -> Tensor:
    """A part of θ as code that looks for trainable parameters expects it: a ``Parameter`` that takes a gradient."""
    if not part.requires_grad and torch._C._functorch.peek_interpreter_stack() is None:
        part = part.detach().requires_grad_()
    part._is_param = True  # type: ignore[attr-defined]
    return part


def with_batch_dimension(tensor: Tensor) -> Tensor:
    """A sample's tensor as a batch of one."""
    return tensor[None]


@contextlib.contextmanager
def mapping() -> Iterator[None]:
    """For ``vmap``: its slow fallback is no mapping; a complaint of mse_loss under ``jvp`` is harmless."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*performance drop because we have not yet implemented")
        warnings.filterwarnings("ignore", message="An output with one or more elements was resized")
        yield
