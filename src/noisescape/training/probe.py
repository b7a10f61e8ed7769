"""Curvature and gradient noise at a model's present parameters, measured aside from its training."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from noisescape.errors import InvalidTypeError, InvalidValueError, NonFiniteLossError
from noisescape.linops import Estimate, FunctionOperator, SymmetricOperator, ToleranceWarning, eigenpairs, trace
from noisescape.measurement.bounds import projection_coefficient
from noisescape.risk import EmpiricalRisk, in_operator_precision
from noisescape.risk.criterion import Loss
from noisescape.risk.model_loss import ModelLoss
from noisescape.risk.randomness import Generators
from noisescape.risk.samples import TensorSamples, as_pair, form_of, fresh_pass, joined
from noisescape.risk.stateless import bare
from noisescape.risk.subsets import on_samples_alike, restricted
from noisescape.risk.trees import map_tensors, plain
from noisescape.scalars import check_seed
from noisescape.training.edge_of_stability import StabilityEdge, stability_edge
from noisescape.training.hooks import ModuleHook
from noisescape.training.paired_traces import paired_traces
from noisescape.training.sample_moments import sample_moments

TOLERANCE = 1e-2
"""Of the residual of λ₁, relative; λ₁ itself is off by about its square."""
SUBSPACE = 12
"""Lanczos vectors, each of D numbers in the main memory."""
MOST_PRODUCTS = 100
"""Hessian products for λ₁, at most."""
TRACE_PROBES = 12
"""For Tr H in the projection coefficient, beside its top eigenvector: some 15 % of Tr H."""
FEWEST = 8
"""Samples that a probe takes at least: from fewer there is no standard error to speak of."""
SHARDED = ("DTensor", "FlatParameter")


class ProbeWarning(UserWarning):
    """Figures are left out of a probe; training goes on."""


class Probe:
    """Figures of the loss at a model's present parameters: curvature, gradient noise, the edge of stability.

    All of it is as of the model in **evaluation mode**, whatever mode it is in: no dropout, running statistics for
    batch-norm; and of θ, its trainable parameters, in float32 where they are of half precision, without autocast.
    Nothing of the model is changed: mode, buffers, gradients, hooks and the state of generators are afterwards what
    they were, also after an error. Forward hooks run as in any evaluation. No copy of the module is made: a probe
    takes memory for about 35 vectors like θ, some 15 of them in main memory, and for the samples' activations, and
    gives it back.

    Samples are of the present batch, or from held-out ``data``. What is measured, with H_n and ḡ_n of the n samples
    probed and Σ_B = C/B, the *gradient* noise of batches of B drawn with replacement (multiply by η² for the
    update's):

    =================================  ==========================================================================
    ``probe/samples``                  n
    ``probe/loss``                     mean loss of the n samples
    ``probe/trace_covariance``         Tr C per sample, unbiased: Σ‖g_i − ḡ_n‖²/(n − 1)
    ``probe/squared_gradient_norm``    ‖ḡ‖², unbiased, may be negative
    ``probe/scale``                    Tr C/‖ḡ‖², in samples; infinite where ‖ḡ‖² is not positive
    ``probe/hessian_noise_trace``      Tr(HΣ_B), unbiased
    ``probe/isotropic_trace``          Tr H·Tr Σ_B/D, unbiased
    ``probe/top_eigenvalue``           λ₁ of H_n
    ``probe/stability_edge``           where λ₁ ends stable steps: 2/η for SGD, 2(1 + β)/η with momentum, …
    ``probe/top_eigenvalue_over_edge`` λ₁ over it, or the preconditioned λ₁ over its edge
    ``probe/preconditioned_…``         ``top_eigenvalue`` and ``edge`` in the metric of Adam, RMSprop or Adagrad, or
                                       of groups of unlike rates; see :func:`stability_edge`
    ``probe/batch_sharpness``          mean of g_BᵀH_Bg_B/‖g_B‖² over minibatches of B of the n samples, H_B and g_B
                                       of the minibatch (Definition 3 of 2412.20553); where n ≥ B
    ``probe/projection_coefficient``   a = u₁ᵀCu₁·Tr H/(λ₁·Tr C) along the top eigenvector of H_n
    ``probe/seconds``                  what it took
    =================================  ==========================================================================

    "Unbiased" is for the population that the samples were drawn from: for figures of the finite set of n itself
    see :func:`noisescape.measure`. Those with an error have it as ``…_stderr``, of samples and random directions
    together; ``probe/scale_low`` and ``probe/scale_high`` are the ends of a 95 % interval. λ₁ and the projection
    coefficient are of the n samples, for few of which λ₁(H_n) is over λ₁(H); the coefficient's error is that of
    the directions that Tr H_n takes. Of a single minibatch, batch sharpness is that batch's own, without error;
    with momentum its plateau is 2(1 − β)/η for small batches, rising to 2(1 + β)/η for large ones (2604.14108).

    What cannot be had is left out, with one :class:`ProbeWarning` that says why, and never stops the training.

    Args:
        model: any module that :class:`~noisescape.EmpiricalRisk` takes. Wrappers that distribute (DDP) or compile
            it are taken off: each process probes samples of its own.
        loss: ``loss(outputs, targets)``, as for :class:`~noisescape.EmpiricalRisk`.
        data: held-out samples: ``(inputs, targets)``, a map-style ``Dataset`` or a re-iterable of such batches. As
            many as ``samples`` are read now and kept, at random where they are known by index, the first of a
            loader. None: the present batch passed to each call.
        samples: the most that are probed at once.
        seed: of the choice of samples and of random directions.

    Raises:
        TypeError, ValueError: of model and loss, as :class:`~noisescape.EmpiricalRisk`; sharded parameters (FSDP);
            data that is none, or fewer than 8 samples.

    >>> model = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> batch = torch.randn(16, 3), torch.randint(0, 2, (16,))
    >>> figures = Probe(model, nn.functional.cross_entropy).measure(optimizer, batch=batch)
    >>> figures["probe/stability_edge"], model.training
    (20.0, True)
    """

    def __init__(
        self, model: nn.Module, loss: Loss | nn.Module, data: Any = None, *, samples: int = 64, seed: int = 0
    ) -> None:
        check_seed(seed)
        if type(samples) is not int or samples < FEWEST:
            raise InvalidValueError(
                f"samples, the most that are probed, must be at least {FEWEST}, not {samples!r}"
            )
        self._model = bare(model) if isinstance(model, nn.Module) else model
        if isinstance(model, nn.Module):
            _refuse_sharded(self._model)
        self._loss = loss
        self._samples = samples
        self._seed = seed
        with _evaluation_mode(self._modules):
            self.device = ModelLoss(self._model, loss).device
        self._trainable = self._present_parameters()
        self._held = None if data is None else self._read(data)
        self._risk: EmpiricalRisk | None = None
        self._warned: set[tuple[str, type]] = set()

    def _read(self, data: Any) -> Any:
        """Held-out samples, in a random order: as a pair, or as batches where their shapes are unlike."""
        parts = list(itertools.islice(_batches(data, self._samples, self._seed), self._samples))
        count = sum(part.count for part in parts)
        if count < FEWEST:
            raise InvalidValueError(f"a probe takes at least {FEWEST} held-out samples, data has {count}")
        if len({str(form_of(part)) for part in parts}) > 1:
            return [self._moved(part) for part in parts]
        whole = joined(parts)
        return self._moved(TensorSamples(*whole.take(self._order(whole.count)[: self._samples])))

    def _moved(self, part: TensorSamples) -> tuple[Any, Any]:
        return tuple(
            map_tensors(lambda tensor: tensor.to(self.device), each) for each in (part.inputs, part.targets)
        )

    def _order(self, count: int) -> Tensor:
        return torch.randperm(count, generator=torch.Generator().manual_seed(self._seed))

    @property
    def _modules(self) -> list[nn.Module]:
        held = [each for each in (self._model, self._loss) if isinstance(each, nn.Module)]
        return [module for each in held for module in each.modules()]

    # ------------------------------------------------------------------ its samples

    def available(self, batch: Any = None) -> int:
        """How many samples a probe could take: of the held-out ones, or of the present batch; 0 without either."""
        if self._held is not None:
            parts = [self._held] if isinstance(self._held, tuple) else self._held
            return min(self._samples, sum(TensorSamples(*part).count for part in parts))
        try:
            return min(self._samples, self._batch(batch).count)
        except Exception as error:
            self._leave_out("all figures", error)
            return 0

    def _batch(self, batch: Any) -> TensorSamples:
        if batch is None:
            raise InvalidValueError(
                "there is no present batch: pass batch=(inputs, targets), or held-out data when the probe is built"
            )
        found = TensorSamples(*as_pair(batch))
        if found.count < FEWEST:
            raise InvalidValueError(
                f"a probe takes at least {FEWEST} samples, the present batch has {found.count}; pass held-out data"
            )
        return found

    def is_open(self, batch: Any = None) -> bool:
        """Whether the model has been tried on samples like these, which the first probe must do."""
        if self._risk is None or not self._same_parameters():
            return False
        if self._held is not None:
            return True
        try:
            return self._alike(self._risk, self._batch(batch), FEWEST) is not None
        except Exception:  # said where it is probed
            return False

    def open(self, batch: Any = None) -> bool:
        """Try the model on the samples, and choose the ways to its derivatives; whether it can be probed.

        Takes as long as some tens of gradients of 64 samples, once: until the shapes of the samples or the set of
        trainable parameters change.
        """
        self._risk = None
        with self._leaving_out("all figures"), self._aside(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="parameters have gradient hooks")  # said at construction
            _refuse_sharded(self._model)
            data = self._held
            if data is None:
                data = self._moved(self._batch(batch))
            risk = EmpiricalRisk(self._model, self._loss, data)
            risk, theta = in_operator_precision(risk, risk.parameters())
            self._trainable = self._present_parameters()
            few = restricted(risk, torch.arange(2))
            with contextlib.suppress(Exception):  # what it lacks is said by the figure that needs it
                paired_traces(few, theta, theta[:, None], curvature=False)
                few.hessian(theta) @ torch.stack([theta, theta], dim=1)
            self._risk = risk
        return self._risk is not None

    def _present_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    def _same_parameters(self) -> bool:
        present = self._present_parameters()
        return len(present) == len(self._trainable) and all(
            one is other for one, other in zip(present, self._trainable, strict=True)
        )

    def _alike(self, risk: EmpiricalRisk, batch: TensorSamples, count: int) -> EmpiricalRisk | None:
        chosen = TensorSamples(*batch.take(self._order(batch.count)[:count]))
        inputs, targets = self._moved(chosen)
        if self._trainable[0].dtype != risk.dtype:  # half precision, probed in float32
            inputs, targets = (
                map_tensors(lambda tensor: _as_precise(tensor, risk.dtype), each) for each in (inputs, targets)
            )
        return on_samples_alike(risk, inputs, targets)

    def _risk_of(self, batch: Any, count: int) -> EmpiricalRisk | None:
        if not self.is_open(batch) and not self.open(batch):
            return None
        risk = self._risk
        assert risk is not None
        if self._held is not None:
            return risk if count == risk.sample_count else restricted(risk, torch.arange(count))
        return self._alike(risk, self._batch(batch), count)

    # ------------------------------------------------------------------ its figures

    def measure(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        batch: Any = None,
        batch_size: int | None = None,
        samples: int | None = None,
    ) -> dict[str, float]:
        """The figures, by the names above; those that cannot be had are left out.

        Args:
            optimizer: of the training, for the stability edge.
            batch: the present ``(inputs, targets)``; with held-out data it says no more than B.
            batch_size: B, samples per optimiser step over all micro-steps and processes. Default: the present
                batch's.
            samples: n, default all there are, up to the ``samples`` of the probe.
        """
        count = self.available(batch)
        count = count if samples is None else min(count, max(FEWEST, samples))
        if not count:
            return {}
        if batch_size is None and batch is not None:
            with contextlib.suppress(Exception):  # not looked at otherwise where there is held-out data
                batch_size = TensorSamples(*as_pair(batch)).count
        self.synchronise()
        start = time.perf_counter()
        found: dict[str, float] = {}
        with self._leaving_out("all figures", reopen=True), self._aside():
            risk = self._risk_of(batch, count)
            if risk is not None:
                found = self._figures(risk, optimizer, batch_size)
        self.synchronise()
        if found:
            found["probe/seconds"] = time.perf_counter() - start
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def _figures(
        self, risk: EmpiricalRisk, optimizer: torch.optim.Optimizer, batch_size: int | None
    ) -> dict[str, float]:
        theta = risk.parameters()
        n = risk.sample_count
        found = {"samples": float(n), "loss": float(risk.loss(theta))}
        mean = risk.gradient(theta)
        hessian = risk.hessian(theta)
        along = torch.tensor(math.nan)
        with self._leaving_out("curvature"):
            along = hessian @ mean
        curved = bool(torch.isfinite(along).all())
        top = self._top(hessian) if curved else None
        vector = None if top is None else top[1]
        directions = mean[:, None] if vector is None else torch.stack([mean, vector], dim=1)
        traces = paired_traces(risk, theta, directions, top=vector, curvature=curved, seed=self._seed)
        squared_mean = torch.linalg.vector_norm(mean.double()).square()
        moments = sample_moments(traces.squares, traces.along[:, 0], squared_mean)
        for name in ("trace_covariance", "trace_covariance_stderr", "squared_gradient_norm"):
            found[name] = getattr(moments, name)
        found["squared_gradient_norm_stderr"] = moments.squared_gradient_norm_stderr
        found |= {"scale": moments.scale, "scale_low": moments.scale_low, "scale_high": moments.scale_high}
        if curved and batch_size is None:
            self._leave_out(
                "Tr(HΣ)", InvalidValueError("its batch size is not known; pass batch_size, samples per step")
            )
        elif curved and batch_size is not None:
            for name, values in (
                ("hessian_noise_trace", traces.hessian_noise),
                ("isotropic_trace", traces.isotropic),
            ):
                found[name] = float(values.mean()) / batch_size
                found[f"{name}_stderr"] = float(values.std() / len(values) ** 0.5) / batch_size
        if top is not None:
            found |= self._edge(hessian, top[0], optimizer)
        if curved and batch_size is not None and n >= batch_size:
            with self._leaving_out("batch sharpness"):
                found |= _batch_sharpness(risk, theta, batch_size, (mean, along))
        if top is not None:
            with self._leaving_out("the projection coefficient"):
                trace_h = _trace(hessian, top[1], self._seed)
                noise = float(traces.along[:, 1].var())
                value = projection_coefficient(noise, top[0], trace_h.value, moments.trace_covariance)
                found["projection_coefficient"] = value
                found["projection_coefficient_stderr"] = abs(value) * trace_h.relative_stderr
        return {f"probe/{name}": value for name, value in found.items()}

    def _top(self, operator: SymmetricOperator) -> tuple[float, Tensor] | None:
        """λ₁ and u₁."""
        with self._leaving_out(f"the top eigenvalue of the {operator.name}"):
            pair = eigenpairs(
                operator, 1, tol=TOLERANCE, subspace=SUBSPACE, max_products=MOST_PRODUCTS, seed=self._seed
            )
            if math.isfinite(float(pair.values[0])):
                return float(pair.values[0]), pair.vectors[:, 0]
        return None

    def _edge(self, hessian: SymmetricOperator, top: float, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        found = {"top_eigenvalue": top}
        edge: StabilityEdge | None = None
        with self._leaving_out("the stability edge"):
            edge = stability_edge(optimizer, self._trainable)
        if edge is None:
            return found
        if edge.hessian_edge is not None:
            found["stability_edge"] = edge.hessian_edge
            found["top_eigenvalue_over_edge"] = top / edge.hessian_edge if edge.hessian_edge > 0 else math.nan
            return found
        largest = self._top(_preconditioned(hessian, edge))
        if largest is not None:
            found["top_eigenvalue_over_edge"] = largest[0] / edge.edge
            found["preconditioned_top_eigenvalue"] = largest[0]
            found["preconditioned_edge"] = edge.edge
        return found

    # ------------------------------------------------------------------ aside from the training

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Within, the model is in evaluation mode; afterwards, all is as it was."""
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            _evaluation_mode(self._modules),
            _unheard(self._modules),
            Generators(self._modules, self._loss).kept(),
        ):
            yield

    def synchronise(self) -> None:
        """Wait for what the device still has to do."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    @contextlib.contextmanager
    def _leaving_out(self, what: str, *, reopen: bool = False) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, the training is worth more
            if reopen and not isinstance(error, NonFiniteLossError):
                self._risk = None
            self._leave_out(what, error)

    def _leave_out(self, what: str, error: Exception) -> None:
        message = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        if (what, type(error)) in self._warned:
            return
        self._warned.add((what, type(error)))
        warnings.warn(f"left out of probes: {what}. {message}", ProbeWarning, stacklevel=2)


def _batch_sharpness(
    risk: EmpiricalRisk, theta: Tensor, batch_size: int, whole: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """g_BᵀH_Bg_B/‖g_B‖², averaged over as many minibatches of B as the samples make."""
    values = []
    for start in range(0, risk.sample_count - batch_size + 1, batch_size):
        gradient, product = whole
        if batch_size < risk.sample_count:
            part = restricted(risk, torch.arange(start, start + batch_size))
            gradient = part.gradient(theta)
            product = part.hessian(theta) @ gradient
        values.append(torch.dot(gradient.double(), product.double()) / gradient.double().square().sum())
    every = torch.stack(values)
    found = {"batch_sharpness": float(every.mean())}
    if len(values) > 1:
        found["batch_sharpness_stderr"] = float(every.std() / len(values) ** 0.5)
    return found


def _trace(hessian: SymmetricOperator, top: Tensor, seed: int) -> Estimate:
    """Tr H of the samples probed, to what a few probes off the top eigenvector give."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ToleranceWarning)
        return trace(hessian, deflate=top[:, None], max_products=1 + TRACE_PROBES, seed=seed)


def _preconditioned(hessian: SymmetricOperator, edge: StabilityEdge) -> SymmetricOperator:
    """P^{1/2}(H + M)P^{1/2}."""
    assert edge.preconditioner is not None
    assert edge.decay is not None
    root = edge.preconditioner.to(hessian.dtype).sqrt()[:, None]
    decay = edge.decay.to(hessian.dtype)[:, None]

    def product(block: Tensor) -> Tensor:
        scaled = root * block
        return root * (hessian @ scaled + decay * scaled)

    return FunctionOperator(
        product, hessian.size, dtype=hessian.dtype, device=hessian.device, name="preconditioned Hessian"
    )


@contextlib.contextmanager
def _evaluation_mode(modules: list[nn.Module]) -> Iterator[None]:
    """Within, every module's flag is that of evaluation; no ``eval`` of their own is called, which may do more."""
    modes = [(module, module.training) for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _unheard(modules: list[nn.Module]) -> Iterator[None]:
    """Within, this package's own hooks on modules are off: a monitor that listens hears training only."""
    kept: list[tuple[dict[str, Any], str, Any]] = []
    for module in modules:
        for name in ("_forward_pre_hooks", "_forward_hooks"):
            hooks = vars(module)[name]
            if any(isinstance(hook, ModuleHook) for hook in hooks.values()):
                kept.append((vars(module), name, hooks))
                others = {key: hook for key, hook in hooks.items() if not isinstance(hook, ModuleHook)}
                vars(module)[name] = type(hooks)(others)
    try:
        yield
    finally:
        for held, name, hooks in kept:
            held[name] = hooks


def _refuse_sharded(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if type(parameter).__name__ in SHARDED or type(parameter.data).__name__ in SHARDED:
            raise InvalidTypeError(
                f"parameter '{name}' is sharded ({type(parameter).__name__}, FSDP), and a probe needs all of θ in "
                "one process; leave the probe out (free figures take sharded gradients), or train with DDP"
            )


def _as_precise(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _batches(data: Any, most: int, seed: int) -> Iterator[TensorSamples]:
    """Batches of held-out data until there are ``most`` samples."""
    source: Iterable[Any]
    pairs = isinstance(data, list) and all(isinstance(each, (tuple, list)) and len(each) == 2 for each in data)
    if isinstance(data, (tuple, list)) and len(data) == 2 and not pairs:
        yield TensorSamples(plain(data[0], arrays=True), plain(data[1], arrays=True))
        return
    indexed = (
        hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, (list, tuple, dict))
    )
    if isinstance(data, DataLoader):  # asked for an iterator, it would draw
        source = data
    elif indexed:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:most]
        source = DataLoader(Subset(data, order.tolist()), batch_size=64, shuffle=False)
    elif isinstance(data, Iterable) and not isinstance(data, dict) and iter(data) is not data:
        source = data
    else:
        raise InvalidTypeError(
            "probe data must be (inputs, targets), a map-style data set or a re-iterable of such batches, not "
            f"{type(data).__name__}"
        )
    count = 0
    for raw in fresh_pass(source):
        part = TensorSamples(*as_pair(raw))
        yield part
        count += part.count
        if count >= most:
            return
