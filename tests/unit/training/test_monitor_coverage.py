"""The interval of the noise scale over a thousand trainings with a monitor in their loop."""

import numpy as np
import pytest
import torch
from torch import nn

import noisescape as ns

N, D, STEPS = 64, 6, 40


def training(seed, pieces, optimizer):
    """The report after all steps, and the true ratio of means over them: of a linear regression, in closed form."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(N, D, generator=draw, dtype=torch.float64)
    targets = inputs @ torch.ones(D, dtype=torch.float64) + 2 * torch.randn(N, generator=draw, dtype=torch.float64)
    model = nn.Linear(D, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    descent = optimizer(model.parameters())
    monitor = ns.Monitor(model, descent, every=STEPS, measure_every=1, window=STEPS, seed=seed)
    truth = np.zeros(2)
    for _ in range(STEPS):
        residuals = model.weight.detach()[0] @ inputs.T - targets
        gradients = residuals[:, None] * inputs
        mean = gradients.mean(0)
        truth += [float((gradients - mean).square().sum() / N), float(mean.square().sum())]
        descent.zero_grad()
        for _ in range(pieces):
            batch = torch.randint(N, (8 // pieces,), generator=draw)
            (0.5 * (model(inputs[batch])[:, 0] - targets[batch]).square().mean() / pieces).backward()
        descent.step()
    monitor.close()
    return monitor.report(), truth[0] / truth[1]


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [1, 4])
@pytest.mark.parametrize(
    "optimizer",
    [lambda p: torch.optim.SGD(p, lr=0.02), lambda p: torch.optim.Adam(p, lr=0.02)],
    ids=["sgd", "adam"],
)
def test_intervals_cover_over_a_thousand_trainings(pieces, optimizer):
    covered = []
    for seed in range(1000):
        report, truth = training(seed, pieces, optimizer)
        covered.append(report["noise/scale_low"] <= truth <= report["noise/scale_high"])
    print(f"coverage {np.mean(covered):.3f}")
    assert 0.93 <= np.mean(covered) <= 0.97
