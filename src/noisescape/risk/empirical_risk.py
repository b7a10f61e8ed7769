"""The empirical risk: a model, a loss and its data, or a closed form, with all that is derived from them."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from noisescape.errors import BatchCouplingError, InvalidValueError
from noisescape.linops import SymmetricOperator
from noisescape.risk.closed_form import ClosedForm, LossVector, SampleLoss
from noisescape.risk.contract import check_contract
from noisescape.risk.criterion import Loss, Normalisation, NormalisationWarning
from noisescape.risk.gradient_covariance import EmpiricalFisher, NoiseCovariance
from noisescape.risk.hessian import DifferenceHessian, GaussNewton, Hessian
from noisescape.risk.model_loss import ModelLoss, head, logits
from noisescape.risk.per_sample_losses import PerSampleLosses, check_positive
from noisescape.risk.probes import probe_batches
from noisescape.risk.randomness import Generators
from noisescape.risk.samples import Batch, Samples, StreamedSamples, TensorSamples, readings
from noisescape.risk.trees import map_tensors

DEFAULT_MEMORY_BUDGET = 2**30
"""Bytes that temporaries of one evaluation may take, unless the caller says otherwise."""
TRIED = 64
TRIED_BYTES = 2**28
"""Samples that the model is tried on, and bytes their evaluation may take; two are tried whatever they take."""
CHUNK_OF_TARGETS = 4096
REDUCED = 16
"""Samples on which the loss, reduced, is compared with the mean of its values."""
HALF = (torch.float16, torch.bfloat16)

Metric = Callable[[Any, Any], Tensor]


class EmpiricalRisk(PerSampleLosses):
    """L(θ) = (1/N) Σ_n ℓ_n(θ), with its derivatives and the operators built from them.

    θ is always the flat vector (D,) of trainable parameters in the order of ``model.named_parameters()``.
    Methods whose docstring says "or (R, D)" also take R parameter vectors at once (replicas) and return
    results with a leading R. Nothing here changes the module.

    The model is tried on a few unlike samples before any work: a number is right or refused. Rare kinds of samples
    may be missed there; ``docs/decisions/0012-right-or-refused.md`` says what is looked at.

    Args:
        model: any ``nn.Module`` whose per-sample outputs do not depend on the rest of the batch. Wrappers that
            distribute or compile it are taken off.
        loss: ``loss(outputs, targets)``, a function or an ``nn`` loss. Where it has a ``reduction`` it is
            used unreduced; otherwise it must return (n,) or (n, T), the latter averaged over T. It may read the
            model's parameters.
        data: ``(inputs, targets)`` tensors (or tuples or dicts of tensors), a map-style ``Dataset``, or a
            re-iterable of batches such as an unshuffled ``DataLoader``; batches may differ in size, and in the
            shapes of their samples. Streams are held to a checksum on each pass.
        normalisation: of cross-entropy with ignored or weighted targets: ``"criterion"``, L is what the criterion
            gives for all data at once; ``"sample"``, each ℓ_n is what it gives for that sample alone. See
            :class:`~noisescape.risk.criterion.Criterion`.
        memory_budget: bytes for the temporaries of one evaluation; chunk sizes follow from it.
            Default 1 GiB.
        chunk_size: samples evaluated together, overriding the budget. Results do not depend on it beyond
            rounding.

    Raises:
        BatchCouplingError: batch-norm in training mode, active dropout, or any other dependence of a
            sample's loss on its batch or on chance.
        ValueError: a reduced loss, empty data, mixed devices or dtypes, a shuffled loader, trainable tensors that θ
            lacks, parameters changed in the forward pass.
        DataChangedError: a later pass over the data brings other samples than the first.
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
    _single: EmpiricalRisk | None = None

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | nn.Module,
        data: Any,
        *,
        normalisation: Normalisation = "criterion",
        memory_budget: int | None = None,
        chunk_size: int | None = None,
    ) -> None:
        budget = check_positive("memory_budget", memory_budget) or DEFAULT_MEMORY_BUDGET
        model_loss = ModelLoss(model, loss, normalisation)
        self._open(model_loss, data, model_loss.flat_parameters, budget, check_positive("chunk_size", chunk_size))

    def _open(
        self,
        model_loss: ModelLoss,
        data: Any,
        parameters: Callable[[], Tensor],
        budget: int,
        chunk_size: int | None,
    ) -> None:
        """Read the data, in the way that fits the model and its loss, once that has been tried."""
        accepted: list[tuple[Samples, list[Batch]]] = []
        errors: list[Exception] = []
        for samples in readings(data, device=model_loss.device, memory_budget=budget):
            try:
                tried = _unlike_samples(model_loss, samples, chunk_size)
                check_contract(model_loss, parameters(), tried, _whole(samples))
                accepted.append((samples, tried))
            except (ValueError, TypeError, RuntimeError, IndexError) as error:
                if isinstance(error, BatchCouplingError) and not accepted:
                    raise
                errors.append(error)
        if not accepted:
            raise errors[0]
        samples, tried = accepted[0]
        if len(accepted) > 1:
            warnings.warn(
                f"the list of {len(data)} pairs may hold batches or single samples; it is read as batches, of "
                f"{samples.count} samples in all. Pass stacked tensors, a DataLoader or a Dataset instead",
                UserWarning,
                stacklevel=3,
            )
        self._assemble(_normalised(model_loss, samples), samples, parameters, budget, chunk_size, tried)
        for batch in tried:
            self._function.check_reduction(self.parameters(), head(batch, REDUCED))  # type: ignore[union-attr]

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
        tried = [samples.between(0, samples.count)]
        risk._assemble(function, samples, function.flat_parameters, budget, chunk_size, tried)
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
        """The same model and loss on other data: a test set, say.

        The data is tried as at construction, with the same errors.
        """
        other = type(self).__new__(type(self))
        model_loss = self._model_loss("other data").afresh()
        other._open(model_loss, data, self._parameters, self.memory_budget, self._chunk_size)
        return other

    def to(self, target: torch.dtype | torch.device | str) -> EmpiricalRisk:
        """The same risk in another floating-point dtype or on another device."""
        dtype = target if isinstance(target, torch.dtype) else self.dtype
        device = self.device if isinstance(target, torch.dtype) else torch.device(target)
        model_loss = self._model_loss("conversion")

        def convert(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

        def converted(batch: Batch) -> Batch:
            both = map_tensors(convert, (batch.inputs, batch.targets))
            return Batch(both[0], both[1], batch.start, batch.size)

        parameters = self._parameters
        return self._like(
            model_loss.cast(dtype, device),
            self._samples.map(convert),
            lambda: convert(parameters()),
            [converted(batch) for batch in self._tried],
        )

    def _like(
        self, model_loss: ModelLoss, samples: Samples, parameters: Callable[[], Tensor], tried: list[Batch]
    ) -> EmpiricalRisk:
        other = type(self).__new__(type(self))
        other._assemble(model_loss, samples, parameters, self.memory_budget, self._chunk_size, tried)
        return other

    def fingerprint(self) -> str:
        """A checksum of what the risk is made of besides θ: data, frozen tensors, names, shapes, kinds.

        Two risks of one fingerprint may still differ in code: compare a loss as well.
        """
        state = xxhash.xxh3_64(self._samples.digest().encode())
        state.update(f"{self.dimension} {self.dtype} {self.sample_count}".encode())
        state.update(self._function.fingerprint().encode())
        return state.hexdigest()

    # ------------------------------------------------------------------ metrics of a model's outputs

    def metric(self, theta: Tensor, metric: Metric) -> Tensor:
        """Mean over samples of ``metric(outputs, targets)``, which returns one value a sample, (n,).

        (D,) → (), or (R, D) → (R,).

        Raises:
            ValueError: the metric's values are not one a sample.
        """
        self._check_theta(theta)
        if theta.ndim == 2:
            return torch.stack([self.metric(row, metric) for row in theta])
        model_loss = self._model_loss("a metric of outputs")
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in self._batches(passes=1):
            values = metric(model_loss.output_values(theta, batch.inputs), batch.targets)
            if not isinstance(values, Tensor) or values.shape != (batch.size,):
                found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise InvalidValueError(
                    f"the metric of {batch.size} samples has shape {found}; it must return one value a sample, "
                    f"({batch.size},): compare outputs with targets of the same shape, and average what a sample "
                    "has several of"
                )
            total += values.detach().double().sum()
        return (total / self.sample_count).to(self.dtype)

    def accuracy(self, theta: Tensor) -> Tensor:
        """Share of targets that are predicted: (D,) → (), (R, D) → (R,).

        The largest output names the class; of binary cross-entropy, each output is a label of its own. Targets that
        the loss ignores (``ignore_index``) do not count.

        Raises:
            ValueError: outputs and targets that cannot be compared so.
        """
        self._check_theta(theta)
        if theta.ndim == 2:
            return torch.stack([self.accuracy(row) for row in theta])
        model_loss = self._model_loss("accuracy")
        right = counted = 0
        for batch in self._batches(passes=1):
            outputs = logits(model_loss.output_values(theta, batch.inputs))
            correct, present = model_loss.criterion.correct(outputs, batch.targets)
            right += int((correct & present).sum())
            counted += int(present.sum())
        return torch.tensor(right / counted if counted else torch.nan, dtype=self.dtype, device=self.device)

    # ------------------------------------------------------------------ operators

    def hessian(self, theta: Tensor) -> SymmetricOperator:
        """H = ∇²L(θ), matrix-free. A product costs about as much as a gradient, the first one two."""
        risk, theta = self._for_operators(theta)
        return Hessian(risk, risk._own(theta))

    def finite_difference_hessian(self, theta: Tensor, *, step: float | None = None) -> DifferenceHessian:
        """H by central differences of the gradient, for models without second derivatives: two gradients a product.

        Hv ≈ (∇L(θ + hv̂) − ∇L(θ − hv̂))·‖v‖/(2h). Its ``relative_error`` says how far products are off; see
        :class:`~noisescape.risk.hessian.DifferenceHessian`.

        Args:
            theta: (D,).
            step: h; by default what balances truncation and rounding.
        """
        risk, theta = self._for_operators(theta)
        return DifferenceHessian(risk, risk._own(theta), step=step)

    def gauss_newton(self, theta: Tensor) -> SymmetricOperator:
        """The generalised Gauss–Newton matrix (1/N) Σ J_nᵀ(∇²_f ℓ_n)J_n, matrix-free; PSD for convex losses."""
        risk, theta = self._for_operators(theta)
        return GaussNewton(risk, risk._own(theta))

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
        risk, theta = self._for_operators(theta)
        model_loss = risk._model_loss("the Fisher information")
        if sample_targets is None:
            if not model_loss.criterion.is_exponential_family():
                raise InvalidValueError(
                    "the Fisher information needs the model's predictive distribution, which is known for "
                    "softmax and binary cross-entropy and squared loss only; pass sample_targets=(outputs, "
                    "generator) -> targets to estimate it by sampling"
                )
            return GaussNewton(risk, risk._own(theta), name="Fisher")
        if draws < 1:
            raise InvalidValueError(f"draws must be at least 1, not {draws}")
        return EmpiricalFisher(
            risk._with_drawn_targets(theta, sample_targets, draws, seed), theta, name="sampled Fisher"
        )

    def _with_drawn_targets(
        self,
        theta: Tensor,
        sample_targets: Callable[[Tensor, torch.Generator], Tensor],
        draws: int,
        seed: int,
    ) -> EmpiricalRisk:
        """The risk on the same inputs, ``draws`` times, with drawn targets, which are held; the inputs are not."""
        model_loss = self._model_loss("the Fisher information")
        generator = torch.Generator(self.device).manual_seed(seed)
        drawn: list[list[Tensor]] = [[] for _ in range(draws)]
        for batch in self._batches(passes=1):
            outputs = model_loss.output_values(theta, batch.inputs)
            for targets in drawn:
                found = sample_targets(outputs, generator)
                if not isinstance(found, Tensor) or found.shape[:1] != (batch.size,):
                    what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
                    raise InvalidValueError(
                        f"sample_targets returned {what} for {batch.size} samples; it must return a tensor of one "
                        "target a sample along its first dimension"
                    )
                targets.append(found.detach())
        size = max(len(targets) for targets in drawn[0])
        source = _Redrawn(self._samples, size, drawn)
        sizes = [len(targets) for _ in range(draws) for targets in drawn[0]]
        samples = StreamedSamples(source, sizes, None, [], lambda tensor: tensor)
        return self._like(model_loss.with_scale(None), samples, self._parameters, self._tried)

    def empirical_fisher(self, theta: Tensor) -> SymmetricOperator:
        """The uncentred second moment of the per-sample gradients, (1/N) Σ g_n g_nᵀ = GᵀG/N."""
        risk, theta = self._for_operators(theta)
        return EmpiricalFisher(risk, risk._own(theta))

    def noise_covariance(self, theta: Tensor, batch_size: int, *, replacement: bool = True) -> NoiseCovariance:
        """Σ_B, the covariance of a minibatch *gradient* of size B (multiply by η² for the update's).

        With C = (1/N) Σ (g_n − ḡ)(g_n − ḡ)ᵀ: C/B when the batch is drawn with replacement (the default),
        (N−B)/(B(N−1))·C when drawn without.

        Raises:
            ValueError: B < 1, or B > N without replacement.
        """
        risk, theta = self._for_operators(theta)
        return NoiseCovariance(risk, risk._own(theta), batch_size, replacement=replacement)

    def _for_operators(self, theta: Tensor) -> tuple[EmpiricalRisk, Tensor]:
        """Itself; of half precision, in which there is no linear algebra, the same in float32."""
        self._check_theta(theta, replicas=False)
        if self.dtype not in HALF:
            return self, theta
        if self._single is None:
            self._single = self.to(torch.float32)
        return self._single, theta.float()

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


class _Redrawn:
    """Batches of the same inputs, once for each draw of targets."""

    def __init__(self, samples: Samples, size: int, drawn: list[list[Tensor]]) -> None:
        self._samples, self._size, self._drawn = samples, size, drawn

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        for targets in self._drawn:
            for batch, some in zip(self._samples.batches(self._size), targets, strict=True):
                yield batch.inputs, some


def _whole(samples: Samples) -> Batch | None:
    """All samples as one batch, where they are held together."""
    return samples.between(0, samples.count) if isinstance(samples, TensorSamples) else None


def _unlike_samples(model_loss: ModelLoss, samples: Samples, chunk_size: int | None) -> list[Batch]:
    """What the model is tried on: as many unlike samples as fit, no more than are ever evaluated together."""
    found = probe_batches(samples, TRIED)
    with Generators(model_loss.modules, model_loss.criterion.loss).kept():
        try:
            each = max(model_loss.bytes_per_sample(head(batch, 2)) for batch in found)
        except Exception:  # what is wrong is told when the model is tried
            each = 1
    size = max(2, min(TRIED, TRIED_BYTES // (3 * each)))
    return [head(batch, min(size, chunk_size or size)) for batch in found]


def _normalised(model_loss: ModelLoss, samples: Samples) -> ModelLoss:
    """The loss with the N/W of these samples, where it is a weighted mean of its values.

    Warns:
        NormalisationWarning: each sample is normalised by itself, and that is another mean than the criterion's.
    """
    criterion = model_loss.criterion
    of_samples: list[Tensor] = []
    plain, counts = True, set()
    for batch in samples.batches(CHUNK_OF_TARGETS):
        weights = criterion.weights(batch.targets)
        if weights is None:
            return model_loss
        flat = weights.reshape(batch.size, -1).double()
        plain = plain and bool((flat == 1).all())
        counts.add(flat.shape[1])
        of_samples.append(flat.sum(1))
    each = torch.cat(of_samples)
    total = float(each.sum())
    if total <= 0:
        raise InvalidValueError("no target counts: all are ignored, or have weight 0")
    if plain and len(counts) == 1:
        return model_loss  # a mean of means is the mean
    if criterion.normalisation == "sample":
        if float(each.max() - each.min()) > 1e-6 * float(each.max()):
            warnings.warn(
                "each sample's loss is normalised by its own targets; the criterion, over all data, weights "
                f"samples by how many of their targets count (from {float(each.min()):g} to "
                f"{float(each.max()):g}). "
                'normalisation="criterion" measures what is trained',
                NormalisationWarning,
                stacklevel=5,
            )
        return model_loss
    return model_loss.with_scale(samples.count / total)
