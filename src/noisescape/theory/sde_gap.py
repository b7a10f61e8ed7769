"""Whether SGD is where its stochastic differential equation is: runs of SVAG at the same times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noisescape.dynamics import SVAG
from noisescape.errors import InvalidValueError
from noisescape.linops import Estimate
from noisescape.risk import EmpiricalRisk
from noisescape.risk.arguments import check_risk
from noisescape.scalars import check_positive, check_seed, check_whole
from noisescape.simulation import recorders
from noisescape.simulation.loop import simulate


@dataclass(frozen=True)
class SDEGap:
    """Losses of SVAG at several ℓ, at the same times t = kη.

    Attributes:
        times: t, (T,).
        losses: by ℓ, (R, T), float64; NaN after a run diverged.
        start: the loss where all began.
    """

    times: Tensor
    losses: Mapping[int, Tensor]
    start: float

    def gap(self, ell: int) -> Estimate:
        """How much more the loss has changed at ℓ than at the largest ℓ, relative to the latter's change.

        Means over runs and over the second half of the time: (Ē_ℓ − Ē_∞)/|Ē_∞ − L₀|, in which neither the unit nor
        the zero of the loss counts. 0 where ℓ is as good as the limit. Its standard error is over runs, by the
        delta method; NaN where a run diverged, wide where the loss hardly changed.
        """
        largest = max(self.losses)
        if ell == largest:
            return Estimate(0.0, 0.0)
        one, other = (self.losses[each][:, self.losses[each].shape[1] // 2 :].mean(1) for each in (ell, largest))
        change = float(other.mean()) - self.start
        value = float(one.mean() - other.mean()) / abs(change)
        errors = [float(each.std()) / math.sqrt(len(each)) / abs(change) for each in (one, other)]
        slope = 1 + value * math.copysign(1, change)  # the limit's mean stands above and below
        return Estimate(value, math.hypot(errors[0], slope * errors[1]), dof=len(one) - 1)


def sde_gap(
    risk: EmpiricalRisk,
    theta: Tensor,
    *,
    batch_size: int,
    lr: float,
    steps: int,
    ells: Sequence[int] = (1, 2, 4, 8),
    runs: int = 4,
    replacement: bool = True,
    points: int = 20,
    seed: int = 0,
) -> SDEGap:
    """Run :class:`~noisescape.SVAG` at each ℓ for ℓ·steps steps of η/ℓ, and look at the loss at the same times.

    All have one stochastic differential equation, to which large ℓ come near. Where SGD, ℓ = 1, is apart from
    large ℓ the equation does not describe it at this η; where all agree, nothing speaks against it.

    Args:
        risk: L.
        theta: where all start, (D,).
        batch_size: B.
        lr: η of SGD.
        steps: of SGD.
        ells: ℓ, the largest of which stands for the limit.
        runs: at each ℓ, with noise of their own; at least 2.
        replacement: the sampling law.
        points: times at which the loss is looked at.
        seed: of the noise.

    Raises:
        ValueError: fewer than 2 runs or different ℓ; other constants out of range.

    Source: Li, Malladi & Arora (arXiv 2102.12470).

    >>> from noisescape.theory import landscapes
    >>> bowl = landscapes.quadratic(torch.eye(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> found = sde_gap(bowl, torch.ones(2), batch_size=1, lr=0.1, steps=40, ells=(1, 4))
    >>> found.losses[4].shape
    torch.Size([4, 20])
    """
    check_risk(risk)
    for name, value in (
        ("steps", steps),
        ("points", points),
        ("runs", runs),
        *(("each of ells", ell) for ell in ells),
    ):
        check_whole(name, value)
    check_positive("lr", lr)
    check_seed(seed)
    if runs < 2 or len({*ells}) < max(2, len(ells)):
        raise InvalidValueError(f"at least 2 runs and 2 different ells are needed, not {runs} and {tuple(ells)}")
    points = min(points, steps)
    places = [round(steps * (point + 1) / points) for point in range(points)]
    found = {}
    for ell in ells:
        kept = {ell * place for place in places}
        run = simulate(
            risk,
            SVAG(batch_size, ell=ell, replacement=replacement),
            theta,
            lr=lr / ell,
            steps=ell * steps,
            replicas=runs,
            record={"loss": recorders.at_steps(recorders.loss, kept)},
            seed=seed + ell,
            progress=False,
        )
        found[ell] = run.records["loss"].values.double().T
    return SDEGap(lr * torch.tensor(places, dtype=torch.float64), found, float(risk.loss(theta)))
