"""Several real processes, each with a part of the samples, find what one process with all of them does."""

import functools

import pytest
import torch

from shard_calls import CALLS, EXACT, QUICK, RISKS, SLOW, answers
from slowness import quick
from torchrun import of_ranks, once

ASKED = [
    pytest.param(f"{what} · {name}", marks=() if name in QUICK else pytest.mark.slow)
    for name in RISKS
    for what in (*CALLS, *EXACT)
    if what not in SLOW or not name.endswith(("tight", "streamed"))
]


@pytest.fixture(scope="module")
def by_one(tmp_path_factory):
    """What one process finds of a risk."""

    @functools.cache
    def found(name):
        made = once(tmp_path_factory, f"one, {name}", lambda folder: torch.save(answers([name]), folder / "0.pt"))
        return torch.load(made / "0.pt")

    return found


@pytest.fixture(scope="module")
def by_ranks(tmp_path_factory):
    """What every rank of so many finds of it."""

    @functools.cache
    def found(ranks, name):
        names = QUICK if name in QUICK else [name]
        made = once(
            tmp_path_factory,
            f"{ranks} ranks, {names[0]}",
            lambda folder: of_ranks("shard_ranks.py", ranks, folder, "pt", torch.load, *names),
        )
        return [torch.load(made / f"{rank}.pt") for rank in range(ranks)]

    return found


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("ranks", quick([2], [4]))
def test_shards_answer_as_one_process_does(ranks, asked, by_one, by_ranks):
    name = asked.split(" · ")[-1]
    for found in by_ranks(ranks, name):
        agree(found[asked], by_one(name)[asked])


@pytest.mark.parametrize("asked", ASKED)
def test_every_rank_has_the_same_bits(asked, by_ranks):
    first, second = (found[asked] for found in by_ranks(2, asked.split(" · ")[-1]))
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
