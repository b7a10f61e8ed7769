"""Every closed form of (H, Σ) against the definition it sums up, and what all of them have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cases import F64, normal, symmetric
from noisescape import theory

LR, STEPS, TIME = 0.3, 17, 1.7
EYE = torch.eye(4, dtype=F64)
HESSIAN = symmetric(4, torch.tensor([4.0, 1.5, 0.7, 0.2]), seed=1)
ALIGNED = HESSIAN @ HESSIAN / 5
CROSSED = symmetric(4, torch.tensor([2.0, 1.0, 0.5, 0.1]), seed=2)  # does not commute with H


def recursion(hessian: Tensor, covariance: Tensor) -> Tensor:
    """Cov θ_k of θ ← θ − η(Hθ + ε), step by step."""
    found = torch.zeros_like(hessian)
    for _ in range(STEPS):
        found = (EYE - LR * hessian) @ found @ (EYE - LR * hessian) + LR**2 * covariance
    return found


def diffusion(hessian: Tensor, covariance: Tensor) -> Tensor:
    """Cov θ_t of dθ = −Hθ dt + √η Σ^{1/2} dW: ∫ e^{−Hs} ηΣ e^{−Hs} ds, by Gauss's quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    times, weights = TIME / 2 * (nodes + 1), TIME / 2 * weights
    factors = [torch.matrix_exp(-hessian * time) for time in times]
    return sum(weight * each @ (LR * covariance) @ each for weight, each in zip(weights, factors, strict=True))


def fixed_point(hessian: Tensor, covariance: Tensor) -> Tensor:
    """X = AXA + η²Σ with A = I − ηH, as one linear system."""
    step = EYE - LR * hessian
    left = torch.eye(16, dtype=F64) - torch.kron(step, step)
    return torch.linalg.solve(left, LR**2 * covariance.flatten()).reshape(4, 4)


def balance(hessian: Tensor, covariance: Tensor) -> Tensor:
    """HX + XH = ηΣ, as one linear system."""
    left = torch.kron(hessian, EYE) + torch.kron(EYE, hessian)
    return torch.linalg.solve(left, LR * covariance.flatten()).reshape(4, 4)


def excess(hessian: Tensor, covariance: Tensor) -> Tensor:
    """E ½θᵀHθ."""
    return (hessian @ covariance).trace() / 2


@dataclass(frozen=True)
class Form:
    """A closed form of (H, Σ), and its definition."""

    closed: Callable[[Tensor, Tensor], Tensor]
    definition: Callable[[Tensor, Tensor], Tensor]


FORMS: dict[str, Form] = {
    "expected excess loss": Form(
        lambda h, s: theory.expected_excess_loss(h, s, lr=LR, steps=STEPS), lambda h, s: excess(h, recursion(h, s))
    ),
    "stationary covariance": Form(lambda h, s: theory.stationary_covariance(h, s, lr=LR), fixed_point),
    "expected excess loss, small steps": Form(
        lambda h, s: theory.ou_expected_excess_loss(h, s, lr=LR, time=TIME), lambda h, s: excess(h, diffusion(h, s))
    ),
    "stationary covariance, small steps": Form(lambda h, s: theory.ou_stationary_covariance(h, s, lr=LR), balance),
    "escaping efficiency": Form(
        lambda h, s: theory.escaping_efficiency((h @ s).trace(), lr=LR, time=TIME),
        lambda h, s: excess(h, TIME * LR * s),  # no force yet: Cov θ_t = tηΣ
    ),
}

each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@each_form
@pytest.mark.parametrize("noise", [ALIGNED, CROSSED], ids=["aligned", "crossed"])
def test_a_closed_form_is_its_definition(form: Form, noise: Tensor) -> None:
    assert_close(form.closed(HESSIAN, noise), form.definition(HESSIAN, noise), rtol=1e-10, atol=1e-12)


@each_form
def test_a_closed_form_is_linear_in_the_noise(form: Form) -> None:
    both = form.closed(HESSIAN, 2 * ALIGNED + CROSSED)
    apart = 2 * form.closed(HESSIAN, ALIGNED) + form.closed(HESSIAN, CROSSED)
    assert_close(both, apart, rtol=1e-12, atol=1e-13)


@each_form
def test_a_closed_form_does_not_depend_on_the_basis(form: Form) -> None:
    turn = torch.linalg.qr(normal(4, 4, seed=3)).Q
    turned = form.closed(turn @ HESSIAN @ turn.T, turn @ CROSSED @ turn.T)
    found = form.closed(HESSIAN, CROSSED)
    assert_close(turned, turn @ found @ turn.T if found.ndim else found, rtol=1e-10, atol=1e-12)


@each_form
def test_a_closed_form_keeps_the_precision_it_is_given(form: Form) -> None:
    found = form.closed(HESSIAN.float(), CROSSED.float())
    assert found.dtype == torch.float32
    assert_close(found.double(), form.closed(HESSIAN, CROSSED), rtol=1e-4, atol=1e-5)
