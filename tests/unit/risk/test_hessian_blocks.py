"""Blocks of Hessian products by way of the gradient or of kept graphs are the products one by one."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import noisescape as ns
from cases import CASES, F64, normal
from internals import chunk_size, decided, keeps_graph, keeps_graphs_for_blocks
from noisescape.risk.hessian import Hessian
from noisescape.risk.passes import hvp_by_forward_mode


@pytest.mark.parametrize("name", CASES)
def test_blocks_pushed_through_the_gradient_are_hessian_products(name: str) -> None:
    case = CASES[name]
    risk = case.risk()
    block = normal(len(case.theta), 5, seed=3)
    found = Hessian(risk, case.theta) @ block
    assert_close(found, case.hessian() @ block, rtol=1e-9, atol=1e-10)
    if decided(risk, "forward_over_reverse"):
        assert_close(hvp_by_forward_mode(risk, case.theta, block), found, rtol=1e-12, atol=1e-12)


def test_ordinary_networks_push_gradients_and_custom_functions_do_not() -> None:
    pushing = {name for name, case in CASES.items() if decided(case.risk(), "forward_over_reverse")}
    assert {"conv", "mlp cross-entropy", "tied weights"} <= pushing
    assert not any("without forward" in name for name in pushing)
    assert pushing < set(CASES)


def test_blocks_are_the_same_in_chunks() -> None:
    case = CASES["conv"]
    whole, chunked = case.risk(), case.risk(memory_budget=3_000)
    assert chunk_size(chunked) < case.count
    block = normal(len(case.theta), 5, seed=3)
    assert_close(
        hvp_by_forward_mode(chunked, case.theta, block),
        hvp_by_forward_mode(whole, case.theta, block),
        rtol=1e-12,
        atol=1e-12,
    )


def test_blocks_refuse_the_wrong_shape() -> None:
    case = CASES["conv"]
    with pytest.raises(ValueError, match="directions must have shape"):
        hvp_by_forward_mode(case.risk(), case.theta, normal(3, 2))


@pytest.mark.parametrize("width", [2, 80])
def test_blocks_of_a_network_of_large_weights_go_through_kept_graphs(width: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Tanh(), torch.nn.Linear(width, 3)).to(
            F64
        )
    risk = ns.EmpiricalRisk(model, torch.nn.functional.mse_loss, (normal(12, width, seed=1), normal(12, 3, seed=2)))
    theta = risk.parameters()
    assert keeps_graphs_for_blocks(risk) is (width > 2)
    block = normal(risk.dimension, 11, seed=3)
    hessian = Hessian(risk, theta)
    found = hessian @ block
    assert keeps_graph(hessian) is (width > 2)
    singly = torch.stack([risk.hvp(theta, column) for column in block.T], dim=1)
    assert_close(found, singly, rtol=1e-9, atol=1e-9 * float(singly.abs().max()))
