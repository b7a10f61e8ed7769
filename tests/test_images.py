"""Image data sets from a directory or the hub: what is read, what is refused, and the splits made of them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from noisescape.errors import DataError, MissingSplitError
from noisescape.experiments import images
from noisescape.experiments.data import image_split
from noisescape.experiments.images import COLUMNS, IMAGE_SETS, ImageSet, Split, open_images

REAL = os.environ.get("NOISESCAPE_DATA")
real = pytest.mark.skipif(not REAL, reason="NOISESCAPE_DATA names no directory with the real data sets")

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


@pytest.fixture(autouse=True)
def tiny_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small data sets are known, no directory is the default, and nothing of the hub is remembered."""
    monkeypatch.setitem(IMAGE_SETS, "tiny", TINY)
    monkeypatch.setitem(IMAGE_SETS, "colour", COLOUR)
    monkeypatch.delenv("NOISESCAPE_DATA", raising=False)
    images._from_hub.cache_clear()


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


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A data directory with all of ``tiny``."""
    for split in ("train", "test"):
        write(tmp_path / "tiny" / f"{split}.parquet", made(TINY, split)[1])
    return tmp_path


@pytest.fixture
def colour(tmp_path: Path) -> Path:
    """A data directory with the first 200 training rows of ``colour`` and no test split."""
    write(tmp_path / "colour" / "train_prefix.parquet", made(COLOUR, "train", 200)[1])
    return tmp_path


def write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path)


# --- what is read


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


def test_the_slow_import_waits_until_images_are_opened() -> None:
    program = "import sys, noisescape.experiments.data; sys.exit('datasets' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


# --- what is refused


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
        ("fashion-mnist", "unknown data set 'fashion-mnist'; did you mean 'fashion_mnist'"),
        ("imagenet_22k", "unknown data set 'imagenet_22k'; there are fashion_mnist, cifar10, svhn"),
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


# --- the hub


def from_hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[tuple[Any, ...]]:
    """Let ``answer`` be what the hub gives, raise or call; the calls are returned."""
    import datasets

    calls = []

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        calls.append((*arguments, options))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def hub_data(rows: int = 60, columns: tuple[str, str] = ("img", "digit")) -> tuple[np.ndarray[Any, Any], Any]:
    """What `datasets.load_dataset` returns for the tiny set, and its pixels."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    pixels, table = made(TINY, "test", rows)
    features = Features({columns[0]: ImageFeature(), columns[1]: ClassLabel(num_classes=10)})
    pictures = [Image.fromarray(image[..., 0]) for image in pixels]
    content = {columns[0]: pictures, columns[1]: table["label"].to_pylist()}
    return pixels, Dataset.from_dict(content, features=features)


def test_the_hub_is_asked_where_no_directory_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, loaded = hub_data()
    calls = from_hub(monkeypatch, loaded)
    opened = open_images("tiny", "test")
    assert open_images("tiny", "test") is opened
    assert calls == [("someone/tiny", "small", {"split": "test"})]
    assert opened.labels.tolist() == list(loaded["digit"])
    assert np.array_equal(opened.pixels(torch.arange(60))[:, 0].numpy(), pixels[..., 0])
    assert opened.facts() == {
        "name": "tiny",
        "split": "test",
        "source": "hub:someone/tiny",
        "rows": 60,
        "complete": True,
        "fingerprint": loaded._fingerprint,
    }


def test_the_hub_shows_no_progress_in_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from datasets.utils import are_progress_bars_disabled

    seen = []

    def load_dataset(*_: Any, **__: Any) -> Any:
        seen.append(are_progress_bars_disabled())
        return hub_data()[1]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    open_images("tiny", "test")
    assert seen == [True]
    assert not are_progress_bars_disabled()


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (
            ConnectionError("Couldn't reach 'someone/tiny' on the Hub\nand more"),
            DataError,
            r"cannot load someone/tiny from the Hugging Face hub \(Couldn't reach .* on the Hub\); "
            r"give --data-dir or set NOISESCAPE_DATA to a directory with tiny/test.parquet",
        ),
        (ValueError('Unknown split "test". Should be one of [].'), MissingSplitError, "has no test split"),
        (ValueError("BuilderConfig 'small' not found"), DataError, r"cannot load .*'small' not found"),
    ],
)
def test_what_the_hub_refuses(
    monkeypatch: pytest.MonkeyPatch, answer: Exception, kind: type[DataError], message: str
) -> None:
    from_hub(monkeypatch, answer)
    with pytest.raises(DataError, match=message) as caught:
        open_images("tiny", "test")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (59, ("img", "digit"), "hub:someone/tiny has 59 rows"),
        (60, ("img", "class"), "must have one column 'label'"),
    ],
)
def test_the_hub_is_not_trusted_either(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: tuple[str, str], message: str
) -> None:
    from_hub(monkeypatch, hub_data(rows, columns)[1])
    with pytest.raises(DataError, match=message):
        open_images("tiny", "test")


# --- splits


def test_a_split_is_made_of_the_rows_it_names(tiny: Path) -> None:
    split = image_split("tiny", seed=1, clean=100, corrupted=30, data_dir=tiny)
    for rows, found, labels, name in (
        (split.rows, split.images, split.labels, "train"),
        (split.test_rows, split.test_images, split.test_labels, "test"),
    ):
        pixels, table = made(TINY, name)
        expected = pixels[rows].transpose(0, 3, 1, 2) / 255 * 2 - 1
        assert rows.dtype == labels.dtype == torch.int64
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, atol=2e-7)
        clean = 100 if name == "train" else 60
        assert labels[:clean].tolist() == table["label"].to_numpy()[rows][:clean].tolist()
    assert len(set(split.rows.tolist())) == 130
    assert split.test_rows.tolist() == list(range(60))
    assert split.corrupted.tolist() == [False] * 100 + [True] * 30
    assert split.facts == {
        "train": open_images("tiny", "train", tiny).facts(),
        "test": open_images("tiny", "test", tiny).facts(),
        "test_selection": "all",
    }


def test_a_seed_fixes_everything_and_another_changes_all(tiny: Path) -> None:
    one, again, other = (
        image_split("tiny", seed=seed, clean=50, corrupted=20, test=30, data_dir=tiny) for seed in (5, 5, 6)
    )
    for name in ("images", "labels", "test_images", "test_labels", "rows", "test_rows"):
        assert torch.equal(getattr(one, name), getattr(again, name))
        assert not torch.equal(getattr(one, name), getattr(other, name))
    assert len(set(one.test_rows.tolist())) == 30
    assert one.facts["test_selection"] == "drawn by the seed"


def test_images_do_not_depend_on_how_many_labels_are_random(tiny: Path) -> None:
    few, many = (image_split("tiny", seed=3, clean=100 - n, corrupted=n, data_dir=tiny) for n in (0, 40))
    assert torch.equal(few.rows, many.rows)
    assert torch.equal(few.labels[:60], many.labels[:60])


def test_random_labels_are_right_one_time_in_ten(tiny: Path) -> None:
    right = []
    for seed in range(20):
        split = image_split("tiny", seed=seed, clean=10, corrupted=290, data_dir=tiny)
        true = open_images("tiny", "train", tiny).labels[split.rows]
        assert torch.equal(split.labels[:10], true[:10])
        right += (split.labels == true)[10:].tolist()
    standard_error = (0.1 * 0.9 / len(right)) ** 0.5
    assert abs(np.mean(right) - 0.1) < 4 * standard_error
    assert open_images("tiny", "train", tiny).labels.tolist() == made(TINY, "train")[1]["label"].to_pylist()


def test_without_a_test_split_a_block_is_held_out(colour: Path) -> None:
    firsts = []
    for seed in range(30):
        split = image_split("colour", seed=seed, clean=100, corrupted=50, test=50, data_dir=colour)
        first = int(split.test_rows[0])
        assert split.test_rows.tolist() == list(range(first, first + 50))
        assert sorted([*split.rows.tolist(), *split.test_rows.tolist()]) == list(range(200))
        assert split.facts["test_selection"] == f"a block of the training rows, from {first} on"
        assert split.facts["test"] == split.facts["train"]
        firsts.append(first)
    assert 0 <= min(firsts) < 50
    assert 100 < max(firsts) <= 150
    source = open_images("colour", "train", colour)
    assert torch.equal(split.test_labels, source.labels[split.test_rows])
    expected = source.pixels(split.test_rows).float() / 255 * 2 - 1
    torch.testing.assert_close(split.test_images, expected)


def test_a_part_is_tested_on_the_test_split_where_there_is_one(colour: Path) -> None:
    write(colour / "colour" / "test.parquet", made(COLOUR, "test")[1])
    split = image_split("colour", seed=0, clean=200, data_dir=colour)
    assert split.facts["test_selection"] == "all"
    assert split.facts["test"]["split"] == "test"


@pytest.mark.parametrize("size", [8, 4, 2, 1])
@pytest.mark.parametrize("pixel_range", [(-1.0, 1.0), (0.0, 1.0), (-3.0, 7.0)])
def test_shrinking_is_the_mean_of_squares(colour: Path, size: int, pixel_range: tuple[float, float]) -> None:
    split = image_split("colour", seed=2, clean=20, test=10, data_dir=colour, size=size, pixel_range=pixel_range)
    pixels = made(COLOUR, "train", 200)[0]
    low, high = pixel_range
    for rows, found in ((split.rows, split.images), (split.test_rows, split.test_images)):
        squares = pixels[rows].astype(np.float64).reshape(-1, size, 8 // size, size, 8 // size, 3)
        expected = low + (high - low) * squares.mean((2, 4)).transpose(0, 3, 1, 2) / 255
        assert found.shape == (len(rows), 3, size, size)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, atol=(high - low) * 1e-6)


@pytest.mark.parametrize("size", [3, 16, 0, -4])
def test_a_size_that_does_not_divide_is_refused(tiny: Path, size: int) -> None:
    with pytest.raises(ValueError, match=rf"shrunk to size {size}: its side is 8, so size is one of 1, 2, 4, 8"):
        image_split("tiny", seed=0, clean=5, data_dir=tiny, size=size)


@pytest.mark.parametrize("pixel_range", [(1.0, 1.0), (1.0, -1.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_an_impossible_range_is_refused(tiny: Path, pixel_range: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="pixel_range must be finite and increasing"):
        image_split("tiny", seed=0, clean=5, data_dir=tiny, pixel_range=pixel_range)


@pytest.mark.parametrize(("clean", "corrupted"), [(301, 0), (200, 101), (0, 0), (-1, 5), (5, -1)])
def test_more_images_than_there_are_are_refused(tiny: Path, clean: int, corrupted: int) -> None:
    with pytest.raises(ValueError, match=rf"{clean} clean \+ {corrupted} corrupted .* tiny has 300"):
        image_split("tiny", seed=0, clean=clean, corrupted=corrupted, data_dir=tiny)


@pytest.mark.parametrize("test", [0, 61, -1])
def test_more_test_images_than_there_are_are_refused(tiny: Path, test: int) -> None:
    with pytest.raises(ValueError, match=f"{test} test images asked for; tiny has 60 for test"):
        image_split("tiny", seed=0, clean=5, test=test, data_dir=tiny)


def test_counts_without_a_test_split(colour: Path) -> None:
    with pytest.raises(ValueError, match="colour has no test split here: say with test how many of 200 rows"):
        image_split("colour", seed=0, clean=5, data_dir=colour)
    with pytest.raises(ValueError, match=r"151 clean .* colour has 150 beside 50 for test"):
        image_split("colour", seed=0, clean=151, test=50, data_dir=colour)
    with pytest.raises(ValueError, match="200 test images asked for; colour has 199 for test"):
        image_split("colour", seed=0, clean=5, test=200, data_dir=colour)
    assert len(image_split("colour", seed=0, clean=150, test=50, data_dir=colour).images) == 150


# --- the real ones


@real
@pytest.mark.parametrize(
    ("name", "split", "counts", "first"),
    [
        ("fashion_mnist", "train", [6000] * 10, [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]),
        ("fashion_mnist", "test", [1000] * 10, [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]),
        ("cifar10", "train", [5000] * 10, None),  # in an order of its own
        ("cifar10", "test", [1000] * 10, None),
        ("svhn", "train", None, [1, 9, 2, 3, 2, 5, 9, 3, 3, 1]),
    ],
)
def test_real_labels(name: str, split: Split, counts: list[int] | None, first: list[int] | None) -> None:
    opened = open_images(name, split, REAL)
    if counts:
        assert opened.complete
        assert torch.bincount(opened.labels).tolist() == counts
    elif not opened.complete:
        assert opened.count == 1083
        found = torch.bincount(opened.labels).tolist()
        assert found == [66, 227, 141, 134, 110, 112, 78, 70, 78, 67]
    if first:
        assert opened.labels[:10].tolist() == first


@real
@pytest.mark.parametrize(
    ("name", "shape", "options", "mean"),
    [
        ("fashion_mnist", (1, 28, 28), {}, 0.2860),
        ("fashion_mnist", (1, 14, 14), {"size": 14}, 0.2860),
        ("cifar10", (3, 32, 32), {}, 0.4734),
        ("cifar10", (3, 16, 16), {"size": 16}, 0.4734),
        ("svhn", (3, 32, 32), {}, None),
    ],
)
def test_real_pixels(name: str, shape: tuple[int, ...], options: dict[str, int], mean: float | None) -> None:
    split = image_split(name, seed=0, clean=800, test=100, data_dir=REAL, pixel_range=(0.0, 1.0), **options)
    assert split.images.shape == (800, *shape)
    assert split.test_images.shape == (100, *shape)
    assert 0 <= float(split.images.min()) < 0.1
    assert 0.9 < float(split.images.max()) <= 1
    if mean is not None:  # as published for the whole training split; images are the independent draws
        means = split.images.flatten(1).mean(1)
        assert abs(float(means.mean()) - mean) < 4 * float(means.std()) / 800**0.5
