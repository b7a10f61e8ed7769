"""Sizes of chunks: from the budget, from a CPU's caches, and never nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from noisescape.risk.chunking import (
    CACHED_BYTES,
    CACHED_COLUMNS,
    DOMINANT,
    HESSIAN_PASSES,
    PARAMETER_SHARE,
    Chunking,
    ample_budget,
    modest_budget,
)

KIB, MIB = 2**10, 2**20
ROOMY = Chunking(1000, sample_bytes=MIB, parameters=1000, itemsize=4, budget=2**40, fixed=None, cached=False)
CACHED = replace(ROOMY, cached=True)


def test_a_budget_that_holds_all_takes_all_samples_at_once() -> None:
    assert ROOMY.samples(passes=2) == ROOMY.count


@pytest.mark.parametrize("passes", [1, 2, 4])
def test_a_chunk_takes_no_more_than_the_budget(passes: int) -> None:
    tight = replace(ROOMY, budget=100 * MIB)
    assert tight.samples(passes=passes) == 100 // passes


@pytest.mark.parametrize("columns", [1, 4, 8, 200])
def test_a_chunk_on_a_cpu_stays_in_its_caches_with_its_columns(columns: int) -> None:
    together = min(columns, CACHED_COLUMNS)
    assert CACHED.samples(passes=2, columns=columns) == CACHED_BYTES // together // MIB


def test_a_chunk_on_a_cpu_may_be_as_large_as_a_multiple_of_the_parameters() -> None:
    heavy = replace(CACHED, parameters=10 * MIB)
    assert heavy.samples(passes=2, columns=8) == PARAMETER_SHARE * 10 * MIB * 4 // MIB


def test_a_fixed_size_overrides_everything() -> None:
    fixed = replace(CACHED, fixed=7, budget=1)
    assert (fixed.samples(passes=4, columns=100), fixed.rows(copies=3, width=10**6)) == (7, 7)


@pytest.mark.parametrize("chunking", [replace(ROOMY, budget=1), replace(CACHED, budget=1)], ids=["GPU", "CPU"])
def test_a_chunk_holds_at_least_one_sample_row_and_column(chunking: Chunking) -> None:
    assert chunking.samples(passes=4, columns=8) == 1
    assert chunking.rows(copies=100, width=10**9) == 1
    assert chunking.columns(1000) == 1


def test_rows_of_all_replicas_and_what_makes_them_fit_the_budget() -> None:
    tight = replace(ROOMY, budget=1000 * MIB)
    assert tight.rows(copies=5, width=MIB // 4) == 1000 // (5 * (3 + 2))


def test_rows_on_a_cpu_stay_in_its_caches() -> None:
    assert CACHED.rows(copies=1, width=MIB // 4) == CACHED_BYTES // (2 * MIB)


def test_columns_fill_a_cpus_caches_but_eight_are_always_taken_together() -> None:
    small = replace(CACHED, sample_bytes=KIB)
    assert small.columns(64) == CACHED_BYTES // (64 * KIB)
    assert CACHED.columns(1000) == CACHED_COLUMNS


def test_graphs_and_rows_are_held_where_they_fit() -> None:
    needed = HESSIAN_PASSES * ROOMY.count * MIB
    assert replace(ROOMY, budget=needed).holds_graphs
    assert not replace(ROOMY, budget=needed - 1).holds_graphs
    assert replace(ROOMY, budget=2 * 1000 * 10 * 4).holds_rows(copies=2, width=10)
    assert not replace(ROOMY, budget=2 * 1000 * 10 * 4 - 1).holds_rows(copies=2, width=10)


def test_parameters_dominate_where_they_are_much_larger_than_a_samples_activations() -> None:
    assert not replace(ROOMY, parameters=DOMINANT * MIB // 4).parameters_dominate
    assert replace(ROOMY, parameters=DOMINANT * MIB // 4 + 1).parameters_dominate


@pytest.mark.parametrize(
    ("count", "sample_bytes", "parameter_bytes", "expected"),
    [
        (10, MIB // 1024, 1000, CACHED_BYTES),
        (20, 8 * MIB, MIB, 2 * (4 * 8 * MIB + MIB)),
        (3, 8 * MIB, MIB, 2 * (3 * 8 * MIB + MIB)),
        (20, 8 * MIB, 4 * MIB, 2 * (8 * 8 * MIB + 4 * MIB)),
        (2, 64 * MIB, MIB, 2 * (64 * MIB + MIB)),
        (10**6, 8 * MIB, 400 * MIB, ample_budget(torch.device("cpu"))),
    ],
    ids=["in the caches", "several chunks", "one chunk", "heavy parameters", "a heavy sample", "a large network"],
)
def test_a_default_is_two_training_steps(
    count: int, sample_bytes: int, parameter_bytes: int, expected: int
) -> None:
    assert modest_budget(count, sample_bytes, parameter_bytes) == expected
