"""Row 5: what Tr(HΣ) costs in gradients, and in memory, as D and N grow.

Memory is put against that of a training step on one chunk of the same size, both with model and data: as it is by
default, and where a gigabyte is asked for and spent on being faster. It is what operations allocate at their peak,
counted one by one; and, in the figures and where it is large enough to be told from the libraries' own, the
high-water mark of the process, of which every measurement has its own.
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
from noisescape.measurement.memory import AllocationTracker
from noisescape.risk.chunking import CACHED_BYTES

PRODUCTS = 16
ASKED = ", a GiB asked for"
LARGE = 2**27
"""Bytes over which a process's high-water mark says something."""


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
        for budget, key, target in (("", "gradients", 1.05), (ASKED, "gradients_where_asked", None)):
            outcome.rows.append(
                Row(
                    f"seconds of {PRODUCTS} products {what}{budget}",
                    "exponent",
                    "that of a gradient",
                    1 + slope(sizes, [math.log(point[key]) for point in points]),
                    target=target,
                    note=", ".join(f"{point['name']}: {point[key]:.0f} gradients" for point in points),
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
                note=", ".join(f"{point['name']}: {point['forecast']:.2f}" for point in points),
            )
        )
        # what the caches hold is given whatever a training step takes
        counted = [point for point in points if point["allocated_bytes"] > CACHED_BYTES]
        for budget, key in (("", "memory"), (ASKED, "memory_where_asked")):
            outcome.rows.append(
                Row(
                    f"peak memory {what}{budget}",
                    "noisescape",
                    "a training step on the same chunk",
                    max(point[key] for point in counted),
                    target=None if budget else 3,
                    note=", ".join(f"{point['name']}: {_memory(point, key)}" for point in points),
                )
            )
    return outcome


def _memory(point: dict[str, Any], key: str) -> str:
    """By allocations, and by the process where that says something."""
    of_process = point[f"{key}_of_process"]
    return f"{point[key]:.2f}" + (f" (process: {of_process:.2f})" if of_process else "")


def measured(name: str) -> dict[str, Any]:
    """Every side of one size, each in its own process."""

    def side(*arguments: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.growth", name, *arguments]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    estimate = side("estimate")
    step, forecast, allocated = side("step", str(estimate["chunk"])), side("forecast"), side("allocated")
    budget = str(2**30)
    asked, allocated_where_asked = side("estimate", budget), side("allocated", budget)
    held = estimate["held"]

    def against_step(found: dict[str, Any]) -> float:
        return (held + found["theta"] + found["allocated"]) / (held + step["allocated"])

    def of_process(found: dict[str, Any]) -> float | None:
        return found["bytes"] / step["bytes"] if step["bytes"] > LARGE else None

    return {
        "name": name,
        "size": estimate["samples"] if name.startswith("n") else estimate["parameters"],
        "parameters": estimate["parameters"],
        "samples": estimate["samples"],
        "chunk": estimate["chunk"],
        "products": estimate["products"],
        "gradients": estimate["seconds"] / step["seconds"],
        "gradients_where_asked": asked["seconds"] / step["seconds"],
        "memory": against_step(allocated),
        "memory_of_process": of_process(estimate),
        "memory_where_asked": against_step(allocated_where_asked),
        "memory_where_asked_of_process": of_process(asked),
        "forecast": forecast["forecast"] / allocated["allocated"],
        "held_bytes": held,
        "step_allocated_bytes": step["allocated"],
        "allocated_bytes": allocated["allocated"],
        "allocated_where_asked_bytes": allocated_where_asked["allocated"],
        "forecast_bytes": forecast["forecast"],
        "step_process_bytes": step["bytes"],
        "process_bytes": estimate["bytes"],
        "forecast_seconds": forecast["seconds"],
        "seconds": estimate["seconds"],
        "gradient_seconds": step["seconds"],
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


def child(name: str, side: str, number: int | None = None) -> dict[str, Any]:
    """Measure one side at one size; the number is the step's samples, or else the memory budget."""
    warm_up()
    libraries = peak()
    problem = SIZES[name]()
    if side == "step":
        few = Problem(problem.model, problem.inputs[:number], problem.targets[:number])
        few.step_cost()
        found = {"bytes": peak() - libraries}
        few.model.zero_grad(set_to_none=True)
        with AllocationTracker() as ledger:
            few.step_cost()
        seconds = [timed(problem.step_cost) for _ in range(5)]
        return found | {"allocated": ledger.peak, "seconds": statistics.median(seconds)}
    risk = ns.EmpiricalRisk(
        problem.model, nn.functional.cross_entropy, (problem.inputs, problem.targets), memory_budget=number
    )
    if side == "forecast":
        begun = time.process_time()
        forecast = ns.forecast_memory(risk, trace_h_sigma)
        return {"forecast": forecast, "seconds": time.process_time() - begun}
    if side == "allocated":
        theta = risk.parameters()
        # decides how derivatives are taken: a tracker is in the way of some of them
        ns.forecast_memory(risk, trace_h_sigma)
        with AllocationTracker() as ledger:
            trace_h_sigma(risk, theta)
        return {"allocated": ledger.peak, "theta": theta.numel() * theta.element_size()}
    begun = time.process_time()
    estimate = trace_h_sigma(risk, risk.parameters())
    held = [*problem.model.parameters(), problem.inputs, problem.targets]
    return {
        "seconds": time.process_time() - begun,
        "bytes": peak() - libraries,
        "held": sum(tensor.numel() * tensor.element_size() for tensor in held),
        "chunk": risk._chunking.samples(passes=2),
        "parameters": risk.dimension,
        "samples": risk.sample_count,
        "products": estimate.cost,
    }


def warm_up() -> None:
    """What only the first calls of a process take."""
    small = random_lenet(2)
    small.step_cost()
    risk = ns.EmpiricalRisk(small.model, nn.functional.cross_entropy, (small.inputs, small.targets))
    trace_h_sigma(risk, risk.parameters())


def trace_h_sigma(risk: ns.EmpiricalRisk, theta: Tensor) -> ns.Estimate:
    """A fixed number of products; two columns deflated, so that four samples leave something to probe."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ToleranceWarning)
        return ns.product_trace(
            risk.hessian(theta),
            risk.noise_covariance(theta, BATCH_SIZE),
            rtol=1e-6,
            deflate=2,
            max_products=PRODUCTS,
        )


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def peak() -> int:
    """High-water mark of this process's resident set."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))))
