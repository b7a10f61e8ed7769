"""A run is not continued on other data than it was begun with."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from noisescape.experiments.data import corrupted_digits
from noisescape.experiments.images import COLUMNS
from noisescape.experiments.problem import data_identity
from noisescape.experiments.protocols import session
from noisescape.experiments.registry import EXPERIMENTS
from noisescape.runs.run import Run
from paper_runs import SET_OF, data_directory, on_images, tiny
from run_files import files
from tiny_images import png


def rewritten(path: Path, change: Callable[[list[Any], list[int]], None]) -> None:
    """The part with its images and labels changed in place."""
    table = pq.read_table(path)
    cells, labels = table["image"].to_pylist(), table["label"].to_pylist()
    change(cells, labels)
    pq.write_table(pa.table({"image": pa.array(cells, COLUMNS["image"]), "label": labels}), path)


def a_pixel_of_each(cells: list[Any], _labels: list[int]) -> None:
    for cell in cells:
        image = np.asarray(Image.open(io.BytesIO(cell["bytes"]))).copy()
        image.flat[5] ^= 1
        cell["bytes"] = png(image)


def one_label(_cells: list[Any], labels: list[int]) -> None:
    labels[7] = (labels[7] + 1) % 10


def one_row_more(cells: list[Any], labels: list[int]) -> None:
    cells.append(cells[0])
    labels.append(labels[0])


class Stop(Exception):
    """The interruption."""


@pytest.fixture
def begun(experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of the experiment on the data in ``data``, stopped before its first task."""

    def stop(*_: object, **__: object) -> None:
        raise Stop

    monkeypatch.setattr(session, "perform", stop)
    data_directory(tmp_path / "data")
    with pytest.raises(Stop):
        continued(experiment, tmp_path)
    return tmp_path


def continued(experiment: str, root: Path, **changes: Any) -> Run:
    config = replace(tiny(experiment, root / "data"), **changes)
    return EXPERIMENTS[experiment].run(config, root / "run", jobs=1, resume=True, progress=False)


@on_images
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (a_pixel_of_each, r"images and labels of seed 0 = \w+ there, \w+ now.*train sha256 = \w+ there, \w+ now"),
        (one_label, r"train sha256 = \w+ there, \w+ now"),
        (one_row_more, r"train rows = 60 there, 61 now, train sha256 = "),
    ],
)
def test_a_run_is_not_continued_on_other_data(
    experiment: str, change: Callable[[list[Any], list[int]], None], message: str, begun: Path
) -> None:
    rewritten(begun / "data" / SET_OF[experiment] / "train_prefix.parquet", change)
    before = {name: (begun / "run" / name).read_bytes() for name in files(begun / "run")}
    with pytest.raises(ValueError, match=f"run cannot be continued with other data: .*{message}") as caught:
        continued(experiment, begun)
    assert "Bring back that data (--data-dir), or begin again in another directory" in str(caught.value)
    assert {name: (begun / "run" / name).read_bytes() for name in files(begun / "run")} == before


@on_images
def test_a_run_is_continued_on_the_same_data_only_with_the_same_constants(experiment: str, begun: Path) -> None:
    with pytest.raises(Stop):  # accepted, and stopped again by the test
        continued(experiment, begun)
    for changes, message in (
        ({"preset": "paper"}, "preset = quick there, paper now"),
        ({"steps": 8}, r"steps = \d there, 8 now"),
        ({"seed": 1}, "seed = 0 there, 1 now"),
    ):
        with pytest.raises(ValueError, match=f"cannot be continued with other constants: {message}"):
            continued(experiment, begun, **changes)


@on_images
def test_a_run_whose_data_was_not_noted_is_not_continued(experiment: str, begun: Path) -> None:
    path = begun / "run" / "run.json"
    info = json.loads(path.read_text())
    del info["data"], info["sha256"]  # which versions before did not note either
    path.write_text(json.dumps(info))
    with pytest.raises(ValueError, match="begun by a version that noted no checksum of its data"):
        continued(experiment, begun)


def test_a_run_on_digits_knows_their_pixels_again() -> None:
    """They come from a library, whose next version may have other ones."""
    splits = [corrupted_digits(seed=seed, clean=30, corrupted=10) for seed in (0, 0, 1)]
    one, same, other = (data_identity([split]) for split in splits)
    assert one == same != other
    splits[1].images[3, 0, 2, 2] += 1e-6
    changed = data_identity([splits[1]])
    assert [name for name in one if one[name] != changed[name]] == ["images and labels of seed 0"]
