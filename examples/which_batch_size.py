"""What batch size? Ask the noise scale of a training, then let branches from its checkpoint answer.

A small network on digits. A monitor measures the gradient noise scale while it trains, which predicts what a larger
batch saves; the branched check trains on with larger batches, and says which of them really end as low after as
many samples. `noisescape batch-size LOG --check examples.which_batch_size:make_check` does so for a log.
"""

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

import noisescape as ns

BATCH_SIZE = 8


def train() -> tuple[dict[str, float], dict[str, Any]]:
    """The monitor's last report, and the checkpoint with what to compare its branches by."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = nn.CrossEntropyLoss()
    with ns.Monitor(model, optimizer, measure_every=1, window=60) as monitor:
        for batch in torch.randperm(1400).split(BATCH_SIZE):
            optimizer.zero_grad()
            loss(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
        report = monitor.report()
    return report, {
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


def make_check() -> dict[str, Any]:
    """What the command line calls."""
    return train()[1]


def main() -> None:
    report, check = train()
    advice = ns.BatchSizeAdvice.from_report(report)
    print(advice)
    found = ns.branched_check(**check, progress=False)
    print(f"\n{found}")
    print(f"\nThe noise scale is {advice.noise_scale}; the measured critical batch size is {found.answer}.")


if __name__ == "__main__":
    main()
