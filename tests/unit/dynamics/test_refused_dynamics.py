"""Dynamics that make no sense are refused with the mend."""

from __future__ import annotations

import pytest
import torch

import noisescape as ns


def test_minibatches_are_counted_in_whole_samples() -> None:
    with pytest.raises(TypeError, match=r"an int, not 3\.5"):
        ns.dynamics_by_name("sgd", batch_size=3.5).init(
            ns.EmpiricalRisk.from_losses(lambda w: w**2, torch.ones(4)), torch.ones(4)
        )


def test_noise_without_a_root_cannot_be_rescaled() -> None:
    with pytest.raises(TypeError, match="GLDFull draws its noise without a covariance root"):
        ns.MatchedTrace(ns.GLDFull(10), 1.0)
