"""What is asked of a risk by one process, and of the same risk on shards: the answers must be equal."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

import noisescape as ns
from cases import CASES, F64, WIDER, Batches, Case, classes, normal
from noisescape.risk import fingerprint, gauss_newton_control, shuffled_covariance
from noisescape.risk.gradients import gradient_columns, per_sample_square_norms
from noisescape.risk.passes import dense_hessian, loss_and_gradient
from noisescape.risk.sample_curvature import SampleGaussNewton, SampleHessians
from noisescape.risk.subsets import restricted

K = 3


def block(risk: ns.EmpiricalRisk) -> Tensor:
    return normal(risk.dimension, K, seed=7)


def weights(risk: ns.EmpiricalRisk, *shape: int) -> Tensor:
    return normal(risk.sample_count, *shape, seed=8)


def replicas(theta: Tensor) -> Tensor:
    return torch.stack([theta, 0.9 * theta, theta + 0.01])


def some(risk: ns.EmpiricalRisk, *shape: int) -> Tensor:
    return classes(*shape, of=risk.sample_count, seed=9)


def walk(risk: ns.EmpiricalRisk, theta: Tensor, dynamics: Any, **options: Any) -> Tensor:
    return ns.simulate(risk, dynamics, theta, lr=0.05, steps=6, progress=False, seed=3, **options).theta


def estimates(measured: ns.Measurement) -> Tensor:
    return torch.tensor(
        [each["value"] for each in measured.to_dict().values() if isinstance(each, dict)], dtype=F64
    )


Call = Callable[[ns.EmpiricalRisk, Tensor], Any]
OPERATORS: dict[str, Call] = {
    "Hessian": lambda risk, theta: risk.hessian(theta),
    "Gauss–Newton": lambda risk, theta: risk.gauss_newton(theta),
    "Fisher": lambda risk, theta: risk.fisher(theta),
    "empirical Fisher": lambda risk, theta: risk.empirical_fisher(theta),
    "noise covariance": lambda risk, theta: risk.noise_covariance(theta, 2),
    "noise covariance without replacement": lambda risk, theta: risk.noise_covariance(theta, 2, replacement=False),
    "shuffled covariance": lambda risk, theta: shuffled_covariance(risk, theta, seed=1),
    "difference Hessian": lambda risk, theta: ns.DifferenceHessian(risk, theta),
}
CALLS: dict[str, Call] = {
    "losses": lambda risk, theta: risk.losses(theta),
    "losses of replicas": lambda risk, theta: risk.losses(replicas(theta)),
    "loss": lambda risk, theta: risk.loss(theta),
    "metric": lambda risk, theta: risk.metric(theta, lambda outputs, targets: outputs.flatten(1).sum(1)),
    "gradient": lambda risk, theta: risk.gradient(theta),
    "gradient of replicas": lambda risk, theta: risk.gradient(replicas(theta)),
    "loss and gradient": lambda risk, theta: loss_and_gradient(risk, theta),
    "vjp": lambda risk, theta: risk.vjp(theta, weights(risk)),
    "vjp of a block": lambda risk, theta: risk.vjp(theta, weights(risk, K)),
    "vjp of replicas": lambda risk, theta: risk.vjp(replicas(theta), weights(risk, 3).T),
    "jvp": lambda risk, theta: risk.jvp(theta, block(risk)[:, 0]),
    "jvp of a block": lambda risk, theta: risk.jvp(theta, block(risk)),
    "jvp of replicas": lambda risk, theta: risk.jvp(replicas(theta), block(risk).T),
    "hvp": lambda risk, theta: risk.hvp(theta, block(risk)[:, 0]),
    "hvp of replicas": lambda risk, theta: risk.hvp(replicas(theta), block(risk).T),
    "dense Hessian": lambda risk, theta: dense_hessian(risk, theta),
    "minibatch gradient": lambda risk, theta: risk.minibatch_gradient(theta, some(risk, 5)),
    "minibatch gradient of replicas": lambda risk, theta: risk.minibatch_gradient(
        replicas(theta), some(risk, 3, 2)
    ),
    "minibatch gradient of replicas, one batch": lambda risk, theta: risk.minibatch_gradient(
        replicas(theta), some(risk, 4)
    ),
    "minibatch on one rank": lambda risk, theta: risk.minibatch_gradient(theta, torch.tensor([0, 0])),
    "per-sample gradients": lambda risk, theta: risk.per_sample_gradients(theta),
    "per-sample gradients of replicas": lambda risk, theta: risk.per_sample_gradients(replicas(theta)),
    "per-sample gradients, chosen": lambda risk, theta: risk.per_sample_gradients(theta, some(risk, 4)),
    "square norms": lambda risk, theta: per_sample_square_norms(risk, theta),
    "restricted": lambda risk, theta: restricted(risk, some(risk, 4)).losses(theta),
    "float32": lambda risk, theta: risk.to(torch.float32).gradient(theta.float()).double().round(decimals=4),
    "variance of noise": lambda risk, theta: risk.noise_covariance(theta, 2).diagonal(),
    "trace of noise": lambda risk, theta: risk.noise_covariance(theta, 2).trace(),
    "leading noise": lambda risk, theta: values_of(risk.noise_covariance(theta, 2).leading(2)),
    "draws of noise": lambda risk, theta: risk.noise_covariance(theta, 2).sample(
        2, torch.Generator().manual_seed(5)
    ),
    "trace": lambda risk, theta: ns.trace(risk.hessian(theta), rtol=0.3).value,
    "diagonal": lambda risk, theta: ns.diagonal(risk.hessian(theta), rtol=0.3).value,
    "squared norm": lambda risk, theta: ns.squared_norm(risk.hessian(theta), rtol=0.3).value,
    "product trace": lambda risk, theta: (
        ns.product_trace(risk.hessian(theta), risk.noise_covariance(theta, 2), rtol=0.3).value
    ),
    "product trace with a control": lambda risk, theta: (
        ns.product_trace(
            risk.hessian(theta),
            risk.noise_covariance(theta, 2),
            rtol=0.3,
            control=gauss_newton_control(risk, theta),
        ).value
    ),
    "eigenpairs": lambda risk, theta: ns.eigenpairs(risk.hessian(theta), 2, tol=1e-9).values,
    "spectral density": lambda risk, theta: ns.spectral_density(risk.hessian(theta), steps=8, probes=2).density,
    "expected sharpness": lambda risk, theta: ns.expected_sharpness(risk, theta, draws=3).signed.value,
    "layer-relative sharpness": lambda risk, theta: ns.layer_relative_sharpness(risk, theta, draws=3).signed.value,
    "measure": lambda risk, theta: estimates(ns.measure(risk, theta, batch_size=2, k=2, rtol=0.3)),
    "measure fast": lambda risk, theta: estimates(ns.measure_fast(risk, theta, batch_size=2)).nan_to_num(),
    "relative alignment": lambda risk, theta: ns.relative_alignment(risk, theta, rtol=0.3).noise.value,
    "loss budget": lambda risk, theta: ns.loss_budget(risk, theta, lr=0.1, batch_size=2).change.value,
    **{
        f"simulate {name}": lambda risk, theta, name=name, options=options: walk(
            risk, theta, ns.dynamics_by_name(name, **options)
        )
        for name, options in {
            "gd": {},
            "sgd": {"batch_size": 2},
            "gld-full": {"batch_size": 2},
            "gld-diagonal": {"batch_size": 2},
            "gld-dynamic": {"batch_size": 2},
            "gld-shuffled": {"batch_size": 2},
            "gld-leading": {"batch_size": 2, "k": 2},
            "gld-hessian": {"batch_size": 2, "k": 2},
            "gld-top-eigenvector": {"batch_size": 2},
        }.items()
    },
    "simulate replicas of SGD": lambda risk, theta: walk(risk, theta, ns.SGD(2), replicas=3),
    "simulate, its loss recorded": lambda risk, theta: (
        ns.simulate(risk, ns.SGD(2), theta, lr=0.05, steps=4, progress=False).records["loss"].values
    ),
    **{
        f"{name} · block": lambda risk, theta, of=of: of(risk, theta) @ block(risk)
        for name, of in OPERATORS.items()
    },
    **{
        f"forms of {name}": lambda risk, theta, of=of: of(risk, theta).quadratic_forms(block(risk))
        for name, of in OPERATORS.items()
    },
}
LAWS: dict[str, Call] = {
    "sample Hessians": lambda risk, theta: SampleHessians(risk, theta).forms(block(risk), block(risk)),
    "sample Gauss–Newton": lambda risk, theta: SampleGaussNewton(risk, theta).combined(
        block(risk), weights(risk, K, 2)
    ),
    "mean-square threshold": lambda risk, theta: torch.tensor(
        ns.theory.mean_square_threshold(risk, theta, batch_size=2).threshold, dtype=F64
    ),
    "batch sharpness": lambda risk, theta: torch.tensor(
        ns.theory.batch_sharpness(risk, theta, batch_size=2, draws=4).ratio_of_means.value, dtype=F64
    ),
    "columns of gradients": lambda risk, theta: gradient_columns(risk, theta, torch.tensor([0, 3, 5])),
    "alignment factor": lambda risk, theta: torch.tensor(
        ns.theory.alignment_factor(risk, theta).value, dtype=F64
    ),
    "alignment law": lambda risk, theta: torch.tensor(
        [law.exponent.value for law in ns.theory.alignment_law(risk, theta, per_layer=8).values()], dtype=F64
    ),
    "SDE gap": lambda risk, theta: (
        ns.theory.sde_gap(risk, theta, batch_size=2, lr=0.05, steps=3, ells=(1, 2), runs=2).losses[2]
    ),
    "exit times": lambda risk, theta: (
        ns.theory.exit_times(
            risk, ns.SGD(2), theta, lr=0.5, steps=5, replicas=2, inside=lambda t: (t - theta).norm(dim=-1) < 0.5,
            progress=False,
        ).times.double()
    ),
    "simulate SGD by epochs": lambda risk, theta: walk(risk, theta, ns.SGD(2, sampling="epoch")),
    "simulate SVAG": lambda risk, theta: walk(risk, theta, ns.SVAG(2, ell=3)),
    "simulate additive noise": lambda risk, theta: walk(
        risk, theta, ns.Additive(risk.noise_covariance(theta, 2))
    ),
}  # fmt: skip
"""The later laws, of one risk."""
EXACT: dict[str, Call] = {"fingerprint": lambda risk, theta: fingerprint(risk)}
"""Equal without rounding."""


def values_of(pairs: tuple[Tensor, Tensor] | None) -> Tensor:
    return torch.zeros(0, dtype=F64) if pairs is None else pairs[0]


def _weighted() -> Case:
    """Targets that do not count, and weights: the criterion's N/W is of all samples."""
    targets = classes(9, 4, of=3, seed=2)
    targets[0, :3] = -100
    targets[5, 1:] = -100
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=F64), ignore_index=-100)
    return Case(CASES["sequence"].build, classes(9, 4, of=5, seed=1), targets, loss)


USED = {
    **{
        name: CASES[name]
        for name in ("mlp cross-entropy", "mlp squared", "conv", "tuple inputs", "attention", "no forward mode")
    },
    "weighted": _weighted(),
    "wider": WIDER,
}
TIGHT = 200
"""Bytes into which no per-sample gradients fit, nor all samples' activations: everything goes chunk by chunk."""
SLOW = ("measure", "relative alignment", "eigenpairs", "simulate gld-hessian", "simulate gld-top-eigenvector")
"""Calls of many products, not made where each goes sample by sample."""


RISKS = [*USED, "mlp cross-entropy, tight", "mlp cross-entropy, streamed"]
QUICK = ("mlp cross-entropy", "weighted")
"""Of the other risks in the slow tests."""


def positions(count: int, rank: int, ranks: int) -> slice:
    """A rank's samples: more of them on later ranks."""
    ends = [0, *accumulate(range(1, ranks + 1))]
    cuts = [round(count * end / ends[-1]) for end in ends]
    return slice(cuts[rank], cuts[rank + 1])


def risks(names: Collection[str], shard: Any = None) -> dict[str, tuple[ns.EmpiricalRisk, Tensor]]:
    """These of the risks, of one process or on shards, and where they are looked at."""
    found = {}
    for name in names:
        plain, _, setting = name.partition(", ")
        case = USED[plain]
        own = slice(None) if shard is None else positions(case.count, shard.rank, shard.ranks)
        given: Any = torch.utils._pytree.tree_map(lambda leaf, own=own: leaf[own], case.data)
        if setting == "streamed":
            given = Batches(Case(case.build, *given), [1] * (own.stop - own.start if shard else case.count))
        options = {} if shard is None else {"shard": shard}
        if setting:
            options["memory_budget"] = TIGHT
        found[name] = ns.EmpiricalRisk(case.model(), case.loss, given, **options), case.theta
    return found


def answers(names: Collection[str], shard: Any = None) -> dict[str, Any]:
    """Of every call at these risks; what is refused by its error."""
    found = {}
    for name, (risk, theta) in risks(names, shard).items():
        for what, call in {**CALLS, **EXACT, **(LAWS if name.startswith("mlp cross-entropy") else {})}.items():
            if name.endswith(("tight", "streamed")) and what in SLOW:
                continue
            try:
                found[f"{what} · {name}"] = call(risk, theta)
            except ns.errors.NoisescapeError as error:
                found[f"{what} · {name}"] = type(error).__name__
    return found
