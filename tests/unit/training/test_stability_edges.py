"""The edge, held against PyTorch's own optimisers on quadratics: their spectral radius crosses 1 exactly there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from cases import F64
from noisescape.errors import InvalidValueError
from noisescape.training import stability_edge

TINY = 1e-9
"""A size of θ whose gradients leave the second moments as they are."""
OPTIMISERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "sgd with decay": (torch.optim.SGD, {"lr": 0.1, "weight_decay": 3.0}),
    "heavy ball": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "heavy ball with decay": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "weight_decay": 2.0}),
    "dampened": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.4, "weight_decay": 2.0}),
    "dampening without momentum": (torch.optim.SGD, {"lr": 0.1, "dampening": 0.4}),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "nesterov with decay": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.5, "nesterov": True, "weight_decay": 2.0}),
    "adam": (torch.optim.Adam, {"lr": 0.1}),
    "adam without momentum": (torch.optim.Adam, {"lr": 0.1, "betas": (0.0, 0.99)}),
    "adam with decay": (torch.optim.Adam, {"lr": 0.1, "weight_decay": 3.0, "betas": (0.8, 0.99)}),
    "amsgrad": (torch.optim.Adam, {"lr": 0.1, "amsgrad": True, "eps": 0.1}),
    "adamw": (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 2.0}),
    "adam, decoupled": (torch.optim.Adam, {"lr": 0.1, "weight_decay": 2.0, "decoupled_weight_decay": True}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.1, "eps": 0.1}),
    "rmsprop with momentum": (torch.optim.RMSprop, {"lr": 0.1, "momentum": 0.7, "weight_decay": 1.0}),
    "rmsprop, centred": (torch.optim.RMSprop, {"lr": 0.1, "centered": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1, "weight_decay": 1.0}),
    "adagrad, decaying": (torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.01, "eps": 0.1}),
}


def frozen_state(optimizer: torch.optim.Optimizer, seed: int = 0) -> dict[Tensor, dict[str, Tensor]]:
    """Second moments and step counts that are put back before each step."""
    generator = torch.Generator().manual_seed(seed)
    kept: dict[Tensor, dict[str, Tensor]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            second = 0.5 + torch.rand(parameter.shape, generator=generator, dtype=F64)
            state = {"step": torch.tensor(30.0 if isinstance(optimizer, torch.optim.Adagrad) else 1e5)}
            for name in ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"):
                state[name] = second * (2 if name == "max_exp_avg_sq" else 1)
            state["grad_avg"] = 0.3 * second
            kept[parameter] = state
    return kept


def start(optimizer: torch.optim.Optimizer) -> None:
    """A first step, so that the optimiser makes its state."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def put_back(
    optimizer: torch.optim.Optimizer, kept: dict[Tensor, dict[str, Tensor]], *, ahead: bool = False
) -> None:
    """Freeze the state; ``ahead``: so that it is this once the next step has let the averages decay."""
    for group in optimizer.param_groups:
        decay = group["alpha"] if "alpha" in group else group.get("betas", (1, 1))[1]
        for parameter in group["params"]:
            own = optimizer.state[parameter]
            for name, value in kept[parameter].items():
                if name in own:
                    averaged = name in ("exp_avg_sq", "square_avg", "grad_avg")
                    own[name].copy_(value / decay if ahead and averaged else value)


def spectral_radius(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], hessian: Tensor) -> float:
    """Of the map (θ, momentum) ↦ (θ, momentum) that one step on ½θᵀHθ is, from the optimiser itself."""
    kept = frozen_state(optimizer)
    start(optimizer)
    momenta = [
        own[name]
        for own in (optimizer.state[parameter] for parameter in parameters)
        for name in ("momentum_buffer", "exp_avg")
        if own.get(name) is not None
    ]
    tensors = [*parameters, *momenta]
    sizes = [tensor.numel() for tensor in tensors]
    columns = []
    for axis in TINY * torch.eye(sum(sizes), dtype=F64):
        with torch.no_grad():
            for tensor, part in zip(tensors, axis.split(sizes), strict=True):
                tensor.copy_(part.view_as(tensor))
        put_back(optimizer, kept, ahead=True)
        theta = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        for parameter, part in zip(parameters, (hessian @ theta).split(sizes[: len(parameters)]), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        optimizer.step()
        columns.append(torch.cat([tensor.detach().reshape(-1) for tensor in tensors]) / TINY)
    return float(torch.linalg.eigvals(torch.stack(columns, dim=1)).abs().max())


def curvature_at_the_edge(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], hessian: Tensor
) -> float:
    """λ₁(P^{1/2}(H + M)P^{1/2})/edge, or λ₁(H)/edge."""
    kept = frozen_state(optimizer)
    start(optimizer)
    put_back(optimizer, kept)
    found = stability_edge(optimizer, parameters)
    assert found is not None
    if found.preconditioner is None:
        assert found.hessian_edge is not None
        return float(torch.linalg.eigvalsh(hessian)[-1]) / found.hessian_edge
    assert found.hessian_edge is None
    assert found.decay is not None
    root = found.preconditioner.sqrt()
    curved = root[:, None] * (hessian + torch.diag(found.decay)) * root
    return float(torch.linalg.eigvalsh(curved)[-1]) / found.edge


def crosses(make: Any, hessian: Tensor) -> tuple[float, float]:
    """The spectral radius where the stated ratio is a millionth below 1, and a millionth above."""
    found = []
    for ratio in (1 - 1e-6, 1 + 1e-6):

        def off(scale: float, ratio: float = ratio) -> float:
            return curvature_at_the_edge(*make(), scale * hessian) - ratio

        scale = brentq(off, 1e-6, 1e6, xtol=1e-12, rtol=1e-13)
        found.append(spectral_radius(*make(), scale * hessian))
    return found[0], found[1]


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_quadratic_in_one_dimension_is_unstable_from_the_edge_on(name):
    kind, options = OPTIMISERS[name]

    def make() -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
        parameter = nn.Parameter(torch.zeros(1, dtype=F64))
        return kind([parameter], **options), [parameter]

    below, above = crosses(make, torch.ones(1, 1, dtype=F64))
    assert below < 1 < above
    assert above == pytest.approx(1, abs=1e-4)  # it is the nearest edge, not a later one


GROUPS: dict[str, tuple[type[torch.optim.Optimizer], list[dict[str, Any]]]] = {
    "rates": (torch.optim.SGD, [{"lr": 0.1}, {"lr": 0.01}, {"lr": 0.3}]),
    "decays": (torch.optim.SGD, [{"lr": 0.1, "weight_decay": 4.0}, {"lr": 0.1}, {"lr": 0.1}]),
    "momentum": (
        torch.optim.SGD,
        [{"lr": 0.1, "momentum": 0.9}, {"lr": 0.2}, {"lr": 0.1, "momentum": 0.5, "dampening": 0.3}],
    ),
    "nesterov": (
        torch.optim.SGD,
        [{"lr": rate, "momentum": 0.9, "nesterov": True, "weight_decay": 10 * rate} for rate in (0.1, 0.3, 0.02)],
    ),
    "adam": (torch.optim.Adam, [{"lr": 0.1}, {"lr": 0.03, "betas": (0.5, 0.9)}, {"lr": 0.2, "weight_decay": 2.0}]),
    "adamw": (
        torch.optim.AdamW,
        [{"lr": 0.1, "weight_decay": 3.0}, {"lr": 0.05, "weight_decay": 9.0}, {"lr": 0.2, "weight_decay": 0.0}],
    ),
    "rmsprop": (
        torch.optim.RMSprop,
        [{"lr": 0.1, "momentum": 0.9}, {"lr": 0.01}, {"lr": 0.3, "weight_decay": 1.0}],
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_so_is_one_in_six_dimensions_whose_groups_differ(name):
    kind, groups = GROUPS[name]
    generator = torch.Generator().manual_seed(3)
    factor = torch.randn(6, 6, generator=generator, dtype=F64)
    hessian = factor @ factor.T

    def make() -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
        parameters = [nn.Parameter(torch.zeros(size, dtype=F64)) for size in (1, 2, 3)]
        given = [{"params": [parameter], **group} for parameter, group in zip(parameters, groups, strict=True)]
        return kind(given), parameters

    below, above = crosses(make, hessian)
    assert below < 1 < above


def adam(**options: Any) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    parameter = nn.Parameter(torch.ones(3))
    return torch.optim.Adam([parameter], lr=1e-3, **options), [parameter]


def test_adams_edge_is_38_over_the_rate_in_its_own_metric():
    optimizer, parameters = adam()
    parameters[0].grad = torch.tensor([1.0, 2.0, 0.0])
    optimizer.step()
    found = stability_edge(optimizer, parameters)
    assert found.edge == pytest.approx(38 / 1e-3)
    # after one step v̂ = g²; the last coordinate has had no gradient and does not move
    torch.testing.assert_close(found.preconditioner, torch.tensor([1.0, 0.5, 0.0]), rtol=1e-5, atol=0)


def test_what_no_group_holds_does_not_move():
    moved, held = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    found = stability_edge(torch.optim.SGD([moved], lr=0.5), [held, moved])
    assert found.edge == 4
    assert found.preconditioner.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.NAdam(parameters),
        lambda parameters: torch.optim.LBFGS(parameters),
        lambda parameters: torch.optim.Adam(parameters),  # before its first step
        lambda parameters: torch.optim.SGD(parameters, lr=0.0),
        lambda parameters: type("Sign", (torch.optim.SGD,), {})(parameters, lr=0.1),
    ],
)
def test_there_is_none_for_others_and_before_the_first_step(make):
    parameters = [nn.Parameter(torch.ones(2))]
    assert stability_edge(make(parameters), parameters) is None


def test_one_that_maximises_and_mixed_nesterov_are_refused():
    one, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    with pytest.raises(InvalidValueError, match="maximises"):
        stability_edge(torch.optim.SGD([one], lr=0.1, maximize=True), [one])
    groups = [{"params": [one], "momentum": 0.9, "nesterov": True}, {"params": [other]}]
    with pytest.raises(InvalidValueError, match="Nesterov"):
        stability_edge(torch.optim.SGD(groups, lr=0.1), [one, other])
    with pytest.raises(InvalidValueError, match="no step is stable"):
        stability_edge(torch.optim.AdamW([one], lr=1.0, weight_decay=3.0), [one])


def test_the_optimiser_inside_a_wrapper_counts():
    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    parameter = nn.Parameter(torch.ones(2))
    wrapped = Wrapper(torch.optim.SGD([parameter], lr=torch.tensor(0.5)))
    assert stability_edge(wrapped, [parameter]).hessian_edge == 4  # type: ignore[arg-type]
