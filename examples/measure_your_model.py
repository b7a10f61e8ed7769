"""Measure Tr(HΣ) and its company on a model of your own, and read the answer.

Also what `noisescape measure examples.measure_your_model:make_risk --batch-size 32` would call.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import noisescape as ns


def make_risk() -> ns.EmpiricalRisk:
    """A small network on digits, trained for a moment."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images[:400], dtype=torch.float32) / 16
    targets = torch.tensor(labels[:400])
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(100):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimiser.step()
    return ns.EmpiricalRisk(model, nn.CrossEntropyLoss(), (inputs, targets))


def main() -> None:
    risk = make_risk()
    found = ns.measure(risk, risk.parameters(), batch_size=32, rtol=0.02)
    print(found)
    low, high = found.anisotropy.interval()
    if low > 1:
        print(f"\nThe shape of the noise helps: Tr(HΣ) is {low:.0f} to {high:.0f} times its isotropic reference.")
    else:
        print("\nNo evidence that the shape of the noise helps here.")


if __name__ == "__main__":
    main()
