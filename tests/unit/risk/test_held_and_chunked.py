"""Results do not depend on how the data are held, cut into batches or evaluated in chunks."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, TensorDataset

from cases import CASES, F64, Batches, Case, classes, close, normal
from noisescape.risk import EmpiricalRisk
from noisescape.risk.gradients import row_chunks
from noisescape.risk.passes import ggnvp


class PairedData(Dataset):
    """A map-style data set."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        return self.inputs[index], self.targets[index]


def everything(risk: EmpiricalRisk, theta: Tensor) -> dict[str, Tensor]:
    """Every quantity that is a sum over the data."""
    direction = normal(risk.dimension, seed=1).to(risk.dtype)
    block = normal(risk.dimension, 2, seed=2).to(risk.dtype)
    weights = normal(risk.sample_count, 2, seed=3).to(risk.dtype)
    covariance = risk.noise_covariance(theta, 3, replacement=False)
    return {
        "losses": risk.losses(theta),
        "loss": risk.loss(theta),
        "accuracy": risk.accuracy(theta),
        "gradient": risk.gradient(theta),
        "weighted": risk.vjp(theta, weights[:, 0]),
        "weighted block": risk.vjp(theta, weights),
        "directional derivatives": risk.jvp(theta, direction),
        "directional derivatives of a block": risk.jvp(theta, block),
        "rows": torch.cat(list(row_chunks(risk, theta))),
        "minibatch": risk.minibatch_gradient(theta, torch.tensor([9, 0, 9])),
        "hessian": risk.hvp(theta, block),
        "gauss-newton": ggnvp(risk, theta, block),
        "covariance": covariance @ block,
        "covariance diagonal": covariance.diagonal(),
    }


_CE = CASES["mlp cross-entropy"]
_REFERENCE = everything(_CE.risk(), _CE.theta)


def _split(cuts: list[int], total: int) -> list[int]:
    edges = [0, *sorted(set(cuts)), total]
    return [b - a for a, b in itertools.pairwise(edges)]


def _loader(batch_size: int) -> DataLoader:
    return DataLoader(TensorDataset(_CE.inputs, _CE.targets), batch_size=batch_size)


sources = st.one_of(
    st.just(("tensors", None)),
    st.tuples(st.just("loader"), st.integers(1, 12)),
    st.tuples(st.just("dataset"), st.none()),
    st.tuples(st.just("batches"), st.lists(st.integers(1, 10), max_size=4)),
    st.tuples(st.just("list of batches"), st.lists(st.integers(1, 10), min_size=2, max_size=4, unique=True)),
)


def _source(kind: str, how):
    if kind == "tensors":
        return _CE.data
    if kind == "loader":
        return _loader(how)
    if kind == "dataset":
        return PairedData(_CE.inputs, _CE.targets)
    batches = Batches(_CE, _split(how, _CE.count))
    return batches if kind == "batches" else list(batches)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    source=sources,
    chunk_size=st.none() | st.integers(1, 15),
    memory_budget=st.sampled_from([1, 500, 5_000, 2**30]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_results_do_not_depend_on_how_the_data_is_held_or_chunked(source, chunk_size, memory_budget, dtype) -> None:
    risk = EmpiricalRisk(
        _CE.model(),
        nn.functional.cross_entropy,
        _source(*source),
        chunk_size=chunk_size,
        memory_budget=memory_budget,
    ).to(dtype)
    found = everything(risk, _CE.theta.to(dtype))
    tolerance = 1e-11 if dtype == F64 else 2e-5
    for name, expected in _REFERENCE.items():
        scale = float(expected.abs().max())
        assert_close(
            found[name].to(F64),
            expected,
            rtol=tolerance,
            atol=tolerance * scale,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("memory_budget", [1, 2**30], ids=["streamed", "kept"])
def test_batches_of_unequal_size_are_weighted_by_their_size(memory_budget: int) -> None:
    case = Case(lambda: nn.Linear(2, 3), normal(10, 2, seed=1), classes(10, of=3, seed=2))
    risk = EmpiricalRisk(case.model(), case.loss, Batches(case, [8, 2]), memory_budget=memory_budget)
    close(risk.gradient(case.theta), case.gradients().mean(0))
    close(risk.hessian(case.theta).dense(), case.hessian())
    close(risk.noise_covariance(case.theta, 4).dense(), case.covariance() / 4)


@pytest.mark.parametrize("sizes", [[8, 2], [5, 5]], ids=str)
def test_a_list_of_two_batches_is_a_list_of_batches(sizes: list[int]) -> None:
    """Two (inputs, targets) pairs look like a pair of pairs."""
    case = Case(lambda: nn.Linear(2, 3), normal(10, 2, seed=1), classes(10, of=3, seed=2))
    risk = EmpiricalRisk(case.model(), case.loss, list(Batches(case, sizes)))
    close(risk.losses(case.theta), case.losses(case.theta).detach())


def test_a_list_of_samples_is_a_data_set() -> None:
    case = Case(lambda: nn.Linear(2, 3), normal(5, 2, seed=1), classes(5, of=3, seed=2))
    risk = EmpiricalRisk(case.model(), case.loss, [(x, int(y)) for x, y in zip(*case.data, strict=True)])
    close(risk.losses(case.theta), case.losses(case.theta).detach())


def test_a_loader_over_an_iterable_data_set_is_streamed_in_its_order() -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(zip(*_CE.data, strict=True))

    risk = EmpiricalRisk(_CE.model(), _CE.loss, DataLoader(Stream(), batch_size=4), memory_budget=1)
    close(risk.losses(_CE.theta), _REFERENCE["losses"])


def test_with_data_keeps_model_and_loss(mlp: Case) -> None:
    other = Case(mlp.build, normal(5, 3, seed=31), classes(5, of=3, seed=32))
    risk = mlp.risk(chunk_size=2)
    moved = risk.with_data(other.data)
    assert (moved.sample_count, risk.sample_count) == (5, 11)
    close(moved.losses(mlp.theta), other.losses(mlp.theta).detach())
    assert torch.equal(moved.parameters(), risk.parameters())
