"""What the noise of labels prefers: sparse regression by squares, where noise of one shape finds the truth."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from noisescape.dynamics.label_noise import LabelNoise
from noisescape.errors import InvalidValueError
from noisescape.risk import EmpiricalRisk
from noisescape.scalars import check_positive, check_real, check_seed, check_whole

CURVATURE = 0.5
"""∂²ℓ/∂f² of the loss (1/4)(f − y)²."""


@dataclass(frozen=True)
class QuadraticRegression:
    """f_v(x) = ⟨v⊙v, x⟩ with the loss ¼(f − y)² of a sample, and y = ⟨v*⊙v*, x⟩ of a sparse v*.

    With fewer samples than dimensions all of them can be fitted in many ways. Gradient descent from a large start
    comes to one that is not sparse.

    Attributes:
        inputs: x, (N, d).
        targets: y, (N,).
        truth: v*, (d,).
        start: v where a run begins, (d,).
    """

    inputs: Tensor
    targets: Tensor
    truth: Tensor
    start: Tensor

    @functools.cached_property
    def risk(self) -> EmpiricalRisk:
        """L(v) = (1/4N) Σ_n (f_v(x_n) − y_n)²."""
        return self._risk(self.targets)

    def label_noise(self, delta: float, batch_size: int = 1) -> LabelNoise:
        """The dynamics whose labels are off by ±δ: its step is −η(f − y ∓ δ)·v⊙x, averaged over a batch.

        Raises:
            ValueError: δ not positive.
        """
        check_real("delta", delta)
        if not delta > 0:
            raise InvalidValueError(f"delta must be positive, not {delta}; without label noise take SGD")
        return LabelNoise(batch_size, self._risk(self.targets + delta, self.targets - delta))

    def penalised(self, strength: float) -> EmpiricalRisk:
        """L + s·Tr GGN, (1/N) Σ_n [¼(f − y)² + 2s Σ_i v_i²x_ni²]: to be descended without any noise.

        Where samples are fitted GGN is the Hessian; the penalty is then a weighted sum of the v_i², the ℓ₁ norm of
        v⊙v. How large an s label noise stands for says :func:`label_noise_penalty`.

        Args:
            strength: s ≥ 0.

        Raises:
            ValueError: s < 0.
        """
        check_real("strength", strength, 0)

        def loss(v: Tensor, sample: Tensor) -> Tensor:
            return _loss(v, sample) + 2 * strength * (v * sample[..., :-1]).square().sum(-1)

        return EmpiricalRisk.from_sample_loss(loss, _samples(self.inputs, self.targets), self.start)

    def _risk(self, *targets: Tensor) -> EmpiricalRisk:
        """Of all samples with these labels, then of all with the next ones."""
        data = torch.cat([_samples(self.inputs, each) for each in targets])
        return EmpiricalRisk.from_sample_loss(_loss, data, self.start)


def quadratic_regression(
    dimension: int,
    sparsity: int,
    samples: int,
    *,
    start: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> QuadraticRegression:
    """Sparse regression by squares: x_n ~ N(0, I), v* of r ones and zeros, v = α·1 at the start.

    Judge over several seeds: of problems as small as (40, 3, 20) there are some in which other noise, too, comes
    near the truth.

    Args:
        dimension: d.
        sparsity: r of the coordinates of v* are 1.
        samples: N; fewer than d leave the truth undetermined.
        start: α. Of a small one gradient descent too ends at a sparse v.
        seed: of the inputs and of which coordinates are 1.
        dtype: of all tensors.

    Raises:
        ValueError: r not within 1..d, no samples, α = 0, where every gradient vanishes.

    Source: HaoChen, Wei, Lee & Ma, "Shape Matters", arXiv 2006.08680.

    >>> problem = quadratic_regression(40, 3, 20)
    >>> problem.risk
    EmpiricalRisk(N = 20 samples, D = 40 parameters, torch.float64, cpu)
    >>> float(problem.risk.loss(problem.truth)) < 1e-30
    True
    """
    check_whole("dimension", dimension)
    check_whole("samples", samples)
    check_real("start", start)
    check_seed(seed)
    check_whole("sparsity", sparsity, -sys.maxsize)
    if not 1 <= sparsity <= dimension:
        raise InvalidValueError(f"sparsity must lie in 1..dimension = {dimension}, not {sparsity}")
    if start == 0:
        raise InvalidValueError("start must not be 0, where the gradient is 0 whatever the samples are")
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, dimension, generator=generator, dtype=dtype)
    truth = torch.zeros(dimension, dtype=dtype)
    truth[torch.randperm(dimension, generator=generator)[:sparsity]] = 1
    return QuadraticRegression(inputs, inputs @ truth.square(), truth, torch.full_like(truth, start))


def recovery(theta: Tensor, truth: Tensor) -> Tensor:
    """‖v⊙v − v*⊙v*‖/‖v*⊙v*‖: (D,) → (), or (R, D) → (R,). 0 where the function is the true one.

    >>> recovery(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]), torch.tensor([1.0, 0.0]))
    tensor([0., 1.])
    """
    wanted = truth.square()
    return (theta.square() - wanted).norm(dim=-1) / wanted.norm()


def label_noise_penalty(*, lr: float, delta: float, batch_size: int, curvature: float = CURVATURE) -> float:
    """s = ηcδ²/(4B), for which label noise drifts along the minima as gradient descent on L + s·Tr H does.

    Of any squared loss of a scalar f with ∂²ℓ/∂f² = c, where all samples are fitted. There Cov ε = (cδ²/B)H, which
    spreads the deviation from the minima by ηcδ²/(2B) times the projector P on H's range, to first order in η. The
    mean gradient is off by half the third derivative on that, (ηcδ²/(4B))∇⟨H, P⟩ with P held, and along the minima
    that is ∇Tr H. For ηH that is not small −(2/η) log det(I − ηH/2) takes the place of Tr H.

    Args:
        lr: η.
        delta: δ, in units of the label.
        batch_size: B.
        curvature: c, by default that of :class:`QuadraticRegression`: 1 of ½(f − y)², 2 of ``MSELoss``.

    Raises:
        ValueError: one of them is not positive.

    Source: Damian, Ma & Lee (arXiv 2106.06530); Blanc, Gupta, Valiant & Valiant (2020).

    >>> label_noise_penalty(lr=0.1, delta=2.0, batch_size=1)
    0.05
    """
    for name, value in (("lr", lr), ("delta", delta), ("curvature", curvature)):
        check_positive(name, value)
    check_whole("batch_size", batch_size)
    return lr * curvature * delta**2 / (4 * batch_size)


def _samples(inputs: Tensor, targets: Tensor) -> Tensor:
    """x and y side by side, (N, d + 1)."""
    return torch.cat([inputs, targets[:, None]], dim=1)


def _loss(v: Tensor, sample: Tensor) -> Tensor:
    return ((v.square() * sample[..., :-1]).sum(-1) - sample[..., -1]).square() / 4
