"""Tr(AB) of a mean over samples and a covariance over samples, from few of the pairs of samples.

Source of the design: Latin squares and the analysis of variance in two ways (Fisher, 1935, "The design of
experiments"); of the variance of a sum over a random permutation, Hoeffding (1951), "A combinatorial central limit
theorem".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from noisescape.linops.estimate import Estimate
from noisescape.linops.operator import SampleColumns, SampleMean, SymmetricOperator

FEWEST = 64
"""Samples: of fewer, the exact value costs no more."""
FIRST_ROUNDS = 4
"""From which the error is known with twice as many degrees of freedom as there are samples."""
MOST_ROUNDS = 32
"""Needed by the first rounds' error, beyond which another way is taken: what that takes at least."""
AHEAD = 8
"""Columns computed together."""
LEAST_SEEN = 100
"""Pairs, in the first rounds, of samples that carry most of the trace. Where few carry it, as in a network that has
fitted the others, nearly all pairs are near 0 and those that count may not be seen: no error bar says so."""
LEAST_DOF = 30
"""Degrees of freedom that the fourth moment of the e_nm must leave."""


@dataclass(frozen=True)
class Pairing:
    """Tr(AB) = (1/N²) Σ_nm f_nᵀA_m f_n for A = (1/N) Σ_m A_m and B = (1/N) Σ_n f_n f_nᵀ, from some of the pairs.

    The samples stand in a circle, in random order. In round k each column meets the matrix k places on, so that a
    round has every column and every matrix once. That some columns are longer than others, and some matrices
    larger, is in all rounds alike: the mean over rounds errs only by what is peculiar to pairs. With

        f_nᵀA_m f_n = r_n + c_m + e_nm

    fitted by least squares to the pairs of K rounds, its standard error is √(Σ e²/m / (NK)) with m = NK − 2N + 1.
    In round 0 each column meets its own sample's matrix: it is not like the others.

    Attributes:
        mean: A.
        columns: B.
        order: the samples, (N,).
    """

    mean: SampleMean
    columns: SampleColumns
    order: Tensor

    def forms(self, rounds: range) -> Tensor:
        """f_nᵀA_m f_n of the pairs of consecutive rounds, row m for the matrix at place m: (N, K), in float64.

        No more columns are held than meet one matrix, and a few to come.
        """
        number = len(self.order)
        held: dict[int, Tensor] = {}
        found = []
        for place in range(number):
            wanted = [(place - shift) % number for shift in rounds]
            near = dict.fromkeys([*wanted, *((wanted[0] + ahead) % number for ahead in range(AHEAD))])
            held = {each: column for each, column in held.items() if each in near}
            if any(each not in held for each in wanted):
                missing = [each for each in near if each not in held]
                held |= dict(zip(missing, self.columns.at(self.order[missing]).mT, strict=True))
            met = torch.stack([held[each] for each in wanted]).mT
            found.append(self.mean.of_one(int(self.order[place])).quadratic_forms(met).double().cpu())
        return torch.stack(found)


def by_pairs(
    left: SymmetricOperator, right: SymmetricOperator, rtol: float, max_products: int, generator: torch.Generator
) -> Estimate | None:
    """Tr(AB) for A over samples and B of as many; None where they are not, or where another way is cheaper.

    A round counts as a product with A. Where the first rounds leave too large an error, as many more are taken as
    that says.
    """
    mean = left.over_samples()
    if mean is None or mean.count < FEWEST or max_products < MOST_ROUNDS:
        return None
    columns = right.columns_of_samples()
    if columns is None or columns.count != mean.count:
        return None
    number = mean.count
    order = torch.randperm(number, generator=generator, device=generator.device).cpu()
    pairing = Pairing(mean, columns, order)

    def rounds(some: range) -> Tensor:
        left.products += len(some)
        return pairing.forms(some)

    forms = rounds(range(FIRST_ROUNDS + 1))
    own, others = forms[:, 0], forms[:, 1:]
    if effective_number(own) ** 2 * FIRST_ROUNDS / number < LEAST_SEEN:
        return None
    most = min(MOST_ROUNDS, number - 1, max_products - 1)
    while True:
        value = float(own.mean() / number + (1 - 1 / number) * others.mean())
        stderr, dof = standard_error(others)
        stderr *= 1 - 1 / number
        if dof < LEAST_DOF:
            return None
        if stderr <= rtol * abs(value):
            return Estimate(value, stderr, 0, dof)
        taken = others.shape[1]
        needed = 1.1 * taken * (stderr / (rtol * value)) ** 2 if value else math.inf
        if not needed <= most or taken == most:
            return None
        others = torch.cat([others, rounds(range(taken + 1, min(most, math.ceil(needed)) + 1))], dim=1)


def standard_error(forms: Tensor) -> tuple[float, float]:
    """Of the mean of the pairs of rounds 1 to K, (N, K), with its degrees of freedom.

    As many as the fit leaves, or 2m/(κ − 1) where the kurtosis κ of the e_nm makes that fewer.
    """
    number, rounds = forms.shape
    left = peculiar(forms)
    free = number * rounds - 2 * number + 1
    square = float(left.square().sum())
    kurtosis = left.numel() * float(left.square().square().sum()) / square**2 if square else 3.0
    return math.sqrt(square / free / left.numel()), free * min(1.0, 2 / max(kurtosis - 1, 1e-9))


def peculiar(forms: Tensor) -> Tensor:
    """The e_nm of rounds 1 to K, (N, K): what a fit of r_n + c_m by least squares leaves.

    Around the circle, matrix m meets column m − k in round k: of the Fourier transform along m, each frequency ω is
    a fit by itself, R(ω)e^{−iωk} + C(ω) to K numbers. At ω = 0 the two are one, the mean.
    """
    number, rounds = forms.shape
    steps = torch.arange(number, dtype=forms.dtype)[:, None] * torch.arange(1, rounds + 1, dtype=forms.dtype)
    turned = torch.polar(torch.ones_like(steps), -2 * math.pi / number * steps)
    turned = turned - turned.mean(1, keepdim=True)
    turned[0] = 0
    left = torch.fft.fft(forms, dim=0)
    left = left - left.mean(1, keepdim=True)
    sizes = turned.abs().square().sum(1, keepdim=True)
    along = (turned.conj() * left).sum(1, keepdim=True) / torch.where(sizes > 0, sizes, 1)
    return torch.fft.ifft(left - along * turned, dim=0).real


def effective_number(values: Tensor) -> float:
    """(Σ|x|)²/Σx²: N where all are alike, 1 where one is all."""
    square = float(values.square().sum())
    return float(values.abs().sum()) ** 2 / square if square else 0.0
