"""How many samples are evaluated together follows from the memory budget and the processor's caches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import noisescape as ns
from cases import CASES, F64, Batches, Case, close, normal
from internals import chunk_size, sample_bytes
from noisescape.risk import EmpiricalRisk, ample_budget
from noisescape.risk.gradients import row_chunks
from noisescape.risk.passes import hvp_by_forward_mode


def test_chunks_shrink_with_the_memory_budget(conv: Case) -> None:
    one_sample = 2 * sample_bytes(conv.risk())
    sizes = [chunk_size(conv.risk(memory_budget=budget)) for budget in (1, 4 * one_sample, 2**30)]
    assert sizes == [1, 4, conv.count]
    assert chunk_size(conv.risk(memory_budget=4 * one_sample), passes=4) == 2
    assert chunk_size(conv.risk(chunk_size=5, memory_budget=1)) == 5


def test_chunks_on_a_cpu_stay_within_its_caches(chunk_limits: Callable[..., None]) -> None:
    conv = CASES["conv"]
    risk = conv.risk()
    chunk_limits(working_set=6 * sample_bytes(risk), parameter_share=0)
    assert [chunk_size(risk, columns=columns) for columns in (1, 2, 3, 100)] == [6, 3, 2, 1]
    chunk_limits(parameter_share=1000)
    assert chunk_size(risk, columns=100) == conv.count
    chunk_limits(parameter_share=0)
    block = normal(risk.dimension, 20, seed=1)
    close(risk.hvp(conv.theta, block), conv.hessian() @ block)
    close(hvp_by_forward_mode(risk, conv.theta, block), conv.hessian() @ block)
    close(risk.vjp(conv.theta, normal(conv.count, 20)), conv.gradients().T @ normal(conv.count, 20))


def test_streamed_batches_larger_than_a_chunk_are_cut(mlp: Case) -> None:
    seen = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    model = Watched(3, 3).to(F64)
    risk = EmpiricalRisk(model, mlp.loss, Batches(mlp, [8, 3]), memory_budget=1, chunk_size=5)
    sample_bytes(risk)
    seen.clear()
    risk.losses(risk.parameters())
    assert seen == [5, 3, 3]


def test_replicas_share_the_memory_budget() -> None:
    risk = ns.EmpiricalRisk.from_sample_loss(
        lambda theta, x: ((theta - x) ** 2).sum(-1), torch.randn(400, 50), torch.zeros(50), memory_budget=2**20
    )
    sizes = {rows.shape[-2] for rows in row_chunks(risk, torch.zeros(20, 50))}
    assert max(sizes) * 20 * 50 * 4 <= 2**20
    assert len(sizes) >= 1


def test_a_budget_asked_for_stays_and_the_default_is_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["mlp cross-entropy"]
    asked = ample_budget(torch.device("cpu"))
    monkeypatch.setattr("noisescape.risk.empirical_risk.modest_budget", lambda *sizes: 12_345)
    moved = [risk.to(torch.float32)._chunking.budget for risk in (case.risk(), case.risk(memory_budget=asked))]
    assert moved == [12_345, asked]


def test_a_closed_form_is_given_an_ample_budget() -> None:
    """It has no activations that two training steps could be reckoned from."""
    risk = EmpiricalRisk.from_losses(lambda theta: theta.square(), torch.zeros(3))
    assert risk._chunking.budget == ample_budget(torch.device("cpu"))
