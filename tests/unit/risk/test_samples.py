"""A sample's checksum: of its own values and form, not of the batch it comes in."""

import pytest
import torch

from cases import normal
from noisescape.risk.samples import TensorSamples, sample_digests

X, Y = normal(7, 2, 3, seed=1), torch.arange(7)


@pytest.mark.parametrize("cut", [0, 1, 4, 7])
def test_batches_do_not_matter(cut):
    whole = sample_digests((X, Y))
    assert sample_digests((X[:cut], Y[:cut])) + sample_digests((X[cut:], Y[cut:])) == whole
    assert len(whole) == 8 * 7
    assert TensorSamples(X, Y).sample_digests() == whole


@pytest.mark.parametrize("make", [lambda x: x.mT.contiguous().mT, lambda x: x[::2][:, :, :], lambda x: x.clone()])
def test_nor_does_how_they_lie_in_memory(make):
    x = make(X)
    assert sample_digests((x, Y[: len(x)])) == sample_digests((x.contiguous(), Y[: len(x)]))


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x + 1e-15, y),
        lambda x, y: (x, y + 1),
        lambda x, y: (x.float(), y),
        lambda x, y: (x.flatten(1), y),
        lambda x, y: ({"x": x}, y),
        lambda x, y: ((x, None), y),
        lambda x, y: (y, x),
    ],
)
def test_values_and_form_do(change):
    one, other = sample_digests((X, Y)), sample_digests(change(X, Y))
    assert all(one[8 * n : 8 * n + 8] != other[8 * n : 8 * n + 8] for n in range(7))


def test_samples_without_numbers_have_one():
    assert len(sample_digests((torch.empty(3, 0), Y[:3]))) == 24
