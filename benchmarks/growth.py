"""Row 5: what Tr(HΣ) costs in gradients, and in memory, as D and N grow.

Every measurement is a process of its own, so that its peak memory is its own: the resident set's high-water mark,
less what the libraries alone take. Both sides therefore hold the model and the data; memory is put against that of
a training step on one chunk of the same size. What is needed beyond model and data is given too.
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import noisescape as ns
from benchmarks.harness import Outcome, Row
from benchmarks.problems import BATCH_SIZE, Problem, random_lenet, random_vgg
from noisescape.linops import ToleranceWarning
from noisescape.memory import Ledger

PRODUCTS = 24
BUDGET = 2**28


def run() -> Outcome:
    """D from 10⁴ to 10⁸ parameters, N from 10³ to 10⁶ samples."""
    outcome = Outcome()
    for what, names in {
        "with D": ("lenet", "vgg-quarter", "vgg", "gpt2"),
        "with N": ("n3", "n4", "n5", "n6"),
    }.items():
        points = [measured(name) for name in names]
        outcome.figures[what] = points
        sizes = [math.log(point["size"]) for point in points]
        exponent = slope(sizes, [math.log(point["gradients"]) for point in points])
        outcome.rows.append(
            Row(
                f"seconds of {PRODUCTS} products {what}",
                "exponent",
                "that of a gradient",
                1 + exponent,
                target=1.05,
                note=", ".join(f"{point['name']}: {point['gradients']:.0f} gradients" for point in points),
            )
        )
        furthest = max(points, key=lambda point: abs(math.log(point["forecast"])))
        outcome.rows.append(
            Row(
                f"forecast of memory {what}",
                "forecast_memory",
                "the allocations made",
                max(furthest["forecast"], 1 / furthest["forecast"]),
                target=1.2,
                note=", ".join(
                    f"{point['name']}: {point['forecast']:.2f}, of the process's {point['forecast_of_process']:.2f}"
                    for point in points
                ),
            )
        )
        worst = max(points, key=lambda point: point["memory"])
        outcome.rows.append(
            Row(
                f"peak memory {what}",
                "noisescape",
                "a training step on the same chunk",
                worst["memory"],
                target=3,
                note=", ".join(
                    f"{point['name']}: {point['memory']:.2f}, of them beyond model and data "
                    f"{point['memory_beyond']:.2f}"
                    for point in points
                ),
            )
        )
    return outcome


def measured(name: str) -> dict[str, Any]:
    """Every side of one size, each in its own process."""
    step, estimate, forecast, allocated, seconds = (
        json.loads(
            subprocess.run(
                [sys.executable, "-m", "benchmarks.growth", name, side], check=True, capture_output=True, text=True
            ).stdout
        )
        for side in ("step", "estimate", "forecast", "allocated", "seconds")
    )
    return {
        "name": name,
        "size": estimate["samples"] if name.startswith("n") else estimate["parameters"],
        "parameters": estimate["parameters"],
        "samples": estimate["samples"],
        "chunk": estimate["chunk"],
        "products": estimate["products"],
        "gradients": seconds["seconds"] / seconds["gradient_seconds"],
        "memory": estimate["bytes"] / step["bytes"],
        "forecast": forecast["forecast"] / allocated["allocated"],
        "memory_beyond": estimate["bytes_beyond"] / step["bytes_beyond"],
        "forecast_of_process": forecast["forecast"] / estimate["bytes_beyond"],
        "forecast_seconds": forecast["seconds"],
        "step_bytes": step["bytes"],
        "estimate_bytes": estimate["bytes"],
        "seconds": seconds["seconds"],
        "gradient_seconds": seconds["gradient_seconds"],
    }


def slope(x: list[float], y: list[float]) -> float:
    """Of the least-squares line."""
    return statistics.linear_regression(x, y).slope


# ---------------------------------------------------------------------- one process


class CausalTransformer(nn.Module):
    """GPT-2 small's architecture: 12 layers of width 768, 12 heads, 50,257 tokens, tied embeddings."""

    def __init__(
        self, layers: int = 12, width: int = 768, heads: int = 12, tokens: int = 50_257, length: int = 1024
    ) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, (n, classes, T)."""
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.embed(tokens) + self.position(torch.arange(length))
        for block in self.blocks:
            hidden = block(hidden, src_mask=mask)
        return (self.norm(hidden) @ self.embed.weight.T).transpose(1, 2)


def gpt2() -> Problem:
    """Four sequences of 32 tokens."""
    torch.manual_seed(0)
    tokens = torch.randint(50_257, (4, 33), generator=torch.Generator().manual_seed(0))
    return Problem(CausalTransformer(), tokens[:, :-1], tokens[:, 1:])


def perceptron(samples: int) -> Problem:
    """A small network on many samples."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)]
    inputs = torch.randn(samples, 32, generator=generator)
    return Problem(nn.Sequential(*layers), inputs, torch.randint(10, (samples,), generator=generator))


SIZES: dict[str, Callable[[], Problem]] = {
    "lenet": lambda: random_lenet(256),
    "vgg-quarter": lambda: random_vgg(1 / 4, 64),
    "vgg": lambda: random_vgg(1.0, 64),
    "gpt2": gpt2,
    "n3": lambda: perceptron(10**3),
    "n4": lambda: perceptron(10**4),
    "n5": lambda: perceptron(10**5),
    "n6": lambda: perceptron(10**6),
}


def child(name: str, side: str) -> dict[str, Any]:
    """Measure one side at one size."""
    warm_up()
    libraries = peak()
    problem = SIZES[name]()
    risk = ns.EmpiricalRisk(
        problem.model, nn.functional.cross_entropy, (problem.inputs, problem.targets), memory_budget=BUDGET
    )
    chunk = risk.chunk_size()
    few = Problem(problem.model, problem.inputs[:chunk], problem.targets[:chunk])
    found: dict[str, Any] = {"parameters": risk.dimension, "samples": risk.sample_count, "chunk": chunk}
    if side == "seconds":
        theta = risk.parameters()
        found["gradient_seconds"] = min(timed(lambda: risk.gradient(theta)) for _ in range(3))
    before = peak()
    begun = time.perf_counter()
    if side == "step":
        few.step_cost()
    elif side == "forecast":
        found["forecast"] = ns.forecast_memory(risk, trace_h_sigma)
    elif side == "allocated":
        theta = risk.parameters()
        with Ledger() as ledger:
            trace_h_sigma(risk, theta)
        found["allocated"] = ledger.peak
    else:
        estimate = trace_h_sigma(risk, risk.parameters())
        found |= {"products": estimate.cost, "value": estimate.value, "stderr": estimate.stderr}
    found["seconds"] = time.perf_counter() - begun
    found["bytes"] = peak() - libraries
    found["bytes_beyond"] = peak() - before
    return found


def warm_up() -> None:
    """What only the first calls of a process take."""
    small = random_lenet(4)
    small.step_cost()
    risk = ns.EmpiricalRisk(small.model, nn.functional.cross_entropy, (small.inputs, small.targets))
    trace_h_sigma(risk, risk.parameters())


def trace_h_sigma(risk: ns.EmpiricalRisk, theta: Tensor) -> ns.Estimate:
    """A fixed number of products."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ToleranceWarning)
        return ns.product_trace(
            risk.hessian(theta),
            risk.noise_covariance(theta, BATCH_SIZE),
            rtol=1e-6,
            deflate=8,
            max_products=PRODUCTS + 8,
        )


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def peak() -> int:
    """High-water mark of this process's resident set."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], sys.argv[2])))
