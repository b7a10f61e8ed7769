"""What is no data is refused with the mend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torch.utils.data.sampler import SubsetRandomSampler, WeightedRandomSampler

from sample_data import Mapped, N, Rowwise, X, Y, build


class Indexed(Rowwise):
    def __getitem__(self, n: int) -> Any:
        return X[n], Y[n], n


def _ragged() -> Dataset[Any]:
    class Ragged(Rowwise):
        def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
            return X[n, : 1 + n % 4], Y[n]

    return Ragged()


def _generate() -> Iterator[tuple[Tensor, Tensor]]:
    yield X, Y


def _labelled(rows: list[Any]) -> dict[str, Tensor]:
    return {"x": X, "labels": Y}


PACKED = pack_sequence([X[:3], X[:2]])
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "arrays": (lambda: (X.numpy(), Y.numpy()), r"numpy arrays; pass tensors: \(torch\.from_numpy"),
    "a dict": (lambda: {"x": X, "y": Y}, r"not dict of x, y; pass \(inputs, targets\)"),
    "a generator function": (lambda: _generate, r"not function; make a generator function the __iter__ of a class"),
    "a generator": (_generate, r"one-pass iterator.*__iter__ starts afresh"),
    "zipped": (lambda: zip(X.split(4), Y.split(4), strict=True), r"one-pass iterator"),
    "a map": (lambda: map(tuple, [(X, Y)]), r"one-pass iterator"),
    "a data set of three": (lambda: TensorDataset(X, X, Y), r"length 3; several inputs go together: \(\(first"),
    "a data set of one": (lambda: TensorDataset(X), r"length 1; .*its own target: \(inputs, inputs\)"),
    "an index besides": (Indexed, r"list of length 3; several inputs go together"),
    "dict batches": (
        lambda: DataLoader(Rowwise(), batch_size=3, collate_fn=_labelled),
        r"not dict of x, labels; split it in the loader: collate_fn",
    ),
    "mapping batches": (lambda: [Mapped(x=X, labels=Y)] * 3, r"not Mapped of x, labels; .*collate_fn"),
    "packed sequence": (lambda: (PACKED, Y[:3]), r"PackedSequence packs.*pass the padded tensor and the lengths"),
    "packed batches": (lambda: [(PACKED, Y[:3])] * 3, r"PackedSequence packs"),
    "sparse": (lambda: (X.to_sparse(), Y), r"\(12, 4\) is sparse \(torch\.sparse_coo\).*\.to_dense\(\)"),
    "sparse batches": (lambda: [(X.to_sparse(), Y)] * 2, r"is sparse .*\.to_dense\(\)"),
    "jagged": (
        lambda: (torch.nested.nested_tensor([X, X[:2]], layout=torch.jagged), Y[:2]),
        r"nested.*to_padded_tensor",
    ),
    "strings": (lambda: [(["a", "b"], Y[:2])] * 3, r"holds strings, 'a' …, .*tokeniser"),
    "strings besides": (lambda: ((X, ["a"] * N), Y), r"holds strings"),
    "single samples of the inputs": (lambda: ([*X], Y), r"first dimensions are \[4, 12\].*torch\.stack"),
    "ragged samples": (lambda: [(X[n, : n % 4], Y[n]) for n in range(N)], r"neither batches.*nor samples.*pad the"),
    "ragged data set": (_ragged, r"unlike shapes cannot be stacked.*collate_fn.*batch_size=1"),
    "ragged loader": (lambda: DataLoader(_ragged(), batch_size=4), r"unlike shapes cannot be stacked"),
    "nothing": (lambda: (), r"data set is empty"),
    "a loader that drops all": (lambda: DataLoader(Rowwise(), batch_size=50, drop_last=True), r"data set is empty"),
    "a sampler at random": (lambda: DataLoader(Rowwise(), sampler=SubsetRandomSampler(range(N))), r"shuffle=False"),
    "a sampler by weights": (
        lambda: DataLoader(Rowwise(), sampler=WeightedRandomSampler([1.0] * N, N)),
        r"shuffles",
    ),
    "an object": (lambda: (object(), Y), r"tensors, or tuples and dicts of tensors, not object; convert it"),
    "unlike precision": (lambda: (X.float(), Y), r"mixed dtypes: the parameters are torch\.float64"),
    "integers": (
        lambda: (X.long(), Y),
        r"the inputs are torch\.int64, which the model does not take.*inputs\.to\(",
    ),
    "bytes": (lambda: [(X.to(torch.uint8), Y)], r"the inputs are torch\.uint8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_data_is_named_with_the_mend(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=message):
        build(make())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_without_a_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"nested; .*to_padded_tensor"):
        build((torch.nested.nested_tensor([X[0], X[1]]), Y[:2]))
