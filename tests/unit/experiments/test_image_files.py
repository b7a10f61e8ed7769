"""Image sets from a directory: what is read, to the pixel."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from noisescape.errors import DataError
from noisescape.experiments.images import ImageSet, Split, open_images
from tiny_images import COLOUR, TINY, made, with_column, write

pytestmark = pytest.mark.usefixtures("tiny_sets")


@pytest.mark.parametrize(("about", "split"), [(TINY, "train"), (TINY, "test"), (COLOUR, "test")])
def test_pixels_and_labels_are_those_of_the_file(tmp_path: Path, about: ImageSet, split: Split) -> None:
    pixels, table = made(about, split)
    path = tmp_path / about.name / f"{split}.parquet"
    write(path, table)
    opened = open_images(about.name, split, tmp_path)
    assert opened.count == len(pixels)
    assert opened.labels.dtype == torch.int64
    assert opened.labels.tolist() == table["label"].to_pylist()
    rows = torch.tensor([7, 0, 7, 59])
    for _ in range(2):  # decoded, then remembered
        found = opened.pixels(rows)
        assert found.dtype == torch.uint8
        assert torch.equal(found, torch.from_numpy(pixels[rows].transpose(0, 3, 1, 2).copy()))
    assert opened.pixels(torch.tensor([], dtype=torch.long)).shape == (0, about.channels, 8, 8)
    assert opened.facts() == {
        "name": about.name,
        "split": split,
        "source": f"{path.parent.name}/{path.name}",
        "rows": len(pixels),
        "complete": True,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def test_a_part_is_marked_and_the_whole_is_preferred(colour: Path) -> None:
    part = open_images("colour", "train", colour)
    assert (part.count, part.complete, part.facts()["complete"]) == (200, False, False)
    write(colour / "colour" / "train.parquet", made(COLOUR, "train")[1])
    assert open_images("colour", "train", colour).complete


def test_the_environment_names_the_directory(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOISESCAPE_DATA", str(tiny))
    assert open_images("tiny", "test").count == 60
    with pytest.raises(DataError, match="no directory"):
        open_images("tiny", "test", tiny / "elsewhere")


def test_a_file_is_read_once_and_again_when_it_is_replaced(tiny: Path) -> None:
    first = open_images("tiny", "test", tiny)
    assert open_images("tiny", "test", str(tiny)) is first
    path = tiny / "tiny" / "test.parquet"
    table = pq.read_table(path)
    write(path, with_column(table, "label", pa.array((table["label"].to_numpy() + 1) % 10)))
    os.utime(path, ns=(0, 0))
    assert open_images("tiny", "test", tiny).labels.tolist() == [
        (label + 1) % 10 for label in first.labels.tolist()
    ]


def test_other_columns_and_odd_metadata_do_no_harm(tiny: Path) -> None:
    pixels, table = made(TINY, "test")
    table = table.append_column("note", pa.array(["x"] * 60)).replace_schema_metadata({"huggingface": "not JSON"})
    write(tiny / "tiny" / "test.parquet", table)
    found = open_images("tiny", "test", tiny).pixels(torch.arange(60))
    assert np.array_equal(found[:, 0].numpy(), pixels[..., 0])


@pytest.mark.slow
def test_the_slow_import_waits_until_images_are_opened() -> None:
    program = "import sys, noisescape.experiments.data; sys.exit('datasets' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
