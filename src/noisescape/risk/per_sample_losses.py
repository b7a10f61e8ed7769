"""ℓ(θ) ∈ R^N, the losses of all samples, and every product with its first and second derivatives.

With G the Jacobian of ℓ (N × D, rows g_n = ∇ℓ_n): the gradient of the mean is Gᵀ1/N, any re-weighted gradient
Gᵀw is one backward pass, the directional derivatives of all samples Gv are one forward-mode pass, and curvature
is the derivative of the gradient. Everything streams over chunks of samples sized by a memory budget.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.func import grad

from noisescape.errors import (
    FailedError,
    InvalidIndexError,
    InvalidTypeError,
    InvalidValueError,
    NonFiniteLossError,
)
from noisescape.risk.capabilities import (
    Push,
    agrees,
    gives_derivatives,
    has_delayed_errors,
    maps_cotangents,
    pushes_through_gradient,
    second_derivative_error,
)
from noisescape.risk.closed_form import ClosedForm
from noisescape.risk.contract import LARGEST_COPY, check_company, in_float64, shaken
from noisescape.risk.differentiation import column_blocks, edge_of, pull_back, push_forward, push_forward_by_reverse
from noisescape.risk.factored_gradients import FactoredGradients
from noisescape.risk.model_loss import ModelLoss, mapping, tensor_outputs
from noisescape.risk.samples import Batch, Samples, StreamedSamples, TensorSamples

HESSIAN_PASSES = 4
"""Memory of a twice-differentiable forward and backward pass, in units of the forward pass."""

SECOND_DERIVATIVE_ERROR = 1e-2
"""Hessian products further from differences of the gradient, in float64, are refused."""

ROUNDED = 1e-4
"""Relative difference that rounding can make where a float64 model computes partly in float32."""
DECIDED_ON = 16
"""Samples on which ways to a derivative are compared."""

MOST_COLUMNS = 512
COLUMN_FLOOR = 2**20
"""Bytes that a block of columns may take whatever the budget: less is not worth the passes it costs."""

CPU_COLUMNS = 8
CPU_WORKING_SET = 2**25
"""Bytes of activations beyond which a chunk is slower on a CPU, not faster: it leaves the caches, and the C library
maps and clears such allocations anew every time."""
WEIGHTY = 4
"""A network's parameters outweigh a sample's activations where they are so many times larger."""
PARAMETER_SHARE = 16
"""A chunk's activations may always be so many times as large as the parameters, which each chunk reads again."""


GradientGraph = tuple[Tensor, Tensor | GradientEdge]


class PerSampleLosses:
    """The losses of N samples as one differentiable function of a flat θ; evaluated in chunks.

    Methods whose docstring says "or (R, D)" also take R parameter vectors at once (replicas) and return results
    with a leading R.
    """

    def _assemble(
        self,
        function: ModelLoss | ClosedForm,
        samples: Samples,
        parameters: Callable[[], Tensor],
        memory_budget: int,
        chunk_size: int | None,
        tried: Sequence[Batch],
    ) -> None:
        """``tried``: batches of a few unlike samples, on which decisions are made."""
        self._function = function
        self._samples = samples
        self._tried = list(tried)
        self._largest_tried = max(batch.size for batch in tried)
        self._parameters = parameters
        self.memory_budget = memory_budget
        self._chunk_size = check_positive("chunk_size", chunk_size)

    @property
    def dimension(self) -> int:
        """D, the number of trainable parameters."""
        return self._function.dimension

    @property
    def sample_count(self) -> int:
        """N, the number of samples."""
        return self._samples.count

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self._function.dtype

    @property
    def device(self) -> torch.device:
        """Of the parameters and the data."""
        return self._function.device

    def parameters(self) -> Tensor:
        """The module's present trainable parameters as a new flat vector, (D,)."""
        return self._parameters()

    # ------------------------------------------------------------------ values

    def losses(self, theta: Tensor) -> Tensor:
        """ℓ(θ): (D,) → (N,), or (R, D) → (R, N).

        Raises:
            NonFiniteLossError: any loss of a single θ is NaN or infinite. (With replicas, diverged rows are
                returned as they are.)
        """
        values = self.unchecked_losses(theta)
        if theta.ndim == 1:
            _require_finite(values)
        return values

    def unchecked_losses(self, theta: Tensor) -> Tensor:
        """:meth:`losses` without the check: non-finite values pass through."""
        self._check_theta(theta)
        if self._goes_row_by_row(theta):
            return torch.stack([self.unchecked_losses(row) for row in theta])
        parts = [self._function.values(theta, batch) for batch in self._batches(passes=_copies(theta))]
        return torch.cat(parts, dim=-1)

    def loss(self, theta: Tensor) -> Tensor:
        """L(θ): (D,) → (), or (R, D) → (R,). Raises as :meth:`losses`."""
        return self.losses(theta).mean(-1)

    # ------------------------------------------------------------------ first derivatives

    @torch.enable_grad()
    def gradient(self, theta: Tensor) -> Tensor:
        """∇L(θ) = Gᵀ1/N: (D,) → (D,), or (R, D) → (R, D). Non-finite values pass through."""
        self._check_theta(theta)
        if self._goes_row_by_row(theta):
            return torch.stack([self.gradient(row) for row in theta])

        def part(batch: Batch) -> Tensor:
            leaf = theta.detach().requires_grad_()
            return self._gradient_of(self._share(leaf, batch=batch), leaf)

        return _sum(part(batch) for batch in self._batches(passes=2 * _copies(theta)))

    @torch.enable_grad()
    def weighted_gradient(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Gᵀw, the gradient of Σ_n w_n ℓ_n: one backward pass.

        Args:
            theta: (D,), or (R, D).
            weights: (N,), or a block (N, K) with a single θ, or (R, N) with replicas.

        Returns:
            (D,), (D, K) or (R, D).
        """
        self._check_theta(theta)
        block = theta.ndim == 1 and weights.ndim == 2
        expected = (self.sample_count,) if not block else (self.sample_count, weights.shape[-1])
        if weights.shape[-1 if not block else 0] != self.sample_count or weights.ndim > 2:
            raise InvalidValueError(f"weights must have shape {expected}, not {tuple(weights.shape)}")
        if self._goes_row_by_row(theta):
            each = weights if weights.ndim == 2 else weights.expand(len(theta), -1)
            return torch.stack([self.weighted_gradient(*pair) for pair in zip(theta, each, strict=True)])

        def part(batch: Batch) -> Tensor:
            leaf = theta.detach().requires_grad_()
            losses = self._function.losses(leaf, batch)
            if block:
                columns = weights[batch.span].split(self._columns_at_once(batch.size), dim=1)
                return _joined([self._pull_back(losses, leaf, some.mT, leaf).mT for some in columns])
            return self._gradient_of((losses * weights[..., batch.span]).sum(), leaf)

        columns = weights.shape[1] if block else 1
        return _sum(part(batch) for batch in self._batches(passes=2 * _copies(theta), columns=columns))

    @torch.enable_grad()
    def minibatch_gradient(self, theta: Tensor, indices: Tensor) -> Tensor:
        """Mean of g_n over the given samples; repeated indices count repeatedly.

        Args:
            theta: (D,), or (R, D).
            indices: (B,), or (R, B): a batch of its own for each replica.
        """
        self._check_theta(theta)
        if indices.numel() == 0:
            raise InvalidValueError("a minibatch needs at least one index")
        if int(indices.min()) < 0 or int(indices.max()) >= self.sample_count:
            raise InvalidIndexError(f"minibatch indices must lie in 0..{self.sample_count - 1}")
        if indices.ndim not in (1, theta.ndim) or indices.shape[:-1] not in ((), theta.shape[:-1]):
            raise InvalidValueError(
                f"indices must have shape (B,), or (R, B) with replicas θ (R, {self.dimension}); they are "
                f"{tuple(indices.shape)} with θ {tuple(theta.shape)}"
            )
        own = indices.ndim == 2
        if self._goes_row_by_row(theta) or (own and not self._maps_own_batches):
            rows = indices if own else indices.expand(len(theta), -1)
            return torch.stack([self.minibatch_gradient(*pair) for pair in zip(theta, rows, strict=True)])
        size = self.chunk_size(passes=2 * _copies(theta))

        def part(batch: Batch) -> Tensor:
            leaf = theta.detach().requires_grad_()
            losses = self._function.losses(leaf, batch, data_per_replica=own)
            return self._gradient_of(losses.sum() / indices.shape[-1], leaf)

        return _sum(part(batch) for batch in self._chosen_batches(indices, size))

    def _chosen_batches(self, indices: Tensor, size: int) -> Iterator[Batch]:
        """The samples at ``indices``, (n,) or (R, n), at most so many at a time."""
        if isinstance(self._samples, TensorSamples):
            for some in indices.split(size, dim=-1):
                inputs, targets = self._samples.take(some)
                yield Batch(inputs, targets, 0, some.shape[-1])
        else:
            for _, group in self._samples.chosen(indices):
                yield from group.batches(size)

    def directional_derivatives(self, theta: Tensor, directions: Tensor) -> Tensor:
        """Gv, the derivative of every sample's loss along v, by forward-mode differentiation.

        Args:
            theta: (D,), or (R, D).
            directions: (D,), or a block (D, K) with a single θ, or (R, D) with replicas.

        Returns:
            (N,), (N, K) or (R, N).
        """
        self._check_theta(theta)
        self._check_block(theta, directions)
        if self._goes_row_by_row(theta):
            pairs = zip(theta, directions, strict=True)
            return torch.stack([self.directional_derivatives(*pair) for pair in pairs])
        if theta.ndim == 1 and not self.forward_mode and not self.pushes_by_reverse:
            block = directions if directions.ndim == 2 else directions[:, None]
            found = torch.cat([part @ block for part in self.factored_gradient_chunks(theta)])
            return found.view(self.sample_count, *directions.shape[1:])
        parts = []
        for batch in self._batches(passes=2 * _copies(theta), columns=_columns(theta, directions)):

            def losses(point: Tensor, batch: Batch = batch) -> Tensor:
                return self._function.losses(point, batch)

            parts.append(self._push_forward(losses, theta, directions, batch.size))
        return torch.cat(parts, dim=0 if theta.ndim == 1 else -1)

    def per_sample_gradients(self, theta: Tensor, indices: Tensor | None = None) -> Tensor:
        """G, row n the gradient of ℓ_n: (D,) → (N, D), or (R, D) → (R, N, D).

        Args:
            theta: (D,), or (R, D).
            indices: (n,), only these samples' rows. Default all N.

        Raises:
            ValueError: the result alone would take over 8 times the memory budget; stream it with
                :meth:`per_sample_gradient_chunks`.
        """
        self._check_theta(theta)
        rows = self.sample_count if indices is None else len(indices)
        needed = rows * theta.numel() * theta.element_size()
        if needed > 8 * self.memory_budget:
            raise InvalidValueError(
                f"{rows} per-sample gradients of length {self.dimension} take {needed / 2**30:.1f} GiB; iterate "
                "over per_sample_gradient_chunks instead, or raise memory_budget"
            )
        self._choose_layers()
        if indices is not None:
            size = self._gradient_rows(_copies(theta))
            found = theta.new_empty(*theta.shape[:-1], len(indices), self.dimension)
            for places, group in self._samples.chosen(indices):
                parts = [self._function.gradients(theta, batch) for batch in group.batches(size)]
                found[..., places.to(self.device), :] = torch.cat(parts, dim=-2)
            return found
        if isinstance(self._function, ModelLoss) and theta.ndim == 1:
            return self.factored_gradients(theta).rows()
        return torch.cat(list(self.per_sample_gradient_chunks(theta)), dim=-2)

    def holds_gradients(self, theta: Tensor) -> bool:
        """Whether all per-sample gradients, factored where they can be, fit the memory budget together."""
        return self.sample_count * _copies(theta) * self.gradient_width * self.dtype.itemsize <= self.memory_budget

    def per_sample_gradient_chunks(self, theta: Tensor) -> Iterator[Tensor]:
        """G in consecutive blocks of rows, each within the memory budget."""
        self._check_theta(theta)
        self._choose_layers()
        for batch in self._samples.batches(self._gradient_rows(_copies(theta))):
            yield self._function.gradients(theta, batch)

    def factored_gradients(self, theta: Tensor) -> FactoredGradients:
        """G at a single θ, without forming the gradients of linear layers that get one vector a sample."""
        return FactoredGradients.joined(self.factored_gradient_chunks(theta), self.sample_count)

    def factored_gradient_chunks(self, theta: Tensor) -> Iterator[FactoredGradients]:
        """:meth:`factored_gradients` of consecutive samples, each chunk within the memory budget."""
        self._check_theta(theta, replicas=False)
        if not isinstance(self._function, ModelLoss):
            yield from map(FactoredGradients.of_rows, self.per_sample_gradient_chunks(theta))
            return
        for batch in self._samples.batches(self._gradient_rows(1, self.gradient_width)):
            yield self._function.factored_gradients(theta, batch)

    def per_sample_square_norms(self, theta: Tensor) -> Tensor:
        """‖g_n‖² of every sample, (N,), in one pass over the per-sample gradients: (R, D) → (R, N)."""
        if theta.ndim == 1:
            return torch.cat([part.square_norms() for part in self.factored_gradient_chunks(theta)])
        return torch.cat([rows.square().sum(-1) for rows in self.per_sample_gradient_chunks(theta)], dim=-1)

    # ------------------------------------------------------------------ second derivatives

    @torch.enable_grad()
    def gradient_graphs(self, theta: Tensor) -> Iterator[GradientGraph]:
        """(θ as a leaf, this chunk's share of ∇L(θ) as a function of it), chunk by chunk.

        Differentiating the second with respect to the first gives Hessian products.
        """
        self._check_theta(theta)
        self._check_second_derivative()

        def slope(leaf: Tensor, batch: Batch) -> Tensor | GradientEdge:
            share = self._share(leaf, batch=batch)
            with self._function.held(leaf):
                found = torch.autograd.grad(share, leaf, create_graph=True, materialize_grads=True)[0]
            return edge_of(found)

        for batch in self._batches(passes=HESSIAN_PASSES * _copies(theta)):
            leaf = theta.detach().requires_grad_()
            yield leaf, slope(leaf, batch)  # nothing here holds on to the graph

    def hessian_product(self, theta: Tensor, directions: Tensor) -> Tensor:
        """Hv, the derivative of the gradient along v, by two reverse passes.

        Args:
            theta: (D,), or (R, D).
            directions: (D,), or a block (D, K) with a single θ, or (R, D) with replicas.

        Returns:
            As ``directions``. For several products at one θ, :meth:`hessian` keeps the first pass.
        """
        self._check_block(theta, directions)
        if self._goes_row_by_row(theta):
            return torch.stack([self.hessian_product(*pair) for pair in zip(theta, directions, strict=True)])
        return self.bend(self.gradient_graphs(theta), directions)

    def bend(self, graphs: Iterable[GradientGraph], directions: Tensor) -> Tensor:
        """Hv, from the :meth:`gradient_graphs`."""

        def part(graph: GradientGraph) -> Tensor:
            leaf, slope = graph
            if directions.ndim == leaf.ndim:
                return self._pull_back(slope, leaf, directions, leaf)
            if self.device.type == "cpu" and self._weighs_on_parameters():  # one alone keeps it busy
                return torch.stack([self._pull_back(slope, leaf, column, leaf) for column in directions.T], dim=1)
            columns = self._columns_at_once(self.chunk_size(passes=HESSIAN_PASSES))
            return _joined(
                [self._pull_back(slope, leaf, some.mT, leaf).mT for some in directions.split(columns, dim=1)]
            )

        try:
            return _sum(map(part, graphs))
        except RuntimeError as error:
            if not _lacks_second_derivative(error):
                raise
            raise FailedError(
                f"an operation of the model has no second derivative ({str(error).splitlines()[0][:200]}); give it "
                "a twice differentiable backward pass, or take products by finite differences of the gradient, "
                "with a stated error: risk.finite_difference_hessian(theta)"
            ) from error

    def gradient_derivatives(self, theta: Tensor, directions: Tensor) -> Tensor:
        """Hv for the columns of a block, by pushing it forward through the gradient.

        No graph of the gradient is kept, and what the columns share is computed once: cheaper than
        :meth:`hessian_product` for some columns together, dearer for one alone.

        Args:
            theta: (D,).
            directions: (D, K).

        Returns:
            (D, K).
        """
        self._check_theta(theta, replicas=False)
        self._check_block(theta, directions)
        self._check_second_derivative()
        total = torch.zeros_like(directions)
        for batch in self._batches(passes=2, columns=_columns(theta, directions)):
            slope = grad(functools.partial(self._share, batch=batch))
            columns = directions.split(self._columns_at_once(batch.size), dim=1)
            with mapping():
                total += _joined([push_forward(slope, theta, some) for some in columns])
        return total

    def _share(self, point: Tensor, *, batch: Batch) -> Tensor:
        """A chunk's share of L."""
        return self._function.losses(point, batch).sum() / self.sample_count

    @functools.cached_property
    def pushes_gradients(self) -> bool:
        """Whether forward mode goes through the gradient, and agrees with two reverse passes.

        Closed forms do without.
        """
        if not isinstance(self._function, ModelLoss):
            return False

        def holds(function: ModelLoss | ClosedForm, theta: Tensor, batch: Batch) -> bool:
            def total(point: Tensor) -> Tensor:
                return function.losses(point, batch).sum()

            def values(point: Tensor) -> Tensor:
                return function.losses(point, batch)

            with mapping(), function.held(theta):
                return pushes_through_gradient(total, grad(total), values, theta, function.tolerance)

        return self._tried_out(holds)

    @functools.cached_property
    def maps_cotangents(self) -> bool:
        """Whether several reverse passes can be mapped together, and give what they give one by one."""
        if not isinstance(self._function, ModelLoss):
            return True

        def holds(function: ModelLoss | ClosedForm, theta: Tensor, batch: Batch) -> bool:
            def values(point: Tensor) -> Tensor:
                return function.losses(point, batch)

            with mapping(), function.held(theta):
                return maps_cotangents(lambda point: values(point).sum(), values, theta, function.tolerance)

        return self._tried_out(holds)

    @functools.cached_property
    def maps_replicas(self) -> bool:
        """Whether the model can be mapped over parameter vectors, and gives each what it gives alone."""
        if not isinstance(self._function, ModelLoss):
            return True
        if self._function.needs_graph:
            return False

        def holds(function: ModelLoss | ClosedForm, theta: Tensor, batch: Batch) -> bool:
            def gradients(points: Tensor) -> tuple[Tensor, Tensor]:
                with torch.enable_grad():
                    leaf = points.detach().requires_grad_()
                    losses = function.losses(leaf, batch)
                    with function.held(leaf):
                        return losses.detach(), torch.autograd.grad(losses.sum(), leaf, materialize_grads=True)[0]

            both = torch.stack([theta, 2 * theta - self.parameters().to(theta)])
            try:
                found = gradients(both)
            except Exception:  # an operation unknown to vmap says so in many ways
                return False
            wanted = [gradients(point) for point in both]
            return all(
                agrees(found[part][row], wanted[row][part], function.tolerance)
                for part in range(2)
                for row in range(2)
            )

        return self._tried_out(holds)

    @functools.cached_property
    def second_derivative_error(self) -> float:
        """How far Hessian products are from differences of the gradient, relative; 0 where nobody can tell.

        On the samples tried, in float64, where differences are precise. Infinite where an operation is marked as
        differentiable once.
        """
        if isinstance(self._function, ModelLoss) and self._meets_delayed_errors(self._function):
            return math.inf
        small = self.dimension * torch.float64.itemsize * 8 <= LARGEST_COPY
        if not isinstance(self._function, ModelLoss) or not small:
            return 0.0
        theta = self._trial_point().double()
        found = 0.0
        for batch in self._decided_on():
            precise, wide = in_float64(self._function, batch)

            def slope(
                leaf: Tensor, function: ModelLoss = precise, batch: Batch = wide, graph: bool = False
            ) -> Tensor:
                with torch.enable_grad():
                    total = function.losses(leaf, batch).sum()
                    with function.held(leaf):
                        return torch.autograd.grad(total, leaf, create_graph=graph, materialize_grads=True)[0]

            def gradient(point: Tensor, slope: Callable[..., Tensor] = slope) -> Tensor:
                return slope(point.detach().requires_grad_()).detach()

            def product(
                point: Tensor, v: Tensor, slope: Callable[..., Tensor] = slope, function: ModelLoss = precise
            ) -> Tensor:
                leaf = point.detach().requires_grad_()
                graph = slope(leaf, graph=True)
                with function.held(leaf):
                    return pull_back(graph, leaf, v)

            try:
                error = second_derivative_error(gradient, product, theta, SECOND_DERIVATIVE_ERROR / 10)
            except (RuntimeError, TypeError, ValueError):  # written for its own precision, or once differentiable
                return 0.0
            found = max(found, error if math.isfinite(error) else 0.0)
        return found

    def _meets_delayed_errors(self, function: ModelLoss) -> bool:
        leaf = self.parameters().requires_grad_()
        with torch.enable_grad():
            total = function.losses(leaf, _first(self._tried[0], 2)).sum()
            with function.held(leaf):
                return has_delayed_errors(
                    torch.autograd.grad(total, leaf, create_graph=True, materialize_grads=True)[0]
                )

    def _check_second_derivative(self) -> None:
        if self.second_derivative_error > SECOND_DERIVATIVE_ERROR:
            found = f"they differ by {self.second_derivative_error:.2g} (relative) on samples tried"
            if math.isinf(self.second_derivative_error):
                found = "an operation is marked as differentiable once"
            raise InvalidValueError(
                f"second derivatives of this model are not the derivatives of its gradient: {found}. An operation's"
                " backward pass lacks part of its own derivative (detached or computed outside autograd), or the "
                "gradient jumps (rounding, straight-through). Mend the operation, or take products by finite "
                "differences of the gradient, with a stated error: risk.finite_difference_hessian(theta)"
            )

    @functools.cached_property
    def _maps_own_batches(self) -> bool:
        """As :attr:`maps_replicas`, where each parameter vector has samples of its own."""
        if not isinstance(self._samples, TensorSamples):
            return False
        if not isinstance(self._function, ModelLoss):
            return True

        def holds(function: ModelLoss | ClosedForm, theta: Tensor, batch: Batch) -> bool:
            held, half = TensorSamples(batch.inputs, batch.targets), max(1, batch.size // 2)
            rows = torch.stack([torch.arange(half), torch.arange(batch.size - half, batch.size)])
            both = torch.stack([theta, 2 * theta - self.parameters().to(theta)])

            def gradient(points: Tensor, chosen: Tensor) -> Tensor:
                taken = Batch(*held.take(chosen), 0, half)
                with torch.enable_grad():
                    leaf = points.detach().requires_grad_()
                    losses = function.losses(leaf, taken, data_per_replica=chosen.ndim == 2)
                    return torch.autograd.grad(losses.sum(), leaf, materialize_grads=True)[0]

            try:
                found = gradient(both, rows)
            except Exception:  # control flow that depends on the data, say
                return False
            wanted = [gradient(*pair) for pair in zip(both, rows, strict=True)]
            return all(agrees(found[row], wanted[row], function.tolerance) for row in range(2))

        return self.maps_replicas and self._tried_out(holds)

    def _goes_row_by_row(self, theta: Tensor) -> bool:
        return theta.ndim == 2 and not self.maps_replicas

    def _tried_out(self, holds: Callable[[ModelLoss | ClosedForm, Tensor, Batch], bool]) -> bool:
        """Whether something holds on all batches tried, near the module's own parameters.

        In float64 too, if it can be evaluated there: two ways that differ then cannot pass for rounding.
        """
        theta = self._trial_point()
        batches = self._decided_on()
        if not all(holds(self._function, theta, batch) for batch in batches):
            return False
        small = self.dimension * torch.float64.itemsize * 8 <= LARGEST_COPY
        if not isinstance(self._function, ModelLoss) or self.dtype == torch.float64 or not small:
            return True
        for batch in batches:
            precise, wide = in_float64(self._function, batch)
            try:
                precise.values(theta.double(), wide)
            except (RuntimeError, TypeError, ValueError):  # it is written for its own precision
                return True
            if not holds(precise, theta.double(), wide):
                return False
        return True

    def _decided_on(self) -> list[Batch]:
        """The most unlike of the samples tried; of a closed form, which comes whole, all."""
        if not isinstance(self._function, ModelLoss):
            return self._tried
        return [_first(batch, DECIDED_ON) for batch in self._tried]

    def _trial_point(self) -> Tensor:
        """Near the module's own parameters, but where none is zero."""
        theta = self.parameters()
        moved = shaken(self._function, theta)
        finite = all(bool(torch.isfinite(self._function.values(moved, batch)).all()) for batch in self._tried)
        return moved if finite else theta

    def _choose_layers(self) -> None:
        if isinstance(self._function, ModelLoss) and not self._function.gradients_chosen:
            forms = len(self._samples.candidates) if isinstance(self._samples, StreamedSamples) else 1
            # of more forms than are tried, some may call a layer otherwise
            self._function.choose_layers(self._trial_point(), self._tried, layers_allowed=forms <= len(self._tried))

    def _gradient_of(self, value: Tensor, leaf: Tensor) -> Tensor:
        with self._function.held(leaf):
            return torch.autograd.grad(value, leaf, materialize_grads=True)[0]

    def _pull_back(
        self, values: Tensor | GradientEdge, inputs: Tensor, cotangents: Tensor, theta: Tensor
    ) -> Tensor:
        """As :func:`pull_back`, through a graph of the function at θ."""
        single = cotangents.ndim == (values if isinstance(values, Tensor) else inputs).ndim
        with self._function.held(theta):
            if single or self.maps_cotangents:
                return pull_back(values, inputs, cotangents)
            return torch.stack([pull_back(values, inputs, each) for each in cotangents])

    def dense_hessian(self, theta: Tensor) -> Tensor:
        """H formed column by column from one graph: (D,) → (D, D), or (R, D) → (R, D, D). For small D."""
        if self._goes_row_by_row(theta):
            return torch.stack([self.dense_hessian(row) for row in theta])
        axes = torch.eye(self.dimension, dtype=self.dtype, device=self.device)
        total = theta.new_zeros(*theta.shape, self.dimension)
        for leaf, slope in self.gradient_graphs(theta):
            columns = [self._pull_back(slope, leaf, axis.expand_as(theta), leaf) for axis in axes]
            total += torch.stack(columns, dim=-1)
        return (total + total.mT) / 2

    @torch.enable_grad()
    def gauss_newton_product(self, theta: Tensor, directions: Tensor) -> Tensor:
        """(1/N) Σ_n J_nᵀ (∇²_f ℓ_n) J_n v, with J_n the Jacobian of sample n's outputs f.

        ``directions`` is (D,) or (D, K); so is the result.
        """
        model_loss = self._gauss_newton_loss()
        self._check_theta(theta, replicas=False)
        self._check_block(theta, directions)
        total = torch.zeros_like(directions)
        for batch in self._batches(passes=4, columns=_columns(theta, directions)):

            def outputs(point: Tensor, batch: Batch = batch) -> Tensor:
                return tensor_outputs(model_loss.outputs(point, batch.inputs))

            parts = []
            for block in column_blocks(directions, self._columns_at_once(batch.size), theta):
                pushed = self._push_forward(outputs, theta, block, batch.size)
                leaf = theta.detach().requires_grad_()
                predicted = outputs(leaf)
                at = predicted.detach().requires_grad_()
                summed = model_loss.losses_of_outputs(theta, at, batch.targets).sum() / self.sample_count
                (slope,) = torch.autograd.grad(summed, at, create_graph=True)
                if block.ndim == 1:
                    curved = self._pull_back(slope, at, pushed, theta)
                    parts.append(self._pull_back(predicted, leaf, curved, theta))
                else:
                    curved = self._pull_back(slope, at, pushed.movedim(-1, 0), theta)
                    parts.append(self._pull_back(predicted, leaf, curved, theta).mT)
            total += _joined(parts)
        return total

    @torch.enable_grad()
    def gauss_newton_forms(self, theta: Tensor, directions: Tensor) -> Tensor:
        """(1/N) Σ_n (J_nv)ᵀ (∇²_f ℓ_n) (J_nv) for each column of a block: (D, K) → (K,)."""
        model_loss = self._gauss_newton_loss()
        self._check_theta(theta, replicas=False)
        self._check_block(theta, directions)
        total = directions.new_zeros(directions.shape[1])
        for batch in self._batches(passes=2, columns=directions.shape[1]):

            def outputs(point: Tensor, batch: Batch = batch) -> Tensor:
                return tensor_outputs(model_loss.outputs(point, batch.inputs))

            at = tensor_outputs(model_loss.output_values(theta, batch.inputs)).requires_grad_()
            summed = model_loss.losses_of_outputs(theta, at, batch.targets).sum() / self.sample_count
            (slope,) = torch.autograd.grad(summed, at, create_graph=True)
            parts = []
            for block in column_blocks(directions, self._columns_at_once(batch.size), theta):
                pushed = self._push_forward(outputs, theta, block, batch.size).movedim(-1, 0)
                parts.append((pushed * self._pull_back(slope, at, pushed, theta)).flatten(1).sum(1))
            total += torch.cat(parts)
        return total

    @torch.enable_grad()
    def gauss_newton_draws(self, theta: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
        """``count`` draws of N(0, GGN), as rows (count, D): Jᵀ(∇²_f ℓ)^{1/2} z/√N, one backward pass each."""
        model_loss = self._gauss_newton_loss()
        self._check_theta(theta, replicas=False)
        total = theta.new_zeros(count, self.dimension)
        for batch in self._batches(passes=4, columns=count):
            leaf = theta.detach().requires_grad_()
            predicted = tensor_outputs(model_loss.outputs(leaf, batch.inputs))
            root = model_loss.output_hessian_root(theta, predicted.detach(), batch)
            noise = torch.randn(
                count, *root.shape[:2], 1, generator=generator, dtype=self.dtype, device=self.device
            )
            cotangents = (root @ noise).reshape(count, *predicted.shape) / self.sample_count**0.5
            at_once = cotangents.split(self._columns_at_once(batch.size))
            total += torch.cat([self._pull_back(predicted, leaf, some, theta) for some in at_once])
        return total

    # ------------------------------------------------------------------ how it is evaluated

    def _push_forward(
        self, function: Callable[[Tensor], Tensor], theta: Tensor, directions: Tensor, samples: int
    ) -> Tensor:
        """Derivatives of ``function`` along the directions; columns of a block stay last."""
        if not self.forward_mode and not self.pushes_by_reverse:
            raise InvalidValueError(
                "the derivative of this model's outputs along a direction cannot be had: it has no forward-mode "
                "rules, and an operation's backward pass is differentiable once only. Gradients and their "
                "covariance are not affected; for curvature take risk.finite_difference_hessian(theta)"
            )
        forward = push_forward if self.forward_mode else push_forward_by_reverse
        with self._function.held(theta):
            parts = [
                forward(function, theta, block)
                for block in column_blocks(directions, self._columns_at_once(samples), theta)
            ]
        return _joined(parts)

    @functools.cached_property
    def forward_mode(self) -> bool:
        """Whether the losses have forward-mode derivatives that agree with the gradients of single samples."""
        return self._gives_derivatives(push_forward)

    @functools.cached_property
    def pushes_by_reverse(self) -> bool:
        """Whether two reverse passes give directional derivatives; a backward pass may hide what it depends on."""
        return self._gives_derivatives(push_forward_by_reverse)

    def _gives_derivatives(self, push: Push) -> bool:
        if isinstance(self._function, ClosedForm) and not self._function.probes_single:
            return push is push_forward_by_reverse

        def tolerance(function: ModelLoss | ClosedForm) -> float:
            # what is refused otherwise must be wrong, not only rounded, as where a model computes partly in float32
            return function.tolerance if push is push_forward else max(function.tolerance, ROUNDED)

        def holds(function: ModelLoss | ClosedForm, theta: Tensor, batch: Batch) -> bool:
            most = max(2, LARGEST_COPY // (2 * self.dimension * theta.element_size()))
            rows = function.gradients_one_by_one(theta, _first(batch, min(most, DECIDED_ON)))
            with mapping(), function.held(theta):
                return gives_derivatives(
                    push, lambda point: function.losses(point, batch), rows, theta, tolerance(function)
                )

        return self._tried_out(holds)

    @functools.cached_property
    def pushes_outputs(self) -> bool:
        """Whether there is a Gauss–Newton matrix, and forward mode for its quadratic forms."""
        if not isinstance(self._function, ModelLoss) or not self.forward_mode or self._loss_reads_parameters:
            return False
        return isinstance(self._function.output_values(self.parameters(), self._tried[0].inputs), Tensor)

    @functools.cached_property
    def _loss_reads_parameters(self) -> bool:
        assert isinstance(self._function, ModelLoss)
        return self._function.loss_reads_parameters(self.parameters(), self._tried[0])

    def _gauss_newton_loss(self) -> ModelLoss:
        """The model and loss, refused where the loss has parameters outside the outputs."""
        model_loss = self._model_loss("the Gauss–Newton matrix")
        outputs = model_loss.output_values(self.parameters(), _first(self._tried[0], 1).inputs)
        if isinstance(outputs, Tensor) and self._loss_reads_parameters:
            raise InvalidValueError(
                "the loss reads the model's parameters itself (weight decay, an output layer of its own), so "
                "it is no function of the outputs alone and has no Gauss–Newton matrix; move that part into "
                "the model's forward, or use the Hessian"
            )
        return model_loss

    def _batches(self, *, passes: int, columns: int = 1) -> Iterator[Batch]:
        """Chunks of the data, as :meth:`chunk_size`; the first that is larger than what was tried is tried, too."""
        for batch in self._samples.batches(self.chunk_size(passes=passes, columns=columns)):
            if batch.size > self._largest_tried and isinstance(self._function, ModelLoss):
                theta = self.parameters()
                check_company(self._function, theta, batch, self._function.values(theta, batch))
                self._largest_tried = self.sample_count
            yield batch

    def chunk_size(self, *, passes: int = 2, columns: int = 1) -> int:
        """How many samples are evaluated together within the memory budget; fewer on a CPU where that is faster.

        Args:
            passes: how many times the forward pass's memory one sample takes.
            columns: directions of a block, some of which are differentiated along together.
        """
        if self._chunk_size is not None:
            return self._chunk_size
        fits = self.memory_budget // (passes * self.bytes_per_sample)
        return min(self.sample_count, max(1, min(fits, self._cached_samples(min(columns, CPU_COLUMNS)))))

    def _cached_samples(self, columns: int) -> int:
        """How many samples may be evaluated together, along that many directions, before it gets slower."""
        if self.device.type != "cpu" or isinstance(self._function, ClosedForm):
            return self.sample_count
        parameters = PARAMETER_SHARE * self.dimension * self.dtype.itemsize
        return max(CPU_WORKING_SET // columns, parameters) // self.bytes_per_sample

    def keeps_graphs(self) -> bool:
        """Whether the graphs of the gradient of all samples fit the memory budget together."""
        one = HESSIAN_PASSES * self.bytes_per_sample
        return isinstance(self._samples, TensorSamples) and self.sample_count * one <= self.memory_budget

    def bends_blocks(self) -> bool:
        """Whether a block goes faster in reverse through kept graphs than pushed forward through the gradient.

        It does where there is little to compute but products with the weights.
        """
        return self.keeps_graphs() and self._weighs_on_parameters()

    def _weighs_on_parameters(self) -> bool:
        """Whether the parameters take much more memory than a sample's activations."""
        return self.dimension * self.dtype.itemsize > WEIGHTY * self.bytes_per_sample

    def _gradient_rows(self, copies: int, width: int | None = None) -> int:
        """How many per-sample gradients of each replica, of so many numbers, are evaluated together."""
        if self._chunk_size is not None:
            return self._chunk_size
        held = (self.dimension if width is None else width) * self.dtype.itemsize
        rows = self.memory_budget // (copies * (3 * held + 2 * self.bytes_per_sample))
        if self.device.type == "cpu" and isinstance(self._function, ModelLoss):
            rows = min(rows, CPU_WORKING_SET // (held + self.bytes_per_sample))
        return min(self.sample_count, max(1, rows))

    @functools.cached_property
    def gradient_width(self) -> int:
        """Numbers that a sample's gradient takes in :meth:`factored_gradients`."""
        if not isinstance(self._function, ModelLoss):
            return self.dimension
        self._choose_layers()
        return self._function.gradient_width

    def _columns_at_once(self, samples: int) -> int:
        """How many directions are differentiated along together within the memory budget."""
        activations = 4 * samples * self.bytes_per_sample
        vectors = 4 * self.dimension * self.dtype.itemsize
        fits = max(self.memory_budget, COLUMN_FLOOR) // (activations + vectors)
        if self.device.type == "cpu":
            fits = min(fits, max(CPU_COLUMNS, CPU_WORKING_SET // (samples * self.bytes_per_sample)))
        return max(1, min(MOST_COLUMNS, fits))

    @functools.cached_property
    def bytes_per_sample(self) -> int:
        """Memory one sample's forward pass keeps for the backward pass."""
        return max(self._function.bytes_per_sample(_first(batch, 2)) for batch in self._tried)

    def _model_loss(self, purpose: str) -> ModelLoss:
        if not isinstance(self._function, ModelLoss):
            raise InvalidValueError(
                f"{purpose} needs a model with outputs and data; this risk was built from a function of θ. "
                "Build it as EmpiricalRisk(model, loss, data)"
            )
        return self._function

    def _check_theta(self, theta: Tensor, *, replicas: bool = True) -> None:
        if not isinstance(theta, Tensor):
            raise InvalidTypeError(f"θ must be a flat torch.Tensor (risk.parameters()), not {type(theta).__name__}")
        if theta.ndim not in ((1, 2) if replicas else (1,)) or theta.shape[-1] != self.dimension:
            allowed = f"({self.dimension},)" + (f" or (R, {self.dimension})" if replicas else "")
            raise InvalidValueError(f"θ must have shape {allowed}, not {tuple(theta.shape)}")
        if theta.dtype != self.dtype:
            raise InvalidValueError(
                f"θ is {theta.dtype} but the risk is {self.dtype}; convert one: theta.to({self.dtype}) or "
                f"risk.to({theta.dtype})"
            )
        if theta.device != self.device:
            raise InvalidValueError(
                f"mixed devices: θ is on {theta.device}, the risk on {self.device}; use theta.to('{self.device}')"
            )
        if torch.is_inference_mode_enabled() or theta.is_inference():
            raise FailedError("inference mode records no derivatives: leave it, and clone a θ that was made in it")

    def _check_block(self, theta: Tensor, directions: Tensor) -> None:
        if theta.ndim == 2:
            if directions.shape != theta.shape:
                raise InvalidValueError(
                    f"with replicas, directions match θ's shape {tuple(theta.shape)}, not {tuple(directions.shape)}"
                )
        elif directions.ndim not in (1, 2) or directions.shape[0] != self.dimension:
            raise InvalidValueError(
                f"directions must have shape ({self.dimension},) or ({self.dimension}, K), not "
                f"{tuple(directions.shape)}"
            )


def _require_finite(values: Tensor) -> None:
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        position = int((~finite).nonzero()[0])
        raise NonFiniteLossError(
            f"{int((~finite).sum())} of {len(values)} losses are not finite, the first that of sample "
            f"{position} ({float(values[position])}); check that sample for NaN inputs or unseen targets, or "
            "whether training diverged (smaller learning rate)"
        )


def _lacks_second_derivative(error: RuntimeError) -> bool:
    text = str(error)
    return any(
        part in text
        for part in (
            "once_differentiable",
            "differentiate twice",
            "is not implemented",
            "derivative for",
            "double backward",
        )
    )


def _first(batch: Batch, count: int) -> Batch:
    return TensorSamples(batch.inputs, batch.targets).between(0, min(count, batch.size))


def check_positive(name: str, value: int | None) -> int | None:
    """``value``, refused below 1."""
    if value is not None and value < 1:
        raise InvalidValueError(f"{name} must be at least 1, not {value}")
    return value


def _sum(parts: Iterator[Tensor]) -> Tensor:
    """Of all chunks' shares, in place: no more than two are held."""
    total = next(parts)
    for part in parts:
        total += part
        del part
    return total


def _joined(columns: list[Tensor]) -> Tensor:
    """Side by side; one alone is not copied."""
    return columns[0] if len(columns) == 1 else torch.cat(columns, dim=-1)


def _columns(theta: Tensor, directions: Tensor) -> int:
    """How many directions a block at a single θ holds; replicas have one each."""
    return directions.shape[1] if directions.ndim > theta.ndim else 1


def _copies(theta: Tensor) -> int:
    """How many parameter vectors are evaluated together."""
    return len(theta) if theta.ndim == 2 else 1
