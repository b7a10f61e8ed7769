"""Does the noise lie along the Hessian as noise proportional to it would? An indicator free of D, and a control."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from noisescape.linops import Estimate, SymmetricOperator, product_trace, ratio, squared_norm, trace
from noisescape.linops.probing import check_tolerance
from noisescape.risk import EmpiricalRisk, gauss_newton_control, in_operator_precision, shuffled_covariance
from noisescape.risk.arguments import check_hessian


@dataclass(frozen=True)
class RelativeAlignment:
    """A = Tr(HC)·TrH/(TrC·TrH²), of the noise and of its control.

    A compares Tr(HC)/TrC, the curvature that noise meets, with TrH²/TrH, what noise proportional to H would meet.
    It is 1 if C ∝ H, in any dimension, and (TrH)²/(D·TrH²) for isotropic noise. It has no B: Σ_B = c(B)·C has the
    same A. The converse fails: A = 1 does not make C proportional to H.

    Attributes:
        noise: A of C.
        shuffled: A of C̃, whose samples keep their Jacobians and exchange their residuals.
        gain: the first over the second, [Tr(HC)/TrC]/[Tr(HC̃)/TrC̃], in which H's own traces cancel: over 1, the
            pairing of residual and Jacobian puts noise along the curvature that the Jacobians alone would not.
    """

    noise: Estimate
    shuffled: Estimate
    gain: Estimate


def relative_alignment(
    risk: EmpiricalRisk,
    theta: Tensor,
    *,
    rtol: float = 0.01,
    max_products: int = 10_000,
    seed: int = 0,
    hessian: SymmetricOperator | None = None,
) -> RelativeAlignment:
    """A at θ and for its control, with standard errors by the delta method.

    TrC is exact; Tr(HC), TrH and TrH² are estimated from probes of their own.

    Args:
        risk: L, of a model whose loss is a function of the outputs.
        theta: where, (D,).
        rtol: relative standard error asked of each trace.
        max_products: bound on the cost of each.
        seed: of the probes, and of the control's permutation.
        hessian: H; by default ``risk.hessian(theta)``.

    Raises:
        NonFiniteLossError: the loss at θ is not finite.
        TypeError: a hessian that is no operator.
        ValueError: a closed form, or a loss that reads the parameters itself: there are no residuals to shuffle.

    See :func:`~noisescape.risk.shuffled_covariance` for the control.

    >>> import torch
    >>> data = (torch.randn(9, 2), torch.randn(9, 1))
    >>> risk = EmpiricalRisk(torch.nn.Linear(2, 1), torch.nn.functional.mse_loss, data)
    >>> 0 < relative_alignment(risk, risk.parameters()).noise.value < 3
    True
    """
    risk, theta = in_operator_precision(risk, theta)
    check_tolerance(rtol, max_products, seed)
    if hessian is not None:
        check_hessian(hessian, risk)
    risk.loss(theta)  # refuses what is not finite: no derivative there means anything
    hessian = risk.hessian(theta) if hessian is None else hessian
    control = gauss_newton_control(risk, theta)
    of_hessian = trace(hessian, rtol=rtol, max_products=max_products, seed=seed)
    of_square = squared_norm(hessian, rtol=rtol, max_products=max_products, seed=seed + 1)
    met_if_proportional = ratio(of_square, of_hessian)

    def met(covariance: SymmetricOperator, seed: int) -> Estimate:
        """Tr(HC)/TrC."""
        found = product_trace(hessian, covariance, control=control, rtol=rtol, max_products=max_products, seed=seed)
        return ratio(found, Estimate(float(covariance.trace()), 0.0))

    noise = met(risk.noise_covariance(theta, 1), seed + 2)
    shuffled = met(shuffled_covariance(risk, theta, seed=seed), seed + 3)
    return RelativeAlignment(
        ratio(noise, met_if_proportional), ratio(shuffled, met_if_proportional), ratio(noise, shuffled)
    )
