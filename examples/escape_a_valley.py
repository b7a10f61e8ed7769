"""A closed-form landscape of your own: do theory and simulation agree on how fast noise climbs out?

A quadratic valley with one steep and many flat directions; noise along the steep one against isotropic noise of
the same trace. The discrete formula holds for both, at any step size; the small-step limit only for small ηλ.
"""

import torch

import noisescape as ns
from noisescape.theory.landscapes import quadratic


def main() -> None:
    curvature = torch.tensor([10.0, 0.1, 0.1, 0.1], dtype=torch.float64)
    hessian = torch.diag(curvature)
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(40, 4, generator=generator, dtype=torch.float64) * curvature.sqrt()
    risk = quadratic(hessian, gradients)
    start = torch.zeros(4, dtype=torch.float64)

    for lr, steps in ((0.005, 20), (0.15, 20)):
        print(f"\nηλ₁ = {lr * 10:g}, {steps} steps: mean rise of the loss over 5,000 replicas")
        for dynamics in (ns.GLDFull(batch_size=10), ns.GLDDynamic(batch_size=10)):
            run = ns.simulate(risk, dynamics, start, lr=lr, steps=steps, replicas=5_000, record={}, progress=False)
            rises = 0.5 * (run.theta.square() * curvature).sum(1)
            covariance = dynamics.covariance(risk, start).dense()
            discrete = ns.theory.expected_excess_loss(hessian, covariance, lr=lr, steps=steps)
            limit = ns.theory.ou_expected_excess_loss(hessian, covariance, lr=lr, time=lr * steps)
            print(
                f"{dynamics.name:12s} simulated {rises.mean():.3e} ± {rises.std() / 5_000**0.5:.1e}, "
                f"discrete formula {discrete:.3e}, small-step limit {limit:.3e}"
            )


if __name__ == "__main__":
    main()
