"""The per-sample gradients of a batch, kept as what they are made of.

Where a layer maps a vector a to Wa + b, a sample's gradient with respect to W is the outer product δaᵀ of the
gradient δ at the layer's output and its input: I + O numbers in place of I·O. Products with all gradients, their
norms, squares and inner products follow from a and δ; the outer products are formed only when asked for.

Source: Goodfellow (2015), "Efficient per-example gradient computations".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noisescape.linops.gram import TEMPORARY
from noisescape.linops.tall import inner_products


@dataclass(frozen=True)
class OuterGradients:
    """Of one linear layer: row n of the weight's gradients is δ_n a_nᵀ, of the bias's δ_n.

    Attributes:
        weight, bias: which of the parameters they are, by position; no bias: None.
        inputs: a, (n, I).
        deltas: δ, (n, O).
    """

    weight: int
    bias: int | None
    inputs: Tensor
    deltas: Tensor

    def product(self, weight: Tensor) -> Tensor:
        """δᵀVa for every sample and column: (O·I, K) → (n, K)."""
        columns = weight.shape[1]
        wide = weight.view(self.deltas.shape[1], self.inputs.shape[1], columns)
        if self.deltas.shape[1] <= self.inputs.shape[1]:
            return _contract(self.inputs, wide.movedim(1, 0), self.deltas)
        return _contract(self.deltas, wide, self.inputs)

    def weighted(self, weights: Tensor) -> Tensor:
        """Σ_n w_n δ_n a_nᵀ for every column: (n, K) → (O·I, K)."""
        inputs, deltas = self.inputs, self.deltas
        if weights.shape[1] == 1:
            return ((deltas * weights).mT @ inputs).view(-1, 1)
        if deltas.shape[1] <= inputs.shape[1]:
            return _expand(inputs, deltas, weights).movedim(1, 0).flatten(0, 1)
        return _expand(deltas, inputs, weights).flatten(0, 1)


@dataclass(frozen=True)
class FactoredGradients:
    """G, (n, D), row n the gradient of the n-th loss, as linear layers' factors and a matrix of all the rest.

    Attributes:
        sizes: of the parameters, in the order of θ.
        direct: the columns of those parameters that no layer in ``layers`` has, (n, D').
        layers: the others'.
    """

    sizes: Sequence[int]
    direct: Tensor
    layers: Sequence[OuterGradients] = ()

    @classmethod
    def of_rows(cls, rows: Tensor) -> FactoredGradients:
        """G as it is."""
        return cls([rows.shape[1]], rows)

    @classmethod
    def joined(cls, parts: Iterable[FactoredGradients], count: int) -> FactoredGradients:
        """The rows of consecutive batches, ``count`` in all; no two batches are held together."""
        whole: FactoredGradients | None = None
        done = 0
        for part in parts:
            if len(part) == count:
                return part
            if whole is None:
                whole = part.room_for(count)
            elif not part.is_made_as(whole):  # what was factored so far is formed
                if whole.layers:
                    rows = whole.direct.new_empty(count, sum(whole.sizes))
                    rows[:done] = whole.head(done).rows()
                    whole = FactoredGradients(whole.sizes, rows)
                part = FactoredGradients(part.sizes, part.rows())
            for room, rows in zip(whole.tensors(), part.tensors(), strict=True):
                room[done : done + len(part)] = rows
            done += len(part)
        assert whole is not None
        return whole

    def is_made_as(self, other: FactoredGradients) -> bool:
        """Whether the same layers are kept as factors."""
        return [layer.weight for layer in self.layers] == [layer.weight for layer in other.layers]

    def head(self, count: int) -> FactoredGradients:
        """The first rows."""
        return self[:count]

    def __getitem__(self, some: slice) -> FactoredGradients:
        """Consecutive rows."""
        layers = [
            OuterGradients(layer.weight, layer.bias, layer.inputs[some], layer.deltas[some])
            for layer in self.layers
        ]
        return FactoredGradients(self.sizes, self.direct[some], layers)

    def room_for(self, count: int) -> FactoredGradients:
        """The same with so many rows, not yet written."""
        layers = [
            OuterGradients(
                layer.weight, layer.bias, _rows_like(layer.inputs, count), _rows_like(layer.deltas, count)
            )
            for layer in self.layers
        ]
        return FactoredGradients(self.sizes, _rows_like(self.direct, count), layers)

    def tensors(self) -> list[Tensor]:
        """All whose rows are samples."""
        return [self.direct, *(tensor for layer in self.layers for tensor in (layer.inputs, layer.deltas))]

    def __len__(self) -> int:
        return len(self.direct)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, D)."""
        return len(self.direct), sum(self.sizes)

    def __matmul__(self, block: Tensor) -> Tensor:
        """Gv: (D, K) → (n, K)."""
        if not self.layers:
            return inner_products(self.direct, block)
        parts = block.split(list(self.sizes))
        beside = torch.cat([block[:0], *(parts[position] for position in self._direct_positions())])
        total = inner_products(self.direct, beside)
        for layer in self.layers:
            total += layer.product(parts[layer.weight])
            if layer.bias is not None:
                total += layer.deltas @ parts[layer.bias]
        return total

    def weighted(self, weights: Tensor) -> Tensor:
        """Gᵀw: (n, K) → (D, K)."""
        direct = self.direct.mT @ weights
        if not self.layers:
            return direct
        positions = self._direct_positions()
        parts = dict(zip(positions, direct.split([self.sizes[position] for position in positions]), strict=True))
        for layer in self.layers:
            parts[layer.weight] = layer.weighted(weights)
            if layer.bias is not None:
                parts[layer.bias] = layer.deltas.mT @ weights
        return torch.cat([parts[position] for position in range(len(self.sizes))])

    def mean(self) -> Tensor:
        """ḡ, (D,)."""
        weights = self.direct.new_full((len(self), 1), 1 / len(self))
        return self.weighted(weights)[:, 0]

    def square_mean(self) -> Tensor:
        """The mean of the squared rows, coordinate by coordinate, (D,)."""
        weights = self.direct.new_full((len(self), 1), 1 / len(self))
        squared = FactoredGradients(
            self.sizes,
            self.direct.square(),
            [
                OuterGradients(layer.weight, layer.bias, layer.inputs.square(), layer.deltas.square())
                for layer in self.layers
            ],
        )
        return squared.weighted(weights)[:, 0]

    def moments(self, *, centred: bool = True) -> tuple[Tensor, Tensor]:
        """Mean and variance of each coordinate over the rows, both (D,); uncentred: 0 and the second moment."""
        if not centred:
            squares = self.square_mean()
            return torch.zeros_like(squares), squares
        mean = self.mean()
        if not self.layers:
            return mean, (self.direct - mean).square().mean(0)
        return mean, (self.square_mean() - mean.square()).clamp_min(0)

    def square_norms(self) -> Tensor:
        """‖g_n‖², (n,)."""
        total = self.direct.square().sum(1)
        for layer in self.layers:
            inputs = layer.inputs.square().sum(1) + (layer.bias is not None)
            total = total + layer.deltas.square().sum(1) * inputs
        return total

    def gram(self) -> Tensor:
        """GGᵀ, (n, n)."""
        return self.inner(self)

    def inner(self, other: FactoredGradients) -> Tensor:
        """GG'ᵀ, (n, n'), with the gradients of other samples of the same model."""
        total = inner_products(self.direct, other.direct.mT)
        for layer, its in zip(self.layers, other.layers, strict=True):
            inputs = layer.inputs @ its.inputs.mT + (layer.bias is not None)
            total += inputs * (layer.deltas @ its.deltas.mT)
        return total

    def rows(self) -> Tensor:
        """G itself, (n, D)."""
        if not self.layers:
            return self.direct
        found = self.direct.new_empty(self.shape)
        parts = found.split(list(self.sizes), dim=1)
        positions = self._direct_positions()
        columns = self.direct.split([self.sizes[position] for position in positions], dim=1)
        for position, part in zip(positions, columns, strict=True):
            parts[position].copy_(part)
        for layer in self.layers:
            outer = parts[layer.weight].unflatten(1, (layer.deltas.shape[1], layer.inputs.shape[1]))
            torch.mul(layer.deltas[:, :, None], layer.inputs[:, None, :], out=outer)
            if layer.bias is not None:
                parts[layer.bias].copy_(layer.deltas)
        return found

    def _direct_positions(self) -> list[int]:
        taken = {position for layer in self.layers for position in (layer.weight, layer.bias)}
        return [position for position in range(len(self.sizes)) if position not in taken]


def _rows_like(rows: Tensor, count: int) -> Tensor:
    return rows.new_empty(count, *rows.shape[1:])


def _contract(inputs: Tensor, weight: Tensor, deltas: Tensor) -> Tensor:
    """Σ_io a_ni V_iok δ_no: (n, I), (I, O, K), (n, O) → (n, K)."""

    def along(columns: Tensor) -> Tensor:
        turned = (inputs @ columns.flatten(1)).unflatten(1, columns.shape[1:])
        return torch.bmm(deltas[:, None, :], turned)[:, 0]

    return torch.cat([along(columns) for columns in weight.split(_columns_at_once(deltas), dim=2)], dim=1)


def _expand(inputs: Tensor, deltas: Tensor, weights: Tensor) -> Tensor:
    """Σ_n a_ni δ_no w_nk: (n, I), (n, O), (n, K) → (I, O, K)."""

    def along(columns: Tensor) -> Tensor:
        weighted = deltas[:, :, None] * columns[:, None, :]
        return (inputs.mT @ weighted.flatten(1)).unflatten(1, weighted.shape[1:])

    return torch.cat([along(columns) for columns in weights.split(_columns_at_once(deltas), dim=1)], dim=2)


def _columns_at_once(deltas: Tensor) -> int:
    return max(1, TEMPORARY // (deltas.numel() * deltas.element_size()))
