"""What a whole measurement costs, and a first look, in gradients: on the LeNet and on architectures people use.

Both include what is done once for a risk: which ways to a derivative the model allows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import noisescape as ns
from benchmarks.harness import Outcome, Row
from benchmarks.problems import BATCH_SIZE, Problem, lenet_at_minimum, random_lenet, small_transformer

GRADIENTS = 5
FAST = 15
"""Gradients that a first look may take."""
WHOLE = ("LeNet", "small transformer")
"""Of which the whole is measured as well: hundreds of gradients, ten minutes to an hour of the others."""


def run() -> Iterator[Outcome]:
    """Each once, with the gradient's time before and after it; what there is after each problem."""
    fast(random_lenet(64))  # what only the first calls of a process take: two to three seconds
    outcome = Outcome()
    for name, make in PROBLEMS.items():
        problem = make()
        label = f"{name}, D = {problem.risk.dimension:,}, N = {problem.risk.sample_count:,}"
        sides: dict[str, Callable[[], object]] = {"a first look": lambda p=problem: fast(p)}  # type: ignore[misc]
        if name in WHOLE:
            sides["measure"] = lambda p=problem: whole(p)  # type: ignore[misc]
        found = {}
        for side, call in sides.items():
            seconds = gradients(problem)
            begun = time.perf_counter()
            found[side] = call()
            took = time.perf_counter() - begun
            seconds += gradients(problem)
            ratio = took / sorted(seconds)[len(seconds) // 2]
            outcome.seconds |= {f"{label}: {side}": [took], f"{label}: gradient, beside {side}": seconds}
            target = FAST if side == "a first look" else None
            outcome.rows.append(Row(f"{side}, {label}", "noisescape", "gradient", ratio, target=target))
        outcome.figures[label] = {side: value.to_dict() for side, value in found.items()}  # type: ignore[attr-defined]
        agree(outcome, label, problem, found)
        yield outcome


def agree(outcome: Outcome, label: str, problem: Problem, found: dict[str, Any]) -> None:
    """What is exact is the same on all sides; what is not, within five standard errors of each other."""
    norm = float(torch.linalg.vector_norm(problem.gradient(), dtype=torch.float64))  # float32 is 1 % off at 10⁸
    for side, value in found.items():
        outcome.agree(f"{label}: ‖ḡ‖, {side}", value.gradient_norm.value, norm, 1e-3)
    if len(found) < 2:
        return
    first, last = found.values()
    outcome.agree(f"{label}: Tr Σ", first.trace_sigma.value, last.trace_sigma.value, 1e-3)
    for name in ("trace_h", "trace_h_sigma"):
        one, other = (each.estimates()[name] for each in (first, last))
        apart = abs(one.value - other.value) / math.hypot(one.stderr, other.stderr)
        if apart > 8:  # of seven degrees of freedom
            raise RuntimeError(f"{label}: {name} differs by {apart:.1f} standard errors; there is nothing to time")
        outcome.checks[f"{label}: {name}, in standard errors"] = apart


def fast(problem: Problem) -> ns.FastMeasurement:
    """On a risk of its own, which has found out nothing yet."""
    risk = fresh(problem)
    return ns.measure_fast(risk, risk.parameters(), batch_size=BATCH_SIZE)


def whole(problem: Problem) -> ns.Measurement:
    """The same by :func:`noisescape.measure`."""
    risk = fresh(problem)
    return ns.measure(risk, risk.parameters(), batch_size=BATCH_SIZE, progress=False)


def fresh(problem: Problem) -> ns.EmpiricalRisk:
    """The problem's risk, built anew."""
    return ns.EmpiricalRisk(problem.model, nn.functional.cross_entropy, (problem.inputs, problem.targets))


def gradients(problem: Problem) -> list[float]:
    """Seconds of some gradients."""
    seconds = []
    for _ in range(GRADIENTS):
        begun = time.perf_counter()
        problem.step_cost()
        seconds.append(time.perf_counter() - begun)
    return seconds


# ---------------------------------------------------------------------- architectures


class Residual(nn.Module):
    """Convolutions with group normalisation, and what they leave out."""

    def __init__(self, body: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = body
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h/stride, w/stride)."""
        return torch.relu(self.body(x) + self.skip(x))


def two_convolutions(inputs: int, outputs: int, stride: int) -> Residual:
    """A block of ResNet-18."""
    body = nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.GroupNorm(32, outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        nn.GroupNorm(32, outputs),
    )
    return Residual(body, inputs, outputs, stride)


def resnet18(count: int = 32) -> Problem:
    """For 32 × 32 pixels, with group normalisation: 11 million parameters."""
    torch.manual_seed(0)
    blocks = [
        two_convolutions(inputs, outputs, stride)
        for inputs, outputs, first in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        for inputs, stride in ((inputs, first), (outputs, 1))
    ]
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.GroupNorm(32, 64), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    return Problem(nn.Sequential(*stem, *blocks, *head), *images(count, 32))


class Logits(nn.Module):
    """What a model of transformers says, as cross-entropy takes it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, classes), or (n, classes, T)."""
        logits: Tensor = self.inner(inputs).logits
        return logits if logits.ndim == 2 else logits.movedim(2, 1)


def vit(size: str, count: int) -> Problem:
    """A vision transformer for 224 × 224 pixels in patches of 16: ViT-Ti of 5.5 million parameters, ViT-B of 86."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    width, heads = {"tiny": (192, 3), "base": (768, 12)}[size]
    config = ViTConfig(
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_labels=10,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return Problem(Logits(ViTForImageClassification(config)).eval(), *images(count, 224))


def gpt2_small(count: int, length: int) -> Problem:
    """GPT-2 small, its head tied to its table: 124 million parameters."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(use_cache=False)).eval()
    tokens = torch.randint(50_257, (count, length + 1), generator=torch.Generator().manual_seed(0))
    return Problem(Logits(model), tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def images(count: int, side: int, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Noise, and ten classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, side, side, generator=generator), torch.randint(
        10, (count,), generator=generator
    )


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "LeNet": lenet_at_minimum,
    "small transformer": lambda: small_transformer(64),
    "small transformer, more samples": lambda: small_transformer(512),
    "ResNet-18": resnet18,
    "ResNet-18, more samples": lambda: resnet18(256),
    "ViT-Ti": lambda: vit("tiny", 16),
    "ViT-Ti, more samples": lambda: vit("tiny", 128),
    "GPT-2 small": lambda: gpt2_small(8, 32),
    "GPT-2 small, more samples": lambda: gpt2_small(64, 32),
}
