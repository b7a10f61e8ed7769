"""On a GPU: products, replayed steps and whole measurements. Nothing here is timed without one.

Gradients are float32 throughout. PyTorch's own convolutions would be TF32 there, which the library does not take
(:func:`noisescape.linops.precision.at_full_precision`), so the unit, a gradient as a training loop takes it, is
timed in float32 as well, and beside it in TF32.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
from torch import Tensor, nn

import noisescape as ns
from benchmarks.harness import Outcome, Row, interleaved
from benchmarks.measure import FAST, Residual, agree, fast, gpt2_small, images, vit, whole
from benchmarks.problems import BATCH_SIZE, Problem
from noisescape.experiments.models import digits_net, lenet, vgg11
from noisescape.linops.precision import at_full_precision
from noisescape.theory.landscapes import SHARP_MINIMUM, toy_2d, toy_points

REPEATS = 9
PRODUCT = 2.2
"""Gradients that a Hessian-vector product may take."""
REPLAYED = 5.0
"""Times as fast that replayed steps should be as steps that Python takes."""
STEPS = 300


def run() -> Iterator[Outcome]:
    """What there is after each part."""
    outcome = Outcome()
    for name, (risk, theta, dynamics) in loops().items():
        steps(outcome, name, risk, theta, dynamics)
    yield outcome
    for name, make in PROBLEMS.items():
        problem = make()
        products(outcome, name, problem)
        yield outcome
        measurements(outcome, name, problem)
        yield outcome
        del problem
        torch.cuda.empty_cache()


# ---------------------------------------------------------------------- small steps


Loop = tuple[ns.EmpiricalRisk, Tensor, ns.Dynamics]


def loops() -> dict[str, Loop]:
    """Steps so small that a GPU waits for Python."""
    points = toy_points(1000, 100, torch.Generator().manual_seed(0), torch.float64).cuda()
    toy = toy_2d(points)
    start = torch.tensor(SHARP_MINIMUM, dtype=torch.float64).cuda().expand(1000, 2).contiguous()
    small = classifier(digits_net(0), images(500, 8, 1))
    large = classifier(lenet(0), images(1200, 28, 1))
    return {
        "SGD, B = 20, LeNet": (large, large.parameters(), ns.SGD(BATCH_SIZE)),
        "SGD, B = 20, digits network": (small, small.parameters(), ns.SGD(BATCH_SIZE)),
        "gradient descent, LeNet, N = 1,200": (large, large.parameters(), ns.GD()),
        "full Gaussian noise, digits network, N = 500": (small, small.parameters(), ns.GLDFull(BATCH_SIZE)),
        "SGD, B = 20, 100 replicas of the digits network": (
            small,
            small.parameters().expand(100, -1).contiguous(),
            ns.SGD(BATCH_SIZE),
        ),
        "constant noise, 1,000 replicas of the toy": (toy, start, ns.GLDConstant(0.1)),
        "gradient descent, 1,000 replicas of the toy": (toy, start, ns.GD()),
    }


def classifier(model: nn.Module, data: tuple[Tensor, Tensor]) -> ns.EmpiricalRisk:
    """On the GPU."""
    return ns.EmpiricalRisk(model.cuda(), nn.functional.cross_entropy, tuple(each.cuda() for each in data))


def steps(outcome: Outcome, name: str, risk: ns.EmpiricalRisk, theta: Tensor, dynamics: ns.Dynamics) -> None:
    """A run with replayed steps, recording and all, against the same step by step."""

    def replayed() -> Tensor:
        return ns.simulate(risk, dynamics, theta, lr=0.01, steps=STEPS, record={}, progress=False, seed=1).theta

    def one_by_one() -> Tensor:
        with patch("noisescape.simulation.loop.captured_step", lambda *_: None):
            return replayed()

    # to the bit where kernels add in a fixed order, as convolutions' and poolings' gradients do not
    outcome.agree(f"{name}: θ after {STEPS} steps", replayed(), one_by_one(), 1e-3)
    label = {"replayed": replayed, "one by one": one_by_one}
    outcome.seconds |= interleaved({f"{name}: {side}": call for side, call in label.items()}, 5)
    outcome.compare(
        f"{STEPS} steps of {name}", f"{name}: replayed", f"{name}: one by one", better="higher", target=REPLAYED
    )


# ---------------------------------------------------------------------- products, measurements


def products(outcome: Outcome, name: str, problem: Problem) -> None:
    """A Hessian-vector product, one of the Gauss–Newton matrix and of Σ, in gradients."""
    risk, theta = problem.risk, problem.theta
    label = f"{name}, D = {risk.dimension:,}, N = {risk.sample_count:,}"
    direction = torch.randn(risk.dimension, generator=torch.Generator("cuda").manual_seed(0), device="cuda")
    with at_full_precision():
        outcome.agree(f"{label}: gradient", risk.gradient(theta), problem.gradient(), 1e-4)

    def whole_float32() -> None:
        with at_full_precision():
            problem.step_cost()

    sides: dict[str, Callable[[], object]] = {
        f"{label}: gradient": whole_float32,
        f"{label}: gradient in TF32": problem.step_cost,
        f"{label}: Hv": lambda: risk.hvp(theta, direction),
        f"{label}: GGNv": lambda: risk.gauss_newton(theta) @ direction,
        f"{label}: Σv": lambda: risk.noise_covariance(theta, BATCH_SIZE) @ direction,
    }
    outcome.seconds |= interleaved(sides, REPEATS)
    for side, target in (("Hv", PRODUCT), ("GGNv", None), ("Σv", None)):
        outcome.compare(f"{side}, {label}", f"{label}: {side}", f"{label}: gradient", target=target)


def measurements(outcome: Outcome, name: str, problem: Problem) -> None:
    """A first look and the whole, each once, in gradients."""
    label = f"{name}, D = {problem.risk.dimension:,}, N = {problem.risk.sample_count:,}"
    unit = statistics.median(outcome.seconds[f"{label}: gradient"])
    found = {}
    for side, call, target in (("a first look", fast, FAST), ("measure", whole, None)):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        found[side] = call(problem)
        took = time.perf_counter() - begun
        outcome.seconds[f"{label}: {side}"] = [took]
        outcome.rows.append(Row(f"{side}, {label}", "noisescape", "gradient", took / unit, target=target))
    outcome.figures[label] = {side: value.to_dict() for side, value in found.items()}
    with at_full_precision():
        agree(outcome, label, problem, found)


def there(make: Callable[[], Problem]) -> Callable[[], Problem]:
    """The problem on the GPU."""

    def build() -> Problem:
        made = make()
        return Problem(made.model.cuda(), made.inputs.cuda(), made.targets.cuda())

    return build


def bottleneck(inputs: int, width: int, stride: int) -> Residual:
    """A block of ResNet-50."""
    outputs = 4 * width
    body = nn.Sequential(
        nn.Conv2d(inputs, width, 1, bias=False),
        nn.GroupNorm(32, width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, stride, 1, bias=False),
        nn.GroupNorm(32, width),
        nn.ReLU(),
        nn.Conv2d(width, outputs, 1, bias=False),
        nn.GroupNorm(32, outputs),
    )
    return Residual(body, inputs, outputs, stride)


def resnet50() -> Problem:
    """For 224 × 224 pixels, with group normalisation: 24 million parameters."""
    torch.manual_seed(0)
    blocks, inputs = [], 64
    for width, count, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(count):
            blocks.append(bottleneck(inputs, width, first if number == 0 else 1))
            inputs = 4 * width
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.GroupNorm(32, 64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 10)]
    return Problem(nn.Sequential(*stem, *blocks, *head), *images(32, 224))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "LeNet": there(lambda: Problem(lenet(0), *images(1200, 28, 1))),
    "VGG-11": there(lambda: Problem(vgg11(0), *images(1000, 32))),
    "ResNet-50": there(resnet50),
    "GPT-2 small": there(lambda: gpt2_small(32, 64)),
    "ViT-B": there(lambda: vit("base", 32)),
}
