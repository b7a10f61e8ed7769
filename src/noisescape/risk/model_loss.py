"""The per-sample losses of a PyTorch module as a pure function of one flat parameter vector."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, hessian, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from noisescape.errors import BatchCouplingError, InvalidTypeError, InvalidValueError
from noisescape.linops.precision import without_autocast
from noisescape.risk.criterion import Criterion, Loss, Normalisation
from noisescape.risk.factored_gradients import FactoredGradients, OuterGradients
from noisescape.risk.kernels import DifferentiableKernels, unfused_attention
from noisescape.risk.linear_layers import LinearLayer, offset_outputs, vector_layers
from noisescape.risk.samples import Batch, TensorSamples, digest
from noisescape.risk.stateless import Stateless, bare
from noisescape.risk.trees import Tree, map_tensors, sample_axes, tensors_of

OUTPUT_LIMIT = 4096
TRIED_SAMPLES = 8
"""Samples whose gradients, mapped, are held against those taken one by one."""
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
    """

    def __init__(
        self, model: nn.Module, loss: Loss | nn.Module, normalisation: Normalisation = "criterion"
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidTypeError(
                f"model must be a torch.nn.Module, not {type(model).__name__}; for a plain function of θ use "
                "EmpiricalRisk.from_losses"
            )
        _check_kind(model)
        self.model = model
        self.criterion = Criterion(loss, normalisation)
        self._module = bare(model)
        self.needs_graph = False
        self.kernels: DifferentiableKernels | None = None
        self._trying = False
        self._maps_samples: bool | None = None
        self._layers: list[LinearLayer] = []
        self._convert: Callable[[Tensor], Tensor] | None = None
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trainable:
            raise InvalidValueError(
                "the model has no trainable parameter: every requires_grad is False, or there are none (layers in "
                "a plain list are not registered: use nn.ModuleList)"
            )
        _check_uniform(model, trainable)
        _check_buffers(model)
        modules = [self._module]
        if isinstance(loss, nn.Module):
            _check_own_parameters(loss, trainable)
            modules.append(loss)
        self._stateless = Stateless(modules, list(trainable.values()))
        self._random = [m for m in self._stateless.modules if isinstance(m, _RANDOM)]
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
    def modules(self) -> list[nn.Module]:
        """The modules that are evaluated, each once."""
        return self._stateless.modules

    def flat_parameters(self) -> Tensor:
        """The module's present trainable parameters as a new flat vector, (D,)."""
        trainable = dict(self.model.named_parameters())
        return torch.cat([trainable[name].detach().reshape(-1) for name in self.names])

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
            without_autocast(),
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
            with without_autocast():
                yield
            return
        with torch.enable_grad():  # as they were, or other tensors would be saved
            parts = self.parts(theta.detach().requires_grad_())
        with self._evaluating(parts):
            yield

    def _call(self, inputs: Tree) -> Any:
        if isinstance(inputs, Mapping):
            return self._module(**inputs)
        return self._module(*inputs) if isinstance(inputs, (tuple, list)) else self._module(inputs)

    def _losses(self, parts: list[Tensor], inputs: Tree, targets: Tree) -> Tensor:
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
            return self._losses(self.parts(theta), batch.inputs, batch.targets)
        data = (batch.inputs, batch.targets)
        axes = sample_axes(data) if data_per_replica else (None, None)

        def single(point: Tensor, inputs: Tree, targets: Tree) -> Tensor:
            return self._losses(self.parts(point), inputs, targets)

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
            _check_deterministic(module, self._module)

    # ------------------------------------------------------------------ gradients of single samples

    def gradients(self, theta: Tensor, batch: Batch) -> Tensor:
        """G, row n the gradient of the batch's n-th loss: (n, D), or (R, n, D)."""
        if theta.ndim == 2:
            return torch.stack([self.gradients(row, batch) for row in theta])
        return self.factored_gradients(theta, batch).rows()

    def factored_gradients(self, theta: Tensor, batch: Batch) -> FactoredGradients:
        """G of the batch at a single θ: of linear layers that get one vector a sample, only the factors.

        :meth:`choose_layers` says how.
        """
        theta = theta.detach()
        if self._maps_samples:
            with mapping():
                return self._mapped_gradients(theta, batch, self._layers)
        return FactoredGradients(self.sizes, self.gradients_one_by_one(theta, batch))

    def gradients_one_by_one(self, theta: Tensor, batch: Batch) -> Tensor:
        """G, (n, D), each row by a reverse pass of its own: what every other way is held against."""
        held = TensorSamples(batch.inputs, batch.targets)
        return torch.stack([self._gradient(theta, single) for single in held.batches(1)])

    @torch.enable_grad()
    def _gradient(self, theta: Tensor, batch: Batch) -> Tensor:
        leaf = theta.detach().requires_grad_()
        value = self.losses(leaf, batch).sum()
        with self.held(leaf):
            return torch.autograd.grad(value, leaf, materialize_grads=True)[0]

    def _mapped_gradients(self, theta: Tensor, batch: Batch, layers: list[LinearLayer]) -> FactoredGradients:
        """By ``vmap``; a layer's δ is the derivative with respect to what is added to its output: nothing."""
        parts = list(theta.split(self.sizes))
        factored = {position for layer in layers for position in layer.parameters}
        direct = [position for position in range(len(parts)) if position not in factored]
        start = torch.cat([theta[:0], *(parts[position] for position in direct)])
        sizes = [self.sizes[position] for position in direct]

        def single(inputs: Tree, targets: Tree) -> Any:
            inputs, targets = map_tensors(_with_batch_dimension, (inputs, targets))

            def loss(point: Tensor, offsets: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
                moved = parts.copy()
                for position, part in zip(direct, point.split(sizes), strict=True):
                    moved[position] = part
                shaped = [part.view(shape) for part, shape in zip(moved, self.shapes, strict=True)]
                with offset_outputs(layers, offsets) as seen:
                    value = self._losses(shaped, inputs, targets)[0]
                return value, [seen[number] for number in range(len(layers))]

            offsets = [theta.new_zeros(layer.module.out_features) for layer in layers]
            return grad(loss, argnums=(0, 1), has_aux=True)(start, offsets)

        data = (batch.inputs, batch.targets)
        with without_autocast():
            (rows, slopes), seen = vmap(single, in_dims=sample_axes(data))(*data)
        return FactoredGradients(
            self.sizes,
            rows,
            [
                OuterGradients(layer.weight, layer.bias, inputs, delta)
                for layer, inputs, delta in zip(layers, seen, slopes, strict=True)
            ],
        )

    @property
    def gradient_width(self) -> int:
        """Numbers kept for each sample's gradient by :meth:`factored_gradients`."""
        factored = sum(self.sizes[position] for layer in self._layers for position in layer.parameters)
        return self.dimension - factored + sum(layer.width for layer in self._layers)

    @property
    def gradients_chosen(self) -> bool:
        """Whether :meth:`choose_layers` has been asked."""
        return self._maps_samples is not None

    def choose_layers(self, theta: Tensor, batches: list[Batch], *, layers_allowed: bool = True) -> None:
        """Decide which linear layers' factors are kept, and whether ``vmap`` maps the model over samples rightly.

        Against the gradients of the first samples of each batch, one by one; if in doubt, one by one it is. No
        factors are kept of layers whose parameters anything but the layer reads, however little depends on it now.
        """
        tried = [head(batch, TRIED_SAMPLES) for batch in batches]
        wanted = [self.gradients_one_by_one(theta, batch) for batch in tried]
        with torch.no_grad():
            one = head(tried[0], 1).inputs
            found = vector_layers(self.modules, self._stateless.trainable, lambda: self.output_values(theta, one))
        if not layers_allowed or any(self._reads_elsewhere(theta, batch, found) for batch in tried):
            found = []
        for layers in (found, []):
            if all(
                self._maps_rightly(theta, batch, rows, layers) for batch, rows in zip(tried, wanted, strict=True)
            ):
                self._layers, self._maps_samples = layers, True
                return
        self._layers, self._maps_samples = [], False

    @torch.enable_grad()
    def _reads_elsewhere(self, theta: Tensor, batch: Batch, layers: list[LinearLayer]) -> bool:
        """Whether the losses depend on the layers' parameters other than through the layers' own calls."""
        if not layers:
            return False
        parts = [part.detach().requires_grad_() for part in self.parts(theta)]
        positions = [position for layer in layers for position in layer.parameters]

        def fixed(module: nn.Linear, given: tuple[Tensor, ...], _output: Tensor) -> Tensor:
            bias = module.bias
            return nn.functional.linear(given[0], module.weight.detach(), None if bias is None else bias.detach())

        handles = [layer.module.register_forward_hook(fixed, prepend=True) for layer in layers]
        try:
            total = self._losses(parts, batch.inputs, batch.targets).sum()
        finally:
            for handle in handles:
                handle.remove()
        if not total.requires_grad:
            return False
        found = torch.autograd.grad(total, [parts[position] for position in positions], allow_unused=True)
        return any(gradient is not None for gradient in found)

    def _maps_rightly(self, theta: Tensor, batch: Batch, wanted: Tensor, layers: list[LinearLayer]) -> bool:
        try:
            with mapping():
                mapped = self._mapped_gradients(theta, batch, layers).rows()
        except Exception:  # an operation without a rule says so in many ways
            return False
        sizes = torch.linalg.vector_norm(wanted, dim=1)
        errors = torch.linalg.vector_norm(mapped - wanted, dim=1)
        floor = 1e-3 * sizes.amax()  # rounding of a much larger sample's arithmetic
        return bool(sizes.any()) and bool((errors <= self.tolerance * torch.maximum(sizes, floor)).all())

    @property
    def tolerance(self) -> float:
        """Relative difference up to which two ways to a derivative give the same."""
        return AGREES.get(self.dtype, 3e-2)

    # ------------------------------------------------------------------ what it takes, what it becomes

    def bytes_per_sample(self, batch: Batch) -> int:
        """Memory a sample's forward pass keeps for the backward pass, counted on a small batch.

        Where it cannot be counted, a multiple of what the modules put out.
        """
        leaf = self.flat_parameters().to(self.device, self.dtype).requires_grad_()
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
            batched = map_tensors(_with_batch_dimension, targets)
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

    def with_scale(self, scale: float | None) -> ModelLoss:
        """The same function with another N/W; see :class:`Criterion`."""
        other = copy.copy(self)
        other.criterion = self.criterion.with_scale(scale)
        return other

    def afresh(self) -> ModelLoss:
        """The same function for other data, for which nothing is decided."""
        other = self.with_scale(None)
        other._maps_samples, other._layers = None, []
        return other

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


def head(batch: Batch, count: int) -> Batch:
    """The first samples of a batch."""
    return TensorSamples(batch.inputs, batch.targets).between(0, min(count, batch.size))


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


def _with_batch_dimension(tensor: Tensor) -> Tensor:
    return tensor[None]


def _check_kind(model: nn.Module) -> None:
    """Refuse modules whose tensors cannot be exchanged, or are not there yet."""
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise InvalidTypeError(
            "the model is a TorchScript module, whose tensors are compiled in; pass the nn.Module it was made from"
        )
    lazy = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if is_lazy(tensor)]
    if lazy:
        raise InvalidValueError(
            f"the model has uninitialised (lazy) tensors: {', '.join(lazy[:3])}; run one batch through it first, "
            "model(inputs), so that their shapes are known"
        )
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        raise InvalidTypeError(
            f"submodule '{scripted[0]}' is TorchScript, whose tensors are compiled in; use the nn.Module it was "
            "made from"
        )


def _check_buffers(model: nn.Module) -> None:
    trained = [name for name, buffer in model.named_buffers() if buffer.requires_grad]
    if trained:
        raise InvalidValueError(
            f"the buffers {', '.join(trained[:3])} require a gradient, but θ is made of parameters; register them "
            "as nn.Parameter, or hold them fixed with requires_grad_(False)"
        )
    hooked = [name for name, p in model.named_parameters() if p.requires_grad and p._backward_hooks]
    if hooked:
        warnings.warn(
            f"parameters have gradient hooks ({', '.join(hooked[:3])}), which run in training but not here: what "
            "they change (masks, scaling) is missing from these gradients",
            UserWarning,
            stacklevel=4,
        )


def _check_own_parameters(loss: nn.Module, trainable: Mapping[str, nn.Parameter]) -> None:
    known = {id(parameter) for parameter in trainable.values()}
    own = [name for name, p in loss.named_parameters() if p.requires_grad and id(p) not in known]
    if own:
        raise InvalidValueError(
            f"the loss has trainable parameters of its own ({', '.join(own[:3])}), which θ would lack: derivatives "
            "with respect to them would be missing. Make them part of the model (a module that holds both and "
            "whose forward returns what the loss needs), or hold them fixed: loss.requires_grad_(False)"
        )


def _check_uniform(model: nn.Module, trainable: dict[str, nn.Parameter]) -> None:
    devices = sorted({str(t.device) for t in [*model.parameters(), *model.buffers()]})
    if len(devices) > 1:
        raise InvalidValueError(
            f"mixed devices: the model's tensors are on {', '.join(devices)}; use model.to(...)"
        )
    compound = [name for name, p in trainable.items() if p.is_complex()]
    if compound:
        raise InvalidValueError(
            f"the trainable parameters {', '.join(compound[:3])} are complex; θ is a vector of real numbers. Keep "
            "real and imaginary parts as one real parameter of shape (…, 2), nn.Parameter(torch.view_as_real(w)), "
            "and make the complex tensor in forward with torch.view_as_complex"
        )
    dtypes = sorted({str(p.dtype) for p in trainable.values()})
    if len(dtypes) > 1:
        raise InvalidValueError(
            f"the trainable parameters have several dtypes ({', '.join(dtypes)}); one flat vector needs one: "
            "use model.to(dtype)"
        )


_RANDOM = (_BatchNorm, _DropoutNd, nn.MultiheadAttention, nn.RNNBase)


def _check_deterministic(module: nn.Module, model: nn.Module) -> None:
    if isinstance(module, _BatchNorm):
        if module.training or not module.track_running_stats:
            raise BatchCouplingError(
                f"{_where(module, model)} uses batch statistics, so a sample's loss depends on its batch and there "
                "is no per-sample gradient; call model.eval() (with track_running_stats=True) or use GroupNorm"
            )
        return
    rate = module.p if isinstance(module, _DropoutNd) else module.dropout
    if module.training and rate > 0:  # type: ignore[operator]
        raise BatchCouplingError(
            f"{_where(module, model)} drops units at random (p = {rate:g}): the loss is not a function of θ; call "
            "model.eval() or set p = 0"
        )


def _where(module: nn.Module, model: nn.Module) -> str:
    name = next(name for name, each in model.named_modules() if each is module)
    return f"{type(module).__name__} '{name}'" if name else type(module).__name__


@contextlib.contextmanager
def mapping() -> Iterator[None]:
    """For ``vmap``: its slow fallback is no mapping; a complaint of mse_loss under ``jvp`` is harmless."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*performance drop because we have not yet implemented")
        warnings.filterwarnings("ignore", message="An output with one or more elements was resized")
        yield
