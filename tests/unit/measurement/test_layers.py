"""Traces by layer: against the blocks of dense matrices, and their errors against the spread of repetitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import noisescape as ns
from cases import CASES, Case
from noisescape.theory.landscapes import quadratic


@pytest.mark.parametrize("name", ["mlp cross-entropy", "conv", "tied weights", "frozen layer", "attention"])
def test_traces_are_those_of_the_blocks(name: str) -> None:
    case = CASES[name]
    found = ns.layer_traces(case.risk(), case.theta, batch_size=3, probes=200)
    assert sum(found.sizes) == len(case.theta)
    sigma, hessian = (case.covariance() / 3).diagonal(), case.hessian().diagonal()
    start = 0
    for size, noise, curvature in zip(found.sizes, found.trace_sigma, found.trace_h, strict=True):
        if name in ("mlp cross-entropy", "conv"):  # a layer's parameters lie together there
            block = slice(start, start + size)
            assert noise == pytest.approx(float(sigma[block].sum()), rel=1e-9)
            assert abs(curvature.value - float(hessian[block].sum())) <= 5 * curvature.stderr + 1e-9
        start += size
    assert sum(found.trace_sigma) == pytest.approx(float(sigma.sum()), rel=1e-9)


def test_standard_errors_are_the_spread_of_repetitions(mlp: Case) -> None:
    risk = mlp.risk()
    runs = [ns.layer_traces(risk, mlp.theta, batch_size=3, probes=8, seed=seed) for seed in range(120)]
    for layer in range(2):
        scores = [run.trace_h[layer] for run in runs]
        exact = float(np.mean([each.value for each in scores]))
        inside = sum(each.interval()[0] <= exact <= each.interval()[1] for each in scores)
        assert stats.binomtest(inside, len(scores), 0.95).pvalue > 1e-3


def test_it_is_shown_as_text_html_json_and_a_picture(mlp: Case) -> None:
    found = ns.layer_traces(mlp.risk(), mlp.theta, batch_size=3, replacement=False)
    assert found.names == ("0", "2")
    assert "without replacement" in str(found)
    assert found._repr_html_().count("<tr>") == 3
    assert [*found.to_dict()["layers"]] == ["0", "2"]
    left, right = found.plot().axes
    assert [bar.get_width() for bar in left.patches] == pytest.approx(found.trace_sigma)
    assert len(right.patches) == 2


def test_mistakes_are_named(mlp: Case) -> None:
    with pytest.raises(ValueError, match="probes = 1, but a standard error needs at least 2"):
        ns.layer_traces(mlp.risk(), mlp.theta, batch_size=3, probes=1)
    bowl = quadratic(torch.eye(2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="named parameters"):
        ns.layer_traces(bowl, torch.zeros(2), batch_size=2)
