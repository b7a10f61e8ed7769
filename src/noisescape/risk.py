"""The empirical risk: everything the laboratory knows about a model, a loss and its data.

One vector-valued function ℓ(θ) ∈ R^N, the per-sample losses, and its Jacobian G (N × D, rows g_n = ∇ℓ_n)
carry it all: the gradient is Gᵀ1/N, any re-weighted gradient Gᵀw is one backward pass, the directional
derivatives of all samples Gv are one forward-mode pass, and curvature is the derivative of the gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from noisescape import curvature
from noisescape.curvature import HESSIAN_PASSES
from noisescape.differentiation import column_blocks, pull_back, push_forward, push_forward_by_reverse
from noisescape.errors import NonFiniteLossError
from noisescape.function_loss import ClosedForm, LossVector, SampleLoss
from noisescape.gradient_noise import EmpiricalFisher, NoiseCovariance
from noisescape.linops import SymmetricOperator
from noisescape.model_loss import Loss, ModelLoss
from noisescape.samples import Batch, Samples, TensorSamples, open_samples

DEFAULT_MEMORY_BUDGET = 2**30
"""Bytes that temporaries of one evaluation may take, unless the caller says otherwise."""

Metric = Callable[[Any, Any], Tensor]


class EmpiricalRisk:
    """L(θ) = (1/N) Σ_n ℓ_n(θ), with its derivatives and the operators built from them.

    θ is always the flat vector (D,) of trainable parameters in the order of ``model.named_parameters()``.
    Methods whose docstring says "or (R, D)" also take R parameter vectors at once (replicas) and return
    results with a leading R. Nothing here changes the module.

    Args:
        model: any ``nn.Module`` whose per-sample outputs do not depend on the rest of the batch.
        loss: ``loss(outputs, targets)``, a function or an ``nn`` loss. Where it has a ``reduction`` it is
            used unreduced; otherwise it must return (n,) or (n, T), the latter averaged over T.
        data: ``(inputs, targets)`` tensors (or tuples or dicts of tensors), a map-style ``Dataset``, or a
            re-iterable of batches such as an unshuffled ``DataLoader``; batches may differ in size.
        memory_budget: bytes for the temporaries of one evaluation; chunk sizes follow from it.
            Default 1 GiB.
        chunk_size: samples evaluated together, overriding the budget. Results do not depend on it beyond
            rounding.

    Raises:
        BatchCouplingError: batch-norm in training mode, active dropout, or any other dependence of a
            sample's loss on its batch or on chance.
        ValueError: a reduced loss, empty data, mixed devices or dtypes, a shuffled loader.
        NonFiniteLossError: from :meth:`losses` and :meth:`loss`.

    >>> model = torch.nn.Linear(3, 2)
    >>> data = (torch.randn(10, 3), torch.randint(0, 2, (10,)))
    >>> risk = EmpiricalRisk(model, torch.nn.functional.cross_entropy, data)
    >>> risk
    EmpiricalRisk(N = 10 samples, D = 8 parameters, torch.float32, cpu)
    >>> risk.gradient(risk.parameters()).shape
    torch.Size([8])
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | nn.Module,
        data: Any,
        *,
        memory_budget: int | None = None,
        chunk_size: int | None = None,
    ) -> None:
        budget = _check_positive("memory_budget", memory_budget) or DEFAULT_MEMORY_BUDGET
        model_loss = ModelLoss(model, loss)
        samples = open_samples(data, device=model_loss.device, memory_budget=budget)
        self._assemble(model_loss, samples, model_loss.flat_parameters, budget, chunk_size)
        probe = self._probe_batch(2)
        one = TensorSamples(probe.inputs, probe.targets).between(0, 1)
        theta = self.parameters()
        model_loss.check(theta, probe.inputs, probe.targets, (one.inputs, one.targets), probe.size)

    @classmethod
    def from_losses(
        cls, losses: Callable[[Tensor], Tensor], parameters: Tensor, *, memory_budget: int | None = None
    ) -> EmpiricalRisk:
        """A risk from a plain function of the parameters.

        Args:
            losses: θ ↦ ℓ(θ), (D,) → (N,), differentiable by PyTorch; replicas are mapped by ``vmap``.
            parameters: θ₀, (D,): what :meth:`parameters` returns; fixes D, dtype and device.
            memory_budget: as for the class.

        >>> points = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> risk = EmpiricalRisk.from_losses(lambda w: ((w - points) ** 2).sum(1), torch.zeros(2))
        >>> risk.gradient(torch.tensor([1.0, 3.0]))
        tensor([0., 6.])
        """
        return cls._closed_form(LossVector(losses, parameters), memory_budget)

    @classmethod
    def from_sample_loss(
        cls,
        loss: Callable[[Tensor, Tensor], Tensor],
        data: Tensor,
        parameters: Tensor,
        *,
        memory_budget: int | None = None,
    ) -> EmpiricalRisk:
        """A risk from the loss of one sample, ℓ(θ; x), written so that it broadcasts.

        Faster than :meth:`from_losses` for replicas and per-sample gradients, and replicas may have data of
        their own.

        Args:
            loss: (θ, x) ↦ ℓ, with θ of shape (..., D) and x of shape (..., *sample) ↦ (...).
            data: x of all samples, (N, *sample), or (R, N, *sample): a data set for each replica.
            parameters: θ₀, (D,).
            memory_budget: as for the class.

        >>> points = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> risk = EmpiricalRisk.from_sample_loss(
        ...     lambda w, x: ((w - x) ** 2).sum(-1), points, torch.zeros(2)
        ... )
        >>> risk.per_sample_gradients(torch.tensor([1.0, 3.0]))
        tensor([[ 2.,  6.],
                [-2.,  6.]])
        """
        return cls._closed_form(SampleLoss(loss, data, parameters), memory_budget)

    @classmethod
    def _closed_form(cls, function: ClosedForm, memory_budget: int | None) -> EmpiricalRisk:
        samples = function.samples()
        budget = _check_positive("memory_budget", memory_budget) or DEFAULT_MEMORY_BUDGET
        risk = cls.__new__(cls)
        risk._assemble(function, samples, function.flat_parameters, budget, samples.count)
        return risk

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
        self._chunk_size = _check_positive("chunk_size", chunk_size)

    # ------------------------------------------------------------------ what it is made of

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

    @property
    def maps_replicas(self) -> bool:
        """Whether replicas are evaluated by broadcasting, which is what makes many of them cheap."""
        return self._function.broadcasts

    def __repr__(self) -> str:
        return (
            f"EmpiricalRisk(N = {self.sample_count} samples, D = {self.dimension} parameters, "
            f"{self.dtype}, {self.device})"
        )

    def parameters(self) -> Tensor:
        """The module's present trainable parameters as a new flat vector, (D,)."""
        return self._parameters()

    def state_dict(self, theta: Tensor) -> dict[str, Tensor]:
        """θ, (D,), as a state dict of new tensors, for ``model.load_state_dict(..., strict=False)``."""
        self._check_theta(theta, replicas=False)
        model_loss = self._model_loss("named parameters")
        return {name: tensor.clone() for name, tensor in model_loss.named(theta).items()}

    def with_data(self, data: Any) -> EmpiricalRisk:
        """The same model and loss on other data: a test set, say."""
        model_loss = self._model_loss("other data")
        samples = open_samples(data, device=self.device, memory_budget=self.memory_budget)
        return self._like(model_loss, samples, self._parameters)

    def to(self, target: torch.dtype | torch.device | str) -> EmpiricalRisk:
        """The same risk in another floating-point dtype or on another device."""
        dtype = target if isinstance(target, torch.dtype) else self.dtype
        device = self.device if isinstance(target, torch.dtype) else torch.device(target)
        model_loss = self._model_loss("conversion")

        def convert(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

        parameters = self._parameters
        return self._like(model_loss.cast(dtype, device), self._samples.map(convert), lambda: convert(parameters()))

    def _like(self, model_loss: ModelLoss, samples: Samples, parameters: Callable[[], Tensor]) -> EmpiricalRisk:
        other = type(self).__new__(type(self))
        other._assemble(model_loss, samples, parameters, self.memory_budget, self._chunk_size)
        return other

    # ------------------------------------------------------------------ losses and metrics

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
            parts = [self._function.losses(theta, batch) for batch in self._batches(passes=1)]
        return torch.cat(parts, dim=-1)

    def loss(self, theta: Tensor) -> Tensor:
        """L(θ): (D,) → (), or (R, D) → (R,). Raises as :meth:`losses`."""
        return self.losses(theta).mean(-1)

    def metric(self, theta: Tensor, metric: Metric) -> Tensor:
        """Mean over samples of ``metric(outputs, targets)``, which returns one value a sample, (n,).

        (D,) → (), or (R, D) → (R,).
        """
        self._check_theta(theta)
        if theta.ndim == 2:
            return torch.stack([self.metric(row, metric) for row in theta])
        model_loss = self._model_loss("a metric of outputs")
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with torch.no_grad():
            for batch in self._batches(passes=1):
                values = metric(model_loss.outputs(theta, batch.inputs), batch.targets)
                if values.shape[:1] != (batch.size,):
                    raise ValueError(
                        f"the metric of {batch.size} samples has shape {tuple(values.shape)}; it must return "
                        f"one value a sample, ({batch.size},)"
                    )
                total += values.double().sum() / values[0].numel()
        return (total / self.sample_count).to(self.dtype)

    def accuracy(self, theta: Tensor) -> Tensor:
        """Fraction of samples whose largest output is at the target class: (D,) → (), (R, D) → (R,)."""
        return self.metric(theta, correct)

    # ------------------------------------------------------------------ first derivatives

    def gradient(self, theta: Tensor) -> Tensor:
        """∇L(θ) = Gᵀ1/N: (D,) → (D,), or (R, D) → (R, D). Non-finite values pass through."""
        self._check_theta(theta)
        total = torch.zeros_like(theta)
        for batch in self._batches(passes=2):
            leaf = theta.detach().requires_grad_()
            (part,) = torch.autograd.grad(
                self._function.losses(leaf, batch).sum() / self.sample_count, leaf, materialize_grads=True
            )
            total = part if batch.size == self.sample_count else total + part
        return total

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
        total = theta.new_zeros(theta.shape if not block else (self.dimension, weights.shape[1]))
        for batch in self._batches(passes=2):
            leaf = theta.detach().requires_grad_()
            losses = self._function.losses(leaf, batch)
            if block:
                part = pull_back(losses, leaf, weights[batch.span].mT).mT
            else:
                weighted = (losses * weights[..., batch.span]).sum()
                (part,) = torch.autograd.grad(weighted, leaf, materialize_grads=True)
            total = part if batch.size == self.sample_count else total + part
        return total

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
        for batch in self._batches(passes=2):

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
            size = self._gradient_rows()
            return torch.cat([self._function.gradients(theta, batch) for batch in chosen.batches(size)], dim=-2)
        return torch.cat(list(self.per_sample_gradient_chunks(theta)), dim=-2)

    def per_sample_gradient_chunks(self, theta: Tensor) -> Iterator[Tensor]:
        """G in consecutive blocks of rows, each within the memory budget."""
        self._check_theta(theta)
        for batch in self._samples.batches(self._gradient_rows()):
            yield self._function.gradients(theta, batch)

    # ------------------------------------------------------------------ second derivatives

    def gradient_graphs(self, theta: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(θ as a leaf, this chunk's share of ∇L(θ) as a function of it), chunk by chunk.

        Differentiating the second with respect to the first gives Hessian products.
        """
        self._check_theta(theta)
        for batch in self._batches(passes=HESSIAN_PASSES):
            leaf = theta.detach().clone().requires_grad_()
            share = self._function.losses(leaf, batch).sum() / self.sample_count
            (slope,) = torch.autograd.grad(share, leaf, create_graph=True, materialize_grads=True)
            yield leaf, slope

    def hessian_product(self, theta: Tensor, directions: Tensor) -> Tensor:
        """Hv, the derivative of the gradient along v, by two reverse passes.

        Args:
            theta: (D,), or (R, D).
            directions: (D,), or a block (D, K) with a single θ, or (R, D) with replicas.

        Returns:
            As ``directions``. For several products at one θ, :meth:`hessian` keeps the first pass.
        """
        self._check_block(theta, directions)
        total = torch.zeros_like(directions)
        for leaf, slope in self.gradient_graphs(theta):
            total += self.bend(leaf, slope, directions)
        return total

    def bend(self, leaf: Tensor, slope: Tensor, directions: Tensor) -> Tensor:
        """One chunk's share of Hv, from its :meth:`gradient_graphs`."""
        if directions.ndim == leaf.ndim:
            return pull_back(slope, leaf, directions)
        columns = self._columns_at_once(self.chunk_size(passes=HESSIAN_PASSES))
        return torch.cat([pull_back(slope, leaf, block.mT).mT for block in directions.split(columns, 1)], dim=1)

    def dense_hessian(self, theta: Tensor) -> Tensor:
        """H formed column by column from one graph: (D,) → (D, D), or (R, D) → (R, D, D). For small D."""
        axes = torch.eye(self.dimension, dtype=self.dtype, device=self.device)
        total = theta.new_zeros(*theta.shape, self.dimension)
        for leaf, slope in self.gradient_graphs(theta):
            total += torch.stack([pull_back(slope, leaf, axis.expand_as(theta)) for axis in axes], dim=-1)
        return (total + total.mT) / 2

    def gauss_newton_product(self, theta: Tensor, directions: Tensor) -> Tensor:
        """(1/N) Σ_n J_nᵀ (∇²_f ℓ_n) J_n v, with J_n the Jacobian of sample n's outputs f.

        ``directions`` is (D,) or (D, K); so is the result.
        """
        model_loss = self._model_loss("the Gauss–Newton matrix")
        self._check_theta(theta, replicas=False)
        self._check_block(theta, directions)
        total = torch.zeros_like(directions)
        for batch in self._batches(passes=4):

            def outputs(point: Tensor, batch: Batch = batch) -> Tensor:
                return _tensor_outputs(model_loss.outputs(point, batch.inputs))

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
            total += torch.cat(parts, dim=-1)
        return total

    def gauss_newton_draws(self, theta: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
        """``count`` draws of N(0, GGN), as rows (count, D): Jᵀ(∇²_f ℓ)^{1/2} z/√N, one backward pass each."""
        model_loss = self._model_loss("the Gauss–Newton matrix")
        self._check_theta(theta, replicas=False)
        total = theta.new_zeros(count, self.dimension)
        for batch in self._batches(passes=4):
            leaf = theta.detach().requires_grad_()
            predicted = _tensor_outputs(model_loss.outputs(leaf, batch.inputs))
            root = curvature.output_hessian_root(model_loss, predicted.detach(), batch)
            noise = torch.randn(
                count, *root.shape[:2], 1, generator=generator, dtype=self.dtype, device=self.device
            )
            cotangents = (root @ noise).reshape(count, *predicted.shape) / self.sample_count**0.5
            total += pull_back(predicted, leaf, cotangents)
        return total

    # ------------------------------------------------------------------ operators

    def hessian(self, theta: Tensor) -> SymmetricOperator:
        """H = ∇²L(θ), matrix-free. A product costs about as much as a gradient, the first one two."""
        self._check_theta(theta, replicas=False)
        return curvature.Hessian(self, theta)

    def gauss_newton(self, theta: Tensor) -> SymmetricOperator:
        """The generalised Gauss–Newton matrix (1/N) Σ J_nᵀ(∇²_f ℓ_n)J_n, matrix-free; PSD for convex losses."""
        self._check_theta(theta, replicas=False)
        return curvature.gauss_newton(self, theta)

    def fisher(
        self,
        theta: Tensor,
        *,
        sample_targets: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        draws: int = 1,
        seed: int = 0,
    ) -> SymmetricOperator:
        """The Fisher information of the model's predictive distribution, (1/N) Σ_n E_{y~p(·|x_n)} g gᵀ.

        Exact for softmax cross-entropy, binary cross-entropy with logits and squared loss, where it is the
        Gauss–Newton matrix: those losses are negative log-likelihoods in natural parameters (the squared
        loss, a mean over m outputs, of a Gaussian with variance m/2). For sequences (n, T) it is that of one
        token, as the loss is.

        Otherwise sampled: ``sample_targets(outputs, generator)`` draws targets from the model's predictive
        distribution and the operator is the empirical Fisher of ``draws`` such sets, drawn once.

        Raises:
            ValueError: an unrecognised loss and no ``sample_targets``.
        """
        self._check_theta(theta, replicas=False)
        model_loss = self._model_loss("the Fisher information")
        if sample_targets is None:
            if not curvature.is_exponential_family(model_loss.loss):
                raise ValueError(
                    "the Fisher information needs the model's predictive distribution, which is known for "
                    "softmax and binary cross-entropy and squared loss only; pass sample_targets=(outputs, "
                    "generator) -> targets to estimate it by sampling"
                )
            return curvature.gauss_newton(self, theta, name="Fisher")
        if draws < 1:
            raise ValueError(f"draws must be at least 1, not {draws}")
        if not isinstance(self._samples, TensorSamples):
            raise ValueError("a sampled Fisher keeps its targets and needs data in memory, not a stream")
        generator = torch.Generator(self.device).manual_seed(seed)
        with torch.no_grad():
            outputs = model_loss.outputs(theta, self._samples.inputs)
            targets = torch.cat([sample_targets(outputs, generator) for _ in range(draws)])
        repeated = self._samples.map(lambda tensor: torch.cat([tensor] * draws))
        sampled = self._like(model_loss, TensorSamples(repeated.inputs, targets), self._parameters)
        return EmpiricalFisher(sampled, theta, name="sampled Fisher")

    def empirical_fisher(self, theta: Tensor) -> SymmetricOperator:
        """The uncentred second moment of the per-sample gradients, (1/N) Σ g_n g_nᵀ = GᵀG/N."""
        self._check_theta(theta, replicas=False)
        return EmpiricalFisher(self, theta)

    def noise_covariance(self, theta: Tensor, batch_size: int, *, replacement: bool = True) -> NoiseCovariance:
        """Σ_B, the covariance of a minibatch *gradient* of size B (multiply by η² for the update's).

        With C = (1/N) Σ (g_n − ḡ)(g_n − ḡ)ᵀ: C/B when the batch is drawn with replacement (the default),
        (N−B)/(B(N−1))·C when drawn without.

        Raises:
            ValueError: B < 1, or B > N without replacement.
        """
        self._check_theta(theta, replicas=False)
        return NoiseCovariance(self, theta, batch_size, replacement=replacement)

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
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    @functools.cached_property
    def forward_mode(self) -> bool:
        """Whether the losses have forward-mode derivatives, and those agree with reverse mode.

        Decided once, on one sample at the module's own parameters.
        """
        if isinstance(self._function, ClosedForm) and not self._function.probes_single:
            return False
        batch = self._probe_batch(1)
        theta = self.parameters()
        generator = torch.Generator(self.device).manual_seed(0)
        direction = torch.randn(self.dimension, generator=generator, dtype=self.dtype, device=self.device)
        direction /= torch.linalg.vector_norm(direction)

        def loss(point: Tensor) -> Tensor:
            return self._function.losses(point, batch).sum()

        leaf = theta.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf), leaf, materialize_grads=True)
        try:
            forward = push_forward(loss, theta, direction)
        except (NotImplementedError, RuntimeError):
            return False
        tolerance = 1e-6 if self.dtype == torch.float64 else 1e-3
        return bool((forward - slope @ direction).abs() <= tolerance * (torch.linalg.vector_norm(slope) + 1e-12))

    def _probe_batch(self, size: int) -> Batch:
        return next(self._samples.batches(self.sample_count if self._function.broadcasts else size))

    def _batches(self, *, passes: int) -> Iterator[Batch]:
        """Chunks of the data; ``passes`` says how many times the forward pass's memory one sample takes."""
        return self._samples.batches(self.chunk_size(passes=passes))

    def chunk_size(self, *, passes: int = 2) -> int:
        """How many samples are evaluated together within the memory budget."""
        if self._chunk_size is not None:
            return self._chunk_size
        return min(self.sample_count, max(1, self.memory_budget // (passes * self.bytes_per_sample)))

    def fits_whole(self, passes: int) -> bool:
        """Whether all samples are evaluated together at that multiple of the forward pass's memory."""
        return isinstance(self._samples, TensorSamples) and self.chunk_size(passes=passes) >= self.sample_count

    def _gradient_rows(self) -> int:
        """How many per-sample gradients are held together within the memory budget."""
        if self._chunk_size is not None:
            return self._chunk_size
        row = self.dimension * _element_size(self.dtype)
        return min(self.sample_count, max(1, self.memory_budget // (3 * row + 2 * self.bytes_per_sample)))

    def _columns_at_once(self, samples: int) -> int:
        """How many directions are differentiated along together within the memory budget."""
        activations = 4 * samples * self.bytes_per_sample
        vectors = 4 * self.dimension * _element_size(self.dtype)
        return max(1, min(16, self.memory_budget // (activations + vectors)))

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


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest output is at the target class, else 0."""
    return (outputs.argmax(1) == targets).float()


def _require_finite(values: Tensor) -> None:
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        position = int((~finite).nonzero()[0])
        raise NonFiniteLossError(
            f"{int((~finite).sum())} of {len(values)} losses are not finite, the first that of sample "
            f"{position} ({float(values[position])}); check that sample for NaN inputs or unseen targets, or "
            "whether training diverged (smaller learning rate)"
        )


def _tensor_outputs(outputs: Any) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"the Gauss–Newton and Fisher matrices need the model to return one tensor, not "
            f"{type(outputs).__name__}; wrap the model so that it returns its logits"
        )
    return outputs


def _check_positive(name: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def _element_size(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits // 8
