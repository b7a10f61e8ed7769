"""Probes beside the free figures."""

import pytest
import torch
from torch import nn

import noisescape as ns
from training_loops import loss_of, micro_batches, small_net, train


def test_probed_figures_come_with_the_free_ones():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    ((held,),) = micro_batches(1, 1, 40, seed=5)
    monitor = ns.Monitor(
        model, optimizer, every=5, measure_every=1, loss=nn.functional.cross_entropy, probe=held, overhead=None
    )
    _, report = train(model, optimizer, micro_batches(5, 3, 4), monitor=monitor)
    risk = ns.EmpiricalRisk(model, nn.functional.cross_entropy, held)
    theta = risk.parameters()
    top = torch.linalg.eigvalsh(risk.hessian(theta).dense())[-1]
    assert report["noise/probe/samples"] == 40
    assert report["noise/probe/top_eigenvalue"] == pytest.approx(float(top), rel=1e-3)
    assert report["noise/probe/stability_edge"] == pytest.approx(40)
    assert report["noise/probe/loss"] == pytest.approx(float(risk.loss(theta)))
    assert report["noise/batch_size"] == 12
    assert report["noise/overhead"] > 0
    assert next(iter(report)) == "noise/step"


def test_the_present_batch_is_probed_where_nothing_is_held_out():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = ns.Monitor(model, optimizer, every=1, split=False, loss=nn.functional.cross_entropy, overhead=None)
    ((batch,),) = micro_batches(1, 1, 16)
    loss_of(model, *batch).backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="a step is one piece"):
        report = monitor.step(batch)
    risk = ns.EmpiricalRisk(model, nn.functional.cross_entropy, batch)
    trace = risk.noise_covariance(risk.parameters(), batch_size=1).trace() * 16 / 15
    assert report["noise/probe/trace_covariance"] == pytest.approx(float(trace), rel=1e-6)
    assert "noise/scale" not in report


def test_probes_wait_until_they_can_be_paid_for():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    ((held,),) = micro_batches(1, 1, 16, seed=5)
    monitor = ns.Monitor(model, optimizer, every=5, measure_every=1, loss=nn.functional.cross_entropy, probe=held)
    _, report = train(model, optimizer, micro_batches(5, 3, 4), monitor=monitor)
    assert report["noise/overhead"] == 0
    assert not [key for key in report if "probe" in key]


def test_samples_to_probe_need_a_loss():
    model = small_net()
    with pytest.raises(ValueError, match="no loss: give loss= too"):
        ns.Monitor(model, torch.optim.SGD(model.parameters(), lr=0.1), probe=(torch.ones(9, 3), torch.ones(9)))
