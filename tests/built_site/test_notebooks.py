"""The notebooks: kept without outputs; as the site's build ran them, whole, drawn, and right in what they print."""

from __future__ import annotations

import base64
import io
import math
import re
from pathlib import Path

import nbformat
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
by_name = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of mkdocs, its plugins, and jupyter

NUMBER = r"(\d[\d.e+-]*)"
ESTIMATE = rf"{NUMBER} ± {NUMBER}"
PRINTED = {
    "escape": (rf"Tr\(HΣ\) = {NUMBER}", rf"measured: {ESTIMATE}", rf"{ESTIMATE} gone", rf"own TrΣ.*: {NUMBER};"),
    "measure": (
        rf"training loss {NUMBER}",
        rf"Tr\(HΣ\) = {ESTIMATE}, 95 % interval {NUMBER} to {NUMBER}",
        rf'"stderr": {NUMBER}',
        rf"TrH from the density: {ESTIMATE}; measured above: {ESTIMATE}",
        rf"seed 2: L = {NUMBER}, Tr\(HΣ\) = {ESTIMATE}, ratio {ESTIMATE}",
    ),
    "training": (
        rf"trace_covariance +{ESTIMATE}",
        rf"hessian_noise_trace +{ESTIMATE}",
        rf"noise scale {NUMBER}",
        rf"TrΣ = {ESTIMATE}, exact {NUMBER}",
    ),
}
"""What each must say in figures, at least once."""


def cells(notebook: Path) -> list[nbformat.NotebookNode]:
    found = nbformat.read(notebook, as_version=4)
    nbformat.validate(found)
    return [cell for cell in found.cells if cell.cell_type == "code"]


def printed(notebook: Path) -> str:
    outputs = [output for cell in cells(notebook) for output in cell.outputs]
    return "\n".join(output.text for output in outputs if output.output_type == "stream")


@pytest.fixture
def ran(notebook: Path, site: Path) -> Path:
    """The notebook as the site has it."""
    return site / "notebooks" / notebook.name


@by_name
def test_a_notebook_is_kept_without_outputs(notebook: Path) -> None:
    for cell in cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
        assert set(cell.metadata) <= {"alt"}, "what an editor leaves there makes differences nobody wrote"
    text = notebook.read_text()
    assert text == nbformat.writes(nbformat.reads(text, as_version=4)) + "\n", (
        "a line of code is a line of the file"
    )


@by_name
def test_a_notebook_runs_in_order_without_an_error_or_a_warning(notebook: Path, ran: Path) -> None:
    done = cells(ran)
    assert [cell.source for cell in done] == [cell.source for cell in cells(notebook)]
    assert [cell.execution_count for cell in done] == [*range(1, len(done) + 1)]
    outputs = [output for cell in done for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []


@by_name
def test_the_cells_that_say_what_they_draw_draw_it_and_no_others(ran: Path) -> None:
    drew = 0
    for cell in cells(ran):
        pictures = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
        assert len(pictures) == ("alt" in cell.metadata), cell.source
        for encoded in pictures:
            with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
                colours = picture.convert("RGB").getcolors(picture.width * picture.height)
            assert colours is not None
            assert len(colours) > 20, "an empty frame"
            drew += 1
    assert drew >= 2


@by_name
def test_a_page_shows_the_pictures_with_their_words(notebook: Path, site: Path) -> None:
    page = (site / f"notebooks/{notebook.stem}.html").read_text()
    shown = re.findall(rf'<img alt="([^"]+)" src="({notebook.stem}_\d+_\d+\.png)"', page)
    assert [alt for alt, _ in shown] == [cell.metadata.alt for cell in cells(notebook) if "alt" in cell.metadata]
    assert all((site / "notebooks" / name).stat().st_size > 0 for _, name in shown)
    assert f'href="{notebook.name}" download' in page


@by_name
def test_key_numbers_are_printed_and_finite(notebook: Path, ran: Path) -> None:
    said = printed(ran)
    for pattern in PRINTED[notebook.stem]:
        found = list(re.finditer(pattern, said))
        assert found, f"{pattern} in\n{said}"
        assert all(math.isfinite(float(number)) for match in found for number in match.groups())
    assert not re.search(r"\bnan\b", said)


def test_points_rise_as_the_notebook_predicts(site: Path) -> None:
    said = printed(site / "notebooks/escape.ipynb")
    compared = re.findall(rf"a rise of {NUMBER}\n +measured: {ESTIMATE}", said)
    assert len(compared) == 3
    for predicted, measured, error in (map(float, numbers) for numbers in compared):
        assert abs(measured - predicted) < 4 * error


def test_the_knob_makes_the_noise_that_the_notebook_says(site: Path) -> None:
    compared = re.findall(rf"TrΣ = {ESTIMATE}, exact {NUMBER}", printed(site / "notebooks/training.ipynb"))
    assert len(compared) == 3
    for measured, error, exact in (map(float, numbers) for numbers in compared):
        assert abs(measured - exact) < 4 * error
