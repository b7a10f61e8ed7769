"""A measurement as a table and as strict JSON."""

from __future__ import annotations

import json

import pytest

import noisescape as ns
from cases import WIDER, Case
from dense_indicators import FIGURES
from noisescape.runs.run import strict_json


@pytest.mark.usefixtures("by_probes")
def test_the_table_shows_every_figure(mlp: Case) -> None:
    found = ns.measure(WIDER.risk(), WIDER.theta, batch_size=8, k=5)
    text = str(found)
    assert "D = 171, N = 120, B = 8 with replacement" in text
    for figure, estimate in found.estimates().items():
        assert str(estimate) in text, figure
    for symbol in ("‖ḡ‖", "Tr H", "Tr Σ", "Tr(HΣ)", "Tr(HΣ̄)", "λ(H)", "λ(Σ)", "95 % interval"):
        assert symbol in text
    assert f"{float(found.hessian.values[0]):.3g}" in text
    assert f"{float(found.noise.values[0]):.3g}" in text
    low, high = found.trace_h.interval()
    assert f"{low:.4g} … {high:.4g}" in text
    alone = ns.measure(mlp.risk(), mlp.theta, batch_size=3, replacement=False)
    assert "B = 3 without replacement" in str(alone)


def test_the_dictionary_is_strict_json_with_every_figure(mlp: Case) -> None:
    found = ns.measure(WIDER.risk(), WIDER.theta, batch_size=8, k=5)
    back = json.loads(strict_json(found.to_dict()), parse_constant=pytest.fail)
    settings = {"dimension": 171, "sample_count": 120, "batch_size": 8, "replacement": True, "k": 5}
    assert back.keys() == {*FIGURES, "hessian_eigenvalues", "noise_eigenvalues", *settings}
    assert {name: back[name] for name in settings} == settings
    assert back["hessian_eigenvalues"] == found.hessian.values.tolist()
    assert back["noise_eigenvalues"] == found.noise.values.tolist()
    for figure, estimate in found.estimates().items():
        low, high = estimate.interval()
        assert back[figure] == {"value": estimate.value, "stderr": estimate.stderr, "low": low, "high": high}
