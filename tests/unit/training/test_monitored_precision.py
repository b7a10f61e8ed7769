"""The monitor under gradient scalers, autocast and half precision: scales divided out, skipped steps skipped."""

import numpy as np
import pytest
import torch
from torch import nn

import noisescape as ns
from training_loops import loss_of, micro_batches, piece_gradients, small_net, textbook


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("unscale_first", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_the_scale_of_a_gradient_scaler_is_divided_out(fused, unscale_first, known):
    model = small_net().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    monitor = ns.Monitor(model, optimizer, every=6, measure_every=1, scaler=scaler if known else None)
    wanted = []
    report = {}
    for pieces in micro_batches(6, 3, 5):
        pieces = [(inputs.float(), targets) for inputs, targets in pieces]
        wanted.append(textbook(piece_gradients(model, pieces).double(), 5))
        for inputs, targets in pieces:
            scaler.scale(loss_of(model, inputs, targets) / 3).backward()
        if unscale_first:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        report = monitor.step() or report
    assert scaler.get_scale() > 2.0**12, "the scale changed on the way"
    wanted = np.array(wanted)
    assert report["noise/trace_covariance"] == pytest.approx(wanted[:, 0].mean(), rel=1e-4)
    assert report["noise/squared_gradient_norm"] == pytest.approx(wanted[:, 1].mean(), rel=1e-4)


@pytest.mark.parametrize("zero", ["none", "zeros"])
@pytest.mark.parametrize("fused", [True, False])
def test_steps_that_the_scaler_skips_are_skipped(fused, zero):
    model = small_net().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-110)
    monitor = ns.Monitor(model, optimizer, every=4, measure_every=1)
    wanted, report = [], {}
    for index, pieces in enumerate(micro_batches(5, 3, 5)):
        pieces = [(inputs.float(), targets) for inputs, targets in pieces]
        before = [parameter.clone() for parameter in model.parameters()]
        if index:
            wanted.append(textbook(piece_gradients(model, pieces).double(), 5))
        for inputs, targets in pieces:
            scaler.scale(100 * loss_of(model, inputs, targets) / 3).backward()
        scaler.step(optimizer)
        scaler.update()
        moved = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert moved == (index > 0), "the first step overflows"
        optimizer.zero_grad(set_to_none=zero == "none")
        report = monitor.step() or report
    if fused:  # its step is entered, and does nothing
        report = monitor.report()
    wanted = 1e4 * np.array(wanted)
    assert report["noise/measured_steps"] == 4
    assert report["noise/skipped_steps"] == 1
    assert report["noise/trace_covariance"] == pytest.approx(wanted[:, 0].mean(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    model = small_net().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = ns.Monitor(model, optimizer, every=4, measure_every=1)
    wanted, report = [], {}
    for pieces in micro_batches(4, 3, 5):
        pieces = [(inputs.float(), targets) for inputs, targets in pieces]
        with torch.autocast("cpu", dtype=dtype):
            wanted.append(textbook(piece_gradients(model, pieces).double(), 5))
        for inputs, targets in pieces:
            with torch.autocast("cpu", dtype=dtype):
                loss = loss_of(model, inputs, targets) / 3
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        report = monitor.step() or report
    assert report["noise/trace_covariance"] == pytest.approx(np.array(wanted)[:, 0].mean(), rel=0.02)


def test_half_precision_parameters_are_summed_in_single():
    model = nn.Linear(4096, 1, bias=False).to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = ns.Monitor(model, optimizer, every=1, measure_every=1)
    inputs = torch.randn(2, 3, 4096, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    for piece in inputs:
        (model(piece).float().mean() / 2).backward()
    gradients = [piece.double().mean(0) for piece in inputs]
    optimizer.step()
    report = monitor.step()
    wanted = textbook(torch.stack(gradients), 3)
    assert report["noise/trace_covariance"] == pytest.approx(wanted[0], rel=0.02)
