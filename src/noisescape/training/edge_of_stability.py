"""Where training at a given curvature stops being stable: 2/η and its forms for momentum, Adam and groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noisescape.errors import InvalidValueError
from noisescape.training.preconditioner import preconditioner


@dataclass(frozen=True)
class StabilityEdge:
    """The edge of an optimiser's full-batch dynamics on a quadratic with its rates and second moments frozen.

    Steps are stable while λ₁(P^{1/2}(H + M)P^{1/2}) < ``edge``, and H has no direction of too negative curvature.

    Attributes:
        edge: in units of λ₁(P^{1/2}(H + M)P^{1/2}).
        preconditioner: diag P, (D,); None for the identity.
        decay: diag M, (D,), of weight decay that is added to the gradient; None where P is the identity, where it
            is part of :attr:`hessian_edge` instead.
        hessian_edge: where P is the identity, the edge of λ₁(H) itself; else None.
    """

    edge: float
    preconditioner: Tensor | None = None
    decay: Tensor | None = None
    hessian_edge: float | None = None


@dataclass(frozen=True)
class _Group:
    """How one parameter group moves along an eigenvector of curvature h, in units where its matrix D is 1.

    Attributes:
        rate: the step per unit of gradient, η times what of a gradient enters the momentum.
        limit: steps are stable while rate·h is below it.
        decay: coupled weight decay μ, which makes h = λ + μ.
        form: what must be the same in all groups for the edge to be one number.
    """

    rate: float
    limit: float
    decay: float = 0.0
    form: tuple[Any, ...] = ()


def stability_edge(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> StabilityEdge | None:
    """The edge of an optimiser, for θ made of ``parameters``, in order.

    With h an eigenvalue of the curvature that a step sees, rates η, momentum β, the limits of η·h are

    * gradient descent 2; heavy ball 2(1 + β), over 1 − τ with dampening τ, which scales each gradient;
    * Nesterov 2(1 + β)/(1 + 2β): z² − (1 + β)(1 − ηh)z + β(1 − ηh) has its root −1 there;
    * Adam, in the metric D = diag(1/(√v̂ + ε)), with v frozen and the first bias correction over,
      2(1 + β₁)/(1 − β₁), 38 at β₁ = 0.9; AMSGrad by its maximal v; RMSprop 2(1 + β) and Adagrad 2, in theirs.

    Weight decay μ that is added to the gradient makes h = λ + μ. Decoupled decay (AdamW) contracts each step by
    1 − ημ and makes Adam's limit (2 − ημ)(1 + β₁)/(1 − β₁). Groups of different η, β or μ are put into P: all
    these are conditions on a root z = −1, where the recurrence is a generalised symmetric eigenproblem, so the
    edge is the top eigenvalue of P^{1/2}(H + M)P^{1/2} with P_i = D_i·(η_i/limit_i)/(η_r/limit_r), r the group
    with the largest step. With one group P is D (for SGD the identity), as in the literature.

    Parameters that no group holds, or that have had no gradient yet (second moment 0), do not move: P_i = 0.
    Gradient clipping is not seen.

    Returns:
        None where the optimiser is none of these, or has not made a step, or no rate is positive.

    Raises:
        InvalidValueError: an optimiser that maximises, or groups of different Nesterov momentum, whose edge is no
            single eigenvalue.

    Source: Cohen et al. (2021, arXiv 2103.00065) for momentum, (2022, arXiv 2207.14484) for Adam's kind.

    >>> weight = nn.Parameter(torch.zeros(3))
    >>> stability_edge(torch.optim.SGD([weight], lr=0.25, momentum=0.5), [weight]).hessian_edge
    12.0
    """
    optimizer = unwrapped(optimizer)
    group_of = _KINDS.get(type(optimizer))
    if group_of is None:
        return None
    adaptive = group_of is not _sgd
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise InvalidValueError(
            "the optimiser maximises (maximize=True), so large curvature of the loss sets it no edge; minimise "
            "the negative loss instead"
        )
    moving: dict[int, tuple[_Group, dict[str, Any]]] = {}
    for options in optimizer.param_groups:
        group = group_of(options)
        if group.limit <= 0 or group.rate < 0:
            raise InvalidValueError(
                "weight decay times learning rate is 2 or more, or a learning rate is negative: no step is stable"
            )
        moving |= {id(parameter): (group, options) for parameter in options["params"]}
    groups = [moving[id(parameter)][0] for parameter in parameters if id(parameter) in moving]
    if not any(group.rate > 0 for group in groups):
        return None
    if len({group.form for group in groups}) > 1:
        raise InvalidValueError(
            "the parameter groups differ in Nesterov momentum, so there is no single stability edge; give all the "
            "same momentum and nesterov"
        )
    largest = max(groups, key=lambda group: group.rate / group.limit)
    edge = largest.limit / largest.rate
    metrics: list[Tensor] = []
    decays: list[Tensor] = []
    for parameter in parameters:
        flat = parameter.detach().reshape(-1)
        like = torch.zeros_like(flat, dtype=torch.promote_types(flat.dtype, torch.float32))
        decay = like
        if id(parameter) in moving:
            group, options = moving[id(parameter)]
            decay = like + group.decay
            found = _metric(optimizer, options, parameter) if adaptive else like + 1
            if found is not None:
                like = found.reshape(-1).to(like) * (edge * group.rate / group.limit)
        metrics.append(like)
        decays.append(decay)
    if not adaptive and len(groups) == len(parameters) and len({(g.rate / g.limit, g.decay) for g in groups}) == 1:
        return StabilityEdge(edge, hessian_edge=edge - largest.decay)
    preconditioner = torch.cat(metrics)
    if not bool(preconditioner.any()):
        return None
    return StabilityEdge(edge, preconditioner, torch.cat(decays))


def unwrapped(optimizer: Any) -> Any:
    """The optimiser inside wrappers that hold one as ``optimizer``, as those of Lightning and Accelerate do."""
    while type(optimizer) not in _KINDS:
        held = getattr(optimizer, "optimizer", None)
        if not isinstance(held, torch.optim.Optimizer) or held is optimizer:
            break
        optimizer = held
    return optimizer


def _sgd(options: dict[str, Any]) -> _Group:
    rate, decay, momentum = (float(options[name]) for name in ("lr", "weight_decay", "momentum"))
    if options["nesterov"] and momentum:
        return _Group(rate, 2 * (1 + momentum) / (1 + 2 * momentum), decay, ("nesterov", momentum))
    share = 1 - float(options["dampening"]) if momentum else 1.0
    return _Group(rate * share, 2 * (1 + momentum), decay)


def _adam(options: dict[str, Any]) -> _Group:
    rate, decay, first = float(options["lr"]), float(options["weight_decay"]), float(options["betas"][0])
    if options.get("decoupled_weight_decay"):
        return _Group(rate * (1 - first), (2 - rate * decay) * (1 + first))
    return _Group(rate * (1 - first), 2 * (1 + first), decay)


def _adamw(options: dict[str, Any]) -> _Group:
    return _adam({**options, "decoupled_weight_decay": True})


def _rmsprop(options: dict[str, Any]) -> _Group:
    rate, decay, momentum = (float(options[name]) for name in ("lr", "weight_decay", "momentum"))
    return _Group(rate, 2 * (1 + momentum), decay)


def _adagrad(options: dict[str, Any]) -> _Group:
    return _Group(float(options["lr"]), 2.0, float(options["weight_decay"]))


def _metric(optimizer: torch.optim.Optimizer, options: dict[str, Any], parameter: Tensor) -> Tensor | None:
    """D, 0 where the second moment is 0: nothing is known of the step of what has had no gradient."""
    found = preconditioner(optimizer, options, parameter)
    if found is None:
        return None
    state = optimizer.state[parameter]
    if "lr_decay" in options:
        found = found / (1 + float(state["step"]) * float(options["lr_decay"]))
    second = next(state[name] for name in ("max_exp_avg_sq", "exp_avg_sq", "square_avg", "sum") if name in state)
    return torch.where(second > 0, found, 0)


_KINDS: dict[type, Callable[[dict[str, Any]], _Group]] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adamw,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adagrad: _adagrad,
}
"""Exactly these classes: a subclass may step otherwise."""
