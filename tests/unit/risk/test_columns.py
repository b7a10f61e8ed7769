"""Columns of Hugging Face data sets: held or streamed they give the same risk, in a fixed order, on shards too."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import noisescape as ns
from cases import normal
from noisescape.distributed import Shard
from noisescape.errors import DataChangedError, InvalidTypeError, InvalidValueError
from noisescape.risk import fingerprint

N = 23
X, Y = normal(N, 3, seed=1, dtype=torch.float32), torch.arange(N) % 2


@pytest.fixture
def rows():
    return datasets.Dataset.from_dict({"x": X.tolist(), "y": Y.tolist(), "note": ["a"] * N})


@pytest.fixture
def stream(rows, tmp_path):
    """From two Parquet files, never held."""
    names = []
    for part in range(2):
        names.append(str(tmp_path / f"{part}.parquet"))
        rows.select(range(12 * part, min(N, 12 * (part + 1)))).to_parquet(names[-1])
    return datasets.load_dataset("parquet", data_files=names, split="train", streaming=True)


def risk_of(data, **options):
    torch.manual_seed(0)
    return ns.EmpiricalRisk(nn.Linear(3, 2), nn.functional.cross_entropy, data, **options)


def test_rows_are_the_tensors_they_hold(rows, stream):
    for dataset in (rows, stream):
        batches = [*ns.Columns(dataset, "x", "y", batch_size=5)]
        assert [len(targets) for _, targets in batches][:2] == [5, 5]
        torch.testing.assert_close(torch.cat([inputs for inputs, _ in batches]), X)
        assert torch.equal(torch.cat([targets for _, targets in batches]), Y)


def test_held_and_streamed_they_are_one_risk(rows, stream):
    plain = risk_of((X, Y))
    theta = plain.parameters()
    for dataset in (rows, stream):
        risk = risk_of(ns.Columns(dataset, "x", "y", batch_size=5), memory_budget=200)
        torch.testing.assert_close(risk.gradient(theta), plain.gradient(theta))
        assert fingerprint(risk) == fingerprint(plain)


def test_several_inputs_go_by_name(rows):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x, y):
            return self.layer(x) * (1 + y[:, None])

    risk = ns.EmpiricalRisk(Scaled(), nn.functional.cross_entropy, ns.Columns(rows, ["x", "y"], "y"))
    assert risk.sample_count == N


def test_images_are_bytes_that_a_transform_scales(tmp_path):
    pixels = np.arange(2 * 16, dtype=np.uint8).reshape(2, 4, 4)
    rows = datasets.Dataset.from_dict({"image": [Image.fromarray(each) for each in pixels], "label": [0, 1]})
    [(inputs, _)] = ns.Columns(rows, "image", "label", transform=lambda images: images.float() / 255)
    torch.testing.assert_close(inputs, torch.from_numpy(pixels)[:, None].float() / 255)


def test_parts_of_rows_keep_their_order(rows):
    parts = [Shard(rank, 3).part(ns.Columns(rows, "x", "y")) for rank in range(3)]
    torch.testing.assert_close(torch.cat([inputs for part in parts for inputs, _ in part]), X)


def test_parts_of_a_stream_hold_every_row_once(stream):
    for ranks in (2, 3):  # as many files as ranks, and fewer
        parts = [Shard(rank, ranks).part(ns.Columns(stream, "x", "y")) for rank in range(ranks)]
        found = torch.cat([inputs for part in parts for inputs, _ in part])
        assert sorted(found.tolist()) == sorted(X.tolist())


def test_a_transform_of_chance_is_refused(rows):
    def noisy(inputs):
        return inputs + torch.randn_like(inputs)

    with pytest.raises(DataChangedError, match="not what it was on the first pass"):
        risk_of(ns.Columns(rows, "x", "y", batch_size=5, transform=noisy), memory_budget=200)


def test_what_has_no_such_columns_is_refused(rows):
    with pytest.raises(InvalidValueError, match=r"unknown column 'z'; .*known: x, y, note"):
        ns.Columns(rows, "z", "y")
    with pytest.raises(InvalidTypeError, match=r'one split of it \(load_dataset\(…, split="train"\)\)'):
        ns.Columns([1, 2], "x", "y")
    with pytest.raises(InvalidTypeError, match="one split of it"):
        ns.Columns(datasets.DatasetDict({"train": rows}), "x", "y")
    with pytest.raises(InvalidValueError, match="at least 1, not 0"):
        ns.Columns(rows, "x", "y", batch_size=0)
    with pytest.raises(InvalidValueError, match=r"rows of column 'note' have no one shape \(str\)"):
        next(iter(ns.Columns(rows, "note", "y")))
    ragged = datasets.Dataset.from_dict({"x": [[1.0], [1.0, 2.0]], "y": [0, 1]})
    with pytest.raises(InvalidValueError, match=r"no one shape \(\(1,\), \(2,\)\)"):
        next(iter(ns.Columns(ragged, "x", "y")))
