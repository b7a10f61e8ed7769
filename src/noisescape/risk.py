"""The empirical risk: a model, a loss and its data, or a closed form, with all that is derived from them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from noisescape import curvature
from noisescape.function_loss import ClosedForm, LossVector, SampleLoss
from noisescape.gradient_noise import EmpiricalFisher, NoiseCovariance
from noisescape.linops import SymmetricOperator
from noisescape.model_loss import Loss, ModelLoss, logits
from noisescape.per_sample_losses import PerSampleLosses, check_positive
from noisescape.samples import Samples, TensorSamples, open_samples

DEFAULT_MEMORY_BUDGET = 2**30
"""Bytes that temporaries of one evaluation may take, unless the caller says otherwise."""

Metric = Callable[[Any, Any], Tensor]


class EmpiricalRisk(PerSampleLosses):
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

    _last_copy: weakref.ref[Tensor] | None = None

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | nn.Module,
        data: Any,
        *,
        memory_budget: int | None = None,
        chunk_size: int | None = None,
    ) -> None:
        budget = check_positive("memory_budget", memory_budget) or DEFAULT_MEMORY_BUDGET
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
            memory_budget: as for the class, but the vector of losses itself is always evaluated whole.

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
        budget = check_positive("memory_budget", memory_budget) or DEFAULT_MEMORY_BUDGET
        risk = cls.__new__(cls)
        # a vector of losses comes whole; sample by sample, the budget decides
        chunk_size = samples.count if isinstance(function, LossVector) else None
        risk._assemble(function, samples, function.flat_parameters, budget, chunk_size)
        return risk

    # ------------------------------------------------------------------ what it is made of

    def __repr__(self) -> str:
        return (
            f"EmpiricalRisk(N = {self.sample_count} samples, D = {self.dimension} parameters, "
            f"{self.dtype}, {self.device})"
        )

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

    # ------------------------------------------------------------------ metrics of a model's outputs

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

    # ------------------------------------------------------------------ operators

    def hessian(self, theta: Tensor) -> SymmetricOperator:
        """H = ∇²L(θ), matrix-free. A product costs about as much as a gradient, the first one two."""
        self._check_theta(theta, replicas=False)
        return curvature.Hessian(self, self._own(theta))

    def gauss_newton(self, theta: Tensor) -> SymmetricOperator:
        """The generalised Gauss–Newton matrix (1/N) Σ J_nᵀ(∇²_f ℓ_n)J_n, matrix-free; PSD for convex losses."""
        self._check_theta(theta, replicas=False)
        return curvature.GaussNewton(self, self._own(theta))

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
        loss, a mean over m outputs, of a Gaussian with variance m/2). Where the loss is a mean over several
        terms of a sample (tokens of a sequence, outputs of a binary cross-entropy) it is that of one term, as
        the loss is.

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
            return curvature.GaussNewton(self, self._own(theta), name="Fisher")
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
        return EmpiricalFisher(sampled, self._own(theta), name="sampled Fisher")

    def empirical_fisher(self, theta: Tensor) -> SymmetricOperator:
        """The uncentred second moment of the per-sample gradients, (1/N) Σ g_n g_nᵀ = GᵀG/N."""
        self._check_theta(theta, replicas=False)
        return EmpiricalFisher(self, self._own(theta))

    def noise_covariance(self, theta: Tensor, batch_size: int, *, replacement: bool = True) -> NoiseCovariance:
        """Σ_B, the covariance of a minibatch *gradient* of size B (multiply by η² for the update's).

        With C = (1/N) Σ (g_n − ḡ)(g_n − ḡ)ᵀ: C/B when the batch is drawn with replacement (the default),
        (N−B)/(B(N−1))·C when drawn without.

        Raises:
            ValueError: B < 1, or B > N without replacement.
        """
        self._check_theta(theta, replicas=False)
        return NoiseCovariance(self, self._own(theta), batch_size, replacement=replacement)

    def _own(self, theta: Tensor) -> Tensor:
        """A copy of θ that nobody changes; one for all operators at the same θ, which may be large."""
        last = self._last_copy() if self._last_copy else None
        if last is not None and torch.equal(last, theta):
            return last
        copied = theta.detach().clone()
        self._last_copy = weakref.ref(copied)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Without the weak reference, which cannot be pickled."""
        return {**self.__dict__, "_last_copy": None}


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest output is at the target class, else 0."""
    return (logits(outputs).argmax(1) == targets).float()
