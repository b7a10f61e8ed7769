"""Data that is missing, broken or too small is refused before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noisescape.errors import DataError
from noisescape.experiments.images import COLUMNS
from noisescape.experiments.registry import EXPERIMENTS
from paper_runs import ON_IMAGES, SET_OF, data_directory, tiny
from run_files import files


@pytest.mark.parametrize("experiment", ON_IMAGES)
def test_missing_data_is_refused_before_anything_is_written(experiment: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no directory .*/absent; give another --data-dir or set NOISESCAPE_DATA"):
        EXPERIMENTS[experiment].run(tiny(experiment, tmp_path / "absent"), tmp_path / "run", jobs=1, progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"does not hold {SET_OF[experiment]}"):
        EXPERIMENTS[experiment].run(tiny(experiment, tmp_path / "empty"), tmp_path / "run", jobs=1, progress=False)
    assert files(tmp_path) == set()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(
    ("experiment", "changes", "message"),
    [
        *((experiment, {"test": 1000}, "1000 test images asked for") for experiment in ON_IMAGES),
        ("fashion-mnist", {"clean": 1000}, r"1000 clean \+ 5 corrupted training images asked for"),
        ("fashion-mnist", {"test": None}, "fashion_mnist has no test split here: say with test how many"),
        ("svhn", {"train": 1000}, r"1000 clean \+ 0 corrupted training images asked for"),
        ("svhn", {"width": 3.0}, "width is a share"),
        ("cifar10", {"image_size": 8}, "takes images of 32 or 16 pixels"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    experiment: str, changes: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    config = replace(tiny(experiment, data), **changes)
    with pytest.raises(ValueError, match=message):
        EXPERIMENTS[experiment].run(config, tmp_path / "run", jobs=1, progress=False)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("experiment", "changes", "message"),
    [
        ("fashion-mnist", {"preset": "as-published", "batch_size": 30}, "batch_size = 30 exceeds the 25 samples"),
        ("fashion-mnist", {"k": 20_000}, "k = 20000"),
        ("fashion-mnist", {"rho": -1.0}, "rho must be at least 0"),
        ("fashion-mnist", {"penalty": -1.0}, "strength must be at least 0"),
        ("svhn", {"preset": "as-published", "batch_size": 30}, "batch_size = 30 exceeds the 24 samples"),
        ("svhn", {"batches": 1}, "batches must be at least 2"),
    ],
)
def test_constants_that_do_not_fit_the_data_are_refused_before_anything_is_written(
    experiment: str, changes: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    small = {"gd_steps": 1, "landmarks": (1.0,)} if experiment == "fashion-mnist" else {}
    config = replace(tiny(experiment, data), **small, **changes)
    with pytest.raises(ValueError, match=message):
        EXPERIMENTS[experiment].run(config, tmp_path / "run", jobs=1, progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("experiment", ON_IMAGES)
def test_a_broken_image_is_refused_before_anything_is_written(experiment: str, tmp_path: Path) -> None:
    name = SET_OF[experiment]
    path = data_directory(tmp_path / "data", rows=40) / name / "train_prefix.parquet"
    table = pq.read_table(path)
    cells = table["image"].to_pylist()
    for cell in cells:
        cell["bytes"] = cell["bytes"][:60]
    pq.write_table(table.set_column(0, "image", pa.array(cells, COLUMNS["image"])), path)
    with pytest.raises(DataError, match=r"the image of row \d+ cannot be decoded"):
        EXPERIMENTS[experiment].run(tiny(experiment, tmp_path / "data"), tmp_path / "run", jobs=1, progress=False)
    assert not (tmp_path / "run").exists()
