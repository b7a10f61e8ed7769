"""Row 7: what it costs to try a model before it is relied on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

import noisescape as ns
from benchmarks.harness import Outcome, interleaved
from benchmarks.problems import Problem, random_lenet, random_mlp, random_vgg
from noisescape.risk.samples import sample_digests
from noisescape.risk.trial import TRIAL

REPEATS = 9
PROBLEMS: dict[str, Callable[[], Problem]] = {
    "LeNet, N = 1,200": lambda: random_lenet(1200),
    "MLP, N = 1,000": lambda: random_mlp(1000),
    "VGG-11/8, N = 400": lambda: random_vgg(1 / 8, 400),
}


def run() -> Outcome:
    """A risk built, and one built and asked for all its choices, against gradients."""
    outcome = Outcome()
    for name, make in PROBLEMS.items():
        problem = make()
        few = Problem(problem.model, problem.inputs[: TRIAL.samples], problem.targets[: TRIAL.samples])

        def build(problem: Problem = problem) -> ns.EmpiricalRisk:
            return ns.EmpiricalRisk(problem.model, nn.functional.cross_entropy, (problem.inputs, problem.targets))

        def choose(build: Callable[[], ns.EmpiricalRisk] = build) -> None:
            build()._capabilities.decide()

        outcome.agree(f"gradient of {name}", build().gradient(problem.theta), problem.gradient(), 1e-4)
        sides = {
            f"{name}: built": build,
            f"{name}: built, all chosen": choose,
            f"{name}: gradient of {TRIAL.samples}": few.step_cost,
            f"{name}: gradient of all": problem.step_cost,
        }
        outcome.seconds |= interleaved(sides, REPEATS)
        built, chosen, small, full = sides
        outcome.compare(f"{name}: construction", built, small, target=3.0)
        outcome.compare(f"{name}: construction", built, full)
        outcome.compare(f"{name}: construction and every choice", chosen, full)
    checksum(outcome)
    return outcome


def checksum(outcome: Outcome) -> None:
    """A checksum of streamed images against a forward pass of a small network over them."""
    images, labels = torch.randn(64, 3, 64, 64), torch.zeros(64, dtype=torch.long)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 62 * 62, 2))

    def forward() -> object:
        with torch.no_grad():
            return nn.functional.cross_entropy(model(images), labels)

    sides = {"checksum of 64 images": lambda: sample_digests((images, labels)), "forward pass over them": forward}
    outcome.seconds |= interleaved(sides, REPEATS)
    outcome.compare("checksum of streamed images", *sides, target=0.25)
