"""Dynamics that make no sense are refused with the mend."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import noisescape as ns


def test_minibatches_are_counted_in_whole_samples() -> None:
    risk = ns.EmpiricalRisk.from_losses(lambda w: w**2, torch.ones(4))
    for batch_size in (3.5, True, "3", None):
        with pytest.raises(TypeError, match=f"an int, not {batch_size!r}"):
            ns.dynamics_by_name("sgd", batch_size=batch_size).check(risk)
    assert ns.SGD(np.int64(3)).factor(risk) == 1 / 3


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (ns.GD(), "GD has no noise to rescale"),
        (ns.GDGradientPenalty(0.1), "GDGradientPenalty has no noise to rescale"),
        (ns.SGD(10), r"SGD draws .* choose its batch_size instead"),
        (ns.GLDFull(10), "GLDFull draws its noise without a covariance root: there is none to rescale; choose its"),
        (ns.GLDShuffled(10), r"GLDShuffled draws .* choose its batch_size instead"),
        (ns.MatchedTrace, "inner must be a dynamics, not"),
    ],
    ids=str,
)
def test_what_cannot_be_rescaled_is_told_why(inner, message):
    with pytest.raises(TypeError, match=message):
        ns.MatchedTrace(inner, 1.0)


@pytest.mark.parametrize(
    ("dynamics", "message"),
    [
        (ns.SGD(0), "batch_size must be at least 1"),
        (ns.SGD(10, replacement=False), "exceeds the 9 samples"),
        (ns.GLDFull(10, replacement=False), "exceeds the 9 samples"),
        (ns.GLDLeading(3, k=4), "k must lie in 1..D = 3"),
        (ns.GLDHessian(3, k=0), "k must be at least 1, not 0"),
        (ns.GLDDiagonal(3, refresh=0), "refresh must be at least 1"),
        (ns.GLDDynamic(3, batches=1), "batches must be at least 2"),
        (ns.GDGradientPenalty(-1.0), "strength must be at least 0"),
        (ns.GLDConstant(-1.0), "rho must be at least 0"),
        (ns.MatchedTrace(ns.GLDLeading(3, k=4), 1.0), "k must lie in 1..D = 3"),
    ],
)
def test_constants_that_do_not_fit_are_refused_before_work_starts(dynamics, message, regression, theta):
    with pytest.raises(ValueError, match=message):
        ns.simulate(regression, dynamics, theta, lr=0.1, steps=1, progress=False)
