"""What batch size? Ask the noise scale of a training, then let branches from its checkpoint answer.

A small network on digits. The gradient noise scale predicts what a larger batch saves; the branched check trains on
with larger batches, and says which of them really end as low after the same number of samples.
`noisescape batch-size LOG --check examples.which_batch_size:make_check` does the second on the command line.
"""

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

import noisescape as ns

BATCH_SIZE, LR = 8, 0.1


def make_check() -> dict[str, Any]:
    """A checkpoint after one epoch, and what to compare its branches by."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    loss = nn.CrossEntropyLoss()
    for batch in torch.randperm(1400).split(BATCH_SIZE):
        optimizer.zero_grad()
        loss(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()
    return {
        "model": model,
        "optimizer": optimizer,
        "loss": loss,
        "data": (inputs[:1400], targets[:1400]),
        "evaluation": (inputs[1400:], targets[1400:]),
        "batch_size": BATCH_SIZE,
        "multiples": (1, 2, 4, 8, 16, 32),
        "samples": 1536,
        "tolerance": 0.02,
        "seeds": 10,
    }


def main() -> None:
    check = make_check()

    # in a training of your own a Monitor gives these figures on the way; here they are exact
    risk = ns.EmpiricalRisk(check["model"], check["loss"], check["data"])
    theta = risk.parameters()
    trace = float(risk.noise_covariance(theta, batch_size=1).trace())
    norm = float(risk.gradient(theta).square().sum())
    scale = trace / norm
    advice = ns.batch_size_advice(
        scale,
        batch_size=BATCH_SIZE,
        noise_scale_low=scale,
        noise_scale_high=scale,
        optimizer=check["optimizer"],
        trace_covariance=trace,
        squared_gradient_norm=norm,
    )
    print(advice)

    found = ns.branched_check(**check, progress=False)
    print(f"\n{found}")
    print(f"\nThe noise scale is {scale:.0f}; the measured critical batch size is {found.answer}.")


if __name__ == "__main__":
    main()
