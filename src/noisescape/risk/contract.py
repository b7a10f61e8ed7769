"""What a risk asks of a model and its loss, tried on a few samples before any work: a loss for each sample.

ℓ_n(θ) must be a function of θ and of sample n alone. Whether it is shows where samples are evaluated alone and in
company, twice, and with gradients and without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noisescape.errors import BatchCouplingError, InvalidTypeError, InvalidValueError
from noisescape.linops.tall import lengths
from noisescape.risk.closed_form import ClosedForm
from noisescape.risk.differentiation import gradient_of
from noisescape.risk.model_loss import CHANGED_IN_PLACE, ModelLoss
from noisescape.risk.randomness import Generators, State
from noisescape.risk.samples import Batch
from noisescape.risk.trees import tensors_of
from noisescape.risk.trial import TRIAL, noise

SAME = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Relative difference up to which two results are one; over it, float64 decides for a lower precision."""
LOOSE = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 1e-1}
"""The same where the model cannot be evaluated in float64."""
ABSOLUTE = 1e-12
LARGEST_COPY = 2**31
"""Bytes that the parameters may take in float64 for it to decide."""


def check_contract(function: ModelLoss, theta: Tensor, batches: Sequence[Batch], whole: Batch | None) -> None:
    """Refuse a model or loss without a loss for each sample, and find out how it must be evaluated.

    A batch costs one gradient and two evaluations of all its samples, and the gradients of four samples alone.

    Args:
        function: the model and loss; its kernels and whether it needs a graph are set.
        theta: its parameters, (D,).
        batches: of unlike samples, the most unlike first.
        whole: all samples, where they are held together.

    Raises:
        ValueError: the loss is reduced, of the wrong shape, without dependence on θ, or dependent on trainable
            tensors that are no part of θ.
        BatchCouplingError: a sample's loss or gradient depends on the other samples of its batch, or on chance.
    """
    generators = Generators(function.modules, function.criterion.loss)
    with generators.kept() as before:
        function.start_trial()
        point = shaken(function, theta)
        untouched = point.clone()
        if not all(_is_finite(function, point, batch) for batch in batches):
            point, untouched = theta, theta.clone()
        for batch in batches:
            raw = _evaluated(function, point, batch, whole)
            _refuse_draws(generators, before)
            if not torch.equal(point.nan_to_num(), untouched.nan_to_num()):
                raise InvalidValueError(CHANGED_IN_PLACE)
            _check_shapes(function, point, batch, raw)
            _check_batch(function, point, batch, function.criterion.of_values(raw, batch.targets))
        _refuse_draws(generators, before)
        function.end_trial()


def _refuse_draws(generators: Generators, before: State) -> None:
    drawn = generators.drawn_from(before)
    if drawn:
        raise BatchCouplingError(
            "the model or its loss draws random numbers; call model.eval(), remove the randomness or pass the "
            f"noise as an input: the loss must be a function of θ (drawn from: {', '.join(drawn)})"
        )


def shaken(function: ModelLoss | ClosedForm, theta: Tensor, *, share: float = 0.05) -> Tensor:
    """θ moved a little, each parameter by a share of its size, so that what starts at zero hides nothing."""
    direction = noise(len(theta), 0x7368616B).to(theta)
    overall = float(theta.float().square().mean().sqrt()) or 1.0
    moved = theta.clone()
    for part, step in zip(moved.split(function.sizes), direction.split(function.sizes), strict=True):
        size = float(part.float().square().mean().sqrt()) if part.numel() else 0.0
        part.add_(step, alpha=share * (size or overall))
    return moved


def _check_shapes(function: ModelLoss, theta: Tensor, batch: Batch, raw: Any) -> None:
    if not isinstance(raw, Tensor):
        raise InvalidTypeError(f"the loss returned {type(raw).__name__}, not a tensor of per-sample losses")
    if raw.ndim == 0 or raw.shape[0] != batch.size:
        raise InvalidValueError(
            f"the loss of {batch.size} samples has shape {tuple(raw.shape)}: per-sample values of shape "
            f"({batch.size},) or ({batch.size}, T) are needed. If it is already reduced, pass it unreduced "
            "(reduction='none'); where the model computes its own loss, compute it again from its logits: "
            "lambda out, labels: cross_entropy(out.logits, labels, reduction='none')"
        )
    if not raw.is_floating_point():
        raise InvalidTypeError(
            f"the losses are {raw.dtype}; they must be real floating-point numbers to be differentiated"
        )
    if batch.size == 1:
        return
    try:
        alone = function.raw_values(theta, batch.head(1))
    except (RuntimeError, ValueError, IndexError) as error:
        raise BatchCouplingError(
            f"{batch.size} samples can be evaluated together, one of them alone cannot ({_first_line(error)}): "
            "samples of a batch influence each other, so there is no per-sample gradient. If they are nodes of one "
            "graph, evaluate the graph whole: EmpiricalRisk.from_losses(lambda theta: losses of all nodes, "
            "parameters)"
        ) from error
    if alone.shape[1:] != raw.shape[1:]:
        raise InvalidValueError(
            f"the unreduced loss of {batch.size} samples has shape {tuple(raw.shape)}, that of one "
            f"{tuple(alone.shape)}: outputs are broadcast against targets, or samples of a batch influence each "
            "other; give the targets the shape of the outputs"
        )


def _evaluated(function: ModelLoss, theta: Tensor, batch: Batch, whole: Batch | None) -> Any:
    """The raw loss of a batch; an error says what is the matter with the data."""
    try:
        return function.raw_values(theta, batch)
    except (RuntimeError, IndexError, ValueError) as error:
        if "inplace" in str(error) or "in-place operation" in str(error):
            raise InvalidValueError(CHANGED_IN_PLACE) from error
        leaves = tensors_of((batch.inputs, batch.targets))
        floating = {leaf.dtype for leaf in leaves if leaf.is_floating_point()}
        if floating - {function.dtype}:
            found = ", ".join(sorted(str(dtype) for dtype in floating - {function.dtype}))
            raise InvalidValueError(
                f"mixed dtypes: the parameters are {function.dtype}, the data {found}; convert one: "
                f"data.to({function.dtype}) or model.to({found})"
            ) from error
        inputs = tensors_of(batch.inputs)
        integer = not any(leaf.is_floating_point() for leaf in inputs)
        if integer and "dtype" in str(error) and not isinstance(error, IndexError):
            raise InvalidValueError(
                f"the inputs are {inputs[0].dtype}, which the model does not take ({_first_line(error)}); convert "
                f"them: inputs.to({function.dtype})"
            ) from error
        if whole is not None and whole.size > batch.size and _works(function, theta, whole):
            raise BatchCouplingError(
                f"the model takes all {whole.size} samples at once, but not {batch.size} of them "
                f"({_first_line(error)}): samples influence each other, so there is no per-sample gradient. If "
                "they are nodes of one graph, evaluate the graph whole: EmpiricalRisk.from_losses(lambda theta: "
                "losses of all nodes, parameters)"
            ) from error
        raise


def _is_finite(function: ModelLoss, theta: Tensor, batch: Batch) -> bool:
    """Of one sample; whether it can be evaluated at all is not the question here."""
    try:
        return bool(torch.isfinite(function.values(theta, batch.head(1))).all())
    except Exception:
        return True


def _works(function: ModelLoss, theta: Tensor, batch: Batch) -> bool:
    try:
        function.raw_values(theta, batch)
    except (RuntimeError, IndexError, ValueError):
        return False
    return True


def _check_batch(function: ModelLoss, point: Tensor, batch: Batch, first: Tensor) -> None:
    frozen = [(name, p, p._version) for name, p in function.model.named_parameters() if not p.requires_grad]
    signs = torch.zeros(batch.size, dtype=point.dtype, device=point.device)
    for number, row in enumerate(_rows_alone(batch.size)):
        signs[row] = (-1) ** number * (number + 1)  # unlike in size: the gradients of equal samples do not cancel
    together, gradient, leaves = _with_gradient(function, point, batch, signs)
    _check_leaves(function, leaves, _persistent_leaves(function, point, batch, leaves))
    for name, parameter, version in frozen:
        if parameter._version != version:
            raise InvalidValueError(
                f"the forward pass changes the frozen parameter '{name}' in place, so the loss is no function of "
                "θ; make the update a step of its own, outside forward"
            )
    check_company(function, point, batch, first)
    if not _same(first, together, SAME[point.dtype]):
        function.needs_graph = True  # it computes something else where no gradients are recorded
        if not _same(function.values(point, batch), together, SAME[point.dtype]):
            raise InvalidValueError(
                "the loss is another with gradients recorded than without, so it is no function of θ; make it the "
                "same under torch.no_grad()"
            )
    _check_captured(function, point, batch.head(TRIAL.copies))
    if batch.size > 1:
        for row in {0, batch.size - 1}:
            _check_alike(function, point, batch.between(row, row + 1))
        alone, alone_gradient = _alone(function, point, batch, signs)
        error, where = _difference(together[_rows_alone(batch.size)], alone, gradient, alone_gradient)
        if error > SAME[point.dtype] and not _float64_agrees(function, point, batch, signs, error):
            raise _coupled(
                f"a sample's {where} differs by {error:.2g} (relative) between a batch of {batch.size} and the "
                "sample alone"
            )


def check_company(function: ModelLoss, theta: Tensor, batch: Batch, together: Tensor) -> None:
    """Refuse losses that differ when the batch is evaluated again in two unequal parts.

    Raises:
        BatchCouplingError: they depend on the other samples, or on chance.
    """
    tolerance = SAME[theta.dtype]

    def in_parts(function: ModelLoss, theta: Tensor, batch: Batch) -> Tensor:
        cut = batch.size // 3
        parts = [batch.between(start, stop) for start, stop in ((0, cut), (cut, batch.size)) if start < stop]
        return torch.cat([function.values(theta, part) for part in parts])

    def difference(function: ModelLoss, theta: Tensor, batch: Batch) -> float:
        return _relative(function.values(theta, batch), in_parts(function, theta, batch))

    error = _relative(together, in_parts(function, theta, batch))
    if error <= tolerance:
        return
    if _relative(together, function.values(theta, batch)) > tolerance:
        raise BatchCouplingError(
            "two evaluations of the same samples at the same parameters differ: the model draws random "
            "numbers, or remembers what it saw; call model.eval() or remove the randomness"
        )
    if not _gone_in_float64(function, theta, batch, error, difference):
        raise _coupled(
            f"losses differ by {error:.2g} (relative) between a batch of {batch.size} and the same in two parts"
        )


def _check_alike(function: ModelLoss, theta: Tensor, single: Batch) -> None:
    """Refuse losses of one sample that are not all the same where it is evaluated several times together."""

    def copies(batch: Batch) -> Batch:
        repeated = batch.map(lambda tensor: torch.cat([tensor] * TRIAL.copies))
        return Batch(repeated.inputs, repeated.targets, 0, TRIAL.copies)

    def difference(function: ModelLoss, theta: Tensor, single: Batch) -> float:
        return _relative(
            function.values(theta, copies(single)), function.values(theta, single).expand(TRIAL.copies)
        )

    error = difference(function, theta, single)
    if error > SAME[theta.dtype] and not _gone_in_float64(function, theta, single, error, difference):
        raise _coupled(
            f"the losses of one sample evaluated {TRIAL.copies} times together differ by {error:.2g} from its own"
        )


def _check_captured(function: ModelLoss, point: Tensor, batch: Batch) -> None:
    """Refuse a loss that reads values of parameters where they are not exchanged: by references it captured."""
    wanted = function.values(point, batch)
    with function.moved_to(point):
        found = function.values(point, batch)
    if not _same(wanted, found, SAME[point.dtype]):
        raise InvalidValueError(
            "the loss reads values of the model's parameters by references captured earlier (p.data or p.detach() "
            "of parameters kept in a list or closure), which do not follow θ; read them from the model when they "
            "are needed: model.parameters(), self.weight"
        )


def _coupled(what: str) -> BatchCouplingError:
    return BatchCouplingError(
        f"{what}: samples of a batch influence each other (batch statistics, a balance term, routing, a loss over "
        "pairs?), so there is no per-sample gradient; use model.eval(), a normalisation without batch statistics, "
        "or a loss that is a sum over samples"
    )


def _rows_alone(size: int) -> list[int]:
    half = TRIAL.alone // 2
    return list(range(size)) if size <= TRIAL.alone else [*range(half), *range(size - half, size)]


def _alone(function: ModelLoss, point: Tensor, batch: Batch, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Values of the first samples, each evaluated alone, and the weighted sum of their gradients."""
    rows = _rows_alone(batch.size)
    with torch.enable_grad():
        leaf = point.detach().requires_grad_()
        values = torch.cat([function.losses(leaf, batch.between(row, row + 1)) for row in rows])
        weighted = (values * weights[rows]).sum() * TRIAL.factor
        gradient = gradient_of(function, weighted, leaf)
    return values.detach(), gradient / TRIAL.factor


def _with_gradient(
    function: ModelLoss, point: Tensor, batch: Batch, weights: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """ℓ, the gradient of Σ w_n ℓ_n, and the leaves of the graph other than θ."""
    with torch.enable_grad():
        leaf = point.detach().requires_grad_()
        losses = function.losses(leaf, batch)
        leaves = _leaves(losses)
        if not any(each is leaf for each in leaves):
            raise InvalidValueError(
                "the losses do not depend on any trainable parameter: the model runs under no_grad or "
                "inference_mode, detaches its outputs, or checkpoints with use_reentrant=True (use False)"
            )
        with function.held(leaf):
            try:
                (gradient,) = torch.autograd.grad((losses * weights).sum(), leaf)
            except RuntimeError as error:
                if "ompatible with .grad()" in str(error):
                    raise InvalidValueError(
                        "the model checkpoints with use_reentrant=True, which has no torch.autograd.grad; use "
                        "use_reentrant=False (gradient_checkpointing_kwargs={'use_reentrant': False})"
                    ) from error
                raise
    return losses.detach(), gradient, [each for each in leaves if each is not leaf]


def _leaves(values: Tensor) -> list[Tensor]:
    """The tensors that a graph ends in."""
    found: list[Tensor] = [values] if values.is_leaf and values.requires_grad else []
    seen: set[Any] = set()
    waiting: list[Any] = [values.grad_fn] if values.grad_fn is not None else []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found


def _persistent_leaves(function: ModelLoss, point: Tensor, batch: Batch, leaves: list[Tensor]) -> list[Tensor]:
    """Those that another evaluation meets again; the others were made by the forward pass itself."""
    if not leaves:
        return []
    again = _with_gradient(function, point, batch.head(1), torch.ones_like(point[:1]))[2]
    return [leaf for leaf in leaves if any(leaf is other for other in again)]


def _check_leaves(function: ModelLoss, leaves: list[Tensor], persistent: list[Tensor]) -> None:
    if not persistent:
        return
    named = {id(p): f"parameter '{name}' of the model" for name, p in function.model.named_parameters()}
    if isinstance(function.criterion.loss, nn.Module):
        named |= {
            id(p): f"parameter '{name}' of the loss" for name, p in function.criterion.loss.named_parameters()
        }
    names = [
        named.get(id(leaf), f"a tensor of shape {tuple(leaf.shape)} that neither model nor loss registers")
        for leaf in persistent
    ]
    raise InvalidValueError(
        f"the losses depend on trainable tensors outside θ: {', '.join(names[:3])}"
        f"{' …' if len(names) > 3 else ''}. Their derivatives would be missing. Make them "
        "parameters that the model's forward uses (register them; wrap model and loss in one module), or hold them "
        "fixed with requires_grad_(False)"
    )


def _difference(values: Tensor, others: Tensor, gradient: Tensor, other: Tensor) -> tuple[float, str]:
    """The larger of the relative differences of values and of gradients, and which it is."""
    of_values, of_gradients = _relative(values, others), 0.0
    size = max(float(lengths(each)) for each in (gradient, other))
    if 0 < size < float("inf"):  # one sample that is not finite spoils the sum
        of_gradients = float(lengths(gradient - other)) / size
    return max((of_values, "loss"), (of_gradients, "gradient"))


def _float64_agrees(function: ModelLoss, point: Tensor, batch: Batch, weights: Tensor, error: float) -> bool:
    """Whether the difference from samples alone was rounding: it is gone in float64."""

    def difference(precise: ModelLoss, theta: Tensor, wide: Batch) -> float:
        together, gradient, _ = _with_gradient(precise, theta, wide, weights.double())
        alone, alone_gradient = _alone(precise, theta, wide, weights.double())
        return _difference(together[_rows_alone(wide.size)], alone, gradient, alone_gradient)[0]

    return _gone_in_float64(function, point, batch, error, difference)


def _gone_in_float64(
    function: ModelLoss,
    point: Tensor,
    batch: Batch,
    error: float,
    difference: Callable[[ModelLoss, Tensor, Batch], float],
) -> bool:
    if point.dtype == torch.float64:
        return False
    try:
        if len(point) * 8 > LARGEST_COPY:
            raise MemoryError
        precise, wide = in_float64(function, batch)
        return difference(precise, point.double(), wide) <= SAME[torch.float64]
    except (RuntimeError, MemoryError, TypeError, ValueError):  # it is written for its own precision
        return error <= LOOSE[point.dtype]


def in_float64(function: ModelLoss, batch: Batch) -> tuple[ModelLoss, Batch]:
    """The same function and batch in double precision."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    return function.cast(torch.float64, function.device), batch.map(convert)


def fits_in_float64(theta: Tensor) -> bool:
    """Whether derivatives may be taken of a copy in double precision."""
    return theta.numel() * torch.float64.itemsize * 8 <= LARGEST_COPY


def all_in_float64(
    function: ModelLoss, theta: Tensor, batches: Sequence[Batch]
) -> tuple[ModelLoss, Tensor, list[Batch]] | None:
    """Function, θ and batches in double precision; None where they are so, or cannot be evaluated there."""
    if theta.dtype == torch.float64 or not fits_in_float64(theta):
        return None
    try:
        pairs = [in_float64(function, batch) for batch in batches]
        precise, wide, point = pairs[0][0], [batch for _, batch in pairs], theta.double()
        for batch in wide:
            precise.values(point, batch)
    except (RuntimeError, TypeError, ValueError):  # it is written for its own precision
        return None
    return precise, point, wide


def _relative(one: Tensor, other: Tensor) -> float:
    one, other = one.double().nan_to_num(), other.double().nan_to_num()
    size = float(torch.maximum(torch.linalg.vector_norm(one), torch.linalg.vector_norm(other)))
    return max(0.0, float(torch.linalg.vector_norm(one - other)) - ABSOLUTE) / size if size else 0.0


def _same(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return _relative(one, other) <= tolerance


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
