"""Row 6: what batching gives: a block of columns against one at a time, replicas against one trajectory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import noisescape as ns
from benchmarks.harness import Outcome, interleaved
from benchmarks.problems import random_lenet, random_mlp, random_vgg
from noisescape.theory.landscapes import SHARP_MINIMUM, toy_2d, toy_points

COLUMNS = 20
REPLICAS = (1, 10, 100, 1000)


def run() -> Outcome:
    """H and GGN times 20 columns, Gv of 20 directions; replicas of the toy."""
    outcome = Outcome()
    for name, problem in {
        "LeNet, D = 11,330, N = 1,200": random_lenet(1200),
        "VGG-11/8, D = 226,906, N = 128": random_vgg(1 / 8, 128),
        "MLP, D = 269,322, N = 1,000": random_mlp(1000),
    }.items():
        risk, theta = problem.risk, problem.theta
        block = torch.randn(len(theta), COLUMNS, generator=torch.Generator().manual_seed(0))
        hessian, ggn = risk.hessian(theta), risk.gauss_newton(theta)
        products: dict[str, Callable[[Tensor], Tensor]] = {
            "H": lambda v, hessian=hessian: hessian @ v,
            "GGN": lambda v, ggn=ggn: ggn @ v,
            "G": lambda v, risk=risk, theta=theta: risk.jvp(theta, v),
        }
        for matrix, product in products.items():
            label = f"{matrix} times {COLUMNS} columns, {name}"

            def singly(product: Callable[[Tensor], Tensor] = product, block: Tensor = block) -> Tensor:
                return torch.stack([product(column) for column in block.T], dim=1)

            def together(product: Callable[[Tensor], Tensor] = product, block: Tensor = block) -> Tensor:
                return product(block)

            outcome.agree(label, together(), singly(), 1e-3)
            timed = interleaved({"together": together, "singly": singly, "gradient": problem.step_cost}, 5)
            outcome.seconds |= {f"{label}: {side}": each for side, each in timed.items()}
            per_column = sorted(timed["together"])[2] / COLUMNS / sorted(timed["gradient"])[2]
            outcome.compare(
                label,
                f"{label}: together",
                f"{label}: singly",
                better="higher",
                note=f"{per_column:.2f} gradients a column",
            )
    rates = {}
    for replicas in REPLICAS:
        risk = toy_2d(toy_points(replicas, 100, torch.Generator().manual_seed(0), torch.float64))
        start = torch.tensor(SHARP_MINIMUM, dtype=torch.float64).expand(replicas, 2).contiguous()

        def walk(risk: ns.EmpiricalRisk = risk, start: Tensor = start) -> None:
            ns.simulate(risk, ns.GLDDiagonal(10), start, lr=0.005, steps=50, record={}, progress=False)

        timed = interleaved({f"{replicas} replicas": walk}, 5)
        outcome.seconds |= timed
        rates[replicas] = replicas * 50 / sorted(timed[f"{replicas} replicas"])[2]
    outcome.figures["replica-steps a second"] = rates
    outcome.compare(
        "1,000 replicas of the toy together",
        "1000 replicas",
        "1 replicas",
        per=1000,
        note="seconds a replica, against one alone",
    )
    return outcome
