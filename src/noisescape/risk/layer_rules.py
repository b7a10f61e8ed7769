"""The gradients of single samples with respect to a layer's parameters, from what goes in and what comes back.

With a the layer's input, δ the derivative of the losses at its output, n the sample and t the places that the layer
is applied at (positions of an image, tokens of a sequence), the gradients of sample n are

    linear:       Σ_t δ_nt a_ntᵀ                  convolution: the same, a_nt the patch that is seen at t
    embedding:    Σ_t e_{token(n,t)} δ_ntᵀ         normalisation: Σ_t δ_nt ⊙ â_nt, â the input normalised

and Σ_t δ_nt of a bias. The norm of the first three follows from inner products of places, where those are fewer
numbers than the gradient has entries: ‖Σ_t δ_t a_tᵀ‖² = Σ_ts (δ_t·δ_s)(a_t·a_s).

Source: Goodfellow (2015), "Efficient per-example gradient computations"; Li et al. (2022), "Large language models
can be strong differentially private learners", for the inner products.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from noisescape.linops.gram import TEMPORARY

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class LayerRule(ABC):
    """What one kind of layer needs; n samples at once, the first dimension of everything."""

    @abstractmethod
    def rows(self, module: nn.Module, given: Tensor, deltas: Tensor) -> dict[str, Tensor]:
        """Each parameter's gradients, by its name in the module, (n, *its shape)."""

    def square_norms(self, module: nn.Module, given: Tensor, deltas: Tensor) -> Tensor:
        """The square norm over all the layer's parameters, (n,)."""
        rows = self.rows(module, given, deltas).values()
        return torch.stack([gradient.flatten(1).square().sum(1) for gradient in rows]).sum(0)

    def inner_products(
        self, module: nn.Module, given: Tensor, deltas: Tensor, vectors: Mapping[str, Tensor]
    ) -> Tensor:
        """Of the gradients with one vector, given by the parameters' names, absent where it is 0: (n,).

        What these layers put out is linear in their parameters: with v in their place, Σ_t δ_nt · layer_v(a_nt).
        """
        put_out = self.with_parameters(module, given, vectors)
        return (self.reaching(module, given, deltas) * put_out.reshape(deltas.shape)).flatten(1).sum(1)

    @abstractmethod
    def with_parameters(self, module: nn.Module, given: Tensor, vectors: Mapping[str, Tensor]) -> Tensor:
        """What the layer would put out with these parameters, shaped as its output; absent ones are 0."""

    def reaching(self, module: nn.Module, given: Tensor, deltas: Tensor) -> Tensor:
        """The derivatives that reach the parameters, shaped as the output."""
        return deltas


@dataclass(frozen=True)
class OuterProducts(LayerRule):
    """Linear layers and convolutions.

    Attributes:
        transposed: whether the weight is (I, O) rather than (O, I).
    """

    transposed: bool = False

    @staticmethod
    def _places(module: nn.Module, given: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
        """a, (n, groups, I, T), and δ, (n, groups, O, T), over one group or those of a convolution."""
        if isinstance(module, CONVOLUTIONS):
            patches = _patches(module, given)
            groups = module.groups
            return patches.unflatten(1, (groups, -1)), deltas.flatten(2).unflatten(1, (groups, -1))
        # one row of features for every place
        a, d = (tensor.reshape(len(tensor), -1, tensor.shape[-1]).mT[:, None] for tensor in (given, deltas))
        return a, d

    @override
    def rows(self, module: nn.Module, given: Tensor, deltas: Tensor) -> dict[str, Tensor]:
        shape = module._parameters["weight"].shape  # type: ignore[union-attr]
        parts = []
        for some in in_parts(given, _patch_bytes(module, given)):
            a, d = self._places(module, given[some], deltas[some])
            outer = a @ d.mT if self.transposed else d @ a.mT
            parts.append(outer.reshape(len(a), *shape))
        weight = parts[0] if len(parts) == 1 else torch.cat(parts)
        return {"weight": weight, **self._bias(module, deltas)}

    @override
    def square_norms(self, module: nn.Module, given: Tensor, deltas: Tensor) -> Tensor:
        a, d = self._places(module, given[:1], deltas[:1])
        (inputs, places), outputs = a.shape[2:], d.shape[2]
        by_places = places * (inputs + outputs) < inputs * outputs
        size = _patch_bytes(module, given) + (2 * a.shape[1] * places**2 * given.element_size() if by_places else 0)
        total = given.new_empty(len(given))
        for some in in_parts(given, size):
            a, d = self._places(module, given[some], deltas[some])
            square = (a.mT @ a) * (d.mT @ d) if by_places else (d @ a.mT).square()
            total[some] = square.flatten(1).sum(1)
        for gradient in self._bias(module, deltas).values():
            total += gradient.square().sum(1)
        return total

    @override
    def with_parameters(self, module: nn.Module, given: Tensor, vectors: Mapping[str, Tensor]) -> Tensor:
        weight, bias = vectors.get("weight"), vectors.get("bias")
        if weight is None:
            weight = torch.zeros_like(module._parameters["weight"])  # type: ignore[arg-type]
        if isinstance(module, CONVOLUTIONS):
            return module._conv_forward(given, weight, bias)
        return nn.functional.linear(given, weight.mT if self.transposed else weight, bias)

    @staticmethod
    def _bias(module: nn.Module, deltas: Tensor) -> dict[str, Tensor]:
        if module._parameters.get("bias") is None:
            return {}
        channels_first = isinstance(module, CONVOLUTIONS)
        return {
            "bias": deltas.flatten(2).sum(2)
            if channels_first
            else deltas.reshape(len(deltas), -1, deltas.shape[-1]).sum(1)
        }


class Embeddings(LayerRule):
    """A table of vectors, looked up."""

    @override
    def rows(self, module: nn.Module, given: Tensor, deltas: Tensor) -> dict[str, Tensor]:
        assert isinstance(module, nn.Embedding)
        count, size = len(given), module.num_embeddings
        tokens = given.reshape(count, -1)
        places = tokens + size * torch.arange(count, device=given.device)[:, None]
        rows = deltas.new_zeros(count * size, module.embedding_dim)
        rows.index_add_(0, places.flatten(), _read(module, tokens, deltas).flatten(0, 1))
        return {"weight": rows.view(count, size, module.embedding_dim)}

    @override
    def square_norms(self, module: nn.Module, given: Tensor, deltas: Tensor) -> Tensor:
        assert isinstance(module, nn.Embedding)
        places = given[0].numel()
        if places**2 > module.num_embeddings * module.embedding_dim:
            return super().square_norms(module, given, deltas)
        total = deltas.new_empty(len(given))
        for some in in_parts(given, 2 * places**2 * deltas.element_size()):
            tokens = given[some].reshape(-1, places)
            read = _read(module, tokens, deltas[some])
            same = tokens[:, :, None] == tokens[:, None, :]
            total[some] = ((read @ read.mT) * same).flatten(1).sum(1)
        return total

    @override
    def with_parameters(self, module: nn.Module, given: Tensor, vectors: Mapping[str, Tensor]) -> Tensor:
        return nn.functional.embedding(given, vectors["weight"])

    @override
    def reaching(self, module: nn.Module, given: Tensor, deltas: Tensor) -> Tensor:
        assert isinstance(module, nn.Embedding)
        return _read(module, given, deltas).reshape(deltas.shape)


class Normalisations(LayerRule):
    """Layers that scale what they have normalised, each channel by a number of its own, and may add another."""

    @override
    def rows(self, module: nn.Module, given: Tensor, deltas: Tensor) -> dict[str, Tensor]:
        shape = module._parameters["weight"].shape  # type: ignore[union-attr]
        channels_first = isinstance(module, (nn.GroupNorm, *BATCH_NORMALISATIONS))

        def over_places(each: Tensor) -> Tensor:
            if channels_first:
                return each.flatten(2).sum(2) if each.ndim > 2 else each
            return each.reshape(len(each), -1, *shape).sum(1)

        found = {"weight": over_places(deltas * _normalised(module, given))}
        if module._parameters.get("bias") is not None:
            found["bias"] = over_places(deltas)
        return found

    @override
    def with_parameters(self, module: nn.Module, given: Tensor, vectors: Mapping[str, Tensor]) -> Tensor:
        channels_first = isinstance(module, (nn.GroupNorm, *BATCH_NORMALISATIONS))

        def at_places(vector: Tensor) -> Tensor:
            return vector.view(-1, *[1] * (given.ndim - 2)) if channels_first else vector

        put_out = torch.zeros_like(given)
        if "weight" in vectors:
            put_out = _normalised(module, given) * at_places(vectors["weight"])
        return put_out + at_places(vectors["bias"]) if "bias" in vectors else put_out


RULES: Mapping[type[nn.Module], LayerRule] = {
    nn.Linear: OuterProducts(),
    **dict.fromkeys(CONVOLUTIONS, OuterProducts()),
    nn.Embedding: Embeddings(),
    **dict.fromkeys((nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, *BATCH_NORMALISATIONS), Normalisations()),
}
OF_TRANSFORMERS = "transformers.pytorch_utils.Conv1D"
"""GPT-2's linear layer, whose weight is the transpose of PyTorch's; the package need not be there."""


def rule_of(module: nn.Module) -> LayerRule | None:
    """The rule for a layer, of exactly that type; None where there is none."""
    kind = type(module)
    if "forward" in module.__dict__:  # the layer does what somebody put there
        return None
    if f"{kind.__module__}.{kind.__qualname__}" == OF_TRANSFORMERS:
        return OuterProducts(transposed=True)
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq):
        return None
    return RULES.get(kind)


def tied_inner_products(table: nn.Module, tokens: Tensor, read: Tensor, given: Tensor, deltas: Tensor) -> Tensor:
    """Of a table's gradients with those of a linear layer that has the same weight, (n,).

    With tokens k_t and δ_t of the table, a_s and δ'_s of the layer: Σ_ts (δ_t·a_s) δ'_s[k_t].

    Args:
        table: the embedding.
        tokens, read: k and δ, (n, ...) and (n, ..., E).
        given, deltas: a and δ', (n, ..., E) and (n, ..., V).
    """
    assert isinstance(table, nn.Embedding)
    count, features = len(tokens), given.shape[-1]
    places, scored = tokens.reshape(count, 1, -1), deltas.reshape(count, -1, deltas.shape[-1])
    total = deltas.new_empty(count)
    for some in in_parts(given, 2 * scored.shape[1] * places.shape[2] * deltas.element_size()):
        of_table = _read(table, places[some, 0], read[some])
        chosen = scored[some].gather(2, places[some].expand(-1, scored.shape[1], -1))
        inner = given[some].reshape(len(of_table), -1, features) @ of_table.mT
        total[some] = (inner * chosen).flatten(1).sum(1)
    return total


def _patches(module: nn.Module, given: Tensor) -> Tensor:
    """What a convolution sees at each place: (n, I, *spatial) → (n, I·∏kernel, T), as its weight is flattened.

    Through strided views: a copy of them costs a third of ``torch.nn.functional.unfold``.
    """
    assert isinstance(module, CONVOLUTIONS)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    if mode == "constant" and not isinstance(module.padding, str):
        padding = [each for width in reversed(module.padding) for each in (width, width)]
    else:
        padding = list(module._reversed_padding_repeated_twice)
    seen = nn.functional.pad(given, padding, mode=mode) if any(padding) else given
    spatial = len(module.kernel_size)
    for dim, (size, step, gap) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True), start=2
    ):
        seen = seen.unfold(dim, gap * (size - 1) + 1, step)[..., ::gap]  # its window is a new last dimension
    places = range(2, 2 + spatial)
    windows = range(2 + spatial, 2 + 2 * spatial)
    return seen.permute(0, 1, *windows, *places).reshape(
        len(given), given.shape[1] * _product(module.kernel_size), -1
    )


def in_parts(given: Tensor, size: int) -> Iterator[slice]:
    """Samples few enough for what they take, ``size`` bytes each, to be little."""
    step = max(1, TEMPORARY // max(size, 1))
    for start in range(0, len(given), step):
        yield slice(start, start + step)


def _patch_bytes(module: nn.Module, given: Tensor) -> int:
    """What the patches of a sample take."""
    if not isinstance(module, CONVOLUTIONS):
        return 0
    return given[0].numel() * given.element_size() * _product(module.kernel_size)


def _product(sizes: Sequence[int]) -> int:
    return torch.Size(sizes).numel()


def _read(module: nn.Embedding, tokens: Tensor, deltas: Tensor) -> Tensor:
    """δ of each token, (n, T, E); of padding, whose vector gets no gradient, 0."""
    read = deltas.reshape(*tokens.shape, module.embedding_dim)
    if module.padding_idx is None:
        return read
    return read * (tokens != module.padding_idx)[..., None]


def _normalised(module: nn.Module, given: Tensor) -> Tensor:
    functional = nn.functional
    if isinstance(module, nn.LayerNorm):
        return functional.layer_norm(given, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.RMSNorm):
        return functional.rms_norm(given, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.GroupNorm):
        return functional.group_norm(given, module.num_groups, eps=module.eps)
    assert isinstance(module, BATCH_NORMALISATIONS)
    assert module.running_mean is not None  # others mix samples
    assert module.running_var is not None
    mean, variance = module.running_mean.to(given), module.running_var.to(given)
    return functional.batch_norm(given, mean, variance, eps=module.eps)
