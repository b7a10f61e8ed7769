"""The noise with its residuals dealt out anew: the control for what pairing a residual with its Jacobian does."""

from __future__ import annotations

import torch
from torch import Tensor

from noisescape.errors import InvalidValueError
from noisescape.risk.criterion import Criterion
from noisescape.risk.drawn_targets import with_targets
from noisescape.risk.empirical_risk import EmpiricalRisk
from noisescape.risk.gradient_covariance import NoiseCovariance
from noisescape.risk.passes import function_of_outputs, output_gradients


def shuffled_covariance(risk: EmpiricalRisk, theta: Tensor, *, seed: int = 0) -> NoiseCovariance:
    """C̃, the covariance of g̃_n = J_nᵀr_{π(n)}: every sample keeps its Jacobian and gets another one's residual.

    With f_n the outputs of sample n, J_n = ∂f_n/∂θ and r_n = ∂ℓ_n/∂f_n, its gradient is g_n = J_nᵀr_n. π is one
    random permutation. Jacobians and residuals are, each for themselves, those of C; what is lost is which belong
    together. C̃ is centred, divided by N, and of single gradients (B = 1).

    Args:
        risk: of a model whose loss is a function of the outputs.
        theta: where, (D,).
        seed: of π.

    Returns:
        C̃, (D, D), matrix-free as :meth:`EmpiricalRisk.noise_covariance`.

    Raises:
        ValueError: a closed form, a loss that reads the parameters itself, or outputs of unlike shapes.

    >>> model = torch.nn.Linear(2, 3)
    >>> data = (torch.randn(9, 2), torch.randint(0, 3, (9,)))
    >>> risk = EmpiricalRisk(model, torch.nn.functional.cross_entropy, data)
    >>> shuffled_covariance(risk, risk.parameters()).shape
    (9, 9)
    """
    risk, theta = risk._for_operators(theta)
    function = function_of_outputs(risk, theta, "shuffled residuals")
    residuals = list(output_gradients(risk, theta))
    shapes = {each.shape[1:] for each in residuals}
    if len(risk._samples.in_common([*shapes])) != 1 or not risk._samples.on_every_rank(len(shapes) == 1):
        raise InvalidValueError(
            "residuals are dealt out among samples whose outputs have one shape; those of this data differ. Pad "
            "them, or take the samples of one shape"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(risk.sample_count, generator=generator).to(risk.device)
    dealt = risk._samples.mine(risk._samples.collected(torch.cat(residuals))[order])
    dealt = dealt.split([len(each) for each in residuals])
    samples = with_targets(risk._samples, [[*dealt]])
    linear = function.with_criterion(Criterion(_along))
    tried = next(samples.batches(max(batch.size for batch in risk._tried)))
    shuffled = risk._like(linear, samples, risk._parameters, [tried])
    found = NoiseCovariance(shuffled, theta, 1, replacement=True)
    found.name = "covariance of shuffled residuals"
    return found


def _along(outputs: Tensor, residuals: Tensor) -> Tensor:
    """r·f, whose gradient is Jᵀr, (n,)."""
    return (outputs * residuals).reshape(len(outputs), -1).sum(1)
