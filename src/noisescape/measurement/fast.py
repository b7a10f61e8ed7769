"""A first look at Tr(HΣ) at the price of some gradients: honest about how little it has seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from noisescape.errors import InvalidValueError, NonFiniteLossError
from noisescape.linops import Estimate
from noisescape.linops.probing import rademacher
from noisescape.linops.tall import squared_length
from noisescape.measurement.figures import as_html, as_text, estimates_of, figures_table
from noisescape.risk import EmpiricalRisk, in_operator_precision
from noisescape.risk.gradient_covariance import covariance_factor
from noisescape.risk.gradients import gradient_rows, per_sample_square_distances
from noisescape.risk.passes import hessian_forms, loss_and_gradient
from noisescape.risk.subsets import restricted
from noisescape.scalars import check_seed

GROUPS = 8
"""Of samples: independent answers, whose spread is the standard error."""
SIGNS = 2
"""In each group, random signs for TrH."""
SHARE = 0.5
"""Of the samples, that curvature is taken of: five products with half of them are at most seven gradients."""
KNOWN = 0.2
"""Relative standard error of a denominator, over which there is no quotient: where it is shown as the denominator
happened to come out large, it would be too small. Told from 0 was not enough: such quotients covered 73 %."""


@dataclass(frozen=True)
class FastMeasurement:
    """What :func:`measure_fast` found; the figures of :class:`~noisescape.measurement.Measurement` of these names.

    Those of curvature have the spread over eight groups of samples as their error, with 7 degrees of freedom. NaN:
    a quotient whose denominator is known to no better than a fifth.
    """

    loss: Estimate
    gradient_norm: Estimate
    trace_h: Estimate
    trace_sigma: Estimate
    trace_h_sigma: Estimate
    isotropic_reference: Estimate
    anisotropy: Estimate
    noise_scale: Estimate
    curvature_noise_scale: Estimate
    dimension: int
    sample_count: int
    batch_size: int
    replacement: bool

    def estimates(self) -> dict[str, Estimate]:
        """All scalar figures by name."""
        return estimates_of(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON: value, stderr, low, high of every figure; settings."""
        settings = ("dimension", "sample_count", "batch_size", "replacement")
        figures = {name: found.to_dict() for name, found in self.estimates().items()}
        return {**figures, **{name: getattr(self, name) for name in settings}}

    def table(self) -> Table:
        """A rich table: figure, value with standard error, 95 % interval, meaning."""
        return figures_table(self)

    def __str__(self) -> str:
        return as_text(self.table())

    def _repr_html_(self) -> str:
        return as_html(self.table())


def measure_fast(
    risk: EmpiricalRisk, theta: Tensor, *, batch_size: int, replacement: bool = True, seed: int = 0
) -> FastMeasurement:
    """Tr(HΣ_B) and its company at θ for tens of gradients, with wide but honest intervals.

    Five to eleven where a group's samples keep the processor busy, more of a large network with few samples;
    finding out whether its gradients and Hessian are what they should be, once for a risk and on a fixed number of
    samples, comes on top.

    The gradient and all samples' distances from it are exact, and with them ‖ḡ‖, TrΣ and TrC/‖ḡ‖². Half of
    the samples make eight groups, each with a Hessian H_i of its own, E H_i = H, and in each

        Tr(HC) = TrC·E d_nᵀH_id_n/‖d_n‖² with d_n = g_n − ḡ, n drawn in proportion to ‖d_n‖²,
        TrH = E zᵀH_iz over two draws of signs z, and ḡᵀH_iḡ.

    Of the n one is drawn in the group and one out of it, each for its stratum's share of TrC: where gradients are
    almost orthogonal, most of d_nᵀHd_n is the sample's own d_nᵀH_nd_n/N, which only its own group sees. The eight
    answers are independent but for groups having no sample in common, which makes the intervals too wide rather
    than too narrow; the curvature of one sample in the half that is not looked at is not seen. Where H has hardly
    more than one direction and the groups few samples, eight answers are too skewed for Student's law: with 80
    samples and an H of rank one, 74 % of the intervals of Tr(HΣ) hold and 84 % of those of TrH. Hessian products
    are never taken of all samples, per-sample gradients are not held, and no eigenpair is looked for: those are
    in :func:`~noisescape.measurement.measure`.

    Args:
        risk: L, of a model.
        theta: where, (D,).
        batch_size: B of the noise.
        replacement: its sampling law.
        seed: of groups and draws.

    Raises:
        NonFiniteLossError: the loss at θ, or a sample's gradient, is not finite.
        ValueError: B out of range, fewer than eight samples, or a closed form, which has none to choose from.
        FailedError: the model has no second derivative.

    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    >>> data = torch.randn(80, 3), torch.randint(0, 2, (80,))
    >>> risk = EmpiricalRisk(model, torch.nn.functional.cross_entropy, data)
    >>> measure_fast(risk, risk.parameters(), batch_size=20).trace_h_sigma.dof
    7
    """
    risk, theta = in_operator_precision(risk, theta)
    check_seed(seed)
    factor = covariance_factor(batch_size, risk.sample_count, replacement=replacement)
    if risk.sample_count < GROUPS:
        raise InvalidValueError(
            f"measure_fast makes {GROUPS} groups of samples, and there are {risk.sample_count}; use measure"
        )
    generator = torch.Generator().manual_seed(seed)
    groups = _groups(risk, generator)
    total, gradient = loss_and_gradient(risk, theta)
    loss = float(total) if bool(torch.isfinite(total)) else float(risk.loss(theta))  # which names the sample
    squared_gradient = squared_length(gradient)
    norms = per_sample_square_distances(risk, theta, gradient)
    if not bool(torch.isfinite(norms).all()):
        raise NonFiniteLossError(
            f"the gradient of sample {int((~torch.isfinite(norms)).nonzero()[0])} is not finite at this θ"
        )
    norms = norms.clamp_min(0)
    trace_c = float(norms.mean())
    answers = _answers(risk, groups, theta, gradient, norms, generator)
    trace_hc, trace_h, along_gradient = answers.T

    cost = GROUPS * (2 + SIGNS + 1)
    hc, h = _mean(trace_hc, cost), _mean(trace_h, cost)
    return FastMeasurement(
        loss=Estimate(loss, 0.0),
        gradient_norm=Estimate(squared_gradient**0.5, 0.0),
        trace_h=h,
        trace_sigma=Estimate(factor * trace_c, 0.0),
        trace_h_sigma=hc.scaled(factor),
        isotropic_reference=h.scaled(factor * trace_c / risk.dimension),
        anisotropy=_quotient(trace_hc, trace_h * (trace_c / risk.dimension), cost),
        noise_scale=Estimate(trace_c / squared_gradient, 0.0) if squared_gradient else Estimate(math.nan, math.nan),
        curvature_noise_scale=_quotient(trace_hc, along_gradient, cost),
        dimension=risk.dimension,
        sample_count=risk.sample_count,
        batch_size=batch_size,
        replacement=replacement,
    )


def _groups(risk: EmpiricalRisk, generator: torch.Generator) -> Tensor:
    """Samples of groups that have none in common, (GROUPS, m)."""
    size = max(1, int(SHARE * risk.sample_count) // GROUPS)
    return torch.randperm(risk.sample_count, generator=generator)[: GROUPS * size].view(GROUPS, size)


def _answers(
    risk: EmpiricalRisk,
    groups: Tensor,
    theta: Tensor,
    gradient: Tensor,
    norms: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Tr(HC), TrH and ḡᵀHḡ by each group, (GROUPS, 3)."""
    weights = norms.cpu()
    like = torch.empty(0, dtype=theta.dtype)
    found = []
    for group in groups:
        outside = torch.ones(len(weights), dtype=torch.bool)
        outside[group] = False
        strata = [group, outside.nonzero()[:, 0]]
        drawn = torch.stack([members[_drawn(weights[members], generator)] for members in strata])
        deviations = gradient_rows(risk, theta, drawn.to(risk.device)) - gradient
        signs = rademacher(risk.dimension, SIGNS, like, generator).mT.contiguous().to(risk.device)
        curvature = restricted(risk, group.to(risk.device))
        forms = hessian_forms(curvature, theta, [*deviations, *signs, gradient]).cpu()
        totals = torch.stack([weights[members].sum() for members in strata]) / len(weights)
        of_noise = torch.where(weights[drawn] > 0, totals * forms[:2] / weights[drawn], 0.0).sum()
        found.append(torch.stack([of_noise, forms[2 : 2 + SIGNS].mean(), forms[-1]]))
    return torch.stack(found)


def _drawn(weights: Tensor, generator: torch.Generator) -> Tensor:
    """An index in proportion to its weight, (); any where all are 0."""
    heights = weights.cumsum(0)  # torch.multinomial takes no more than 2²⁴ of them
    thrown = torch.rand((), generator=generator, dtype=torch.float64) * heights[-1]
    return torch.searchsorted(heights, thrown, right=True).clamp_max(len(weights) - 1)


def _mean(answers: Tensor, cost: int) -> Estimate:
    return Estimate(float(answers.mean()), float(answers.std()) / len(answers) ** 0.5, cost, len(answers) - 1)


def _quotient(above: Tensor, below: Tensor, cost: int) -> Estimate:
    """Of two means over the same groups; NaN where the denominator is poorly known."""
    denominator = _mean(below, cost)
    if denominator.value == 0 or not denominator.relative_stderr <= KNOWN:
        return Estimate(math.nan, math.nan, cost)
    value = float(above.mean()) / denominator.value
    residual = _mean((above - value * below) / denominator.value, cost)
    return Estimate(value, residual.stderr, cost, residual.dof)
