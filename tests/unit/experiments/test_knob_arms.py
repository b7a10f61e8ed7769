"""The arms of the noise-knob experiment, each against enumeration, dense derivatives or its own draws."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import noisescape as ns
from noisescape.dynamics import Dynamics
from noisescape.experiments.noise_knob import ARMS, NOISE_KNOB, NoiseKnobConfig, noise_knob_problem
from noisescape.experiments.protocols.knob_arms import (
    AsIfSmall,
    Isotropic,
    LargeBatch,
    Losses,
    MicroGradientPenalty,
    SmallBatch,
    network_losses,
)
from noisescape.experiments.protocols.noise_knob import make_arm
from slowness import quick

LARGE, SMALL = 6, 2


@pytest.fixture(scope="module")
def subject() -> tuple[ns.EmpiricalRisk, Losses]:
    """Ten samples of a network with 17 parameters, and its losses as a function of θ."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(10, 3, dtype=torch.float64), torch.randint(0, 3, (10,))
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    risk = ns.EmpiricalRisk(model, nn.functional.cross_entropy, (inputs, targets))
    return risk, network_losses(model, inputs, targets)


def test_losses_of_the_network_are_the_risks(subject: tuple[ns.EmpiricalRisk, Losses]) -> None:
    risk, losses = subject
    theta = risk.parameters() + 0.1
    indices = torch.tensor([3, 0, 3, 9])
    assert_close(losses(theta, indices), risk.losses(theta)[indices])


def drawn(arm: Dynamics, risk: ns.EmpiricalRisk, count: int = 3000) -> Tensor:
    theta, generator, state = risk.parameters(), torch.Generator().manual_seed(1), arm.init(risk)
    return torch.stack([arm.noisy_gradient(risk, theta, state, generator)[0] for _ in range(count)])


@pytest.mark.parametrize(
    "name",
    quick(["as-if-small"], ["isotropic", "large-batch", "small-batch"]),
)
def test_the_noise_of_each_arm_has_its_covariance(name: str, subject: tuple[ns.EmpiricalRisk, Losses]) -> None:
    risk, losses = subject
    theta = risk.parameters()
    size = len(theta)
    eye = torch.eye(size, dtype=torch.float64)
    single = risk.noise_covariance(theta, 1) @ eye
    arm, expected = {
        "large-batch": (LargeBatch(LARGE), single / LARGE),
        "small-batch": (SmallBatch(SMALL), single / SMALL),
        "as-if-small": (AsIfSmall(LARGE, SMALL, losses), single / SMALL),
        "isotropic": (
            Isotropic(LARGE, SMALL, losses),
            single / LARGE + single.trace() * (1 / SMALL - 1 / LARGE) / size * eye,
        ),
    }[name]
    assert arm.name == name
    noise = drawn(arm, risk) - risk.gradient(theta)

    def within(values: Tensor, mean: Tensor) -> None:
        assert abs(values.mean() - mean) < 4 * values.std() / len(values) ** 0.5

    within(noise.square().sum(1), expected.trace())
    vectors = torch.linalg.eigh(single)[1]
    # where C has nothing only isotropic noise has something
    for direction in (vectors[:, -1], vectors[:, 0 if name == "isotropic" else -4]):
        within(noise @ direction, torch.tensor(0.0))
        within((noise @ direction).square(), direction @ expected @ direction)
    if name != "isotropic":
        assert_close(arm.covariance(risk, theta) @ eye, expected, rtol=1e-9, atol=1e-12)


def test_the_isotropic_trace_is_without_bias(
    subject: tuple[ns.EmpiricalRisk, Losses], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all 10,000 batches of four, as if of two; a unit in place of the noise shows its variance."""
    risk, losses = subject
    theta = risk.parameters()
    rows = risk.per_sample_gradients(theta)
    arm = Isotropic(4, 2, losses)
    batches = torch.tensor([*itertools.product(range(10), repeat=4)])
    halves = rows[batches].view(-1, 2, 2, len(theta)).mean(2)
    enumerated = (halves - halves.mean(1, keepdim=True)).square().sum((1, 2)) / 2
    exact = risk.noise_covariance(theta, 1).trace() * (1 / 2 - 1 / 4)
    assert_close(enumerated.mean(), exact, rtol=1e-10, atol=0)
    # and what the arm takes for one of them is that figure
    monkeypatch.setattr(Isotropic, "draw_batch", lambda *_: batches[1234])
    monkeypatch.setattr(torch, "randn", lambda *_, **__: torch.ones(len(theta), dtype=torch.float64))
    found, _ = arm.noisy_gradient(risk, theta, arm.init(risk), torch.Generator())
    noise = found - rows[batches[1234]].mean(0)
    assert_close(noise.square().sum(), enumerated[1234], rtol=1e-9, atol=0)


def test_the_penalty_is_that_of_dense_derivatives(
    subject: tuple[ns.EmpiricalRisk, Losses], monkeypatch: pytest.MonkeyPatch
) -> None:
    """∇L_B + (2c/K) Σ_k H_k g_k, from a Hessian of each micro-batch."""
    risk, losses = subject
    theta = risk.parameters()
    batch = torch.tensor([4, 1, 1, 7, 0, 9])
    monkeypatch.setattr(MicroGradientPenalty, "draw_batch", lambda *_: batch)
    arm = MicroGradientPenalty(LARGE, SMALL, losses, strength=0.3)
    found, state = arm.noisy_gradient(risk, theta, arm.init(risk), torch.Generator())
    assert (state.step, found.requires_grad) == (1, False)
    rows = risk.per_sample_gradients(theta, batch).view(3, 2, -1).mean(1)
    expected = rows.mean(0)
    for part, row in zip(batch.view(3, 2), rows, strict=True):
        hessian = torch.func.hessian(lambda point, part=part: losses(point, part).mean())(theta)
        expected = expected + 2 * 0.3 / 3 * hessian @ row
    assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("large", "small"), [(6, 4), (6, 6), (2, 6), (6, 0)])
def test_a_small_batch_that_does_not_divide_the_large_one_is_refused(
    large: int, small: int, subject: tuple[ns.EmpiricalRisk, Losses]
) -> None:
    risk, losses = subject
    message = f"the small batch must divide the large one and be below it, not {small} of {large}"
    with pytest.raises(ValueError, match=message):
        Isotropic(large, small, losses).init(risk)


# ---------------------------------------------------------------------- the constants


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"small_batch_size": 7}, "batch_size must be a multiple of small_batch_size above it, not 256 beside 7"),
        ({"small_batch_size": 256}, "not 256 beside 256"),
        ({"batch_size": 4}, "not 4 beside 8"),
        ({"small_batch_size": 0}, "small_batch_size must be at least 1, not 0"),
        ({"seeds": 0}, "seeds must be at least 1, not 0"),
        ({"measure_every": 0}, "measure_every must be at least 1, not 0"),
        ({"sharpness_draws": 1}, "sharpness_draws must be at least 2, not 1"),
        ({"lr": 0.0}, r"lr must be positive, not 0\.0"),
        ({"penalty": -1.0}, r"penalty must be positive, not -1\.0"),
        ({"decay_from": 1.0}, r"decay_from is a share of steps in \[0, 1\), not 1\.0"),
        ({"dynamics": ("isotopic",)}, "unknown arm 'isotopic'; did you mean isotropic"),
    ],
)
def test_constants_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NOISE_KNOB.configure(**changes)


def test_the_learning_rate_is_constant_and_then_falls_to_nothing() -> None:
    config = NoiseKnobConfig(lr=0.2, steps=8, decay_from=0.5)
    assert [config.rate(step) for step in range(9)] == pytest.approx(
        [0.2, 0.2, 0.2, 0.2, 0.2, 0.15, 0.1, 0.05, 0.0]
    )
    assert NoiseKnobConfig(lr=1.0, steps=4, decay_from=0.0).rate(1) == 0.75


def test_every_arm_is_made_by_its_name_with_the_runs_constants() -> None:
    config = NoiseKnobConfig(clean=20, corrupted=4, lr=0.2, penalty=2.0)
    problem = noise_knob_problem(config, 0)
    made = {name: make_arm(config, problem, name) for name in ARMS}
    assert {name: arm.name for name, arm in made.items()} == {name: name for name in ARMS}
    sizes = {name: arm.batch_size for name, arm in made.items()}
    assert sizes == {name: 8 if name == "small-batch" else 256 for name in ARMS}
    assert {made[name].small for name in ("as-if-small", "isotropic", "gradient-penalty")} == {8}
    assert made["gradient-penalty"].strength == pytest.approx(2 * 0.2 / 4)
    theta = problem.risk.parameters()
    losses = made["isotropic"].losses(theta, torch.arange(24))
    assert_close(losses, problem.risk.losses(theta), rtol=1e-4, atol=1e-5)
