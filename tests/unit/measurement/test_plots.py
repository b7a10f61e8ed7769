"""What figures show is what was found; a notebook shows text as text."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from rich.table import Table

import noisescape as ns
from networks import X, Y, network
from noisescape.measurement.figures import as_html

RISK = ns.EmpiricalRisk(network(), torch.nn.functional.cross_entropy, (X, Y))
MEASURED = ns.measure(RISK, RISK.parameters(), batch_size=5, k=4, rtol=0.1, progress=False)


def test_a_measurements_eigenvalues_and_ratios_are_drawn() -> None:
    left, right = MEASURED.plot().axes
    assert list(left.lines[0].get_ydata()) == pytest.approx(MEASURED.hessian.values.tolist())
    assert right.get_xscale() == "log"
    values = [float(line.get_xdata()[0]) for line in right.lines if line.get_marker() == "o"]
    assert MEASURED.anisotropy.value in values


def test_a_density_is_drawn_with_its_error() -> None:
    density = ns.spectral_density(RISK.hessian(RISK.parameters()), steps=10, probes=3)
    (axis,) = density.plot().axes
    assert list(axis.lines[0].get_xdata()) == pytest.approx(density.grid.tolist())
    assert len(axis.collections) == 1


@pytest.mark.parametrize("replicas", [None, 3])
def test_a_trajectorys_records_are_drawn(replicas: int | None) -> None:
    watch = {"loss": ns.recorders.loss, "accuracy": ns.recorders.accuracy}
    run = ns.simulate(
        RISK, ns.SGD(5), RISK.parameters(), lr=0.1, steps=10, replicas=replicas, record=watch, progress=False
    )
    figure = run.plot()
    assert [axis.get_title() for axis in figure.axes] == ["loss", "accuracy"]
    assert len(figure.axes[0].lines) == (1 if replicas is None else replicas + 1)
    alone = ns.simulate(RISK, ns.GD(), RISK.parameters(), lr=0.1, steps=3, record={}, progress=False)
    assert not alone.plot().axes[0].get_visible()


def test_a_notebook_shows_what_is_drawn_as_a_picture() -> None:
    """Also where nothing has imported pyplot, without which it shows matplotlib's own figures as text."""
    density = ns.spectral_density(RISK.hessian(RISK.parameters()), steps=10, probes=3)
    layers = ns.layer_traces(RISK, RISK.parameters(), batch_size=5, probes=2)
    run = ns.simulate(RISK, ns.GD(), RISK.parameters(), lr=0.1, steps=3, progress=False)
    for drawn in (MEASURED.plot(), density.plot(), layers.plot(), run.plot()):
        with Image.open(io.BytesIO(drawn._repr_png_())) as picture:
            width, height = drawn.get_size_inches() * drawn.dpi
            assert picture.size == (pytest.approx(width, abs=1), pytest.approx(height, abs=1))
            assert len(picture.convert("RGB").getcolors(picture.width * picture.height)) > 2


def test_notebooks_show_text_as_text() -> None:
    table = Table(title="<script>alert(1)</script>")
    table.add_column("<b>figure")
    table.add_row("</td><img src=x onerror=alert(1)>")
    shown = as_html(table)
    assert "<script>" not in shown
    assert "<img" not in shown
    assert shown.count("<td>") == 1
    for found in (MEASURED, ns.measure_fast(RISK, RISK.parameters(), batch_size=5)):
        assert "Tr(HΣ)" in found._repr_html_()
