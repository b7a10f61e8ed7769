"""Two small image sets in files as the package reads them."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from noisescape.experiments.images import COLUMNS, ImageSet, Split

TINY = ImageSet(
    name="tiny",
    hub_id="someone/tiny",
    hub_config="small",
    hub_columns=("img", "digit"),
    channels=1,
    size=8,
    train_rows=300,
    test_rows=60,
)
COLOUR = dataclasses.replace(TINY, name="colour", channels=3)


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, "png")
    return buffer.getvalue()


def made(about: ImageSet, split: Split, rows: int | None = None) -> tuple[np.ndarray[Any, Any], pa.Table]:
    """Random pixels (n, height, width, channels) and the table that holds them."""
    count = about.rows(split) if rows is None else rows
    generator = np.random.default_rng(count)
    pixels = generator.integers(0, 256, (count, about.size, about.size, about.channels), dtype=np.uint8)
    cells = [{"bytes": png(image), "path": f"{row}.png"} for row, image in enumerate(pixels)]
    labels = generator.integers(0, 10, count)
    return pixels, pa.table({"image": pa.array(cells, COLUMNS["image"]), "label": labels})


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def with_image(table: pa.Table, row: int, content: bytes | None) -> pa.Table:
    cells = table["image"].to_pylist()
    cells[row]["bytes"] = content
    return with_column(table, "image", pa.array(cells, COLUMNS["image"]))


def write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path)
