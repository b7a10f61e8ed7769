"""Image data that cannot be used: one line that names file, row and mend, before any work, and nothing left."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFile
from typer.testing import CliRunner

from noisescape.cli import app
from noisescape.experiments.fashion_mnist import FASHION_MNIST
from noisescape.experiments.images import COLUMNS, IMAGE_SETS
from paper_runs import tiny, write_part
from tiny_images import png, with_column

ROWS = 40
Change = Callable[[pa.Table], pa.Table]


def labels(values: Any, kind: pa.DataType | None = None) -> Change:
    return lambda table: with_column(table, "label", pa.array(values, kind))


def label(value: Any) -> Change:
    """Of row 7."""
    return lambda table: with_column(
        table, "label", pa.array([*table["label"].to_pylist()[:7], value, *table["label"].to_pylist()[8:]])
    )


def images(made: Callable[[bytes], bytes | None]) -> Change:
    """Of every row, since which are drawn is up to chance."""

    def change(table: pa.Table) -> pa.Table:
        cells = [{**cell, "bytes": made(cell["bytes"])} for cell in table["image"].to_pylist()]
        return with_column(table, "image", pa.array(cells, COLUMNS["image"]))

    return change


def in_mode(mode: str) -> Change:
    def convert(content: bytes) -> bytes:
        image, buffer = Image.open(io.BytesIO(content)), io.BytesIO()
        image.convert(mode).save(buffer, "tiff" if mode == "CMYK" else "png")
        return buffer.getvalue()

    return images(convert)


def sixteen_bits(_content: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((28, 28), 40_000, np.uint16)).save(buffer, "png")
    return buffer.getvalue()


def declared(side: int) -> Callable[[bytes], bytes]:
    """A few bytes that say they are an image of that side."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return lambda _content: content


def one_bit(content: bytes) -> bytes:
    """Within the pixels: a decoder goes on."""
    start = content.index(b"IDAT") + 40
    return content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :]


def of_size(height: int, width: int) -> Change:
    return images(lambda _content: png(np.zeros((height, width, 1), np.uint8)))


TABLES: dict[str, tuple[Change, str]] = {
    "labels NaN": (labels([float("nan")] * ROWS), "column 'label' is double, not int64; write it"),
    "labels decimal": (labels([0.5] * ROWS), "column 'label' is double, not int64; write it"),
    "labels true or false": (labels([True] * ROWS), "column 'label' is bool, not int64; write it"),
    "labels unsigned": (labels([2**63] * ROWS, pa.uint64()), "column 'label' is uint64, not int64; write it"),
    "labels lists": (labels([[1]] * ROWS), "column 'label' is list"),
    "a label missing": (label(None), "row 7 has no label; get"),
    "a label negative": (label(-1), "row 7 has label -1, those of fashion_mnist are 0 to 9; get"),
    "a label of ten": (label(10), "row 7 has label 10, those of fashion_mnist are 0 to 9; get"),
    "a label huge": (label(2**63 - 1), f"row 7 has label {2**63 - 1}, those of"),
    "a label hugely negative": (label(-(2**63)), f"row 7 has label {-(2**63)}, those of"),
    "no label column": (lambda table: table.drop_columns(["label"]), "must have one column 'label'"),
    "no image column": (lambda table: table.drop_columns(["image"]), "must have one column 'image'"),
    "no column": (lambda table: table.select([]), "must have one column 'image'"),
    "images null": (images(lambda _content: None), "row 0 has no image; get"),
    "no row": (lambda table: table[:0], "has 0 rows, a part of the train split"),
    "images empty": (images(lambda _content: b""), "cannot be decoded"),
    "images cut": (images(lambda content: content[:80]), "cannot be decoded"),
    "images without their end": (images(lambda content: content[:-12]), "cannot be decoded"),
    "a bit of the pixels": (images(one_bit), "cannot be decoded"),
    "a bomb": (images(declared(50_000)), "cannot be decoded (Image size (2500000000 pixels) exceeds limit"),
    "a smaller bomb": (images(declared(10_000)), "cannot be decoded (Image size (100000000 pixels) exceeds limit"),
    "a large image": (images(declared(5_000)), "is 5000 × 5000 L, those of fashion_mnist are 28 × 28 L; get"),
    "RGBA": (in_mode("RGBA"), "is 28 × 28 RGBA, those of"),
    "RGB": (in_mode("RGB"), "is 28 × 28 RGB, those of"),
    "palette": (in_mode("P"), "is 28 × 28 P, those of"),
    "black and white": (in_mode("1"), "is 28 × 28 1, those of"),
    "with alpha": (in_mode("LA"), "is 28 × 28 LA, those of"),
    "CMYK": (in_mode("CMYK"), "is 28 × 28 CMYK, those of"),
    "16 bits": (images(sixteen_bits), "is 28 × 28 I;16, those of"),
    "narrow": (of_size(28, 27), "is 27 × 28 L, those of"),
    "one pixel": (of_size(1, 1), "is 1 × 1 L, those of"),
    "text": (images(lambda _content: b"<svg onload='alert(1)'/>"), "cannot be decoded (cannot identify image file"),
}
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no Parquet": (
        lambda path: path.rename(path.with_suffix(".csv")),
        "has no train split but no Parquet file; put",
    ),
    "empty file": (lambda path: path.write_bytes(b""), "is empty; get the file anew"),
    "cut file": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is truncated, damaged or not a Parquet"),
    "zeros": (lambda path: path.write_bytes(bytes(5000)), "is truncated, damaged or not a Parquet file"),
    "a page for a file": (
        lambda path: path.write_text("<html>404</html>"),
        "is truncated, damaged or not a Parquet",
    ),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "(Is a directory); make it readable"),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "is no regular file; put the file itself there"),
    "a link to itself": (lambda path: (path.unlink(), path.symlink_to(path.name)), "has no train split but"),
}
CELLS = {**TABLES, **FILES}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    root = tmp_path_factory.mktemp("data")
    about = IMAGE_SETS["fashion_mnist"]
    patterns = np.random.default_rng(0).integers(0, 256, (10, about.size, about.size, 1))
    write_part(root, about, "train", patterns, ROWS)
    return pq.read_table(root / "fashion_mnist" / "train_prefix.parquet")


@pytest.mark.parametrize("count", [len(CELLS)], ids=[f"{len(CELLS)} cells"])
def test_the_matrix_is_whole(count: int) -> None:
    assert count == len(TABLES) + len(FILES) == 40


@pytest.mark.parametrize("cell", CELLS)
def test_unusable_images_are_told_in_a_line_before_any_work(
    cell: str, table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    path = data / "fashion_mnist" / "train_prefix.parquet"
    path.parent.mkdir(parents=True)
    change, message = CELLS[cell]
    pq.write_table(change(table) if cell in TABLES else table, path)
    if cell in FILES:
        change(path)
    if "bomb" in cell or "large" in cell:
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    monkeypatch.setitem(FASHION_MNIST.presets, "quick", tiny("fashion-mnist", None))
    command = ["reproduce", "fashion-mnist", "--data-dir", str(data), "--out", str(out), "--quiet"]
    found = CliRunner().invoke(app, command)
    assert isinstance(found.exception, SystemExit), repr(found.exception)
    assert (found.exit_code, found.stdout) == (1, "")
    [line] = found.stderr.splitlines()
    assert (
        line.startswith(f"error: {path.parent if message.startswith('has no train') else path}")
        or cell == "a folder"
    )
    assert message in line
    assert "get the" in line or "--data-dir" in line or "write it" in line or "make it readable" in line
    assert not out.exists()
