"""Where training at a given curvature stops being stable: 2/η and its forms for momentum, Adam and groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noisescape.errors import InvalidValueError


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
    these are conditions on a root z = −1, at which (h-part) = (limit/η)·(θ-part) coordinate by coordinate, so the
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
    reading = _KINDS.get(type(optimizer))
    if reading is None:
        return None
    group_of, metric_of = reading
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
            found = like + 1 if metric_of is None else metric_of(options, optimizer.state.get(parameter, {}))
            if found is not None:
                like = found.reshape(-1).to(like) * (edge * group.rate / group.limit)
        metrics.append(like)
        decays.append(decay)
    if (
        metric_of is None
        and len(groups) == len(parameters)
        and len({(g.rate / g.limit, g.decay) for g in groups}) == 1
    ):
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


def _adam_metric(options: dict[str, Any], state: dict[str, Any]) -> Tensor | None:
    if "exp_avg_sq" not in state:
        return None
    second = state["max_exp_avg_sq"] if options["amsgrad"] else state["exp_avg_sq"]
    correction = 1 - float(options["betas"][1]) ** float(state["step"])
    return _inverse_root(second / correction, float(options["eps"]))


def _rmsprop_metric(options: dict[str, Any], state: dict[str, Any]) -> Tensor | None:
    if "square_avg" not in state:
        return None
    second = state["square_avg"]
    if options["centered"]:
        second = second - state["grad_avg"].square()
    return _inverse_root(second, float(options["eps"]))


def _adagrad_metric(options: dict[str, Any], state: dict[str, Any]) -> Tensor | None:
    steps = float(state.get("step", 0))
    if not steps:
        return None
    return _inverse_root(state["sum"], float(options["eps"])) / (1 + steps * float(options["lr_decay"]))


def _inverse_root(second: Tensor, eps: float) -> Tensor:
    """1/(√v + ε), and 0 where v is 0: that coordinate has had no gradient, so nothing is known of its step."""
    second = second.float() if second.dtype.itemsize < 4 else second
    return torch.where(second > 0, 1 / (second.clamp_min(0).sqrt() + eps), 0)


_Reading = tuple[
    Callable[[dict[str, Any]], _Group], Callable[[dict[str, Any], dict[str, Any]], Tensor | None] | None
]
_KINDS: dict[type, _Reading] = {
    torch.optim.SGD: (_sgd, None),
    torch.optim.Adam: (_adam, _adam_metric),
    torch.optim.AdamW: (_adamw, _adam_metric),
    torch.optim.RMSprop: (_rmsprop, _rmsprop_metric),
    torch.optim.Adagrad: (_adagrad, _adagrad_metric),
}
"""Exactly these classes: a subclass may step otherwise."""
