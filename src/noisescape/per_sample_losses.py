"""ℓ(θ) ∈ R^N, the losses of all samples, and every product with its first and second derivatives.

With G the Jacobian of ℓ (N × D, rows g_n = ∇ℓ_n): the gradient of the mean is Gᵀ1/N, any re-weighted gradient
Gᵀw is one backward pass, the directional derivatives of all samples Gv are one forward-mode pass, and curvature
is the derivative of the gradient. Everything streams over chunks of samples sized by a memory budget.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.func import grad

from noisescape.differentiation import column_blocks, edge_of, pull_back, push_forward, push_forward_by_reverse
from noisescape.errors import NonFiniteLossError
from noisescape.factored_gradients import FactoredGradients
from noisescape.function_loss import ClosedForm
from noisescape.model_loss import ModelLoss, mapping, tensor_outputs
from noisescape.samples import Batch, Samples, TensorSamples

HESSIAN_PASSES = 4
"""Memory of a twice-differentiable forward and backward pass, in units of the forward pass."""

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
    ) -> None:
        self._function = function
        self._samples = samples
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
        with torch.no_grad():
            parts = [self._function.losses(theta, batch) for batch in self._batches(passes=_copies(theta))]
        return torch.cat(parts, dim=-1)

    def loss(self, theta: Tensor) -> Tensor:
        """L(θ): (D,) → (), or (R, D) → (R,). Raises as :meth:`losses`."""
        return self.losses(theta).mean(-1)

    # ------------------------------------------------------------------ first derivatives

    @torch.enable_grad()
    def gradient(self, theta: Tensor) -> Tensor:
        """∇L(θ) = Gᵀ1/N: (D,) → (D,), or (R, D) → (R, D). Non-finite values pass through."""
        self._check_theta(theta)

        def part(batch: Batch) -> Tensor:
            leaf = theta.detach().requires_grad_()
            return torch.autograd.grad(self._share(leaf, batch=batch), leaf, materialize_grads=True)[0]

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
            raise ValueError(f"weights must have shape {expected}, not {tuple(weights.shape)}")

        def part(batch: Batch) -> Tensor:
            leaf = theta.detach().requires_grad_()
            losses = self._function.losses(leaf, batch)
            if block:
                columns = weights[batch.span].split(self._columns_at_once(batch.size), dim=1)
                return _joined([pull_back(losses, leaf, some.mT).mT for some in columns])
            weighted = (losses * weights[..., batch.span]).sum()
            return torch.autograd.grad(weighted, leaf, materialize_grads=True)[0]

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
            raise ValueError("a minibatch needs at least one index")
        if int(indices.min()) < 0 or int(indices.max()) >= self.sample_count:
            raise IndexError(f"minibatch indices must lie in 0..{self.sample_count - 1}")
        if indices.ndim not in (1, theta.ndim) or indices.shape[:-1] not in ((), theta.shape[:-1]):
            raise ValueError(
                f"indices must have shape (B,), or (R, B) with replicas θ (R, {self.dimension}); they are "
                f"{tuple(indices.shape)} with θ {tuple(theta.shape)}"
            )
        leaf = theta.detach().requires_grad_()
        inputs, targets = self._samples.take(indices)
        losses = self._function.losses(
            leaf, Batch(inputs, targets, 0, indices.shape[-1]), data_per_replica=indices.ndim == 2
        )
        (part,) = torch.autograd.grad(losses.mean(-1).sum(), leaf, materialize_grads=True)
        return part

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
            raise ValueError(
                f"{rows} per-sample gradients of length {self.dimension} take {needed / 2**30:.1f} GiB; iterate "
                "over per_sample_gradient_chunks instead, or raise memory_budget"
            )
        if indices is not None:
            inputs, targets = self._samples.take(indices)
            chosen = TensorSamples(inputs, targets)
            size = self._gradient_rows(_copies(theta))
            return torch.cat([self._function.gradients(theta, batch) for batch in chosen.batches(size)], dim=-2)
        if isinstance(self._function, ModelLoss) and theta.ndim == 1:
            return self.factored_gradients(theta).rows()
        return torch.cat(list(self.per_sample_gradient_chunks(theta)), dim=-2)

    def holds_gradients(self, theta: Tensor) -> bool:
        """Whether all per-sample gradients, factored where they can be, fit the memory budget together."""
        return self.sample_count * _copies(theta) * self.gradient_width * self.dtype.itemsize <= self.memory_budget

    def per_sample_gradient_chunks(self, theta: Tensor) -> Iterator[Tensor]:
        """G in consecutive blocks of rows, each within the memory budget."""
        self._check_theta(theta)
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

        def slope(leaf: Tensor, batch: Batch) -> Tensor | GradientEdge:
            share = self._share(leaf, batch=batch)
            return edge_of(torch.autograd.grad(share, leaf, create_graph=True, materialize_grads=True)[0])

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
        return self.bend(self.gradient_graphs(theta), directions)

    def bend(self, graphs: Iterable[GradientGraph], directions: Tensor) -> Tensor:
        """Hv, from the :meth:`gradient_graphs`."""

        def part(graph: GradientGraph) -> Tensor:
            leaf, slope = graph
            if directions.ndim == leaf.ndim:
                return pull_back(slope, leaf, directions)
            if self.device.type == "cpu" and self._weighs_on_parameters():  # one alone keeps it busy
                return torch.stack([pull_back(slope, leaf, column) for column in directions.T], dim=1)
            columns = self._columns_at_once(self.chunk_size(passes=HESSIAN_PASSES))
            return _joined([pull_back(slope, leaf, some.mT).mT for some in directions.split(columns, dim=1)])

        return _sum(map(part, graphs))

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
    @torch.enable_grad()
    def pushes_gradients(self) -> bool:
        """Whether forward mode goes through the gradient, and agrees with two reverse passes.

        Decided once, on one sample at the module's own parameters. Closed forms do without.
        """
        if not isinstance(self._function, ModelLoss):
            return False
        batch = self._probe_batch(1)
        theta = self.parameters()
        generator = torch.Generator(self.device).manual_seed(0)
        directions = torch.randn(self.dimension, 2, generator=generator, dtype=self.dtype, device=self.device)
        leaf = theta.detach().requires_grad_()
        (slope,) = torch.autograd.grad(
            self._share(leaf, batch=batch), leaf, create_graph=True, materialize_grads=True
        )
        expected = pull_back(slope, leaf, directions.mT).mT
        try:
            with mapping():
                found = push_forward(grad(functools.partial(self._share, batch=batch)), theta, directions)
        except (NotImplementedError, RuntimeError, UserWarning):
            return False
        tolerance = 1e-6 if self.dtype == torch.float64 else 1e-3
        error, size = torch.linalg.vector_norm(found - expected), torch.linalg.vector_norm(expected)
        return bool(error <= tolerance * (size + 1e-12))

    def dense_hessian(self, theta: Tensor) -> Tensor:
        """H formed column by column from one graph: (D,) → (D, D), or (R, D) → (R, D, D). For small D."""
        axes = torch.eye(self.dimension, dtype=self.dtype, device=self.device)
        total = theta.new_zeros(*theta.shape, self.dimension)
        for leaf, slope in self.gradient_graphs(theta):
            total += torch.stack([pull_back(slope, leaf, axis.expand_as(theta)) for axis in axes], dim=-1)
        return (total + total.mT) / 2

    @torch.enable_grad()
    def gauss_newton_product(self, theta: Tensor, directions: Tensor) -> Tensor:
        """(1/N) Σ_n J_nᵀ (∇²_f ℓ_n) J_n v, with J_n the Jacobian of sample n's outputs f.

        ``directions`` is (D,) or (D, K); so is the result.
        """
        model_loss = self._model_loss("the Gauss–Newton matrix")
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
                summed = model_loss.losses_of_outputs(at, batch.targets).sum() / self.sample_count
                (slope,) = torch.autograd.grad(summed, at, create_graph=True)
                if block.ndim == 1:
                    parts.append(pull_back(predicted, leaf, pull_back(slope, at, pushed)))
                else:
                    curved = pull_back(slope, at, pushed.movedim(-1, 0))
                    parts.append(pull_back(predicted, leaf, curved).mT)
            total += _joined(parts)
        return total

    @torch.enable_grad()
    def gauss_newton_forms(self, theta: Tensor, directions: Tensor) -> Tensor:
        """(1/N) Σ_n (J_nv)ᵀ (∇²_f ℓ_n) (J_nv) for each column of a block: (D, K) → (K,)."""
        model_loss = self._model_loss("the Gauss–Newton matrix")
        self._check_theta(theta, replicas=False)
        self._check_block(theta, directions)
        total = directions.new_zeros(directions.shape[1])
        for batch in self._batches(passes=2, columns=directions.shape[1]):

            def outputs(point: Tensor, batch: Batch = batch) -> Tensor:
                return tensor_outputs(model_loss.outputs(point, batch.inputs))

            with torch.no_grad():
                at = outputs(theta)
            at.requires_grad_()
            summed = model_loss.losses_of_outputs(at, batch.targets).sum() / self.sample_count
            (slope,) = torch.autograd.grad(summed, at, create_graph=True)
            parts = []
            for block in column_blocks(directions, self._columns_at_once(batch.size), theta):
                pushed = self._push_forward(outputs, theta, block, batch.size).movedim(-1, 0)
                parts.append((pushed * pull_back(slope, at, pushed)).flatten(1).sum(1))
            total += torch.cat(parts)
        return total

    @torch.enable_grad()
    def gauss_newton_draws(self, theta: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
        """``count`` draws of N(0, GGN), as rows (count, D): Jᵀ(∇²_f ℓ)^{1/2} z/√N, one backward pass each."""
        model_loss = self._model_loss("the Gauss–Newton matrix")
        self._check_theta(theta, replicas=False)
        total = theta.new_zeros(count, self.dimension)
        for batch in self._batches(passes=4, columns=count):
            leaf = theta.detach().requires_grad_()
            predicted = tensor_outputs(model_loss.outputs(leaf, batch.inputs))
            root = model_loss.output_hessian_root(predicted.detach(), batch)
            noise = torch.randn(
                count, *root.shape[:2], 1, generator=generator, dtype=self.dtype, device=self.device
            )
            cotangents = (root @ noise).reshape(count, *predicted.shape) / self.sample_count**0.5
            at_once = cotangents.split(self._columns_at_once(batch.size))
            total += torch.cat([pull_back(predicted, leaf, some) for some in at_once])
        return total

    # ------------------------------------------------------------------ how it is evaluated

    def _push_forward(
        self, function: Callable[[Tensor], Tensor], theta: Tensor, directions: Tensor, samples: int
    ) -> Tensor:
        """Derivatives of ``function`` along the directions; columns of a block stay last."""
        forward = push_forward if self.forward_mode else push_forward_by_reverse
        parts = [
            forward(function, theta, block)
            for block in column_blocks(directions, self._columns_at_once(samples), theta)
        ]
        return _joined(parts)

    @functools.cached_property
    @torch.enable_grad()
    def forward_mode(self) -> bool:
        """Whether the losses have forward-mode derivatives, and those agree with reverse mode.

        Decided once, on one sample at the module's own parameters.
        """
        if isinstance(self._function, ClosedForm) and not self._function.probes_single:
            return False
        batch = self._probe_batch(1)
        theta = self.parameters()

        def loss(point: Tensor) -> Tensor:
            return self._function.losses(point, batch).sum()

        leaf = theta.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf), leaf, materialize_grads=True)
        # drawn only now, for it may be large
        generator = torch.Generator(self.device).manual_seed(0)
        direction = torch.randn(self.dimension, generator=generator, dtype=self.dtype, device=self.device)
        direction /= torch.linalg.vector_norm(direction)
        try:
            forward = push_forward(loss, theta, direction)
        except (NotImplementedError, RuntimeError):
            return False
        tolerance = 1e-6 if self.dtype == torch.float64 else 1e-3
        return bool((forward - slope @ direction).abs() <= tolerance * (torch.linalg.vector_norm(slope) + 1e-12))

    @functools.cached_property
    def pushes_outputs(self) -> bool:
        """Whether there is a Gauss–Newton matrix, and forward mode for its quadratic forms."""
        if not isinstance(self._function, ModelLoss) or not self.forward_mode:
            return False
        with torch.no_grad():
            return isinstance(self._function.outputs(self.parameters(), self._probe_batch(1).inputs), Tensor)

    def _probe_batch(self, size: int) -> Batch:
        return next(self._samples.batches(self.sample_count if self._function.broadcasts else size))

    def _batches(self, *, passes: int, columns: int = 1) -> Iterator[Batch]:
        """Chunks of the data, as :meth:`chunk_size`."""
        return self._samples.batches(self.chunk_size(passes=passes, columns=columns))

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
        return self._function.gradient_width(self.parameters(), self._probe_batch(1))

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
        return self._function.bytes_per_sample(self._probe_batch(2))

    def _model_loss(self, purpose: str) -> ModelLoss:
        if not isinstance(self._function, ModelLoss):
            raise ValueError(
                f"{purpose} needs a model with outputs and data; this risk was built from a function of θ. "
                "Build it as EmpiricalRisk(model, loss, data)"
            )
        return self._function

    def _check_theta(self, theta: Tensor, *, replicas: bool = True) -> None:
        if not isinstance(theta, Tensor):
            raise TypeError(f"θ must be a flat torch.Tensor (risk.parameters()), not {type(theta).__name__}")
        if theta.ndim not in ((1, 2) if replicas else (1,)) or theta.shape[-1] != self.dimension:
            allowed = f"({self.dimension},)" + (f" or (R, {self.dimension})" if replicas else "")
            raise ValueError(f"θ must have shape {allowed}, not {tuple(theta.shape)}")
        if theta.dtype != self.dtype:
            raise ValueError(
                f"θ is {theta.dtype} but the risk is {self.dtype}; convert one: theta.to({self.dtype}) or "
                f"risk.to({theta.dtype})"
            )
        if theta.device != self.device:
            raise ValueError(
                f"mixed devices: θ is on {theta.device}, the risk on {self.device}; use theta.to('{self.device}')"
            )
        if torch.is_inference_mode_enabled() or theta.is_inference():
            raise RuntimeError("inference mode records no derivatives: leave it, and clone a θ that was made in it")

    def _check_block(self, theta: Tensor, directions: Tensor) -> None:
        if theta.ndim == 2:
            if directions.shape != theta.shape:
                raise ValueError(
                    f"with replicas, directions match θ's shape {tuple(theta.shape)}, not {tuple(directions.shape)}"
                )
        elif directions.ndim not in (1, 2) or directions.shape[0] != self.dimension:
            raise ValueError(
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


def check_positive(name: str, value: int | None) -> int | None:
    """``value``, refused below 1."""
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
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
