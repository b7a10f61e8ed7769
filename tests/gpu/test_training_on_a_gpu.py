"""The monitor and the knob in trainings on a GPU: plain, by Lightning, by transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import noisescape as ns
from trainer_cases import CASES, LIGHTNING_SAYS, Module, lightning_trainer, plain, transformers_trainer
from training_loops import micro_batches, small_net

each_case = pytest.mark.parametrize("name", CASES)
FIGURES = ("noise/trace_covariance", "noise/squared_gradient_norm")


def same(found: dict[str, float], wanted: dict[str, float]) -> None:
    for figure in FIGURES:
        assert found[figure] == pytest.approx(wanted[figure], rel=1e-6), figure


@each_case
def test_plain_loop(name: str, device: str) -> None:
    case = CASES[name]
    same(plain(case, device), plain(case))


@each_case
@pytest.mark.filterwarnings(*LIGHTNING_SAYS)
def test_lightning(name: str, device: str) -> None:
    case = CASES[name]
    callback = ns.training.LightningNoiseMonitor(every=case.steps, measure_every=1)
    trainer = lightning_trainer(case, callbacks=[callback], accelerator="gpu" if device == "cuda" else "cpu")
    trainer.fit(Module(case.model(), case.optimizer), DataLoader(case.batches, batch_size=None))
    same(callback.report, plain(case))


@each_case
def test_transformers(name: str, device: str, tmp_path: Path) -> None:
    case = CASES[name]
    callback = ns.training.TransformersNoiseMonitor(every=case.steps, measure_every=1)
    trainer = transformers_trainer(case, tmp_path, [callback], use_cpu=device == "cpu")
    trainer.train()
    same(callback.report, plain(case))


def test_autocast_and_scaler(device: str) -> None:
    model = small_net().float().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device)
    monitor = ns.Monitor(model, optimizer, every=4, measure_every=1)
    report: dict[str, float] = {}
    for pieces in micro_batches(8, 2, 16):
        for inputs, targets in pieces:
            with torch.autocast(device, torch.bfloat16):
                outputs = model(inputs.float().to(device))
                loss = nn.functional.cross_entropy(outputs.float(), targets.to(device)) / len(pieces)
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        report = monitor.step() or report
    assert report["noise/trace_covariance"] > 0


def test_knob(device: str) -> None:
    """As if the batch were smaller: the mean of the weighted losses over many draws is the loss."""
    losses = torch.rand(64, dtype=torch.float64, device=device)
    generator = torch.Generator(device).manual_seed(3)
    draws = torch.stack([ns.as_if_batch(losses, 8, generator=generator) for _ in range(4000)])
    error = float(draws.std()) / 4000**0.5
    assert abs(float(draws.mean() - losses.mean())) <= 4.5 * error
