"""Several real processes, each with a part of the samples, find what one process with all of them does."""

import functools

import pytest
import torch

from shard_calls import CALLS, EXACT, SLOW, USED, answers
from torchrun import of_ranks

RISKS = [*USED, "mlp cross-entropy, tight", "mlp cross-entropy, streamed"]
ASKED = [
    f"{what} · {name}"
    for name in RISKS
    for what in (*CALLS, *EXACT)
    if what not in SLOW or not name.endswith(("tight", "streamed"))
]


@functools.cache
def by_one():
    return answers()


@functools.cache
def by_ranks(ranks, out):
    return of_ranks("shard_ranks.py", ranks, out, "pt", torch.load)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("shards")


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_shards_answer_as_one_process_does(ranks, asked, out):
    for found in by_ranks(ranks, out):
        agree(found[asked], by_one()[asked])


@pytest.mark.parametrize("asked", ASKED)
def test_every_rank_has_the_same_bits(asked, out):
    first, second = (found[asked] for found in by_ranks(2, out))
    assert torch.equal(first, second) if isinstance(first, torch.Tensor) else str(first) == str(second)


def agree(found, expected):
    if isinstance(expected, (tuple, list)):
        for one, other in zip(found, expected, strict=True):
            agree(one, other)
    elif isinstance(expected, str):
        assert found == expected
    else:
        found, expected = torch.as_tensor(found), torch.as_tensor(expected)
        assert found.shape == expected.shape
        scale = max(1e-3, float(expected.abs().max())) if expected.numel() else 1.0
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * scale)
