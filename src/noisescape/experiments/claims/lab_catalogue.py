"""The laws that came after the paper, and the rules by which runs of the theory lab decide on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from noisescape.experiments.claims.claim import Claim
from noisescape.experiments.claims.judges import lab
from noisescape.experiments.lab.noise_law import FLAT_SHARE

_SEEDS = "interval over seeds."
_ABOVE = "Supported if the interval lies above {}, contradicted if below."
_BELOW = "Supported if the interval lies below {}, contradicted if above."
_WITHIN = "Supported if the interval lies within {}, contradicted if outside."
SAME_CHANGE = 0.25
"""Changes of the loss that differ by less than this share of them count as the same."""
BATCH_EDGE = (0.8, 1.2)
"""Within these of its level batch sharpness is at it."""
SLOPE = (0.9, 1.1)
"""Within these a slope is the predicted one."""
SAME_INDEX = 0.1
"""Indices of stability that differ by less count as the same."""
SAME_FACTOR = 2.0
"""Variances within this factor of each other count as the same."""
RECOVERED = 0.1
"""A relative error below this is a recovery of the truth."""
MISSED = 0.5
"""A relative error above this is none."""
SAME_COEFFICIENT = 0.1
"""A relative difference of learning coefficients below this counts as none."""
LEAST_MU = 0.1
"""An alignment factor over this is bounded away from 0."""


def _squared(config: Mapping[str, Any]) -> list[str]:
    return [f"B = {size}" for size in config["batch_sizes"]]


def _with_momentum(config: Mapping[str, Any]) -> list[str]:
    return [f"B = {size}, β = {beta:g}" for size in config["batch_sizes"] for beta in config["momenta"] if beta]


def _entropy(config: Mapping[str, Any]) -> list[str]:
    return [f"B = {config['batch_sizes'][0]}, cross-entropy"]


def _at_threshold(config: Mapping[str, Any]) -> list[str]:
    return [f"B = {size}, 1 η*" for size in config["batch_sizes"] if 1.0 in config["multiples"]]


def _across(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    low, high = min(config["multiples"]), max(config["multiples"])
    return [
        (f"B = {size}", f"B = {size}, {high:g} η*", f"B = {size}, {low:g} η*") for size in config["batch_sizes"]
    ]


def _first_ell(config: Mapping[str, Any]) -> list[str]:
    return [f"η = {share:g} η*, ℓ = 1" for share in config["below"]]


def _tails(config: Mapping[str, Any]) -> list[str]:
    return [f"{place}, B = {size}" for place in ("initialisation", "minimum") for size in config["batch_sizes"]]


def _sizes_at_places(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    low, high = min(config["batch_sizes"]), max(config["batch_sizes"])
    return [(place, f"{place}, B = {high}", f"{place}, B = {low}") for place in ("initialisation", "minimum")]


def _flat(_config: Mapping[str, Any]) -> list[str]:
    return ["epochs, flat"]


def _all_directions(_config: Mapping[str, Any]) -> list[str]:
    return ["epochs, all"]


def _places(_config: Mapping[str, Any]) -> list[str]:
    return ["initialisation", "GD minimum", "SGD"]


def _known(_config: Mapping[str, Any]) -> list[str]:
    return ["quadratic, D = 2", "x⁴", "x²y²"]


def _networks(_config: Mapping[str, Any]) -> list[str]:
    return ["network, GD minimum", "network, SGD"]


def _additive(_config: Mapping[str, Any]) -> list[str]:
    return ["well, additive"]


def _multiplicative(_config: Mapping[str, Any]) -> list[str]:
    return ["well, multiplicative"]


LAB_CLAIMS: tuple[Claim, ...] = (
    Claim(
        "unstable-not-diffusing",
        "At the threshold of mean-square stability SGD leaves the minimum by instability: noise of the minimum's "
        "covariance, kept fixed, does not leave.",
        "2306.07850; Wu, Ma & E 2018",
        f"Share of runs that left under SGD minus that under the fixed noise, at η = η*; {_SEEDS}",
        _ABOVE.format("0"),
        ("stability",),
        lab.differing(_at_threshold, "left/sgd", "left/additive"),
        "{:+.0%}",
    ),
    Claim(
        "threshold-parts",
        "SGD stays at half of η* and leaves at one and a half of it, where gradient descent would still stay.",
        "2306.07850",
        f"Share of runs of SGD that left at the largest multiple of η* minus that at the smallest; {_SEEDS}",
        f"{_ABOVE.format('½')} Undecided where the largest multiple is over 2/λ₁ in any seed.",
        ("stability",),
        lab.parted(_across, "left/sgd", 0.5),
        "{:+.0%}",
    ),
    Claim(
        "batch-sharpness-settles",
        "On squared loss batch sharpness settles at 2/η.",
        "2412.20553",
        f"Batch sharpness (ratio of means)·η/2, mean over the last quarter of the steps; {_SEEDS}",
        f"{_WITHIN.format(f'{BATCH_EDGE[0]:g} to {BATCH_EDGE[1]:g}')} Undecided while it rises.",
        ("budget",),
        lab.settled(_squared, *BATCH_EDGE),
        "{:.2f}",
    ),
    Claim(
        "momentum-lowers-batch-sharpness",
        "With momentum β and small batches batch sharpness settles at 2(1−β)/η.",
        "2604.14108",
        f"Batch sharpness (ratio of means)·η/(2(1−β)), mean over the last quarter of the steps; {_SEEDS}",
        f"{_WITHIN.format(f'{BATCH_EDGE[0]:g} to {BATCH_EDGE[1]:g}')} Undecided while it rises.",
        ("budget",),
        lab.settled(_with_momentum, *BATCH_EDGE),
        "{:.2f}",
    ),
    Claim(
        "batch-sharpness-of-cross-entropy",
        "On cross-entropy, too, batch sharpness settles at 2/η.",
        "2412.20553 has squared loss",
        "As for 'batch-sharpness-settles'.",
        f"{_WITHIN.format(f'{BATCH_EDGE[0]:g} to {BATCH_EDGE[1]:g}')} Undecided while it rises.",
        ("budget",),
        lab.settled(_entropy, *BATCH_EDGE),
        "{:.2f}",
    ),
    Claim(
        "fixed-noise-exponential",
        "Under noise that does not depend on θ the time to climb grows exponentially with the rise of the loss.",
        "2002.03495 (Kramers)",
        f"Log-likelihood of the exponential law minus that of the power law, over the same passages; {_SEEDS}",
        _ABOVE.format("0"),
        ("exits",),
        lab.above(_additive, "difference", 0.0),
        "{:+.1f}",
    ),
    Claim(
        "loss-noise-power-law",
        "Under noise whose variance goes with the loss the time to climb grows as a power of the loss.",
        "2105.09557",
        "As for 'fixed-noise-exponential'.",
        _BELOW.format("0"),
        ("exits",),
        lab.below(_multiplicative, "difference", 0.0),
        "{:+.1f}",
    ),
    Claim(
        "kramers-slope",
        "Under fixed noise the exponent is Kramers': log τ grows by 2ΔL/(ησ²).",
        "2002.03495",
        f"Fitted slope of log τ on 2ΔL/(ησ²); {_SEEDS}",
        _WITHIN.format(f"{SLOPE[0]:g} to {SLOPE[1]:g}"),
        ("exits",),
        lab.within(_additive, "exponential_slope", *SLOPE),
        "{:.3f}",
    ),
    Claim(
        "power-slope",
        "Under noise of variance cL the power is 2/(ηc) + ½.",
        "2105.09557; Laplace's method",
        f"Fitted slope of log τ on log(1 + ΔL/L₀), over 2/(ηc) + ½; {_SEEDS}",
        _WITHIN.format(f"{SLOPE[0]:g} to {SLOPE[1]:g}"),
        ("exits",),
        lab.within(_multiplicative, "relative_slope", *SLOPE),
        "{:.3f}",
    ),
    Claim(
        "sgd-is-where-its-equation-is",
        "SGD is as far along its course as its stochastic differential equation.",
        "2102.12470; the equation is the paper's model of SGD",
        "Change of the training loss from the minimum under SGD minus that under SVAG at the largest ℓ, relative "
        f"to the latter, over the second half of the time; {_SEEDS}",
        _WITHIN.format(f"±{SAME_CHANGE:g}"),
        ("svag",),
        lab.near_zero(_first_ell, "gap", SAME_CHANGE),
        "{:+.2f}",
    ),
    Claim(
        "heavy-over-iterations",
        "From batch to batch minibatch noise is heavier-tailed than Gaussian noise of its covariance.",
        "1901.06053, against 1910.09626",
        f"Index of stability of the noise minus that of the Gaussian null; {_SEEDS}",
        _BELOW.format(f"−{SAME_INDEX:g}"),
        ("noise-law",),
        lab.below(_tails, "index_over_iterations/beyond", -SAME_INDEX),
        "{:+.3f}",
    ),
    Claim(
        "noise-is-stable",
        "Minibatch noise is α-stable from batch to batch: means of more samples have the same index.",
        "1901.06053; of any law of finite variance the index goes to 2",
        f"Index of stability over iterations at the largest B minus that at the smallest; {_SEEDS}",
        _WITHIN.format(f"±{SAME_INDEX:g}"),
        ("noise-law",),
        lab.between_sizes(_sizes_at_places, "index_over_iterations", SAME_INDEX),
        "{:+.3f}",
    ),
    Claim(
        "heavy-over-coordinates-by-covariance",
        "Heavy tails over coordinates are those of the covariance: Gaussian noise has them as well.",
        "1910.09626; Xie et al. 2023",
        "As for 'heavy-over-iterations', over coordinates.",
        _WITHIN.format(f"±{SAME_INDEX:g}"),
        ("noise-law",),
        lab.near_zero(_tails, "index_over_coordinates/beyond", SAME_INDEX),
        "{:+.3f}",
    ),
    Claim(
        "epochs-as-predicted",
        "In flat directions batches dealt out by epochs leave as little variance as the closed form says.",
        "2306.05300",
        "log10 of the variance with epochs over that without, measured over predicted, mean over the directions of "
        f"H where under {FLAT_SHARE:.0%} is predicted; {_SEEDS}",
        _WITHIN.format(f"±log10 {SAME_FACTOR:g}"),
        ("noise-law",),
        lab.near_zero(_flat, "log_excess", math.log10(SAME_FACTOR)),
        "{:+.2f}",
    ),
    Claim(
        "epochs-quieten",
        "Batches dealt out by epochs leave less variance than independent ones.",
        "2306.05300",
        f"Mean over directions of the variance with epochs over that without, minus 1; {_SEEDS}",
        _BELOW.format("0"),
        ("noise-law",),
        lab.below(_all_directions, "variance_share", 1.0),
        "{:.3f}",
    ),
    Claim(
        "alignment-exponent",
        "Within weight tensors the noise goes as a power of the curvature, C_ii ∝ H_ii^γ with γ from 1 to 2.",
        "2602.05600",
        f"γ, mean over the weight tensors; {_SEEDS}",
        _WITHIN.format("1 to 2"),
        ("alignment",),
        lab.within(_places, "exponent", 1.0, 2.0),
        "{:.2f}",
    ),
    Claim(
        "aligned-beyond-chance",
        "In every weight tensor γ is larger than that of pairs at random.",
        "control of 'alignment-exponent', a weak one: noise and curvature of a weight share its input's square",
        f"Least lead of γ over the upper end of the null's 95 % interval, of all weight tensors; {_SEEDS}",
        _ABOVE.format("0"),
        ("alignment",),
        lab.above(_places, "beyond_null", 0.0),
        "{:+.2f}",
    ),
    Claim(
        "alignment-factor",
        "On cross-entropy, too, the alignment factor μ is bounded away from 0.",
        "2207.02628 has squared loss",
        f"μ; {_SEEDS}",
        _ABOVE.format(f"{LEAST_MU:g}"),
        ("alignment",),
        lab.above(_places, "mu", LEAST_MU),
    ),
    Claim(
        "label-noise-recovers",
        "Label noise recovers a sparse truth.",
        "2006.08680",
        f"log10(relative error / {RECOVERED:g}); {_SEEDS}",
        _BELOW.format("0"),
        ("implicit-bias",),
        lab.log_below("label noise", "error", RECOVERED),
        "{:+.2f}",
    ),
    Claim(
        "spherical-noise-does-not",
        "Spherical noise does not recover it, at any of several sizes.",
        "2006.08680",
        f"log10(least relative error of all sizes / {MISSED:g}); {_SEEDS}",
        _ABOVE.format("0"),
        ("implicit-bias",),
        lab.log_above("spherical, the best", "error", MISSED),
        "{:+.2f}",
    ),
    Claim(
        "penalty-recovers-too",
        "Gradient descent without noise recovers it with the penalty that label noise stands for.",
        "2106.06530; 2109.14119: regularisation does what noise does",
        "As for 'label-noise-recovers'.",
        _BELOW.format("0"),
        ("implicit-bias",),
        lab.log_below("penalty, no noise", "error", RECOVERED),
        "{:+.2f}",
    ),
    Claim(
        "coefficient-where-known",
        "The local learning coefficient by SGLD is what quadrature says.",
        "2308.12108",
        f"Estimate over the expectation, minus 1; {_SEEDS}",
        _WITHIN.format(f"±{SAME_COEFFICIENT:g}"),
        ("llc",),
        lab.near_zero(_known, "off", SAME_COEFFICIENT),
        "{:+.3f}",
    ),
    Claim(
        "network-is-singular",
        "A network's learning coefficient is below that of a quadratic with its curvatures, held as near.",
        "singular learning theory: what is degenerate shows beyond second order",
        f"log(λ̂ / that of a quadratic with the Gauss–Newton matrix's spectrum, at the same γ and ε); {_SEEDS}",
        f"{_BELOW.format('0')} Undecided if R̂ is over {lab.MIXED:g} in any seed, or chains went below the minimum "
        "by more than λ̂'s error.",
        ("llc",),
        lab.below_zero_if_mixed(_networks, "log_over_quadratic"),
        "{:+.3f}",
    ),
)
"""By law, in the order of ``lab all``; all exploratory."""
