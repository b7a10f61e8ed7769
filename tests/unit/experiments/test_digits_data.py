"""The digits with random labels: counts, who is corrupted, seeds."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor

from noisescape.experiments.data import corrupted_digits
from noisescape.experiments.models import digits_net

TRUE = {}
for _image, _label in zip(*load_digits(return_X_y=True), strict=True):
    TRUE.setdefault(tuple(_image.tolist()), set()).add(int(_label))


def keys(images: Tensor) -> list[tuple[float, ...]]:
    """The images as scikit-learn has them."""
    return [tuple(row) for row in ((images.double() + 1) * 8).flatten(1).tolist()]


@pytest.mark.parametrize(("clean", "corrupted"), [(1000, 200), (30, 7), (0, 5), (5, 0), (1, 1795)])
def test_counts_and_shapes(clean: int, corrupted: int) -> None:
    split = corrupted_digits(seed=1, clean=clean, corrupted=corrupted)
    size = clean + corrupted
    assert split.images.shape == (size, 1, 8, 8)
    assert split.test_images.shape == (1797 - size, 1, 8, 8)
    assert split.labels.shape == split.corrupted.shape == (size,)
    assert split.labels.dtype == split.test_labels.dtype == torch.int64
    assert split.corrupted.tolist() == [False] * clean + [True] * corrupted
    assert split.train[0] is split.images
    assert split.train[1] is split.labels
    assert split.test[0] is split.test_images
    assert split.test[1] is split.test_labels


def test_pixels_span_minus_one_to_one() -> None:
    split = corrupted_digits(seed=0)
    assert split.images.dtype == torch.float32
    assert float(split.images.min()) == -1
    assert float(split.images.max()) == 1


def test_every_image_is_used_once() -> None:
    split = corrupted_digits(seed=2)
    found = keys(split.images) + keys(split.test_images)
    images = [tuple(row.tolist()) for row in load_digits(return_X_y=True)[0]]
    assert sorted(found) == sorted(images)


def test_rows_name_the_images_in_their_source() -> None:
    split = corrupted_digits(seed=2)
    images, labels = load_digits(return_X_y=True)
    assert split.rows.dtype == split.test_rows.dtype == torch.int64
    assert keys(split.images) == [tuple(row.tolist()) for row in images[split.rows]]
    assert keys(split.test_images) == [tuple(row.tolist()) for row in images[split.test_rows]]
    assert split.test_labels.tolist() == labels[split.test_rows].tolist()
    assert split.facts["train"] == split.facts["test"]
    assert split.facts["train"]["rows"] == 1797
    assert split.facts["test_selection"] == "all that are not trained on"


def test_only_the_last_labels_are_random() -> None:
    split = corrupted_digits(seed=3)
    right = torch.tensor(
        [label in TRUE[key] for key, label in zip(keys(split.images), split.labels.tolist(), strict=True)]
    )
    assert right[:1000].all()
    assert all(
        label in TRUE[key] for key, label in zip(keys(split.test_images), split.test_labels.tolist(), strict=True)
    )
    by_chance = int(right[1000:].sum())
    assert stats.binomtest(by_chance, 200, 0.1).pvalue > 1e-3


def test_random_labels_are_uniform_over_the_ten() -> None:
    labels = torch.cat([corrupted_digits(seed=seed, clean=0, corrupted=1700).labels for seed in range(5)])
    assert stats.chisquare(torch.bincount(labels, minlength=10).numpy()).pvalue > 1e-3


def test_random_labels_do_not_depend_on_the_images() -> None:
    split = corrupted_digits(seed=4, clean=0, corrupted=1700)
    true = torch.tensor([min(TRUE[key]) for key in keys(split.images)])
    table = torch.zeros(10, 10)
    table.index_put_((true, split.labels), torch.ones(1), accumulate=True)
    assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3


def test_a_seed_fixes_everything_and_another_changes_it() -> None:
    one, again, other = (corrupted_digits(seed=seed, clean=50, corrupted=20) for seed in (5, 5, 6))
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.labels, again.labels)
    assert torch.equal(one.test_labels, again.test_labels)
    assert not torch.equal(one.images, other.images)
    assert not torch.equal(one.labels[50:], other.labels[50:])


@pytest.mark.parametrize(("clean", "corrupted"), [(1797, 0), (1000, 797), (0, 0), (-1, 5), (5, -1)])
def test_impossible_counts_are_refused(clean: int, corrupted: int) -> None:
    with pytest.raises(ValueError, match=rf"{clean} clean \+ {corrupted} corrupted .* the digits hold 1797"):
        corrupted_digits(seed=0, clean=clean, corrupted=corrupted)


def test_the_network_is_of_its_seed_and_leaves_the_global_one_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    nets = [digits_net(seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    vectors = [torch.cat([p.flatten() for p in net.parameters()]) for net in nets]
    assert len(vectors[0]) == 2118
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])
    assert nets[0](torch.zeros(4, 1, 8, 8)).shape == (4, 10)
