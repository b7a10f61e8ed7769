"""H_n, the curvature of every sample's own loss, through what two products with it give."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp, vmap

from noisescape.errors import InvalidValueError
from noisescape.risk.arguments import check_directions
from noisescape.risk.chunking import HESSIAN_PASSES
from noisescape.risk.differentiation import column_blocks, pull_back
from noisescape.risk.empirical_risk import EmpiricalRisk
from noisescape.risk.model_loss import ModelLoss, mapping, tensor_outputs
from noisescape.risk.passes import function_of_outputs, pull_back_through, push_forward_through
from noisescape.risk.samples import Batch

FEW_OUTPUTS = 64
"""Outputs of a sample up to which its curvature is held by a factor."""


@dataclass(frozen=True)
class SampleCurvature(ABC):
    """H_n of every sample at one θ, (D, D) each, of which none is formed.

    Attributes:
        risk: whose samples.
        theta: where, (D,).
    """

    risk: EmpiricalRisk
    theta: Tensor

    def forms(self, left: Tensor, right: Tensor) -> Tensor:
        """UᵀH_nW of every sample: (D, r) and (D, m) ↦ (N, r, m)."""
        check_directions(self.theta, left)
        check_directions(self.theta, right)
        self.risk._check_theta(self.theta, left, right, replicas=False)
        columns = left.shape[1] * right.shape[1]
        batches = self.risk._batches(passes=HESSIAN_PASSES, columns=columns)
        return self.risk._samples.collected(torch.cat([self._forms(batch, left, right) for batch in batches]))

    def combined(self, directions: Tensor, weights: Tensor) -> Tensor:
        """(1/N) Σ_n H_nVw_n, another combination of the directions for every sample.

        Args:
            directions: V, (D, r).
            weights: w, (N, r, m).

        Returns:
            (D, m).
        """
        check_directions(self.theta, directions)
        self.risk._check_theta(self.theta, directions, weights, replicas=False)
        mine = self.risk._samples.mine(weights)
        total = directions.new_zeros(len(directions), weights.shape[2])
        start = 0
        for batch in self.risk._batches(passes=HESSIAN_PASSES, columns=directions.shape[1] + weights.shape[2]):
            total += self._combined(batch, directions, mine[start : start + batch.size])
            start += batch.size
        return self.risk._samples.total(total / self.risk.sample_count)

    def roots(self, directions: Tensor) -> Tensor | None:
        """R_nV with H_n = R_nᵀR_n, (N, F, r), where R_n has few rows, as many for every sample; None elsewhere."""
        return None

    @abstractmethod
    def _forms(self, batch: Batch, left: Tensor, right: Tensor) -> Tensor: ...

    @abstractmethod
    def _combined(self, batch: Batch, directions: Tensor, weights: Tensor) -> Tensor: ...


class SampleHessians(SampleCurvature):
    """H_n = ∇²ℓ_n, by differentiation along one direction, then along another.

    Raises:
        ValueError: a model without forward-mode rules.
    """

    def __post_init__(self) -> None:
        self.risk._check_theta(self.theta, replicas=False)
        self.risk._capabilities.check_second_derivative()
        if not self.risk._capabilities.forward_mode:
            raise InvalidValueError(
                "second derivatives of single samples need forward-mode differentiation, which this model has no "
                "rules for; take the Gauss–Newton matrices of the samples"
            )

    def _along(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        """(θ, v) ↦ the derivative of the batch's losses along v, (n,)."""

        def losses(point: Tensor) -> Tensor:
            return self.risk._function.losses(point, batch)

        def along(point: Tensor, direction: Tensor) -> Tensor:
            return jvp(losses, (point,), (direction,))[1] + 0 * direction[0]  # a tangent of 0 has no shape

        return along

    def _forms(self, batch: Batch, left: Tensor, right: Tensor) -> Tensor:
        along = self._along(batch)

        def second(one: Tensor, other: Tensor) -> Tensor:
            return jvp(lambda point: along(point, one), (self.theta,), (other,))[1] + 0 * other[0]

        size = self.risk._chunking.columns(batch.size)
        with self.risk._function.held(self.theta), mapping():
            rows = [
                torch.cat([vmap(lambda v: second(u, v), 1, -1)(some) for some in right.split(size, 1)], dim=1)  # noqa: B023
                for u in left.T
            ]
        return torch.stack(rows, dim=1)

    @torch.enable_grad()
    def _combined(self, batch: Batch, directions: Tensor, weights: Tensor) -> Tensor:
        along = self._along(batch)
        leaf = self.theta.detach().requires_grad_()
        with self.risk._function.held(self.theta), mapping():
            derivatives = torch.stack([along(leaf, v) for v in directions.T], dim=1)
            sums = torch.einsum("nr,nrm->m", derivatives, weights)
            rows = [pull_back(each, leaf, torch.ones_like(each)) for each in sums]
        return torch.stack(rows, dim=1)


class SampleGaussNewton(SampleCurvature):
    """The Gauss–Newton matrices H_n = J_nᵀ(∇²_f ℓ_n)J_n, PSD; ∇²ℓ_n where the sample is fitted.

    Raises:
        ValueError: a loss that is no convex function of the outputs alone.
    """

    def __post_init__(self) -> None:
        _ = self._function  # now, on all ranks: later each looks for as many batches as it has

    def roots(self, directions: Tensor) -> Tensor | None:
        """See :class:`SampleCurvature`: R_n = (∇²_f ℓ_n)^½ J_n has a row for each output."""
        check_directions(self.theta, directions)
        self.risk._check_theta(self.theta, directions, replicas=False)
        parts = []
        for batch in self.risk._batches(passes=HESSIAN_PASSES, columns=directions.shape[1]):
            parts.append(self._pushed(batch, directions, self._root(batch)))
        rows = {part.shape[1] for part in parts}
        if len(self.risk._samples.in_common([*rows])) != 1 or not self.risk._samples.on_every_rank(
            len(rows) == 1 and max(rows) <= FEW_OUTPUTS
        ):
            return None
        return self.risk._samples.collected(torch.cat(parts))

    @functools.cached_property
    def _function(self) -> ModelLoss:
        return function_of_outputs(self.risk, self.theta, "the Gauss–Newton matrices of samples")

    def _outputs(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        return lambda point: tensor_outputs(self._function.outputs(point, batch.inputs)).flatten(1)

    def _pushed(self, batch: Batch, directions: Tensor, root: Tensor) -> Tensor:
        """(∇²_f ℓ_n)^½ J_nV, (n, F, r)."""
        outputs = self._outputs(batch)
        blocks = column_blocks(directions, self.risk._chunking.columns(batch.size), self.theta)
        pushed = [push_forward_through(self.risk, outputs, self.theta, block, batch.size) for block in blocks]
        return root @ torch.cat(pushed, dim=-1)

    def _root(self, batch: Batch) -> Tensor:
        function = self._function
        predicted = tensor_outputs(function.output_values(self.theta, batch.inputs))
        return function.output_hessian_root(self.theta, predicted, batch)

    def _forms(self, batch: Batch, left: Tensor, right: Tensor) -> Tensor:
        root = self._root(batch)
        pushed = self._pushed(batch, left, root)
        return pushed.mT @ (pushed if right is left else self._pushed(batch, right, root))

    @torch.enable_grad()
    def _combined(self, batch: Batch, directions: Tensor, weights: Tensor) -> Tensor:
        root = self._root(batch)
        cotangents = root @ self._pushed(batch, directions, root).detach() @ weights
        leaf = self.theta.detach().requires_grad_()
        predicted = self._outputs(batch)(leaf)
        return pull_back_through(self.risk, predicted, leaf, cotangents.movedim(-1, 0), self.theta).mT
