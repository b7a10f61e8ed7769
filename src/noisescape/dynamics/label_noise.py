"""Stochastic gradient descent whose labels are perturbed afresh at each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics.base import Dynamics, NoiseState
from noisescape.dynamics.sgd import SGD
from noisescape.errors import InvalidTypeError, InvalidValueError
from noisescape.linops import SymmetricOperator
from noisescape.risk import EmpiricalRisk, fingerprint


@dataclass(frozen=True)
class LabelNoise(Dynamics):
    """θ ← θ − η (1/B) Σ_{n∈batch} ∇ℓ(f(θ; x_n), y_n ± δ), with a fresh batch and fresh signs each step.

    For a squared loss of a scalar f, with ∂²ℓ/∂f² = c, the mean is ∇L and

        Cov ε = Σ_B + (c²δ²/(BN)) Σ_n ∇f_n ∇f_nᵀ = Σ_B + (cδ²/B)·GGN,

    gradient noise; Σ_B as with replacement. Where samples are fitted Σ_B is 0 and GGN the Hessian: this noise is
    there at a loss of 0, as large as the loss is curved.

    It is SGD on the 2N samples that have either label, whatever the model.

    Args:
        batch_size: B; a batch is drawn with replacement.
        perturbed: the risk of those: the samples of the risk it runs on with y + δ, then the same with y − δ. Of a
            model, ``risk.with_data((torch.cat([x, x]), torch.cat([y + delta, y - delta])))``.

    Source: HaoChen, Wei, Lee & Ma (arXiv 2006.08680); Blanc et al. (2020); Damian, Ma & Lee (arXiv 2106.06530).
    """

    batch_size: int
    perturbed: EmpiricalRisk
    name: ClassVar[str] = "label-noise"
    memoryless: ClassVar[bool] = True

    def __repr__(self) -> str:
        # a checkpoint goes by it: other labels are another dynamics
        return f"LabelNoise(batch_size={self.batch_size}, perturbed={fingerprint(self.perturbed)})"

    @override
    def check(self, risk: EmpiricalRisk) -> None:
        """Raise if the perturbed samples are not those of the risk.

        Raises:
            ValueError: another number of samples or parameters; a loss that is no square in the label, or samples
                in another order, by which ½(ℓ(y + δ) + ℓ(y − δ)) − ℓ(y) is not the same for all.
        """
        super().check(risk)
        if not isinstance(self.perturbed, EmpiricalRisk):
            raise InvalidTypeError(f"{self.name}: perturbed must be a risk, not {type(self.perturbed).__name__}")
        SGD(self.batch_size).check(self.perturbed)
        count = risk.sample_count
        if (self.perturbed.sample_count, self.perturbed.dimension) != (2 * count, risk.dimension):
            raise InvalidValueError(
                f"{self.name}: perturbed must have the risk's {count} samples twice, and its {risk.dimension} "
                f"parameters, not {self.perturbed}"
            )
        theta = risk.parameters()
        noisy = self.perturbed.losses(theta).view(2, count).double()
        rise = noisy.mean(0) - risk.losses(theta).double()
        if float(rise.max() - rise.min()) > torch.finfo(risk.dtype).eps ** 0.5 * float(noisy.abs().max()):
            raise InvalidValueError(
                f"{self.name}: in the mean of both signs the labels' noise raises some losses by "
                f"{float(rise.min()):.4g}, others by {float(rise.max()):.4g}. The loss must be a square in the "
                "label, as only then the mean gradient stays, and perturbed hold the samples in the risk's order, "
                "all with y + δ before all with y − δ"
            )

    @override
    def noise(
        self, risk: EmpiricalRisk, theta: Tensor, previous: SymmetricOperator | None, generator: torch.Generator
    ) -> tuple[SymmetricOperator, Tensor | None]:
        return self.perturbed.noise_covariance(theta, self.batch_size), None

    @override
    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        return SGD(self.batch_size).noisy_gradient(self.perturbed, theta, state, generator)
