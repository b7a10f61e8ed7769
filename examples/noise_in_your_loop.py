"""A noise knob in a training loop of your own: full-batch gradients with exactly SGD's covariance, or k times it.

The noisy gradient of `GLDFull` is one re-weighted backward pass; nothing here needs `simulate`.
"""

import torch
from torch import nn

import noisescape as ns


def main() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(300, 10)
    targets = (inputs[:, 0] * inputs[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 2))
    risk = ns.EmpiricalRisk(model, nn.functional.cross_entropy, (inputs, targets))

    start = risk.parameters()
    for batch_size in (10, 100):  # smaller batch, more noise; the gradient's mean is the same
        theta = start
        noise = ns.GLDFull(batch_size=batch_size)
        state, generator = noise.init(risk), torch.Generator().manual_seed(0)
        for step in range(201):
            gradient, state = noise.noisy_gradient(risk, theta, state, generator)
            theta = theta - 0.3 * gradient
            if step % 100 == 0:
                scale = risk.noise_covariance(theta, batch_size).trace() / risk.gradient(theta).square().sum()
                print(f"B = {batch_size:3d} step {step:3d} loss {risk.loss(theta):.3f} TrΣ/‖ḡ‖² {scale:.2f}")
        model.load_state_dict(risk.state_dict(theta), strict=False)  # back into the module when you want it


if __name__ == "__main__":
    main()
