"""The empirical risk: a model, a loss and its data, or a closed form, with all that is derived from them."""

from __future__ import annotations

import functools
import operator
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noisescape.distributed import Shard
from noisescape.errors import InvalidTypeError, InvalidValueError, NonFiniteLossError, kind_of
from noisescape.linops import SymmetricOperator
from noisescape.risk import gradients, passes
from noisescape.risk.arguments import check_risk, check_size, check_theta, checked_device
from noisescape.risk.capabilities import Capabilities, where_tried
from noisescape.risk.chunking import Chunking, ample_budget, modest_budget
from noisescape.risk.closed_form import ClosedForm, LossVector, SampleLoss
from noisescape.risk.contract import check_company
from noisescape.risk.criterion import Loss, Normalisation
from noisescape.risk.drawn_targets import SampleTargets, with_drawn_targets
from noisescape.risk.gradient_covariance import EmpiricalFisher, NoiseCovariance
from noisescape.risk.hessian import GaussNewton, Hessian
from noisescape.risk.model_loss import ModelLoss, logits
from noisescape.risk.opening import open_data
from noisescape.risk.samples import Batch
from noisescape.risk.sharded_samples import Samples, ShardedSamples
from noisescape.scalars import check_seed, check_whole

HALF = (torch.float16, torch.bfloat16)
RENAMED = {
    "weighted_gradient": "vjp",
    "directional_derivatives": "jvp",
    "hessian_product": "hvp",
    "forward_mode": "_capabilities.forward_mode",
    "pushes_gradients": "_capabilities.forward_over_reverse",
}
"""Earlier names, which still work, with a warning."""

Metric = Callable[[Any, Any], Tensor]
"""(outputs, targets) ↦ a value for each sample, (n,): what :meth:`EmpiricalRisk.metric` takes the mean of."""


class EmpiricalRisk:
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
        memory_budget: bytes for the temporaries of one evaluation, and for what is kept between products at one
            θ; chunk sizes follow from it. By default a CPU is given what two training steps take on as many samples
            as its caches hold, 32 MiB at least; a GPU an eighth of its memory. 2**30 is faster where the model is
            small: how much is in docs/performance.md.
        chunk_size: samples evaluated together, overriding the budget. Results do not depend on it beyond
            rounding.
        shard: this process is one of several, ``data`` is its part of the samples, and L is the mean over those of
            all; see :class:`~noisescape.distributed.Shard`. Every process then makes the same calls with the same
            arguments, and gets the same results: what one process with all the data would, to rounding.

    Raises:
        BatchCouplingError: batch-norm in training mode, active dropout, or any other dependence of a
            sample's loss on its batch or on chance.
        ValueError: a reduced loss, empty data, mixed devices or dtypes, a shuffled loader, trainable tensors that θ
            lacks, parameters changed in the forward pass.
        DataChangedError: a later pass over the data brings other samples than the first.
        NonFiniteLossError: from :meth:`losses` and :meth:`loss`.
        FailedError: another rank's data was refused. LostRankError: a rank ended, or did not answer in time.

    >>> model = torch.nn.Linear(3, 2)
    >>> data = (torch.randn(10, 3), torch.randint(0, 2, (10,)))
    >>> risk = EmpiricalRisk(model, torch.nn.functional.cross_entropy, data)
    >>> risk
    EmpiricalRisk(N = 10 samples, D = 8 parameters, torch.float32, cpu)
    >>> risk.gradient(risk.parameters()).shape
    torch.Size([8])
    """

    # What has one underscore is shared within this package, noisescape.risk, and not beyond.

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | nn.Module,
        data: Any,
        *,
        normalisation: Normalisation = "criterion",
        memory_budget: int | None = None,
        chunk_size: int | None = None,
        shard: Shard | None = None,
    ) -> None:
        check_size("chunk_size", chunk_size)
        check_size("memory_budget", memory_budget)
        function = ModelLoss(model, loss, normalisation)
        budget = memory_budget or ample_budget(function.device)
        opened = open_data(function, data, function.flat_parameters, budget, chunk_size, shard)
        self._assemble(
            opened.function, opened.samples, opened.tried, function.flat_parameters, memory_budget, chunk_size
        )

    @staticmethod
    def from_losses(
        losses: Callable[[Tensor], Tensor], parameters: Tensor, *, memory_budget: int | None = None
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
        return closed_form_risk(LossVector(losses, parameters), memory_budget)

    @staticmethod
    def from_sample_loss(
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
        return closed_form_risk(SampleLoss(loss, data, parameters), memory_budget)

    def _assemble(
        self,
        function: ModelLoss | ClosedForm,
        samples: Samples,
        tried: Sequence[Batch],
        parameters: Callable[[], Tensor],
        memory_budget: int | None,
        chunk_size: int | None,
    ) -> None:
        self._function = function
        self._samples = samples
        self._tried = list(tried)
        self._largest_tried = max(batch.size for batch in tried)
        self._parameters = parameters
        self._asked_budget = memory_budget
        self._chunk_size = chunk_size
        tried_at = functools.partial(where_tried, function, parameters)
        self._capabilities = Capabilities(function, samples, self._tried, tried_at)
        self._last_copy: weakref.ref[Tensor] | None = None
        if isinstance(samples, ShardedSamples):
            # now, on all ranks: later on, one may have none of the samples that a question first arises at
            self._capabilities.decide()
            _ = self._chunking

    def _like(
        self, function: ModelLoss, samples: Samples, parameters: Callable[[], Tensor], tried: Sequence[Batch]
    ) -> EmpiricalRisk:
        other = type(self).__new__(type(self))
        other._assemble(function, samples, tried, parameters, self._asked_budget, self._chunk_size)
        return other

    # ------------------------------------------------------------------ what it is made of

    def __repr__(self) -> str:
        return (
            f"EmpiricalRisk(N = {self.sample_count} samples, D = {self.dimension} parameters, "
            f"{self.dtype}, {self.device})"
        )

    @property
    def dimension(self) -> int:
        """D, the number of trainable parameters."""
        return self._function.dimension

    @property
    def sample_count(self) -> int:
        """N, the number of samples; of shards, of all ranks."""
        return self._samples.count

    @property
    def shard(self) -> Shard | None:
        """Which part of the samples this process holds; None: all of them."""
        return self._samples.shard if isinstance(self._samples, ShardedSamples) else None

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

    def state_dict(self, theta: Tensor) -> dict[str, Tensor]:
        """θ, (D,), as a state dict of new tensors, for ``model.load_state_dict(..., strict=False)``.

        A model sharded by FSDP2 takes it by ``torch.distributed.checkpoint.state_dict.set_model_state_dict`` with
        ``StateDictOptions(full_state_dict=True, strict=False)``.
        """
        self._check_theta(theta, replicas=False)
        function = self._model_loss("named parameters")
        return {name: tensor.clone() for name, tensor in function.named(theta).items()}

    def with_data(self, data: Any) -> EmpiricalRisk:
        """The same model and loss on other data: a test set, say.

        The data is tried as at construction, with the same errors; of shards, it is this rank's part.
        """
        function = self._model_loss("other data").with_scale(None)
        opened = open_data(function, data, self._parameters, self._budget, self._chunk_size, self.shard)
        return self._like(opened.function, opened.samples, self._parameters, opened.tried)

    def to(self, target: torch.dtype | torch.device | str) -> EmpiricalRisk:
        """The same risk in another floating-point dtype or on another device.

        Raises:
            TypeError: neither a dtype nor a device.
            ValueError: a dtype that is not floating-point; a device that is not there.
        """
        if isinstance(target, torch.dtype):
            if not target.is_floating_point:
                raise InvalidValueError(f"a risk has floating-point parameters, not {target}")
            dtype, device = target, self.device
        else:
            dtype, device = self.dtype, checked_device(target)
        function = self._model_loss("conversion")

        def convert(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

        parameters = self._parameters
        return self._like(
            function.cast(dtype, device),
            self._samples.map(convert),
            lambda: convert(parameters()),
            [batch.map(convert) for batch in self._tried],
        )

    # ------------------------------------------------------------------ values

    def losses(self, theta: Tensor) -> Tensor:
        """ℓ(θ): (D,) → (N,), or (R, D) → (R, N).

        Raises:
            NonFiniteLossError: any loss of a single θ is NaN or infinite. (With replicas, diverged rows are
                returned as they are.)
        """
        values = passes.unchecked_losses(self, theta)
        finite = torch.isfinite(values)
        if theta.ndim == 1 and not bool(finite.all()):
            position = int((~finite).nonzero()[0])
            raise NonFiniteLossError(
                f"{int((~finite).sum())} of {len(values)} losses are not finite, the first that of sample "
                f"{position} ({float(values[position])}); check that sample for NaN inputs or unseen targets, or "
                "whether training diverged (smaller learning rate)"
            )
        return values

    def loss(self, theta: Tensor) -> Tensor:
        """L(θ): (D,) → (), or (R, D) → (R,). Raises as :meth:`losses`."""
        return self.losses(theta).mean(-1)

    def metric(self, theta: Tensor, metric: Metric) -> Tensor:
        """Mean over samples of ``metric(outputs, targets)``, which returns one value a sample, (n,).

        (D,) → (), or (R, D) → (R,).

        Raises:
            ValueError: the metric's values are not one a sample.
        """
        self._check_theta(theta)
        if not callable(metric):
            raise InvalidTypeError(f"metric must be a function (outputs, targets), not {kind_of(metric)}")
        if theta.ndim == 2:
            return torch.stack([self.metric(row, metric) for row in theta])
        model_loss = self._model_loss("a metric of outputs")
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with self._samples.failing_together("evaluate the metric"):
            for batch in self._batches(passes=1):
                values = metric(model_loss.output_values(theta, batch.inputs), batch.targets)
                if not isinstance(values, Tensor) or values.shape != (batch.size,):
                    found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                    raise InvalidValueError(
                        f"the metric of {batch.size} samples has shape {found}; it must return one value a sample, "
                        f"({batch.size},): compare outputs with targets of the same shape, and average what a "
                        "sample has several of"
                    )
                total += values.detach().double().sum()
        return (self._samples.total(total) / self.sample_count).to(self.dtype)

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
        with self._samples.failing_together("evaluate the accuracy"):
            for batch in self._batches(passes=1):
                outputs = logits(model_loss.output_values(theta, batch.inputs))
                correct, present = model_loss.criterion.correct(outputs, batch.targets)
                right += int((correct & present).sum())
                counted += int(present.sum())
        right, counted = self._samples.total(torch.tensor([right, counted], device=self.device)).tolist()
        return torch.tensor(right / counted if counted else torch.nan, dtype=self.dtype, device=self.device)

    # ------------------------------------------------------------------ derivatives

    def gradient(self, theta: Tensor) -> Tensor:
        """∇L(θ) = Gᵀ1/N: (D,) → (D,), or (R, D) → (R, D). Non-finite values pass through."""
        return passes.gradient(self, theta)

    def minibatch_gradient(self, theta: Tensor, indices: Tensor) -> Tensor:
        """Mean of g_n over the given samples; repeated indices count repeatedly.

        Args:
            theta: (D,), or (R, D).
            indices: (B,), or (R, B): a batch of its own for each replica.
        """
        return passes.minibatch_gradient(self, theta, indices)

    def per_sample_gradients(self, theta: Tensor, indices: Tensor | None = None) -> Tensor:
        """G, row n the gradient of ℓ_n: (D,) → (N, D), or (R, D) → (R, N, D).

        Args:
            theta: (D,), or (R, D).
            indices: (n,), only these samples' rows. Default all N.

        Raises:
            ValueError: the result alone would take over 8 times the memory budget; take some rows at a time.
        """
        return gradients.gradient_rows(self, theta, indices)

    def vjp(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Gᵀw, the gradient of Σ_n w_n ℓ_n: one backward pass.

        Args:
            theta: (D,), or (R, D).
            weights: (N,), or a block (N, K) with a single θ, or (R, N) with replicas.

        Returns:
            (D,), (D, K) or (R, D).
        """
        return passes.vjp(self, theta, weights)

    def jvp(self, theta: Tensor, directions: Tensor) -> Tensor:
        """Gv, the derivative of every sample's loss along v, by forward-mode differentiation.

        Args:
            theta: (D,), or (R, D).
            directions: (D,), or a block (D, K) with a single θ, or (R, D) with replicas.

        Returns:
            (N,), (N, K) or (R, N).
        """
        return passes.jvp(self, theta, directions)

    def hvp(self, theta: Tensor, directions: Tensor) -> Tensor:
        """Hv, the derivative of the gradient along v, by two reverse passes.

        Args:
            theta: (D,), or (R, D).
            directions: (D,), or a block (D, K) with a single θ, or (R, D) with replicas.

        Returns:
            As ``directions``. For several products at one θ, :meth:`hessian` keeps the first pass.
        """
        return passes.hvp(self, theta, directions)

    # ------------------------------------------------------------------ operators

    def hessian(self, theta: Tensor) -> SymmetricOperator:
        """H = ∇²L(θ), matrix-free. A product costs about as much as a gradient, the first one two.

        For models without second derivatives see :class:`~noisescape.DifferenceHessian`.
        """
        return Hessian(*self._for_operators(theta))

    def gauss_newton(self, theta: Tensor) -> SymmetricOperator:
        """The generalised Gauss–Newton matrix (1/N) Σ J_nᵀ(∇²_f ℓ_n)J_n, matrix-free; PSD for convex losses."""
        return GaussNewton(*self._for_operators(theta))

    def fisher(
        self,
        theta: Tensor,
        *,
        sample_targets: SampleTargets | None = None,
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
        function = risk._model_loss("the Fisher information")
        if sample_targets is None:
            if not function.criterion.is_exponential_family():
                raise InvalidValueError(
                    "the Fisher information needs the model's predictive distribution, which is known for softmax "
                    "and binary cross-entropy and squared loss only; pass sample_targets=(outputs, generator) -> "
                    "targets to estimate it by sampling"
                )
            return GaussNewton(risk, theta, name="Fisher")
        check_whole("draws", draws)
        check_seed(seed)
        batches = risk._batches(passes=1)
        samples = with_drawn_targets(function, risk._samples, batches, theta, sample_targets, draws, seed)
        redrawn = risk._like(function.with_scale(None), samples, risk._parameters, risk._tried)
        return EmpiricalFisher(redrawn, theta, name="sampled Fisher")

    def empirical_fisher(self, theta: Tensor) -> SymmetricOperator:
        """The uncentred second moment of the per-sample gradients, (1/N) Σ g_n g_nᵀ = GᵀG/N."""
        return EmpiricalFisher(*self._for_operators(theta))

    def noise_covariance(self, theta: Tensor, batch_size: int, *, replacement: bool = True) -> NoiseCovariance:
        """Σ_B, the covariance of a minibatch *gradient* of size B (multiply by η² for the update's).

        With C = (1/N) Σ (g_n − ḡ)(g_n − ḡ)ᵀ: C/B when the batch is drawn with replacement (the default),
        (N−B)/(B(N−1))·C when drawn without.

        Raises:
            ValueError: B < 1, or B > N without replacement.
        """
        return NoiseCovariance(*self._for_operators(theta), batch_size, replacement=replacement)

    def _for_operators(self, theta: Tensor) -> tuple[EmpiricalRisk, Tensor]:
        """Itself and a copy of θ that nobody changes; of half precision, both in float32."""
        self._check_theta(theta, replicas=False)
        if self.dtype not in HALF:
            return self, self._own(theta)
        return self._in_single, self._in_single._own(theta.float())

    @functools.cached_property
    def _in_single(self) -> EmpiricalRisk:
        return self.to(torch.float32)

    def _own(self, theta: Tensor) -> Tensor:
        """A copy of θ, which may be large: one for all operators at the same θ."""
        last = self._last_copy() if self._last_copy else None
        if last is not None and torch.equal(last, theta):
            return last
        copied = theta.detach().clone()
        self._last_copy = weakref.ref(copied)
        return copied

    # ------------------------------------------------------------------ how it is evaluated

    @property
    def _budget(self) -> int:
        """Bytes for data and results that are held whole; evaluations may be given less."""
        return self._asked_budget or ample_budget(self.device)

    @functools.cached_property
    def _chunking(self) -> Chunking:
        function = self._function
        sample_bytes = int(
            self._samples.largest(max(function.bytes_per_sample(batch.head(2)) for batch in self._tried))
        )
        itemsize = self.dtype.itemsize
        cached = self.device.type == "cpu" and isinstance(function, ModelLoss)
        budget = self._asked_budget
        if budget is None and cached:
            budget = modest_budget(self.sample_count, sample_bytes, self.dimension * itemsize)
        return Chunking(
            count=self.sample_count,
            sample_bytes=sample_bytes,
            parameters=self.dimension,
            itemsize=itemsize,
            budget=budget or self._budget,
            fixed=self._chunk_size,
            cached=cached,
            gpu=self.device.type == "cuda",
        )

    def _batches(self, *, passes: int, columns: int = 1) -> Iterator[Batch]:
        """Chunks of the data; the first that is larger than what was tried is tried, too."""
        for batch in self._samples.batches(self._chunking.samples(passes=passes, columns=columns)):
            if batch.size > self._largest_tried and isinstance(self._function, ModelLoss):
                theta = self._capabilities.parameters()
                check_company(self._function, theta, batch, self._function.values(theta, batch))
                self._largest_tried = self.sample_count
            yield batch

    def _model_loss(self, purpose: str) -> ModelLoss:
        if not isinstance(self._function, ModelLoss):
            raise InvalidValueError(
                f"{purpose} needs a model with outputs and data; this risk was built from a function of θ. "
                "Build it as EmpiricalRisk(model, loss, data)"
            )
        return self._function

    def _check_theta(self, theta: Tensor, *others: Tensor, replicas: bool = True) -> None:
        check_theta(theta, self.dimension, self.dtype, self.device, replicas=replicas)
        self._samples.check_same(theta, *others)

    def __getattr__(self, name: str) -> Any:
        if name not in RENAMED:
            return object.__getattribute__(self, name)  # raises what was raised the first time
        present = RENAMED[name]
        instead = "for this package alone now" if present.startswith("_") else f"now risk.{present}"
        warnings.warn(f"risk.{name} is {instead}", DeprecationWarning, stacklevel=2)
        return operator.attrgetter(present)(self)

    def __getstate__(self) -> dict[str, Any]:
        """Without the weak reference, which cannot be pickled."""
        return {**self.__dict__, "_last_copy": None}


def closed_form_risk(function: ClosedForm, memory_budget: int | None = None) -> EmpiricalRisk:
    """The risk of a closed form: what :meth:`EmpiricalRisk.from_losses` and ``from_sample_loss`` return."""
    samples = function.samples()
    check_size("memory_budget", memory_budget)
    chunk_size = samples.count if function.whole else None
    risk = EmpiricalRisk.__new__(EmpiricalRisk)
    tried = [samples.between(0, samples.count)]
    risk._assemble(function, samples, tried, function.flat_parameters, memory_budget, chunk_size)
    return risk


def in_operator_precision(risk: EmpiricalRisk, theta: Tensor) -> tuple[EmpiricalRisk, Tensor]:
    """A risk and θ in a precision that has linear algebra: of half precision, both in float32.

    Raises:
        TypeError: no risk, or a θ that is no tensor.
        ValueError: a θ that is none of the risk's, or several.
    """
    check_risk(risk)
    return risk._for_operators(theta)
