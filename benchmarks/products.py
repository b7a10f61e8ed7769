"""Row 4: products with H, GGN and Σ, gradient norms, diagonal and leading eigenvectors of Σ, against rivals.

Where no rival has an operation (a centred covariance), it is composed from what they have. All sides get the same
model, data, number of threads and one chunk of all samples.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import curvlinops
import hessian_eigenthings as he
import pyhessian
import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad, BatchL2Grad, SumGradSquared
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from torch import Tensor, nn

import noisescape as ns
from benchmarks.harness import Outcome, interleaved
from benchmarks.problems import (
    BATCH_SIZE,
    Problem,
    Transformer,
    random_lenet,
    random_mlp,
    random_vgg,
    small_transformer,
)
from noisescape.risk.gradients import per_sample_square_norms

COLUMNS = 20
LEADING = 20
TARGET = 1.05
FIRST_ORDER_TARGET = 1.0
FIRST_ORDER = ("per-sample gradient norms", "diagonal of Σ", f"top {LEADING} of Σ")
OURS = "noisescape"


def run() -> Outcome:
    """Every operation on a LeNet, a VGG-11 of an eighth of the width, and a perceptron."""
    outcome = Outcome()
    networks = {
        "LeNet, D = 11,330, N = 1,200": random_lenet(1200),
        "VGG-11/8, D = 226,906, N = 128": random_vgg(1 / 8, 128),
        "MLP, D = 269,322, N = 1,000": random_mlp(1000),
        "transformer, D = 1,263,616, N = 64": small_transformer(64),
    }
    for name, problem in networks.items():
        of_text = isinstance(problem.model, Transformer)  # of which the others' rules for layers know too little
        all_sides = norms_of_text(problem) if of_text else {**curvature(problem), **first_order(problem)}
        for work, sides in all_sides.items():
            label = f"{work}, {name}"
            target = FIRST_ORDER_TARGET if work in FIRST_ORDER else TARGET
            results = {side: flat(call()) for side, call in sides.items()}
            for side, found in results.items():
                outcome.agree(f"{label}: {side}", found, results[OURS], 1e-3)
            slow = of_text or any("exact" in side for side in sides)
            timed = interleaved({**sides, "gradient": problem.step_cost}, 5 if slow else 9, clock=time.process_time)
            outcome.seconds |= {f"{label}: {side}": each for side, each in timed.items()}
            medians = {side: sorted(each)[len(each) // 2] for side, each in timed.items()}
            best = min((side for side in sides if side != OURS), key=lambda side: medians[side])
            gradients = medians[OURS] / medians["gradient"]
            outcome.compare(
                label, f"{label}: {OURS}", f"{label}: {best}", target=target, note=f"{gradients:.2f} gradients"
            )
    return outcome


Sides = dict[str, dict[str, Callable[[], Any]]]


def curvature(problem: Problem) -> Sides:
    """Second-order products, alone and in a block; and products with Σ."""
    risk, theta, model = problem.risk, problem.theta, problem.model
    data = [(problem.inputs, problem.targets)]
    params = list(model.parameters())
    criterion = nn.CrossEntropyLoss()
    generator = torch.Generator().manual_seed(1)
    vector = torch.randn(len(theta), generator=generator)
    block = torch.randn(len(theta), COLUMNS, generator=generator)

    def curvlinop(kind: Any) -> Any:
        return kind(model, criterion, params, data, check_deterministic=False)

    ours, theirs = risk.hessian(theta), curvlinop(curvlinops.HessianLinearOperator)
    eigenthings = he.HessianOperator(model, data, he.supervised_loss(nn.functional.cross_entropy))
    ggn, their_ggn = risk.gauss_newton(theta), curvlinop(curvlinops.GGNLinearOperator)
    eigenthings_ggn = he.GGNOperator(
        model,
        data,
        he.supervised_forward,
        he.supervised_loss_of_output(nn.functional.cross_entropy),
    )
    fisher = curvlinop(curvlinops.EFLinearOperator)
    eigenthings_fisher = he.EmpiricalFisherOperator(
        model, data, he.supervised_per_sample_loss(nn.functional.cross_entropy)
    )
    sigma = risk.noise_covariance(theta, BATCH_SIZE)

    def centred(product: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
        gradient = problem.gradient()
        along = gradient @ vectors
        return (
            product(vectors) - (torch.outer(gradient, along) if vectors.ndim == 2 else gradient * along)
        ) / BATCH_SIZE

    fresh = pyhessian.hessian(model, criterion, dataloader=data, cuda=False)

    def pyhessian_product() -> Tensor:
        parts = [part.view_as(p) for part, p in zip(vector.split([p.numel() for p in params]), params, strict=True)]
        return torch.cat([part.flatten() for part in fresh.dataloader_hv_product(parts)[1]])

    def by_columns(product: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.stack([product(column) for column in block.T], dim=1)

    return {
        "Hessian-vector product": {
            OURS: lambda: risk.hessian(theta) @ vector,
            "curvlinops": lambda: theirs @ vector,
            "PyHessian": pyhessian_product,
            "hessian-eigenthings": lambda: eigenthings.matvec(vector),
        },
        f"Hessian times {COLUMNS} columns": {
            OURS: lambda: risk.hessian(theta) @ block,
            "curvlinops": lambda: theirs @ block,
            "hessian-eigenthings": by_columns(eigenthings.matvec),
        },
        "Hessian-vector product, repeated at one θ": {
            OURS: lambda: ours @ vector,
            "curvlinops": lambda: theirs @ vector,
            "PyHessian": pyhessian_product,
        },
        "GGN-vector product": {
            OURS: lambda: ggn @ vector,
            "curvlinops": lambda: their_ggn @ vector,
            "hessian-eigenthings": lambda: eigenthings_ggn.matvec(vector),
        },
        "Σ-vector product": {
            OURS: lambda: risk.noise_covariance(theta, BATCH_SIZE) @ vector,
            "curvlinops": lambda: centred(lambda v: fisher @ v, vector),
            "hessian-eigenthings": lambda: centred(eigenthings_fisher.matvec, vector),
        },
        f"Σ times {COLUMNS} columns": {
            OURS: lambda: risk.noise_covariance(theta, BATCH_SIZE) @ block,
            "curvlinops": lambda: centred(lambda v: fisher @ v, block),
        },
        "Σ-vector product, repeated at one θ": {
            OURS: lambda: sigma @ vector,
            "curvlinops": lambda: centred(lambda v: fisher @ v, vector),
        },
    }


def first_order(problem: Problem) -> Sides:
    """What comes from per-sample gradients."""
    risk, theta = problem.risk, problem.theta
    extended = extend(copy.deepcopy(problem.model))  # its hooks would be in the way of everyone else
    summed = extend(nn.CrossEntropyLoss(reduction="sum"))
    count = len(problem.inputs)

    def saved(extension: Any, name: str) -> list[Tensor]:
        extended.zero_grad(set_to_none=True)
        with backpack(extension):
            summed(extended(problem.inputs), problem.targets).backward()
        found = [getattr(p, name) for p in extended.parameters()]
        for p in extended.parameters():
            delattr(p, name)
        return found

    def variances() -> Tensor:
        squares = torch.cat([part.flatten() for part in saved(SumGradSquared(), "sum_grad_squared")]) / count
        gradient = torch.cat([p.grad.flatten() for p in extended.parameters() if p.grad is not None]) / count
        return (squares - gradient.square()) / BATCH_SIZE

    def rows() -> Tensor:
        return torch.cat([part.flatten(1) for part in saved(BatchGrad(), "grad_batch")], dim=1)

    def leading(gradients: Tensor) -> Tensor:
        centred = gradients - gradients.mean(0)
        values = torch.linalg.eigvalsh(centred @ centred.T)[-LEADING:].flip(0)
        return values / (count * BATCH_SIZE)

    def norms(gradients: Tensor) -> Tensor:
        return gradients.square().sum(1)

    return {
        "per-sample gradient norms": {
            OURS: lambda: per_sample_square_norms(risk, theta),
            "BackPACK": lambda: torch.stack(saved(BatchL2Grad(), "batch_l2")).sum(0),
            "BackPACK, from its gradients": lambda: norms(rows()),
        },
        "diagonal of Σ": {
            OURS: lambda: risk.noise_covariance(theta, BATCH_SIZE).diagonal(),
            "BackPACK": variances,
        },
        f"top {LEADING} of Σ": {
            OURS: lambda: ns.eigenpairs(risk.noise_covariance(theta, BATCH_SIZE), LEADING).values,
            "BackPACK and a Gram matrix, exact": lambda: leading(rows()),
        },
    }


def norms_of_text(problem: Problem) -> Sides:
    """Per-sample gradient norms of a transformer, against the ghost norms of private training."""
    risk, theta = problem.risk, problem.theta
    ghost = GradSampleModuleFastGradientClipping(
        copy.deepcopy(problem.model),
        batch_first=True,
        max_grad_norm=1.0,
        use_ghost_clipping=True,
        loss_reduction="sum",
    )

    def opacus() -> Tensor:
        ghost.zero_grad(set_to_none=True)
        losses = nn.functional.cross_entropy(ghost(problem.inputs), problem.targets, reduction="none")
        losses.mean(1).sum().backward()
        return ghost.get_norm_sample().square()

    return {
        "per-sample gradient norms": {OURS: lambda: per_sample_square_norms(risk, theta), "Opacus, ghost": opacus}
    }


def flat(found: Tensor | list[Tensor]) -> Tensor:
    """As one detached vector."""
    return (
        found.detach().flatten() if isinstance(found, Tensor) else torch.cat([f.detach().flatten() for f in found])
    )
