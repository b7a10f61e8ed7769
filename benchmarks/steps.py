"""Row 2: one step of each dynamics, refreshed as published, against one full-batch step of gradient descent."""

from __future__ import annotations

from collections.abc import Callable

import torch

import noisescape as ns
from benchmarks.harness import Outcome, interleaved
from benchmarks.problems import BATCH_SIZE, lenet_at_minimum

LR = 0.07
STEPS = 20
REPEATS = 7
TARGETS: dict[str, tuple[ns.Dynamics, float | None]] = {
    "sgd": (ns.SGD(BATCH_SIZE), None),
    "gld-constant": (ns.GLDConstant(1e-3), 1.1),
    "gld-full": (ns.GLDFull(BATCH_SIZE), 1.1),
    "gld-dynamic": (ns.GLDDynamic(BATCH_SIZE, refresh=1), 2.0),
    "gld-diagonal": (ns.GLDDiagonal(BATCH_SIZE, refresh=1), 2.0),
    "gld-leading": (ns.GLDLeading(BATCH_SIZE, k=20, refresh=10), 1.3),
    "gld-top-eigenvector": (ns.GLDTopEigenvector(BATCH_SIZE, refresh=10), 1.8),
    "gld-hessian": (ns.GLDHessian(BATCH_SIZE, k=20, refresh=10), 6.0),
}


def run() -> Outcome:
    """Twenty steps from the minimum, on the way: the first step, whose refresh starts from nothing, is behind."""
    outcome = Outcome()
    problem = lenet_at_minimum()
    risk, theta = problem.risk, problem.theta
    model = problem.model
    descent = torch.optim.SGD(model.parameters(), lr=LR)

    def training_loop() -> None:
        """Gradient descent as anyone writes it, put back afterwards."""
        for _ in range(STEPS):
            descent.zero_grad()
            torch.nn.functional.cross_entropy(model(problem.inputs), problem.targets).backward()
            descent.step()

    def walk(dynamics: ns.Dynamics) -> Callable[[], torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        noisy, begun = dynamics.noisy_gradient(risk, theta, dynamics.init(risk), generator)
        first = theta - LR * noisy

        def steps() -> torch.Tensor:
            point, state = first, begun
            for _ in range(STEPS):
                noisy, state = dynamics.noisy_gradient(risk, point, state, generator)
                point = point - LR * noisy
            return point

        return steps

    expected = ns.simulate(risk, ns.GD(), theta, lr=LR, steps=STEPS, record={}, progress=False).theta
    training_loop()
    outcome.agree("20 steps of gradient descent", risk.parameters(), expected, 1e-4)
    model.load_state_dict(risk.state_dict(theta))

    sides: dict[str, Callable[[], object]] = {"gd": walk(ns.GD()), "a training loop": training_loop}
    sides |= {name: walk(dynamics) for name, (dynamics, _) in TARGETS.items()}
    outcome.seconds = interleaved(sides, REPEATS)
    model.load_state_dict(risk.state_dict(theta))
    outcome.compare("a step of gradient descent", "gd", "a training loop")
    for name, (_, target) in TARGETS.items():
        outcome.compare(f"a step of {name}", name, "gd", target=target)
    return outcome
