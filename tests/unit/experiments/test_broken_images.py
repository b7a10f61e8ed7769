"""Image sets that are missing, broken or not what their name promises are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from noisescape.errors import DataError, MissingSplitError
from noisescape.experiments.data import image_split
from noisescape.experiments.images import COLUMNS, open_images
from tiny_images import png, with_column, with_image, write

pytestmark = pytest.mark.usefixtures("tiny_sets")


def without_data_set(folder: Path) -> None:
    folder.rename(folder.with_name("colour"))


def without_split(folder: Path) -> None:
    (folder / "test.parquet").unlink()


def empty(folder: Path) -> None:
    (folder / "test.parquet").write_bytes(b"")


def cut_to(fraction: float) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        content = (folder / "test.parquet").read_bytes()
        (folder / "test.parquet").write_bytes(content[: int(fraction * len(content))])

    return cut


def overwritten(folder: Path) -> None:
    content = bytearray((folder / "test.parquet").read_bytes())
    content[4:4000] = bytes(3996)
    (folder / "test.parquet").write_bytes(bytes(content))


def not_parquet(folder: Path) -> None:
    (folder / "test.parquet").write_text("<html>404: not found</html>")


def a_folder(folder: Path) -> None:
    (folder / "test.parquet").unlink()
    (folder / "test.parquet").mkdir()


def changed(change: Callable[[pa.Table], pa.Table], name: str = "test.parquet") -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        table = pq.read_table(folder / "test.parquet")
        (folder / "test.parquet").unlink()
        write(folder / name, change(table))

    return rewrite


def labelled(row: int, label: int | None) -> Callable[[pa.Table], pa.Table]:
    def relabel(table: pa.Table) -> pa.Table:
        labels = table["label"].to_pylist()
        labels[row] = label
        return with_column(table, "label", pa.array(labels, pa.int64()))

    return relabel


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "data set missing": (without_data_set, r"does not hold tiny but colour; put tiny/test.parquet into it"),
    "empty file": (empty, r"test.parquet is empty"),
    "end cut off": (cut_to(0.9), r"test.parquet is truncated, damaged or not a Parquet file"),
    "beginning only": (cut_to(0.001), r"is truncated, damaged or not a Parquet file"),
    "not Parquet": (not_parquet, r"is truncated, damaged or not a Parquet file"),
    "overwritten inside": (overwritten, r"is truncated, damaged or not a Parquet file"),
    "a directory for a file": (a_folder, r"cannot read .*test.parquet \(Is a directory\); make it readable"),
    "no image column": (
        changed(lambda table: table.rename_columns(["img", "label"])),
        r"must have one column 'image', its columns are img, label",
    ),
    "no label column": (changed(lambda table: table.drop_columns(["label"])), r"must have one column 'label'"),
    "two label columns": (
        changed(lambda table: table.append_column("label", table["label"])),
        r"must have one column 'label', its columns are image, label, label",
    ),
    "bare bytes": (
        changed(lambda table: with_column(table, "image", pa.array([b"x"] * 60))),
        r"column 'image' is binary, not struct<bytes: binary, path: string>",
    ),
    "labels in words": (
        changed(lambda table: with_column(table, "label", pa.array(["one"] * 60))),
        r"column 'label' is string, not int64",
    ),
    "labels of 32 bits": (
        changed(lambda table: with_column(table, "label", table["label"].cast(pa.int32()))),
        r"column 'label' is int32, not int64",
    ),
    "a row missing": (
        changed(lambda table: table[:59]),
        r"has 59 rows, the test split of tiny has 60; get the whole file, or call .* test_prefix.parquet",
    ),
    "a row too many": (changed(lambda table: pa.concat_tables([table, table[:1]])), r"has 61 rows"),
    "no row": (changed(lambda table: table[:0]), r"has 0 rows"),
    "part that is whole": (
        changed(lambda table: table, "test_prefix.parquet"),
        r"has 60 rows, a part of the test split of tiny has 1 to 59; .* call the whole split test.parquet",
    ),
    "part of nothing": (changed(lambda table: table[:0], "test_prefix.parquet"), r"has 0 rows, a part"),
    "label 10": (changed(labelled(4, 10)), r"row 4 has label 10, those of tiny are 0 to 9"),
    "label -1": (changed(labelled(5, -1)), r"row 5 has label -1"),
    "label missing": (changed(labelled(6, None)), r"row 6 has no label"),
    "image bytes missing": (changed(lambda table: with_image(table, 3, None)), r"row 3 has no image"),
    "image missing": (
        changed(
            lambda table: with_column(
                table, "image", pa.array([None, *table["image"].to_pylist()[1:]], COLUMNS["image"])
            )
        ),
        r"row 0 has no image",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_directory_is_refused_on_opening(tiny: Path, kind: str) -> None:
    damage, message = BROKEN[kind]
    damage(tiny / "tiny")
    with pytest.raises(DataError, match=message) as caught:
        open_images("tiny", "test", tiny)
    assert type(caught.value) is DataError
    assert "\n" not in str(caught.value)


def test_a_missing_split_has_an_error_of_its_own(tiny: Path) -> None:
    without_split(tiny / "tiny")
    with pytest.raises(
        MissingSplitError, match=r"has no test split but train.parquet; put test.parquet or test_prefix"
    ):
        open_images("tiny", "test", tiny)
    with pytest.raises(MissingSplitError):  # only a part of the training rows may do without
        image_split("tiny", seed=0, clean=5, test=5, data_dir=tiny)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "fashion-mnist",
            "unknown data set 'fashion-mnist'; did you mean fashion_mnist\\? known: fashion_mnist, cifar10, svhn",
        ),
        ("imagenet_22k", "unknown data set 'imagenet_22k'; known: fashion_mnist, cifar10, svhn"),
    ],
)
def test_an_unknown_name_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_images(name, "train", tmp_path)


def test_an_unknown_split_is_refused(tiny: Path) -> None:
    with pytest.raises(DataError, match="split must be 'train' or 'test', not 'validation'"):
        open_images("tiny", "validation", tiny)  # type: ignore[arg-type]


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no directory .*/absent; give another --data-dir or set NOISESCAPE_DATA"):
        open_images("tiny", "train", tmp_path / "absent")
    with pytest.raises(DataError, match="does not hold tiny but no data set known here"):
        open_images("tiny", "train", tmp_path)


def test_no_permission_is_said(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refused)  # root may read everything, so no chmod
    with pytest.raises(DataError, match=r"cannot read .*test.parquet \(Permission denied\); make it readable"):
        open_images("tiny", "test", tiny)


PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image", "the image of row 2 cannot be decoded .cannot identify image file"),
        (b"", "the image of row 2 cannot be decoded"),
        (png(PIXELS[..., :1])[:80], "the image of row 2 cannot be decoded"),
        (png(PIXELS), "the image of row 2 is 8 × 8 RGB, those of tiny are 8 × 8 L"),
        (png(PIXELS[:, :7, :1]), "the image of row 2 is 7 × 8 L"),
    ],
    ids=["not an image", "nothing", "cut off", "colour", "narrow"],
)
def test_a_broken_image_is_refused_with_its_row(tiny: Path, content: bytes, message: str) -> None:
    changed(lambda table: with_image(table, 2, content))(tiny / "tiny")
    opened = open_images("tiny", "test", tiny)
    opened.pixels(torch.tensor([0, 1, 3]))  # the others are good
    for _ in range(2):
        with pytest.raises(DataError, match=message):
            opened.pixels(torch.tensor([1, 2]))
    with pytest.raises(DataError, match=message):
        image_split("tiny", seed=0, clean=5, data_dir=tiny)
