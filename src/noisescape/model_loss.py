"""The per-sample losses of a PyTorch module as a pure function of one flat parameter vector."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves, tree_map

from noisescape.errors import BatchCouplingError
from noisescape.factored_gradients import FactoredGradients, OuterGradients
from noisescape.linear_layers import LinearLayer, offset_outputs, vector_layers
from noisescape.samples import Batch, TensorSamples, Tree

OUTPUT_LIMIT = 4096

Loss = Callable[[Any, Any], Tensor]


class ModelLoss:
    """ℓ(θ; inputs, targets) of shape (n,), θ the trainable parameters in ``named_parameters()`` order.

    The module is only ever called through ``torch.func.functional_call``: neither its parameters nor its
    buffers change. Frozen parameters and buffers are read at each call; shared parameters count once.
    """

    broadcasts = False

    def __init__(self, model: nn.Module, loss: Loss | nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"model must be a torch.nn.Module, not {type(model).__name__}; for a plain function of θ use "
                "EmpiricalRisk.from_losses"
            )
        self.model = model
        self.loss = loss
        self.per_sample_loss = per_sample(loss)
        self._maps_samples: bool | None = None
        self._layers: list[LinearLayer] = []
        self._maps_replicas = True
        self._converted = False
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trainable:
            raise ValueError(
                "the model has no trainable parameter: every requires_grad is False, or there are none"
            )
        _check_uniform(model, trainable)
        _check_deterministic_modules(model)
        self.names = list(trainable)
        self._trainable = frozenset(trainable)
        self.shapes = [p.shape for p in trainable.values()]
        self.sizes = [p.numel() for p in trainable.values()]
        first = next(iter(trainable.values()))
        self.dtype, self.device = first.dtype, first.device

    @property
    def dimension(self) -> int:
        """D, the number of trainable parameters."""
        return sum(self.sizes)

    def flat_parameters(self) -> Tensor:
        """The module's present trainable parameters as a new flat vector, (D,)."""
        trainable = dict(self.model.named_parameters())
        return torch.cat([trainable[name].detach().reshape(-1) for name in self.names])

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """θ, (D,), as a dict of parameter tensors (views)."""
        parts = theta.split(self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def outputs(self, theta: Tensor, inputs: Tree) -> Any:
        """The module's outputs for a batch."""
        return self._call(self.named(theta), inputs)

    def _call(self, named: Mapping[str, Tensor], inputs: Tree) -> Any:
        _check_deterministic_modules(self.model)  # it may have been switched to training since
        if isinstance(inputs, Mapping):
            args, kwargs = (), dict(inputs)
        else:
            args, kwargs = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}
        with _twice_differentiable_attention():
            return functional_call(self.model, {**named, **self._constants()}, args, kwargs)

    def _constants(self) -> dict[str, Tensor]:
        """The module's present frozen parameters, and copies of its buffers, which a forward pass may change."""
        frozen = {n: p.detach() for n, p in self.model.named_parameters() if n not in self._trainable}
        constants = {**frozen, **{name: buffer.clone() for name, buffer in self.model.named_buffers()}}
        if not self._converted:
            return constants
        return {
            name: tensor.to(self.device, self.dtype) if tensor.is_floating_point() else tensor.to(self.device)
            for name, tensor in constants.items()
        }

    def losses_of_outputs(self, outputs: Any, targets: Tree) -> Tensor:
        """Per-sample losses, (n,); anything beyond the first dimension is averaged."""
        values = self.per_sample_loss(outputs, targets)
        return values.flatten(1).mean(1) if values.ndim > 1 else values

    def __call__(self, theta: Tensor, inputs: Tree, targets: Tree) -> Tensor:
        """ℓ, (n,), at a single θ."""
        return self.losses_of_outputs(self.outputs(theta, inputs), targets)

    def losses(self, theta: Tensor, batch: Batch, *, data_per_replica: bool = False) -> Tensor:
        """(D,) → (n,), (R, D) → (R, n); replicas are mapped by ``vmap``."""
        if theta.ndim == 1:
            return self(theta, batch.inputs, batch.targets)
        data = 0 if data_per_replica else None
        if self._maps_replicas:
            try:
                with mapping():
                    return vmap(self, in_dims=(0, data, data))(theta, batch.inputs, batch.targets)
            except (NotImplementedError, RuntimeError, UserWarning):  # an operation unknown to vmap
                self._maps_replicas = False

        def of_replica(row: int) -> tuple[Tree, Tree]:
            both = (batch.inputs, batch.targets)
            return tree_map(lambda tensor: tensor[row], both) if data_per_replica else both

        return torch.stack([self(point, *of_replica(row)) for row, point in enumerate(theta)])

    def gradients(self, theta: Tensor, batch: Batch) -> Tensor:
        """G, row n the gradient of the batch's n-th loss: (n, D), or (R, n, D)."""
        if theta.ndim == 2:
            return torch.stack([self.gradients(row, batch) for row in theta])
        return self.factored_gradients(theta, batch).rows()

    def factored_gradients(self, theta: Tensor, batch: Batch) -> FactoredGradients:
        """G of the batch at a single θ: of linear layers that get one vector a sample, only the factors."""
        theta = theta.detach()
        if self._maps_samples is None:
            self._choose_layers(theta, batch)
        if self._maps_samples:
            return self._mapped_gradients(theta, batch, self._layers)
        held = TensorSamples(batch.inputs, batch.targets)
        rows = [self._gradient(theta, single) for single in held.batches(1)]
        return FactoredGradients(self.sizes, torch.stack(rows))

    @torch.enable_grad()
    def _gradient(self, theta: Tensor, batch: Batch) -> Tensor:
        leaf = theta.detach().requires_grad_()
        value = self(leaf, batch.inputs, batch.targets).sum()
        return torch.autograd.grad(value, leaf, materialize_grads=True)[0]

    def _mapped_gradients(self, theta: Tensor, batch: Batch, layers: list[LinearLayer]) -> FactoredGradients:
        """By ``vmap``; a layer's δ is the derivative with respect to what is added to its output: nothing."""
        parts = list(theta.split(self.sizes))
        factored = {position for layer in layers for position in layer.parameters}
        direct = [position for position in range(len(parts)) if position not in factored]
        start = torch.cat([theta[:0], *(parts[position] for position in direct)])
        sizes = [self.sizes[position] for position in direct]

        def single(inputs: Tree, targets: Tree) -> Any:
            inputs, targets = tree_map(_with_batch_dimension, (inputs, targets))

            def loss(point: Tensor, offsets: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
                moved = parts.copy()
                for position, part in zip(direct, point.split(sizes), strict=True):
                    moved[position] = part
                named = {n: p.view(s) for n, p, s in zip(self.names, moved, self.shapes, strict=True)}
                with offset_outputs(layers, offsets) as seen:
                    value = self.losses_of_outputs(self._call(named, inputs), targets)[0]
                return value, [seen[number] for number in range(len(layers))]

            offsets = [theta.new_zeros(layer.module.out_features) for layer in layers]
            return grad(loss, argnums=(0, 1), has_aux=True)(start, offsets)

        (rows, slopes), seen = vmap(single)(batch.inputs, batch.targets)
        return FactoredGradients(
            self.sizes,
            rows,
            [
                OuterGradients(layer.weight, layer.bias, inputs, delta)
                for layer, inputs, delta in zip(layers, seen, slopes, strict=True)
            ],
        )

    def gradient_width(self, theta: Tensor, batch: Batch) -> int:
        """Numbers kept for each sample's gradient by :meth:`factored_gradients`."""
        if self._maps_samples is None:
            self._choose_layers(theta, batch)
        factored = sum(self.sizes[position] for layer in self._layers for position in layer.parameters)
        return self.dimension - factored + sum(layer.width for layer in self._layers)

    def _choose_layers(self, theta: Tensor, batch: Batch) -> None:
        """Which linear layers' factors are kept, and whether ``vmap`` knows every operation of the model.

        Decided once, on one sample, and against its gradient.
        """
        one = TensorSamples(batch.inputs, batch.targets).between(0, 1)
        with torch.no_grad():
            found = vector_layers(self.model, self.names, lambda: self.outputs(theta, one.inputs))
        self._layers = found if found and self._can_map_samples(theta, one, found) else []
        self._maps_samples = bool(self._layers) or self._can_map_samples(theta, one, [])

    def _can_map_samples(self, theta: Tensor, one: Batch, layers: list[LinearLayer]) -> bool:
        """Whether ``vmap`` knows every operation of the model; recurrent modules, for one, it does not."""
        try:
            with mapping():
                mapped = self._mapped_gradients(theta, one, layers).rows()[0]
        except (NotImplementedError, RuntimeError, ValueError, UserWarning):
            return False
        wanted = self._gradient(theta, one)
        error, size = torch.linalg.vector_norm(mapped - wanted), torch.linalg.vector_norm(wanted)
        return not layers or bool(error <= (1e-6 if self.dtype == torch.float64 else 1e-3) * size)

    def bytes_per_sample(self, batch: Batch) -> int:
        """Memory a sample's forward pass keeps for the backward pass, counted on a small batch."""
        leaf = self.flat_parameters().to(self.device, self.dtype).requires_grad_()
        kept: dict[int, torch.UntypedStorage] = {}

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() != leaf.untyped_storage().data_ptr():
                kept[storage.data_ptr()] = storage
            return tensor.detach()  # itself, it would keep the graph alive that keeps it

        # whoever asks first may well do so where gradients are off
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            # copies: a slice of the data set would count as the whole of it
            self.losses(leaf, _copied(batch))
        return max(64, sum(storage.nbytes() for storage in kept.values()) // batch.size)

    def output_hessian_root(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The symmetric square roots of each sample's output-space Hessian, (n, F, F), F outputs a sample.

        Raises:
            ValueError: over 4,096 outputs a sample, or a loss that is not convex in the outputs.
        """
        shape = outputs.shape[1:]
        if shape.numel() > OUTPUT_LIMIT:
            raise ValueError(
                f"drawing from N(0, Gauss–Newton) factors one {shape.numel()} × {shape.numel()} matrix a sample; "
                f"the limit is {OUTPUT_LIMIT} outputs"
            )

        def loss(flat_output: Tensor, targets: Any) -> Tensor:
            batched = tree_map(_with_batch_dimension, targets)
            return self.losses_of_outputs(flat_output.view(1, *shape), batched)[0]

        curvature = vmap(hessian(loss))(outputs.flatten(1), batch.targets)
        values, vectors = torch.linalg.eigh(curvature)
        floor = -1e-4 * values.abs().amax()
        if bool((values < floor).any()):
            raise ValueError("the loss is not convex in the model's outputs: its Gauss–Newton is no covariance")
        return (vectors * values.clamp_min(0).sqrt()[:, None, :]) @ vectors.mT

    def cast(self, dtype: torch.dtype, device: torch.device) -> ModelLoss:
        """The same function for parameters of another dtype or on another device."""
        other = copy.copy(self)
        other.dtype, other.device = dtype, device
        other._converted = True
        if isinstance(self.per_sample_loss, nn.Module):  # class weights
            other.per_sample_loss = copy.deepcopy(self.per_sample_loss).to(device, dtype)
        return other

    def check(self, theta: Tensor, inputs: Tree, targets: Tree, alone: tuple[Tree, Tree], count: int) -> None:
        """Refuse a loss that has no per-sample value. ``alone`` is the first of the ``count`` samples given.

        Raises:
            ValueError: the loss is reduced, or has the wrong shape.
            BatchCouplingError: evaluating twice, or one sample alone, gives another value.
        """
        with torch.no_grad():
            try:
                raw = self.per_sample_loss(self.outputs(theta, inputs), targets)
            except RuntimeError as error:
                floating = {leaf.dtype for leaf in tree_leaves((inputs, targets)) if leaf.is_floating_point()}
                if floating - {self.dtype}:
                    found = ", ".join(sorted(str(dtype) for dtype in floating - {self.dtype}))
                    raise ValueError(
                        f"mixed dtypes: the parameters are {self.dtype}, the data {found}; convert one: "
                        f"data.to({self.dtype}) or model.to({found})"
                    ) from error
                raise
            if not isinstance(raw, Tensor):
                raise TypeError(f"the loss returned {type(raw).__name__}, not a tensor of per-sample losses")
            if raw.ndim == 0 or raw.shape[0] != count:
                raise ValueError(
                    f"the loss of {count} samples has shape {tuple(raw.shape)}: per-sample values of shape "
                    f"({count},) or ({count}, T) are needed. If it is already reduced, pass it unreduced "
                    "(reduction='none')"
                )
            raw_alone = self.per_sample_loss(self.outputs(theta, alone[0]), alone[1])
            if raw_alone.shape[1:] != raw.shape[1:]:
                raise ValueError(
                    f"the unreduced loss of {count} samples has shape {tuple(raw.shape)}, that of one "
                    f"{tuple(raw_alone.shape)}: outputs are broadcast against targets; give the "
                    "targets the shape of the outputs"
                )
            first, again = self(theta, inputs, targets), self(theta, inputs, targets)
            single = self(theta, *alone)
        if not torch.equal(first.nan_to_num(), again.nan_to_num()):
            raise BatchCouplingError(
                "two evaluations of the same samples at the same parameters differ: the model draws random "
                "numbers; call model.eval() or remove the randomness"
            )
        tolerance = 1e-2 if self.dtype in (torch.float16, torch.bfloat16) else 1e-3
        if not torch.allclose(first[:1].nan_to_num(), single.nan_to_num(), rtol=tolerance, atol=tolerance):
            raise BatchCouplingError(
                f"the first sample's loss is {float(first[0]):.6g} in a batch of {count} but "
                f"{float(single[0]):.6g} alone: samples of a batch influence each other (batch statistics?), "
                "so there is no per-sample gradient; use model.eval() or a normalisation without batch "
                "statistics"
            )


def tensor_outputs(outputs: Any) -> Tensor:
    """A model's outputs, refused unless they are one tensor."""
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"the Gauss–Newton and Fisher matrices need the model to return one tensor, not "
            f"{type(outputs).__name__}; wrap the model so that it returns its logits"
        )
    return outputs


def logits(outputs: Any) -> Tensor:
    """The tensor that a classifier's outputs are, or hold under the name ``logits``."""
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"accuracy needs outputs that are one tensor or have one named logits, not {type(outputs).__name__}; "
            "use risk.metric(theta, function) instead"
        )
    return found


def per_sample(loss: Loss | nn.Module) -> Loss:
    """The unreduced form of a loss: ``reduction='none'`` wherever there is such a switch.

    Class weights and ``ignore_index`` keep their unreduced meaning: an ignored target counts as 0.
    """
    if isinstance(loss, nn.Module):
        unreduced: Any = copy.deepcopy(loss)
        if hasattr(loss, "reduction"):
            unreduced.reduction = "none"
        return unreduced
    if not callable(loss):
        raise TypeError(f"loss must be callable as loss(outputs, targets), not {type(loss).__name__}")
    with contextlib.suppress(TypeError, ValueError):
        if "reduction" in inspect.signature(loss).parameters:
            unreduced_function: Any = functools.partial(loss, reduction="none")  # type: ignore[call-arg]
            return unreduced_function
    return loss


def _copied(batch: Batch) -> Batch:
    inputs, targets = tree_map(torch.clone, (batch.inputs, batch.targets))
    return Batch(inputs, targets, batch.start, batch.size)


def _with_batch_dimension(tensor: Tensor) -> Tensor:
    return tensor[None]


def _check_uniform(model: nn.Module, trainable: dict[str, nn.Parameter]) -> None:
    devices = sorted({str(t.device) for t in [*model.parameters(), *model.buffers()]})
    if len(devices) > 1:
        raise ValueError(f"mixed devices: the model's tensors are on {', '.join(devices)}; use model.to(...)")
    dtypes = sorted({str(p.dtype) for p in trainable.values()})
    if len(dtypes) > 1:
        raise ValueError(
            f"the trainable parameters have several dtypes ({', '.join(dtypes)}); one flat vector needs one: "
            "use model.to(dtype)"
        )


def _check_deterministic_modules(model: nn.Module) -> None:
    for name, module in model.named_modules():
        where = f"{type(module).__name__} '{name}'" if name else type(module).__name__
        if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
            raise BatchCouplingError(
                f"{where} uses batch statistics, so a sample's loss depends on its batch and there is no "
                "per-sample gradient; call model.eval() (with track_running_stats=True) or use GroupNorm"
            )
        rate = module.p if isinstance(module, _DropoutNd) else 0.0
        if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
            rate = module.dropout
        if module.training and rate > 0:
            raise BatchCouplingError(
                f"{where} drops units at random (p = {rate:g}): the loss is not a function of θ; call "
                "model.eval() or set p = 0"
            )


@contextlib.contextmanager
def mapping() -> Iterator[None]:
    """For ``vmap``: its slow fallback is no mapping; a complaint of mse_loss under ``jvp`` is harmless."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*performance drop because we have not yet implemented")
        warnings.filterwarnings("ignore", message="An output with one or more elements was resized")
        yield


@contextlib.contextmanager
def _twice_differentiable_attention() -> Iterator[None]:
    """Attention without its fused kernels, which have neither second nor forward-mode derivatives."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
