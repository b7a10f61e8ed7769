"""The splits made of image sets: the rows they name, random labels, shrunken images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from noisescape.errors import DataError
from noisescape.experiments.data import image_split
from noisescape.experiments.images import open_images
from tiny_images import COLOUR, TINY, made, write

pytestmark = pytest.mark.usefixtures("tiny_sets")


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


def test_in_order_the_first_rows_are_trained_on_whatever_the_seed(tiny: Path, colour: Path) -> None:
    for seed in range(2):
        split = image_split("tiny", seed=seed, clean=50, corrupted=5, data_dir=tiny, in_order=True)
        assert split.rows.tolist() == [*range(55)]
        assert split.labels[:50].tolist() == made(TINY, "train")[1]["label"].to_pylist()[:50]
        split = image_split("colour", seed=seed, clean=120, test=50, data_dir=colour, in_order=True)
        assert split.rows.tolist() == [row for row in range(200) if row not in split.test_rows][:120]


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


def test_exchanged_splits_train_on_the_test_split(tiny: Path) -> None:
    split = image_split("tiny", seed=1, clean=40, corrupted=10, test=100, data_dir=tiny, exchanged=True)
    train, test = (open_images("tiny", name, tiny) for name in ("train", "test"))
    assert (split.facts["train"], split.facts["test"]) == (test.facts(), train.facts())
    assert (len(split.images), len(split.test_images)) == (50, 100)
    assert torch.equal(split.labels[:40], test.labels[split.rows[:40]])
    assert torch.equal(split.test_labels, train.labels[split.test_rows])
    torch.testing.assert_close(split.images, test.pixels(split.rows).float() / 255 * 2 - 1)
    torch.testing.assert_close(split.test_images, train.pixels(split.test_rows).float() / 255 * 2 - 1)
    assert len(image_split("tiny", seed=1, clean=60, data_dir=tiny, exchanged=True).test_rows) == 300
    with pytest.raises(ValueError, match=r"61 clean .* tiny has 60"):
        image_split("tiny", seed=1, clean=61, data_dir=tiny, exchanged=True)


def test_splits_are_exchanged_only_where_both_are_there(colour: Path) -> None:
    with pytest.raises(DataError, match=r"has no test split but train_prefix\.parquet; put test\.parquet"):
        image_split("colour", seed=0, clean=5, test=5, data_dir=colour, exchanged=True)


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
