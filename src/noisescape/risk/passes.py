"""Sums over all samples of ℓ(θ) ∈ R^N and its derivatives, chunk by chunk: vjp, jvp, hvp and ggnvp.

With G the Jacobian of ℓ (N × D, rows g_n = ∇ℓ_n): any re-weighted gradient Gᵀw is one backward pass (``vjp``), the
directional derivatives of all samples Gv are one forward-mode pass (``jvp``), a Hessian-vector product is the
derivative of the gradient (``hvp``), and the generalised Gauss–Newton matrix is Jᵀ(∇²_f ℓ)J with J the Jacobian of
the outputs f (``ggnvp``). These are the functions behind :class:`~noisescape.risk.EmpiricalRisk`; θ may be (R, D)
where they say so.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.func import grad

from noisescape.errors import FailedError, InvalidValueError
from noisescape.linops.tall import inner_product
from noisescape.risk.arguments import check_beside, check_directions, check_indices
from noisescape.risk.chunking import HESSIAN_PASSES
from noisescape.risk.differentiation import (
    column_blocks,
    edge_of,
    gradient_of,
    pull_back,
    push_forward,
    push_forward_by_reverse,
)
from noisescape.risk.gradients import factored_chunks
from noisescape.risk.model_loss import ModelLoss, mapping, tensor_outputs
from noisescape.risk.samples import Batch, TensorSamples

if TYPE_CHECKING:
    from noisescape.risk.empirical_risk import EmpiricalRisk

GradientGraph = tuple[Tensor, Tensor | GradientEdge]
"""θ as a leaf, and a chunk's share of ∇L(θ) as a function of it."""
Pass = Callable[..., Tensor]


def over_replicas(single: Pass) -> Pass:
    """One replica after another where the model cannot be mapped over parameter vectors."""

    @functools.wraps(single)
    def replicated(risk: EmpiricalRisk, theta: Tensor, *others: Tensor) -> Tensor:
        risk._check_theta(theta, *others)
        if theta.ndim == 1 or risk._capabilities.replicas:
            return single(risk, theta, *others)
        each = [other if other.ndim == 2 else other.expand(len(theta), -1) for other in others]
        return torch.stack([single(risk, *row) for row in zip(theta, *each, strict=True)])

    return replicated


# ---------------------------------------------------------------------- values


@over_replicas
def unchecked_losses(risk: EmpiricalRisk, theta: Tensor) -> Tensor:
    """ℓ(θ): (D,) → (N,), or (R, D) → (R, N); non-finite values pass through."""
    parts = [risk._function.values(theta, batch) for batch in risk._batches(passes=_copies(theta))]
    return risk._samples.collected(torch.cat(parts, dim=-1), dim=-1)


# ---------------------------------------------------------------------- first derivatives


@over_replicas
@torch.enable_grad()
def gradient(risk: EmpiricalRisk, theta: Tensor) -> Tensor:
    """∇L(θ) = Gᵀ1/N: (D,) → (D,), or (R, D) → (R, D)."""

    def part(batch: Batch) -> Tensor:
        leaf = theta.detach().requires_grad_()
        return gradient_of(risk._function, _share(risk, leaf, batch=batch), leaf)

    return _total(risk, (part(batch) for batch in risk._batches(passes=2 * _copies(theta))))


@torch.enable_grad()
def loss_and_gradient(risk: EmpiricalRisk, theta: Tensor) -> tuple[Tensor, Tensor]:
    """L(θ), summed in float64, and ∇L(θ) by one pass: (D,) → () and (D,)."""
    risk._check_theta(theta, replicas=False)
    total = torch.zeros((), dtype=torch.float64, device=theta.device)

    def part(batch: Batch) -> Tensor:
        leaf = theta.detach().requires_grad_()
        losses = risk._function.losses(leaf, batch)
        total.add_(losses.detach().double().sum())
        return gradient_of(risk._function, losses.sum() / risk.sample_count, leaf)

    found = _total(risk, (part(batch) for batch in risk._batches(passes=2)))
    return risk._samples.total(total) / risk.sample_count, found


def minibatch_gradient(risk: EmpiricalRisk, theta: Tensor, indices: Tensor) -> Tensor:
    """Mean of g_n over the samples at ``indices``, (B,), or (R, B): a batch of its own for each replica."""
    check_indices(indices, risk.sample_count)
    return drawn_gradient(risk, theta, indices)


@torch.enable_grad()
def drawn_gradient(risk: EmpiricalRisk, theta: Tensor, indices: Tensor) -> Tensor:
    """:func:`minibatch_gradient` for indices drawn below N: to look whether they are would be to wait for a GPU."""
    risk._check_theta(theta, indices)
    if indices.ndim not in (1, theta.ndim) or indices.shape[:-1] not in ((), theta.shape[:-1]):
        raise InvalidValueError(
            f"indices must have shape (B,), or (R, B) with replicas θ (R, {risk.dimension}); they are "
            f"{tuple(indices.shape)} with θ {tuple(theta.shape)}"
        )
    own = indices.ndim == 2
    mapped = risk._capabilities.replicas_with_batches if own else theta.ndim == 1 or risk._capabilities.replicas
    if not mapped:
        rows = indices if own else indices.expand(len(theta), -1)
        return torch.stack([drawn_gradient(risk, *pair) for pair in zip(theta, rows, strict=True)])

    def part(batch: Batch) -> Tensor:
        leaf = theta.detach().requires_grad_()
        losses = risk._function.losses(leaf, batch, data_per_replica=own)
        return gradient_of(risk._function, losses.sum() / indices.shape[-1], leaf)

    size = risk._chunking.samples(passes=2 * _copies(theta))
    parts: Iterator[Tensor] = (part(batch) for batch in _chosen_batches(risk, indices, size))
    if risk.shard is not None:  # this rank may have none of the samples
        parts = itertools.chain([torch.zeros_like(theta)], parts)
    return _total(risk, parts)


def _chosen_batches(risk: EmpiricalRisk, indices: Tensor, size: int) -> Iterator[Batch]:
    """The samples at ``indices``, (n,) or (R, n), at most so many at a time."""
    if isinstance(risk._samples, TensorSamples):
        for some in indices.split(size, dim=-1):
            inputs, targets = risk._samples.take(some)
            yield Batch(inputs, targets, 0, some.shape[-1])
    else:
        for _, group in risk._samples.chosen(indices):
            yield from group.batches(size)


@over_replicas
@torch.enable_grad()
def vjp(risk: EmpiricalRisk, theta: Tensor, weights: Tensor) -> Tensor:
    """Gᵀw: θ (D,) and w (N,) or (N, K) → (D,) or (D, K); θ (R, D) and w (N,) or (R, N) → (R, D)."""
    check_beside("weights", weights, theta)
    block = theta.ndim == 1 and weights.ndim == 2
    count = risk.sample_count
    if weights.ndim > 2 or weights.shape[0 if block else -1] != count:
        expected = (count, weights.shape[-1]) if block else (count,)
        raise InvalidValueError(f"weights must have shape {expected}, not {tuple(weights.shape)}")

    def part(batch: Batch) -> Tensor:
        leaf = theta.detach().requires_grad_()
        losses = risk._function.losses(leaf, batch)
        if block:
            columns = weights[batch.span].split(risk._chunking.columns(batch.size), dim=1)
            return _joined([pull_back_through(risk, losses, leaf, some.mT, leaf).mT for some in columns])
        return gradient_of(risk._function, (losses * weights[..., batch.span]).sum(), leaf)

    columns = weights.shape[1] if block else 1
    return _total(risk, (part(batch) for batch in risk._batches(passes=2 * _copies(theta), columns=columns)))


@over_replicas
def jvp(risk: EmpiricalRisk, theta: Tensor, directions: Tensor) -> Tensor:
    """Gv: θ (D,) and v (D,) or (D, K) → (N,) or (N, K); θ and v (R, D) → (R, N)."""
    check_directions(theta, directions)
    if theta.ndim == 1 and not risk._capabilities.forward_mode and not risk._capabilities.double_reverse:
        block = directions if directions.ndim == 2 else directions[:, None]
        found = risk._samples.collected(torch.cat([part @ block for part in factored_chunks(risk, theta)]))
        return found.view(risk.sample_count, *directions.shape[1:])
    parts = []
    for batch in risk._batches(passes=2 * _copies(theta), columns=_columns(theta, directions)):

        def losses(point: Tensor, batch: Batch = batch) -> Tensor:
            return risk._function.losses(point, batch)

        parts.append(push_forward_through(risk, losses, theta, directions, batch.size))
    dim = 0 if theta.ndim == 1 else -1
    return risk._samples.collected(torch.cat(parts, dim=dim), dim=dim)


# ---------------------------------------------------------------------- second derivatives


@over_replicas
def hvp(risk: EmpiricalRisk, theta: Tensor, directions: Tensor) -> Tensor:
    """Hv: θ (D,) and v (D,) or (D, K), or θ and v (R, D); the result is shaped as v.

    By two reverse passes; on a busy GPU, where the second reverse pass of a convolution is slow, by forward mode.
    """
    check_directions(theta, directions)
    if theta.ndim == 1 and risk._chunking.fills_gpu and risk._capabilities.forward_over_reverse:
        return hvp_by_forward_mode(risk, theta, directions.view(risk.dimension, -1)).view_as(directions)
    return hvp_through(risk, gradient_graphs(risk, theta), directions)


@torch.enable_grad()
def gradient_graphs(risk: EmpiricalRisk, theta: Tensor) -> Iterator[GradientGraph]:
    """What :func:`hvp_through` differentiates, chunk by chunk."""
    risk._check_theta(theta)
    risk._capabilities.check_second_derivative()

    def graph(leaf: Tensor, batch: Batch) -> Tensor | GradientEdge:
        return edge_of(gradient_of(risk._function, _share(risk, leaf, batch=batch), leaf, create_graph=True))

    for batch in risk._batches(passes=HESSIAN_PASSES * _copies(theta)):
        leaf = theta.detach().requires_grad_()
        yield leaf, graph(leaf, batch)  # nothing here holds on to the graph


def hvp_through(risk: EmpiricalRisk, graphs: Iterable[GradientGraph], directions: Tensor) -> Tensor:
    """Hv from the :func:`gradient_graphs`, one reverse pass; they may be kept for several products at one θ."""

    def part(graph: GradientGraph) -> Tensor:
        leaf, share = graph
        if directions.ndim == leaf.ndim:
            return pull_back_through(risk, share, leaf, directions, leaf)
        if risk._chunking.cached and risk._chunking.parameters_dominate:  # one column alone keeps a CPU busy
            return torch.stack(
                [pull_back_through(risk, share, leaf, column, leaf) for column in directions.T], dim=1
            )
        columns = risk._chunking.columns(risk._chunking.samples(passes=HESSIAN_PASSES))
        return _joined(
            [pull_back_through(risk, share, leaf, some.mT, leaf).mT for some in directions.split(columns, dim=1)]
        )

    with _second_derivatives():
        return _total(risk, map(part, graphs))


def hessian_forms(risk: EmpiricalRisk, theta: Tensor, vectors: Sequence[Tensor]) -> Tensor:
    """vᵀHv of each of some vectors, (D,) → (K,), in float64: one reverse pass each, and no Hv is held.

    Nothing needs to be found out of the model for it but that it has second derivatives.
    """
    total = torch.zeros(len(vectors), dtype=torch.float64, device=theta.device)
    with _second_derivatives():
        for leaf, share in gradient_graphs(risk, theta):
            parts = [inner_product(v, pull_back_through(risk, share, leaf, v, leaf)) for v in vectors]
            total += torch.stack(parts).double()
    return risk._samples.total(total)


@contextlib.contextmanager
def _second_derivatives() -> Iterator[None]:
    """Says what an operation without one needs."""
    try:
        yield
    except RuntimeError as error:
        if not _lacks_second_derivative(error):
            raise
        raise FailedError(
            f"an operation of the model has no second derivative ({str(error).splitlines()[0][:200]}); give it "
            "a twice differentiable backward pass, or take products by finite differences of the gradient, "
            "with a stated error: noisescape.DifferenceHessian(risk, theta)"
        ) from error


def hvp_by_forward_mode(risk: EmpiricalRisk, theta: Tensor, directions: Tensor) -> Tensor:
    """Hv for the columns of a block, (D, K) → (D, K), by forward mode through the gradient.

    No graph of the gradient is kept, and what the columns share is computed once: cheaper than :func:`hvp` for some
    columns together, dearer for one alone.
    """
    risk._check_theta(theta, directions, replicas=False)
    check_directions(theta, directions)
    risk._capabilities.check_second_derivative()
    total = torch.zeros_like(directions)
    for batch in risk._batches(passes=HESSIAN_PASSES, columns=_columns(theta, directions)):
        share_gradient = grad(functools.partial(_share, risk, batch=batch))
        columns = directions.split(risk._chunking.columns(batch.size), dim=1)
        with mapping():
            total += _joined([push_forward(share_gradient, theta, some) for some in columns])
    return risk._samples.total(total)


def dense_hessian(risk: EmpiricalRisk, theta: Tensor) -> Tensor:
    """H formed column by column from one graph: (D,) → (D, D), or (R, D) → (R, D, D). For small D."""
    if theta.ndim == 2 and not risk._capabilities.replicas:
        return torch.stack([dense_hessian(risk, row) for row in theta])
    axes = torch.eye(risk.dimension, dtype=risk.dtype, device=risk.device)
    total = theta.new_zeros(*theta.shape, risk.dimension)
    for leaf, share in gradient_graphs(risk, theta):
        columns = [pull_back_through(risk, share, leaf, axis.expand_as(theta), leaf) for axis in axes]
        total += torch.stack(columns, dim=-1)
    total = risk._samples.total(total)
    return (total + total.mT) / 2


# ---------------------------------------------------------------------- the generalised Gauss–Newton matrix


@torch.enable_grad()
def ggnvp(risk: EmpiricalRisk, theta: Tensor, directions: Tensor) -> Tensor:
    """(1/N) Σ_n J_nᵀ(∇²_f ℓ_n)J_n v, J_n the Jacobian of sample n's outputs f: v (D,) or (D, K), shaped as v."""
    function = function_of_outputs(risk, theta, "the Gauss–Newton matrix", directions)
    check_directions(theta, directions)
    total = torch.zeros_like(directions)
    for batch in risk._batches(passes=HESSIAN_PASSES, columns=_columns(theta, directions)):
        outputs = _outputs(function, batch)
        parts = []
        for block in column_blocks(directions, risk._chunking.columns(batch.size), theta):
            pushed = push_forward_through(risk, outputs, theta, block, batch.size)
            leaf = theta.detach().requires_grad_()
            predicted = outputs(leaf)
            at, output_gradient = _output_gradient(risk, function, theta, predicted.detach(), batch)
            cotangents = pushed if block.ndim == 1 else pushed.movedim(-1, 0)
            curved = pull_back_through(risk, output_gradient, at, cotangents, theta)
            pulled = pull_back_through(risk, predicted, leaf, curved, theta)
            parts.append(pulled if block.ndim == 1 else pulled.mT)
        total += _joined(parts)
    return risk._samples.total(total)


@torch.enable_grad()
def ggn_forms(risk: EmpiricalRisk, theta: Tensor, directions: Tensor) -> Tensor:
    """vᵀ(GGN)v of each column of a block, (D, K) → (K,): no reverse pass through the model."""
    function = function_of_outputs(risk, theta, "the Gauss–Newton matrix", directions)
    check_directions(theta, directions)
    total = directions.new_zeros(directions.shape[1])
    for batch in risk._batches(passes=2, columns=directions.shape[1]):
        predicted = tensor_outputs(function.output_values(theta, batch.inputs))
        at, output_gradient = _output_gradient(risk, function, theta, predicted, batch)
        parts = []
        for block in column_blocks(directions, risk._chunking.columns(batch.size), theta):
            pushed = push_forward_through(risk, _outputs(function, batch), theta, block, batch.size).movedim(-1, 0)
            parts.append((pushed * pull_back_through(risk, output_gradient, at, pushed, theta)).flatten(1).sum(1))
        total += torch.cat(parts)
    return risk._samples.total(total)


@torch.enable_grad()
def ggn_draws(risk: EmpiricalRisk, theta: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """``count`` draws of N(0, GGN), as rows (count, D): Jᵀ(∇²_f ℓ)^{1/2} z/√N, one backward pass each."""
    function = function_of_outputs(risk, theta, "the Gauss–Newton matrix")
    generator = risk._samples.own_generator(generator, theta.device)
    total = theta.new_zeros(count, risk.dimension)
    for batch in risk._batches(passes=HESSIAN_PASSES, columns=count):
        leaf = theta.detach().requires_grad_()
        predicted = tensor_outputs(function.outputs(leaf, batch.inputs))
        root = function.output_hessian_root(theta, predicted.detach(), batch)
        noise = torch.randn(count, *root.shape[:2], 1, generator=generator, dtype=risk.dtype, device=risk.device)
        cotangents = (root @ noise).reshape(count, *predicted.shape) / risk.sample_count**0.5
        at_once = cotangents.split(risk._chunking.columns(batch.size))
        total += torch.cat([pull_back_through(risk, predicted, leaf, some, theta) for some in at_once])
    return risk._samples.total(total)


def _outputs(function: ModelLoss, batch: Batch) -> Callable[[Tensor], Tensor]:
    """θ ↦ the outputs f of a batch."""
    return lambda point: tensor_outputs(function.outputs(point, batch.inputs))


def _output_gradient(
    risk: EmpiricalRisk, function: ModelLoss, theta: Tensor, outputs: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    """The outputs as a leaf, and the gradient of a batch's share of L with respect to them, as a function of it."""
    at = outputs.requires_grad_()
    share = function.losses_of_outputs(theta, at, batch.targets).sum() / risk.sample_count
    return at, torch.autograd.grad(share, at, create_graph=True)[0]


@torch.enable_grad()
def output_gradients(risk: EmpiricalRisk, theta: Tensor) -> Iterator[Tensor]:
    """r_n = ∂ℓ_n/∂f_n, the losses' derivatives with respect to the outputs f, (n, …) shaped as these, by chunks."""
    function = function_of_outputs(risk, theta, "the derivative with respect to outputs")
    for batch in risk._batches(passes=1):
        at = tensor_outputs(function.output_values(theta, batch.inputs)).requires_grad_()
        losses = function.losses_of_outputs(theta, at, batch.targets)
        yield torch.autograd.grad(losses.sum(), at)[0]


def function_of_outputs(risk: EmpiricalRisk, theta: Tensor, purpose: str, *others: Tensor) -> ModelLoss:
    """The model and loss, refused where the loss has parameters outside the outputs; ``others`` go with θ."""
    function = risk._model_loss(purpose)
    risk._check_theta(theta, *others, replicas=False)
    outputs = function.output_values(risk._capabilities.parameters(), risk._tried[0].head(1).inputs)
    if isinstance(outputs, Tensor) and risk._capabilities.loss_reads_parameters:
        raise InvalidValueError(
            "the loss reads the model's parameters itself (weight decay, an output layer of its own), so it is no "
            f"function of the outputs alone, as {purpose} needs; move that part into the model's forward, or use "
            "the Hessian"
        )
    return function


# ---------------------------------------------------------------------- shared by them


def _share(risk: EmpiricalRisk, point: Tensor, *, batch: Batch) -> Tensor:
    """A chunk's share of L."""
    return risk._function.losses(point, batch).sum() / risk.sample_count


def pull_back_through(
    risk: EmpiricalRisk, values: Tensor | GradientEdge, inputs: Tensor, cotangents: Tensor, theta: Tensor
) -> Tensor:
    """As :func:`pull_back`, through a graph of the function at θ."""
    single = cotangents.ndim == (values if isinstance(values, Tensor) else inputs).ndim
    with risk._function.held(theta):
        if single or risk._capabilities.batched_reverse:
            return pull_back(values, inputs, cotangents)
        return torch.stack([pull_back(values, inputs, each) for each in cotangents])


def push_forward_through(
    risk: EmpiricalRisk, function: Callable[[Tensor], Tensor], theta: Tensor, directions: Tensor, samples: int
) -> Tensor:
    """Derivatives of ``function`` along the directions; columns of a block stay last."""
    forward_mode = risk._capabilities.forward_mode
    if not forward_mode and not risk._capabilities.double_reverse:
        raise InvalidValueError(
            "the derivative of this model's outputs along a direction cannot be had: it has no forward-mode rules, "
            "and an operation's backward pass is differentiable once only. Gradients and their covariance are not "
            "affected; for curvature take noisescape.DifferenceHessian(risk, theta)"
        )
    forward = push_forward if forward_mode else push_forward_by_reverse
    with risk._function.held(theta):
        blocks = column_blocks(directions, risk._chunking.columns(samples), theta)
        return _joined([forward(function, theta, block) for block in blocks])


def _lacks_second_derivative(error: RuntimeError) -> bool:
    known = (
        "once_differentiable",
        "differentiate twice",
        "is not implemented",
        "derivative for",
        "double backward",
    )
    return any(part in str(error) for part in known)


def _total(risk: EmpiricalRisk, parts: Iterator[Tensor]) -> Tensor:
    """Of all chunks' shares, in place: no more than two are held. Then of all ranks'."""
    total = next(parts)
    for part in parts:
        total += part
        del part
    return risk._samples.total(total)


def _joined(columns: list[Tensor]) -> Tensor:
    """Side by side; one alone is not copied."""
    return columns[0] if len(columns) == 1 else torch.cat(columns, dim=-1)


def _columns(theta: Tensor, directions: Tensor) -> int:
    """How many directions a block at a single θ holds; replicas have one each."""
    return directions.shape[1] if directions.ndim > theta.ndim else 1


def _copies(theta: Tensor) -> int:
    """How many parameter vectors are evaluated together."""
    return len(theta) if theta.ndim == 2 else 1
