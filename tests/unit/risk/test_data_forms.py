"""Data in every form that a PyTorch user has it, held and streamed: the same numbers."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Sampler, Subset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from internals import is_streamed, samples
from noisescape.risk import EmpiricalRisk
from noisescape.risk.trees import plain
from sample_data import TIGHT, N, Rowwise, X, Y, build, gradients, linear, losses


class Rows(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return ((X[n], int(Y[n])) for n in range(N))


class Arrays(Rowwise):
    def __getitem__(self, n: int) -> Any:
        return X[n].numpy(), np.int64(Y[n])


class InGroups(Sampler[Any]):
    def __iter__(self) -> Iterator[list[int]]:
        return iter([[0, 1, 2], [3, 4, 5, 6, 7], [8, 9, 10, 11]])


class Afresh:
    """A re-iterable: a generator function as its ``__iter__``."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(X.split(5), Y.split(5), strict=True)


def _as_tuples(rows: list[Any]) -> Any:
    inputs, targets = zip(*rows, strict=True)
    return torch.stack(inputs), tuple(int(target) for target in targets)


Pair = collections.namedtuple("Pair", ["inputs", "targets"])


@torch.inference_mode()
def _inferred() -> tuple[Tensor, Tensor]:
    """Features of a backbone that was run for its outputs only."""
    return X.clone(), Y.clone()


def _read_only() -> list[Any]:
    arrays = [(X[:5].numpy().copy(), Y[:5].numpy()), (X[5:].numpy().copy(), Y[5:].numpy())]
    for array, _ in arrays:
        array.setflags(write=False)
    return arrays


SOURCES: dict[str, Callable[[], Any]] = {
    "tensors": lambda: (X, Y),
    "list of two tensors": lambda: [X, Y],
    "named tuple": lambda: Pair(X, Y),
    "targets as a list": lambda: (X, Y.tolist()),
    "targets as a tuple": lambda: (X, tuple(Y.tolist())),
    "inputs with a history": lambda: (X.clone().requires_grad_() * 1, Y),
    "inferred": _inferred,
    "read-only arrays": _read_only,
    "inputs one level down": lambda: ([X], Y),
    "named batches": lambda: [Pair(X[:5], Y[:5]), Pair(X[5:], Y[5:])],
    "batches of arrays": lambda: [(X[:5].numpy(), Y[:5].numpy()), (X[5:].numpy(), Y[5:].numpy())],
    "list of lists": lambda: [[X[:5], Y[:5]], [X[5:], Y[5:]]],
    "one batch": lambda: [(X, Y)],
    "samples": lambda: [(X[n], int(Y[n])) for n in range(N)],
    "samples as arrays": lambda: [(X[n].numpy(), Y[n].numpy()) for n in range(N)],
    "data set": Rowwise,
    "data set of arrays": Arrays,
    "tensor data set": lambda: TensorDataset(X, Y),
    "subset": lambda: Subset(Rowwise(), range(N)),
    "concatenation": lambda: ConcatDataset([Subset(Rowwise(), range(5)), Subset(Rowwise(), range(5, N))]),
    "loader": lambda: DataLoader(Rowwise(), batch_size=5),
    "loader with a generator": lambda: DataLoader(Rowwise(), batch_size=5, generator=torch.Generator()),
    "loader with workers": lambda: DataLoader(Rowwise(), batch_size=5, num_workers=2),
    "loader with lasting workers": lambda: DataLoader(Rowwise(), 5, num_workers=1, persistent_workers=True),
    "loader with collation": lambda: DataLoader(Rowwise(), batch_size=5, collate_fn=_as_tuples),
    "loader of batches": lambda: DataLoader([(X[:5], Y[:5]), (X[5:], Y[5:])], batch_size=None),
    "loader in an order of one's own": lambda: DataLoader(Rowwise(), batch_size=5, sampler=list(range(N))),
    "loader of a share": lambda: DataLoader(
        Rowwise(), batch_size=5, sampler=DistributedSampler(Rowwise(), num_replicas=1, rank=0, shuffle=False)
    ),
    "loader in groups": lambda: DataLoader(Rowwise(), batch_sampler=InGroups()),
    "iterable data set": lambda: DataLoader(Rows(), batch_size=5),
    "re-iterable": Afresh,
}


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # on one core
@pytest.mark.parametrize("memory_budget", [2**30, TIGHT])
@pytest.mark.parametrize("name", SOURCES)
def test_the_same_samples_in_any_form(name: str, memory_budget: int) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    source = SOURCES[name]()
    risk = build(source, memory_budget=memory_budget)
    theta = risk.parameters()
    rows = gradients()
    assert_close(risk.losses(theta), losses())
    assert_close(risk.losses(theta), losses())
    assert_close(risk.gradient(theta), rows.mean(0))
    indices = torch.tensor([N - 1, 0, 5, 5])
    assert_close(risk.minibatch_gradient(theta, indices), rows[indices].mean(0))
    assert_close(risk.per_sample_gradients(theta, indices), rows[indices])
    assert torch.equal(torch.get_rng_state(), state)
    if getattr(source, "persistent_workers", False):
        source._iterator = None  # ends them at once; found by the collector of cycles they take five seconds


def test_no_generator_is_moved_by_a_pass() -> None:
    own = torch.Generator().manual_seed(5)
    before = own.get_state()
    risk = build(DataLoader(Rowwise(), batch_size=5, generator=own), memory_budget=TIGHT)
    risk.loss(risk.parameters())
    assert torch.equal(own.get_state(), before)


def test_what_a_loader_drops_is_no_part_of_the_data() -> None:
    risk = build(DataLoader(Rowwise(), batch_size=5, drop_last=True))
    assert risk.sample_count == 10
    assert_close(risk.losses(risk.parameters()), losses()[:10])


def test_numbers_written_out_are_one_tensor() -> None:
    model = linear().float()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (X.tolist(), Y.tolist()))
    expected = F.cross_entropy(model(X.float()), Y, reduction="none")
    assert_close(risk.losses(risk.parameters()), expected.detach())
    square = (X[:4].tolist(), Y[:4].tolist())  # as many rows as columns
    few = EmpiricalRisk(model, nn.CrossEntropyLoss(), square)
    assert_close(few.losses(few.parameters()), expected[:4].detach())


def test_plain_leaves_tensors_where_they_are() -> None:
    assert plain(X, arrays=False).data_ptr() == X.data_ptr()
    assert plain((X, None, True, "name"), arrays=False)[1:] == (None, True, "name")
    assert_close(plain([[1, 2], [3, 4]], arrays=False), torch.tensor([[1, 2], [3, 4]]))
    assert_close(plain((1.5, 2), arrays=False), torch.tensor([1.5, 2.0]))


def test_a_stream_keeps_few_samples() -> None:
    risk = build(DataLoader(Rowwise(), batch_size=5), memory_budget=TIGHT)
    assert is_streamed(risk)
    assert [pool.count for pool in samples(risk).candidates] == [12]
