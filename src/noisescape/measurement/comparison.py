"""The noise covariance C, the Fisher information F and the Hessian H: how near is each to the others?"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from noisescape.errors import InvalidTypeError, InvalidValueError, kind_of
from noisescape.linops import (
    Eigenpairs,
    Estimate,
    SymmetricOperator,
    eigenpairs,
    product_trace,
    ratio,
    square_root,
    squared_norm,
    trace,
)
from noisescape.linops.operator import check_operand
from noisescape.linops.probing import check_tolerance
from noisescape.linops.tall import inner_products, lengths
from noisescape.risk import EmpiricalRisk, in_operator_precision
from noisescape.scalars import check_whole


@dataclass(frozen=True)
class Comparison:
    """Symmetric matrices beside each other; pairs are named "A/B", in the order in which the matrices were given.

    Attributes:
        traces: Tr A, by name.
        cosines: Tr(AB)/(‖A‖_F‖B‖_F): 1 where one is a positive multiple of the other.
        overlaps: ‖U_AᵀU_B‖²_F/k of the leading k eigenvectors of both, from 0 to 1; k/D for random subspaces. Good
            to the accuracy of the eigenvectors, for which no error is stated.
        largest: λ₁ by name, with the residual norm, a bound, as its error.
        top_ratios: λ₁(A)/λ₁(B).
        k: of the subspaces.
    """

    traces: Mapping[str, Estimate]
    cosines: Mapping[str, Estimate]
    overlaps: Mapping[str, float]
    largest: Mapping[str, Estimate]
    top_ratios: Mapping[str, Estimate]
    k: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        estimates = ("traces", "cosines", "largest", "top_ratios")
        parts = {part: {name: e.to_dict() for name, e in getattr(self, part).items()} for part in estimates}
        return {**parts, "overlaps": dict(self.overlaps), "k": self.k}


def compare_operators(
    operators: Mapping[str, SymmetricOperator],
    *,
    k: int = 10,
    rtol: float = 0.01,
    max_products: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Traces, cosines, leading subspaces and largest eigenvalues of symmetric operators of one size.

    Args:
        operators: two or more, by name.
        k: leading eigenvectors compared; cut to D.
        rtol: relative standard error asked of traces, norms and traces of products.
        max_products: bound on the cost of each.
        seed: of the probes, other ones for each number.

    Raises:
        TypeError: something that is no operator, or k that is no whole number.
        ValueError: k < 1, fewer than two operators, or operators that do not go together.
    """
    check_whole("k", k)
    check_tolerance(rtol, max_products, seed)
    if not isinstance(operators, Mapping):
        raise InvalidTypeError(f"operators must go by names, {{'H': hessian}}, not {kind_of(operators)}")
    if len(operators) < 2:
        raise InvalidValueError(f"a comparison takes two operators or more, not {len(operators)}")
    for each in operators.values():
        check_operand(each)
    seeds = itertools.count(seed)
    k = min(k, next(iter(operators.values())).size)
    leading = {name: _leading(each, k, seed) for name, each in operators.items()}
    options: dict[str, Any] = {"rtol": rtol, "max_products": max_products}
    traces, norms, cosines = {}, {}, {}
    for name, each in operators.items():
        found = leading[name].vectors
        traces[name] = _trace(each, **options, deflate=found, seed=next(seeds))
        norms[name] = square_root(squared_norm(each, **options, deflate=found, seed=next(seeds)))
    pairs = list(itertools.combinations(operators, 2))
    for one, other in pairs:
        both = product_trace(operators[one], operators[other], **options, seed=next(seeds))
        cosines[f"{one}/{other}"] = ratio(ratio(both, norms[one]), norms[other])
    largest = {name: _first(found) for name, found in leading.items()}
    return Comparison(
        traces=traces,
        cosines=cosines,
        overlaps={f"{a}/{b}": _overlap(leading[a].vectors, leading[b].vectors, k) for a, b in pairs},
        largest=largest,
        top_ratios={f"{a}/{b}": ratio(largest[a], largest[b]) for a, b in pairs},
        k=k,
    )


def compare_noise_and_curvature(
    risk: EmpiricalRisk,
    theta: Tensor,
    *,
    k: int = 10,
    rtol: float = 0.01,
    max_products: int = 10_000,
    seed: int = 0,
    fisher: SymmetricOperator | None = None,
) -> Comparison:
    """C, F and H at θ beside each other: near a minimum of a log-likelihood C ≈ F ≈ H is said, here it is measured.

    C is the centred covariance of the per-sample gradients, of the labels there are, at B = 1; of another B only
    trace and λ₁ differ, by c(B). F is the Fisher information, of labels drawn from the model itself; for
    cross-entropy it is the Gauss–Newton matrix. H is the Hessian.

    Args:
        risk: L.
        theta: where, (D,).
        k: leading eigenvectors whose span is compared.
        rtol: relative standard error asked of traces and norms.
        max_products: bound on the cost of each.
        seed: of the probes.
        fisher: F; by default ``risk.fisher(theta)``, which a loss that is no known likelihood does not have.

    Raises:
        NonFiniteLossError: the loss at θ is not finite.
        TypeError: a fisher that is no operator, or k that is no whole number.
        ValueError: no Fisher information is known and none given, or k out of range.

    Source: that the three differ, Thomas et al. (2020), arXiv 1906.07774.
    """
    risk, theta = in_operator_precision(risk, theta)
    check_whole("k", k)
    check_tolerance(rtol, max_products, seed)
    risk.loss(theta)  # refuses what is not finite: no derivative there means anything
    matrices = {
        "C": risk.noise_covariance(theta, 1),
        "F": risk.fisher(theta) if fisher is None else fisher,
        "H": risk.hessian(theta),
    }
    return compare_operators(matrices, k=k, rtol=rtol, max_products=max_products, seed=seed)


def _trace(operator: SymmetricOperator, **options: Any) -> Estimate:
    """Exact where the structure gives the diagonal, as that of a covariance does."""
    if type(operator).diagonal is not SymmetricOperator.diagonal:
        return Estimate(float(operator.trace()), 0.0)
    return trace(operator, **options)


def _leading(operator: SymmetricOperator, k: int, seed: int) -> Eigenpairs:
    known = operator.leading(k)
    if known is not None:  # fewer than k where the rank is lower: all there are
        values, vectors = known
        residuals = lengths(operator @ vectors - values * vectors, dim=0)
        return Eigenpairs(values, vectors, residuals, len(values))
    return eigenpairs(operator, k, seed=seed)


def _first(pairs: Eigenpairs) -> Estimate:
    if len(pairs.values) == 0:  # the zero matrix
        return Estimate(0.0, 0.0, pairs.cost)
    return Estimate(float(pairs.values[0]), float(pairs.residuals[0]), pairs.cost)


def _overlap(one: Tensor, other: Tensor, k: int) -> float:
    return float(inner_products(one.mT, other).square().sum()) / k
