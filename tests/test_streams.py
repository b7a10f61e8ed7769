"""Data in every form that a PyTorch user has it, held and streamed: the same numbers, or an error that helps."""

from __future__ import annotations

import collections
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.testing import assert_close
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler, Subset, TensorDataset
from torch.utils.data.distributed import DistributedSampler
from torch.utils.data.sampler import SubsetRandomSampler, WeightedRandomSampler

from cases import F64, classes, normal
from noisescape.errors import DataChangedError
from noisescape.risk import EmpiricalRisk
from noisescape.risk.probes import features, spread
from noisescape.risk.samples import StreamedSamples, TensorSamples, digest
from noisescape.risk.trees import plain

N = 12
X, Y = normal(N, 4, seed=1), classes(N, of=3, seed=2)
TIGHT = 500
"""Bytes in which the data are not held."""


def linear() -> nn.Module:
    model = nn.Linear(4, 3).to(F64)
    with torch.no_grad():
        model.weight.copy_(normal(3, 4, seed=3))
        model.bias.copy_(normal(3, seed=4))
    return model


MODEL = linear()


def losses(x: Tensor = X, y: Tensor = Y) -> Tensor:
    return F.cross_entropy(MODEL(x), y, reduction="none").detach()


def gradients(x: Tensor = X, y: Tensor = Y) -> Tensor:
    rows = [
        torch.autograd.grad(F.cross_entropy(MODEL(x[n : n + 1]), y[n : n + 1]), [*MODEL.parameters()])
        for n in range(len(x))
    ]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


def build(data: Any, **options: Any) -> EmpiricalRisk:
    return EmpiricalRisk(MODEL, nn.CrossEntropyLoss(), data, **options)


class Pairs(Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        return X[n], Y[n]


class Indexed(Pairs):
    def __getitem__(self, n: int) -> Any:
        return X[n], Y[n], n


class Rows(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return ((X[n], int(Y[n])) for n in range(N))


class Arrays(Pairs):
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
    "data set": Pairs,
    "data set of arrays": Arrays,
    "tensor data set": lambda: TensorDataset(X, Y),
    "subset": lambda: Subset(Pairs(), range(N)),
    "concatenation": lambda: ConcatDataset([Subset(Pairs(), range(5)), Subset(Pairs(), range(5, N))]),
    "loader": lambda: DataLoader(Pairs(), batch_size=5),
    "loader with a generator": lambda: DataLoader(Pairs(), batch_size=5, generator=torch.Generator()),
    "loader with workers": lambda: DataLoader(Pairs(), batch_size=5, num_workers=2),
    "loader with lasting workers": lambda: DataLoader(Pairs(), 5, num_workers=1, persistent_workers=True),
    "loader with collation": lambda: DataLoader(Pairs(), batch_size=5, collate_fn=_as_tuples),
    "loader of batches": lambda: DataLoader([(X[:5], Y[:5]), (X[5:], Y[5:])], batch_size=None),
    "loader in an order of one's own": lambda: DataLoader(Pairs(), batch_size=5, sampler=list(range(N))),
    "loader of a share": lambda: DataLoader(
        Pairs(), batch_size=5, sampler=DistributedSampler(Pairs(), num_replicas=1, rank=0, shuffle=False)
    ),
    "loader in groups": lambda: DataLoader(Pairs(), batch_sampler=InGroups()),
    "iterable data set": lambda: DataLoader(Rows(), batch_size=5),
    "re-iterable": Afresh,
}


@pytest.mark.parametrize("memory_budget", [2**30, TIGHT])
@pytest.mark.parametrize("name", SOURCES)
def test_the_same_samples_in_any_form(name: str, memory_budget: int) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    risk = build(SOURCES[name](), memory_budget=memory_budget)
    theta = risk.parameters()
    rows = gradients()
    assert_close(risk.losses(theta), losses())
    assert_close(risk.losses(theta), losses())
    assert_close(risk.gradient(theta), rows.mean(0))
    indices = torch.tensor([N - 1, 0, 5, 5])
    assert_close(risk.minibatch_gradient(theta, indices), rows[indices].mean(0))
    assert_close(risk.per_sample_gradients(theta, indices), rows[indices])
    assert torch.equal(torch.get_rng_state(), state)


def test_no_generator_is_moved_by_a_pass() -> None:
    own = torch.Generator().manual_seed(5)
    before = own.get_state()
    risk = build(DataLoader(Pairs(), batch_size=5, generator=own), memory_budget=TIGHT)
    risk.loss(risk.parameters())
    assert torch.equal(own.get_state(), before)


def test_what_a_loader_drops_is_no_part_of_the_data() -> None:
    risk = build(DataLoader(Pairs(), batch_size=5, drop_last=True))
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


# ---------------------------------------------------------------------- nested inputs and constants


class Several(nn.Module):
    """Takes a mapping, a sequence, a flag, a name and nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear()

    def forward(
        self,
        x: Any,
        more: Any = None,
        mask: Tensor | None = None,
        twice: bool = False,
        mode: str = "plus",
    ) -> Tensor:
        total = x["left"] + x["right"] if isinstance(x, dict) else x
        if more is not None:
            total = total + more[0] * more[1]
        if mask is not None:
            total = total * mask
        found = self.linear(total * 2 if twice else total)
        return -found if mode == "minus" else found


MORE = (normal(N, 4, seed=6), normal(N, 4, seed=7))
MASK = (normal(N, 4, seed=8) > 0).to(F64)


class Mapped(collections.UserDict[str, Any]):
    pass


NESTED: dict[str, tuple[Any, Tensor]] = {
    "dict": ({"x": X}, X),
    "mapping": (Mapped(x=X, mask=MASK), X * MASK),
    "ordered dict": (collections.OrderedDict(x=X, more=MORE), X + MORE[0] * MORE[1]),
    "nothing": ({"x": X, "more": None, "mask": MASK}, X * MASK),
    "flag": ({"x": X, "twice": True}, 2 * X),
    "dict in a dict": ({"x": {"left": X, "right": MORE[0]}}, X + MORE[0]),
    "tuple": ((X, MORE), X + MORE[0] * MORE[1]),
    "list": ([X, [MORE[0], MORE[1]], MASK], (X + MORE[0] * MORE[1]) * MASK),
    "tuple with nothing": ((X, None, MASK), X * MASK),
    "history": ({"x": X.clone().requires_grad_()}, X),
}


@pytest.mark.parametrize("held", ["held", "loader", "streamed"])
@pytest.mark.parametrize("name", NESTED)
def test_inputs_may_be_nested(name: str, held: str) -> None:
    inputs, total = NESTED[name]
    model = Several()
    data: Any = (inputs, Y)
    if held != "held":
        data = [(_cut(inputs, 0, 5), Y[:5]), (_cut(inputs, 5, N), Y[5:])]
    budget = TIGHT if held == "streamed" else 2**30
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), data, memory_budget=budget)
    theta = risk.parameters()
    assert_close(risk.losses(theta), losses(total))
    assert_close(risk.gradient(theta), gradients(total).mean(0))
    assert_close(risk.per_sample_gradients(theta, torch.tensor([7, 1])), gradients(total)[[7, 1]])


def _cut(tree: Any, start: int, stop: int) -> Any:
    if isinstance(tree, (dict, collections.UserDict)):
        return {name: _cut(value, start, stop) for name, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(_cut(value, start, stop) for value in tree)
    return tree[start:stop] if isinstance(tree, Tensor) else tree


def test_a_name_among_the_inputs_is_handed_on() -> None:
    risk = EmpiricalRisk(Several(), nn.CrossEntropyLoss(), ({"x": X, "mode": "minus"}, Y))
    expected = F.cross_entropy(-MODEL(X), Y, reduction="none")
    assert_close(risk.losses(risk.parameters()), expected.detach())


def test_targets_may_be_nested_or_none() -> None:
    def loss(outputs: Tensor, targets: Any) -> Tensor:
        return F.cross_entropy(outputs, targets["class"], reduction="none") * targets["weight"]

    weight = MASK[:, 0]
    risk = EmpiricalRisk(MODEL, loss, (X, {"class": Y, "weight": weight}))
    assert_close(risk.losses(risk.parameters()), losses() * weight)
    alone = EmpiricalRisk(MODEL, lambda out, nothing: out.square().sum(1), (X, None))
    assert_close(alone.losses(alone.parameters()), MODEL(X).square().sum(1).detach())


# ---------------------------------------------------------------------- batches of unlike widths

LENGTHS = [3, 6, 2, 5, 5, 4, 1, 2, 6, 3]
GENERATOR = torch.Generator().manual_seed(1)
WORDS = [torch.randint(1, 9, (k,), generator=GENERATOR) for k in LENGTHS]
TAGS = [torch.randint(0, 5, (k,), generator=GENERATOR) for k in LENGTHS]
KINDS = torch.tensor([k % 3 for k in LENGTHS])


class Sentences(nn.Module):
    """A class a sentence, or a tag a word."""

    def __init__(self, tags: bool) -> None:
        super().__init__()
        self.embedding, self.head, self.tags = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 5), tags
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(normal(*parameter.shape, seed=10 + number))
        self.to(F64)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        states = torch.tanh(self.embedding(words))
        if self.tags:
            return self.head(states).transpose(1, 2)
        return self.head((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def padded(rows: Iterable[int], tags: bool) -> tuple[dict[str, Tensor], Tensor]:
    rows = list(rows)
    width = max(LENGTHS[n] for n in rows)
    words = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=F64)
    targets = torch.full((len(rows), width), -100)
    for place, n in enumerate(rows):
        words[place, : LENGTHS[n]], mask[place, : LENGTHS[n]] = WORDS[n], 1
        targets[place, : LENGTHS[n]] = TAGS[n]
    return {"words": words, "mask": mask}, targets if tags else KINDS[rows]


@pytest.mark.parametrize("memory_budget", [2**30, 20_000, 4000])
@pytest.mark.parametrize("tags", [False, True])
def test_batches_padded_to_their_own_width_give_what_one_width_gives(tags: bool, memory_budget: int) -> None:
    model = Sentences(tags)
    count = len(LENGTHS)
    inputs, targets = padded(range(count), tags)
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(range(count), batch_size=3, collate_fn=functools.partial(padded, tags=tags))  # type: ignore[arg-type,var-annotated]
    risk = EmpiricalRisk(model, criterion, loader, memory_budget=memory_budget)
    theta = risk.parameters()

    def plain_gradient(value: Tensor, **options: bool) -> Tensor:
        parts = torch.autograd.grad(value, [*model.parameters()], **options)
        return torch.cat([part.reshape(-1) for part in parts])

    # ℓ_n = N Σ_i ℓ_i / W over the tokens of n: their mean is the criterion on all tokens
    each = F.cross_entropy(model(**inputs), targets, reduction="none")
    values = each.sum(1) * count / (targets != -100).sum() if tags else each
    rows = torch.stack([plain_gradient(value, retain_graph=True) for value in values])
    assert_close(values.mean(), criterion(model(**inputs), targets))
    indices = torch.tensor([0, 9, 3, 0, 6])
    assert_close(risk.losses(theta), values.detach())
    assert_close(risk.gradient(theta), rows.mean(0))
    assert_close(torch.cat(list(risk.per_sample_gradient_chunks(theta))), rows)
    assert_close(risk.per_sample_gradients(theta, indices), rows[indices])
    assert_close(risk.minibatch_gradient(theta, indices), rows[indices].mean(0))
    both = torch.stack([theta, theta])
    own = torch.stack([indices, indices.flip(0) // 2])
    assert_close(risk.minibatch_gradient(both, own), torch.stack([rows[some].mean(0) for some in own]))
    centred = rows - rows.mean(0)
    direction = normal(len(theta), seed=20)
    covariance = risk.noise_covariance(theta, 4)
    assert_close(covariance @ direction, centred.T @ (centred @ direction) / count / 4)
    slope = plain_gradient(values.mean(), create_graph=True)
    assert_close(risk.hessian(theta) @ direction, plain_gradient(slope @ direction))


# ---------------------------------------------------------------------- samples or batches


def test_a_list_that_may_be_both_is_read_as_batches_and_told() -> None:
    model = nn.Linear(4, 4).to(F64)
    either = [(X[n], 2 * X[n]) for n in range(3)]  # three samples of 4 numbers, or batches of 4 samples
    risk = EmpiricalRisk(model, nn.MSELoss(), either)
    assert risk.sample_count == 3  # a linear layer takes a sample of a batch as well, but only one of four numbers
    pair = [(X[:4], X[4:8]), (X[8:], X[:4])]
    with pytest.warns(
        UserWarning, match=r"may hold batches or single samples; it is read as batches, of 8 samples"
    ):
        assert EmpiricalRisk(nn.Linear(4, 4).to(F64), nn.MSELoss(), pair).sample_count == 8


LISTS: dict[str, tuple[Callable[[], nn.Module], Any, list[Any], int]] = {
    "two batches": (linear, nn.CrossEntropyLoss(), [(X[:6], Y[:6]), (X[6:], Y[6:])], 12),
    "batches of one": (linear, nn.CrossEntropyLoss(), [(X[n : n + 1], Y[n : n + 1]) for n in range(N)], 12),
    "batches of unlike size": (linear, nn.CrossEntropyLoss(), [(X[:5], Y[:5]), (X[5:], Y[5:])], 12),
    "samples with numbers": (linear, nn.CrossEntropyLoss(), [(X[n], int(Y[n])) for n in range(N)], 12),
    "samples with a number each": (linear, nn.CrossEntropyLoss(), [(X[n], Y[n]) for n in range(N)], 12),
    "samples with a vector of one": (
        lambda: nn.Linear(4, 1).to(F64),
        nn.MSELoss(),
        [(X[n], X[n, :1]) for n in range(N)],
        12,
    ),
    "images": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).to(F64),
        nn.CrossEntropyLoss(),
        [(X[n].view(1, 2, 2), int(Y[n])) for n in range(N)],
        12,
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_samples_are_told_from_lists_of_batches(name: str) -> None:
    model, loss, pairs, count = LISTS[name]
    assert EmpiricalRisk(model(), loss, pairs).sample_count == count


# ---------------------------------------------------------------------- data that change


class Augmented(Pairs):
    """Noise of its own in every draw."""

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        return X[n] + torch.randn(4, dtype=F64), Y[n]


def test_held_augmented_data_are_one_draw() -> None:
    risk = build(Augmented())
    theta = risk.parameters()
    assert torch.equal(risk.losses(theta), risk.losses(theta))
    assert_close(risk.gradient(theta), risk.per_sample_gradients(theta).mean(0))


def test_streamed_augmented_data_are_refused_at_once() -> None:
    with pytest.raises(DataChangedError, match=r"batch 0 .*take random augmentation out of the data set"):
        build(Augmented(), memory_budget=TIGHT)


class Changing:
    """Once ``changed``, a pass brings what ``later`` makes of the data."""

    def __init__(self, later: Callable[[], tuple[Tensor, Tensor]]) -> None:
        self.later, self.changed = later, False

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self.later() if self.changed else (X, Y)
        yield from zip(x.split(4), y.split(4), strict=True)


def _one_value() -> tuple[Tensor, Tensor]:
    x = X.clone()
    x[-1, -1] += 1e-12
    return x, Y


MEND = r"take random augmentation out of the data set, shuffle once with a fixed seed, or pass one draw of it"
CHANGED: dict[str, tuple[Callable[[], tuple[Tensor, Tensor]], str]] = {
    "a value late in the stream": (_one_value, rf"batch 2 of the data \(from sample 8\).*{MEND}"),
    "a label": (lambda: (X, Y.flip(0)), rf"batch 0 .*{MEND}"),
    "the order": (lambda: (X.roll(4, 0), Y.roll(4, 0)), rf"batch 0 .*{MEND}"),
    "precision": (lambda: (X.float(), Y), rf"batch 0 .*{MEND}"),
    "more": (lambda: (torch.cat([X, X[:1]]), torch.cat([Y, Y[:1]])), rf"batch 3 .*{MEND}"),
    "fewer": (lambda: (X[:8], Y[:8]), r"12 samples on its first pass and 8 on a later one.*__iter__ start afresh"),
    "none": (lambda: (X[:0], Y[:0]), r"batch 0|12 samples on its first pass and 0 on a later"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_stream_that_changes_is_refused(name: str) -> None:
    later, message = CHANGED[name]
    data = Changing(later)
    risk = build(data, memory_budget=TIGHT)
    risk.loss(risk.parameters())
    data.changed = True
    with pytest.raises(DataChangedError, match=message):
        risk.gradient(risk.parameters())


class Shuffling:
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for some in torch.randperm(N).split(4):
            yield X[some], Y[some]


def test_an_iterable_that_shuffles_is_refused_streamed_and_read_once_if_held() -> None:
    with pytest.raises(DataChangedError, match=MEND):
        build(Shuffling(), memory_budget=TIGHT)
    risk = build(Shuffling())
    theta = risk.parameters()
    assert torch.equal(risk.losses(theta), risk.losses(theta))
    assert_close(risk.losses(theta).sort().values, losses().sort().values)


@pytest.mark.parametrize("which", ["inputs", "targets"])
def test_tensors_changed_in_place_are_refused(which: str) -> None:
    x, y = X.clone(), Y.clone()
    risk = build((x, y))
    theta = risk.parameters()
    risk.loss(theta)
    if which == "inputs":
        x.mul_(2)
    else:
        y[0] = (y[0] + 1) % 3
    for use in (risk.loss, risk.gradient, risk.per_sample_gradients):
        with pytest.raises(
            DataChangedError, match=r"changed in place since the risk was built.*build the risk anew"
        ):
            use(theta)
    with pytest.raises(DataChangedError):
        risk.minibatch_gradient(theta, torch.tensor([1]))


def test_batches_that_are_held_are_copies() -> None:
    x = X.clone()
    risk = build([(x[:5], Y[:5]), (x[5:], Y[5:])])
    x.zero_()
    assert_close(risk.losses(risk.parameters()), losses())


# ---------------------------------------------------------------------- what is no data


def _ragged() -> Dataset[Any]:
    class Ragged(Pairs):
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
        lambda: DataLoader(Pairs(), batch_size=3, collate_fn=_labelled),
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
    "a loader that drops all": (lambda: DataLoader(Pairs(), batch_size=50, drop_last=True), r"data set is empty"),
    "a sampler at random": (lambda: DataLoader(Pairs(), sampler=SubsetRandomSampler(range(N))), r"shuffle=False"),
    "a sampler by weights": (lambda: DataLoader(Pairs(), sampler=WeightedRandomSampler([1.0] * N, N)), r"shuffles"),
    "an object": (lambda: (object(), Y), r"tensors, or tuples and dicts of tensors, not object; convert it"),
    "unlike precision": (lambda: (X.float(), Y), r"mixed dtypes: the parameters are torch\.float64"),
    "integers": (
        lambda: (X.long(), Y),
        r"the inputs are torch\.int64, which the model does not take.*inputs\.to\(",
    ),
    "bytes": (lambda: [(X.to(torch.uint8), Y)], r"the inputs are torch\.uint8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_data_is_told_with_the_mend(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=message):
        build(make())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_without_a_shape_is_told() -> None:
    with pytest.raises(ValueError, match=r"nested; .*to_padded_tensor"):
        build((torch.nested.nested_tensor([X[0], X[1]]), Y[:2]))


# ---------------------------------------------------------------------- checksums and probes


@pytest.mark.parametrize(
    "tensor",
    [
        X,
        X.T,
        X.half(),
        X.bfloat16(),
        Y,
        X > 0,
        X + 1j * X,
        (X + 1j * X).conj(),
        X[0, 0],
        X[:0],
        (1j * X).conj().imag,
    ],
)
def test_a_checksum_is_of_values_shape_and_dtype(tensor: Tensor) -> None:
    assert digest(tensor) == digest(tensor.clone())
    if tensor.numel():
        other = tensor.clone(memory_format=torch.contiguous_format).resolve_conj().resolve_neg()
        other.view(-1)[-1] = 1 if tensor.dtype == torch.bool and not bool(other.view(-1)[-1]) else 0
        assert digest(other) != digest(tensor)
        assert digest(tensor[None]) != digest(tensor)


def test_checksums_cost_little() -> None:
    x, y = torch.randn(64, 3, 64, 64), torch.zeros(64, dtype=torch.long)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 62 * 62, 2))

    def seconds(run: Callable[[], Any]) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return min(times)

    with torch.no_grad():
        assert seconds(lambda: digest((x, y))) < 0.25 * seconds(lambda: F.cross_entropy(model(x), y))


def test_unlike_samples_are_found_among_large_numbers_and_none() -> None:
    x = torch.ones(20, 3, dtype=torch.float32)
    x[4], x[11], x[15, 0] = 0, 3e38, torch.nan
    pool = TensorSamples(x, torch.zeros(20, dtype=torch.long))
    found = features(pool)
    assert bool(found.isfinite().all())
    order = spread(found, 20).tolist()
    assert sorted(order) == list(range(20))
    assert {4, 11} <= set(order[:4])


def test_plain_leaves_tensors_where_they_are() -> None:
    assert plain(X, arrays=False).data_ptr() == X.data_ptr()
    assert plain((X, None, True, "name"), arrays=False)[1:] == (None, True, "name")
    assert_close(plain([[1, 2], [3, 4]], arrays=False), torch.tensor([[1, 2], [3, 4]]))
    assert_close(plain((1.5, 2), arrays=False), torch.tensor([1.5, 2.0]))


def test_a_stream_keeps_few_samples() -> None:
    risk = build(DataLoader(Pairs(), batch_size=5), memory_budget=TIGHT)
    assert isinstance(risk._samples, StreamedSamples)
    assert [pool.count for pool in risk._samples.candidates] == [12]
