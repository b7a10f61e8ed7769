"""A dynamics of one's own says its covariance operator, and the rest follows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import noisescape as ns
from cases import F64, bowl_risk, generator, normal
from noisescape.dynamics import NoiseState
from noisescape.linops import DenseOperator, DiagonalOperator, IsotropicOperator, LowRankOperator, SymmetricOperator
from noisescape.linops.structured import with_trace

THETA = torch.tensor([0.5, -1.0, 0.3], dtype=F64)
FACTOR = normal(3, 3, seed=2)
KINDS: dict[str, SymmetricOperator] = {
    "dense": DenseOperator(FACTOR @ FACTOR.T, psd=True),
    "low rank": LowRankOperator(FACTOR[:, :2]),
    "diagonal": DiagonalOperator(torch.tensor([1.0, 0.2, 3.0], dtype=F64)),
    "isotropic": IsotropicOperator(torch.tensor(0.3, dtype=F64), 3),
    "a sum": DiagonalOperator(torch.ones(3, dtype=F64)) + LowRankOperator(FACTOR[:, :2]),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@dataclass(frozen=True)
class Own(ns.Dynamics):
    """ε ~ N(0, Σ) with a constant Σ, and ∇L found on the way."""

    kind: str
    refresh: int = 1
    name: ClassVar[str] = "own"

    def noise(self, risk: ns.EmpiricalRisk, theta: Tensor, *_: Any) -> tuple[SymmetricOperator, Tensor]:
        return KINDS[self.kind], risk.gradient(theta)


@dataclass(frozen=True)
class Fading(Own):
    """The same, its trace at step t given, none where it is 0."""

    traces: tuple[float, ...] = ()

    def at_step(self, covariance: SymmetricOperator, step: int) -> SymmetricOperator | None:
        return with_trace(covariance, self.traces[step]) if self.traces[step] else None


@each_kind
def test_its_noise_is_drawn_from_its_operator(kind: str) -> None:
    risk, dynamics = bowl_risk(), Own(kind)
    noisy, state = dynamics.noisy_gradient(risk, THETA, dynamics.init(risk), generator(1))
    assert torch.equal(noisy, risk.gradient(THETA) + KINDS[kind].sample(1, generator(1))[0])
    assert state.step == 1
    assert torch.equal(dynamics.covariance(risk, THETA).dense(), KINDS[kind].dense())


@each_kind
def test_it_can_be_scaled_to_a_trace(kind: str) -> None:
    risk, dynamics = bowl_risk(), ns.MatchedTrace(Own(kind), 2.5)
    wanted = KINDS[kind].dense() * 2.5 / KINDS[kind].dense().trace()
    torch.testing.assert_close(dynamics.covariance(risk, THETA).dense(), wanted)
    noisy, _ = dynamics.noisy_gradient(risk, THETA, dynamics.init(risk), generator(1))
    own, _ = dynamics.inner.noisy_gradient(risk, THETA, NoiseState(), generator(1))
    gradient = risk.gradient(THETA)
    scale = (2.5 / KINDS[kind].dense().trace()).sqrt()
    torch.testing.assert_close(noisy - gradient, scale * (own - gradient))


def test_a_trace_of_its_own_at_each_step_scales_what_is_in_force() -> None:
    risk, dynamics = bowl_risk(), Fading("low rank", refresh=3, traces=(1.0, 0.25, 0.0, 4.0))
    state, stream, reference = dynamics.init(risk), generator(1), generator(1)
    unit = with_trace(KINDS["low rank"], 1.0)
    for trace in dynamics.traces:
        noisy, state = dynamics.noisy_gradient(risk, THETA, state, stream)
        wanted = trace**0.5 * unit.sample(1, reference)[0] if trace else torch.zeros(3, dtype=F64)
        torch.testing.assert_close(noisy - risk.gradient(THETA), wanted)


@each_kind
def test_what_no_checkpoint_can_hold_is_named_with_the_mend(kind: str, tmp_path: Path) -> None:
    """At the first step, long before a checkpoint is due."""
    steps: list[int] = []

    def go() -> ns.Trajectory:
        return ns.simulate(
            *(bowl_risk(), Own(kind), THETA),
            lr=0.05,
            steps=3,
            checkpoint=tmp_path / "kept.safetensors",
            checkpoint_seconds=1e9,
            progress=False,
            on_step=steps.append,
        )

    if kind in ("dense", "a sum"):
        kinds = "a DeviationsOperator, a DiagonalOperator or a LowRankOperator"
        with pytest.raises(
            TypeError, match=f"which no checkpoint can hold: run without one, or give the noise {kinds}"
        ):
            go()
        assert steps == []
    else:
        assert not go().diverged
