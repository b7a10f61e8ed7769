"""Every dynamics: its covariance by dense linear algebra, what it draws, resuming, and steps replayed as graphs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import noisescape as ns
from cases import CASES, normal
from dynamics_cases import ALL, AT, TABLE, THETA, WANTED, regression
from noisescape.simulation import recorders
from noisescape.simulation.captured import captured_step
from resuming import Stop

DRAWS = 20_000
EAGER = {name for name, dynamics in ALL.items() if not dynamics.memoryless}


def there(name: str, device: str) -> ns.Dynamics:
    """The dynamics, with tensors of its own on the device."""
    if name == "additive":
        risk = regression(device)
        return ns.Additive(risk.noise_covariance(torch.zeros_like(risk.parameters()), 3))
    return ALL[name]


@pytest.mark.parametrize("name", ALL)
def test_covariance_and_draws(name: str, device: str) -> None:
    risk, dynamics, theta = regression(device), there(name, device), THETA.to(device)
    wanted = WANTED[name]
    torch.testing.assert_close(dynamics.covariance(risk, theta).dense().cpu(), wanted, rtol=1e-7, atol=1e-10)
    generator = torch.Generator(device).manual_seed(3)
    noisy, _ = dynamics.noisy_gradient(risk, theta.expand(DRAWS, -1), dynamics.init(risk), generator)
    noise = (noisy - risk.gradient(theta)).cpu() - TABLE[name].drift(AT)
    products = noise[:, :, None] * noise[:, None, :]
    error = products.std(0) / math.sqrt(DRAWS)
    assert ((products.mean(0) - wanted).abs() <= 4.5 * error + 1e-9).all()


def classifier(device: str) -> tuple[ns.EmpiricalRisk, Tensor]:
    case = CASES["conv"]
    return case.risk(device=device), case.theta.to(device)


WATCH = {"loss": recorders.loss, "first": lambda _risk, theta: theta[..., 0].clone()}


@pytest.mark.parametrize("name", [*ns.DYNAMICS])
def test_a_stopped_run_goes_on_to_the_same_bits(name: str, device: str, tmp_path: Path) -> None:
    constants = {"batch_size": 3, "k": 2, "rho": 0.05, "refresh": 3, "strength": 0.01, "shuffle_seed": 1}
    risk, theta = classifier(device)
    dynamics = ns.dynamics_by_name(name, **constants)
    options = {"lr": 0.05, "steps": 12, "every": 3, "record": WATCH, "noise_every": 4, "progress": False}
    whole = ns.simulate(risk, dynamics, theta, **options)

    def stop(step: int) -> None:
        if step == 7:
            raise Stop

    kept = {"checkpoint": tmp_path / "run.safetensors", "checkpoint_seconds": 0}
    with pytest.raises(Stop):
        ns.simulate(risk, dynamics, theta, **options, **kept, on_step=stop)
    again = ns.simulate(risk, dynamics, theta, **options, **kept)
    assert again.theta.device.type == device
    assert torch.equal(again.theta, whole.theta)
    for metric, record in whole.records.items():
        assert torch.equal(again.records[metric].values, record.values), metric


# ---------------------------------------------------------------------- replayed steps


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noisescape.simulation.loop.captured_step", lambda *_: None)


@pytest.mark.parametrize("start", ["one", "replicas"])
@pytest.mark.parametrize("rate", ["constant", "schedule"])
@pytest.mark.parametrize("name", sorted({*ALL} - EAGER))
def test_replayed_steps_are_the_steps(
    name: str, rate: str, start: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    risk, dynamics = regression(device), there(name, device)
    theta = THETA.to(device) if start == "one" else torch.stack([THETA, 2 * THETA, -THETA]).to(device)
    lr = 0.03 if rate == "constant" else lambda step: 0.03 / (1 + step)
    options = {"lr": lr, "steps": 40, "every": 7, "record": WATCH, "noise_every": 9, "seed": 5, "progress": False}
    replayed = ns.simulate(risk, dynamics, theta, **options)
    one_by_one(monkeypatch)
    plain = ns.simulate(risk, dynamics, theta, **options)
    assert torch.equal(replayed.theta, plain.theta)
    assert replayed.taken == plain.taken
    for metric, record in plain.records.items():
        assert torch.equal(replayed.records[metric].values, record.values), metric


@pytest.mark.parametrize("name", ["gd", "sgd", "gld-full", "gld-constant", "matched constant", "svag"])
def test_these_steps_are_replayed(name: str, device: str) -> None:
    if device == "cpu":
        pytest.skip("a CPU has no graphs")
    risk, theta = classifier(device)
    dynamics = {
        "gld-constant": ns.GLDConstant(0.1),
        "matched constant": ns.MatchedTrace(ns.GLDConstant(0.1), 2.0),
        "svag": ns.SVAG(3, ell=2),
        "gd": ns.GD(),
        "sgd": ns.SGD(3),
        "gld-full": ns.GLDFull(3),
    }[name]
    generator = torch.Generator(device).manual_seed(0)
    for point in (theta, theta.expand(4, -1).contiguous()):
        assert captured_step(risk, dynamics, 0.1, point, generator, 100) is not None


@pytest.mark.parametrize("name", ["gld-dynamic", "gld-diagonal", "gd-gradient-penalty", "label-noise"])
def test_whether_these_are_replayed_is_only_said(name: str, device: str) -> None:
    """What their steps look at depends on the model; a result there is either way, tested above."""
    if device == "cpu":
        pytest.skip("a CPU has no graphs")
    risk, theta = classifier(device)
    if name == "label-noise":
        inputs, targets = normal(20, 3).to(device), normal(20, 1, seed=1).to(device)
        model = nn.Linear(3, 1, device=device, dtype=torch.float64)
        risk = ns.EmpiricalRisk(model, lambda out, y: 0.5 * (out - y).square().sum(-1), (inputs, targets))
        doubled = risk.with_data((torch.cat([inputs, inputs]), torch.cat([targets + 1, targets - 1])))
        dynamics: ns.Dynamics = ns.LabelNoise(3, doubled)
        theta = risk.parameters()
    else:
        dynamics = ns.dynamics_by_name(name, batch_size=3, refresh=1, strength=0.01)
    generator = torch.Generator(device).manual_seed(0)
    found = captured_step(risk, dynamics, 0.1, theta, generator, 100)
    print(f"{name}: {'replayed' if found else 'one by one'}")
    again = ns.simulate(risk, dynamics, theta, lr=0.01, steps=10, progress=False)
    assert bool(again.theta.isfinite().all())


def test_diverging_replicas_end_at_the_same_steps(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ns.EmpiricalRisk.from_sample_loss(
        lambda theta, p: ((theta - p) ** 4).sum(-1), normal(8, 2).to(device), normal(2).to(device)
    )
    starts = torch.tensor([[0.1, 0.2], [30.0, 1.0], [3.0, -40.0]], dtype=torch.float64, device=device)
    options = {"lr": 0.01, "steps": 60, "every": 20, "progress": False}
    for theta in (starts, starts[1:], starts[1]):
        with monkeypatch.context() as patch:
            replayed = ns.simulate(line, ns.SGD(2), theta, **options)
            one_by_one(patch)
            plain = ns.simulate(line, ns.SGD(2), theta, **options)
        assert replayed.diverged_at.tolist() == plain.diverged_at.tolist()
        assert replayed.taken == plain.taken
        for metric, record in plain.records.items():
            torch.testing.assert_close(
                replayed.records[metric].values, record.values, rtol=0, atol=0, equal_nan=True
            )


def test_a_model_that_looks_at_values_is_taken_step_by_step(device: str) -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * (2.0 if float(x.abs().max()) > 0 else 1.0)

    torch.manual_seed(0)
    data = (normal(9, 3, dtype=torch.float32).to(device), (torch.arange(9) % 3).to(device))
    risk = ns.EmpiricalRisk(Looking().to(device), nn.functional.cross_entropy, data)
    found = ns.simulate(risk, ns.SGD(3), risk.parameters(), lr=0.1, steps=20, progress=False)
    assert bool(found.theta.isfinite().all())
    if device == "cuda":
        generator = torch.Generator(device).manual_seed(0)
        assert captured_step(risk, ns.SGD(3), 0.1, risk.parameters(), generator, 100) is None
    # and what comes after is unharmed
    assert bool(torch.randn(3, device=device).isfinite().all())


def test_a_thousand_replicas(device: str) -> None:
    risk = ns.theory.landscapes.quadratic(
        torch.diag(torch.tensor([1.0, 0.3, 0.1], dtype=torch.float64)).to(device),
        (normal(16, 3, seed=2)).to(device),
    )
    start = torch.ones(3, dtype=torch.float64, device=device)
    found = ns.simulate(risk, ns.SGD(4), start, lr=0.1, steps=200, replicas=1000, progress=False)
    assert found.theta.shape == (1000, 3)
    sigma = risk.noise_covariance(start, 4).dense().cpu()
    spread = found.theta.var(0).cpu()
    # θ_{t+1} = (1 − ηh)θ_t − ηε: variance η²s(1 − q^t)/(1 − q), q = (1 − ηh)²
    h = torch.tensor([1.0, 0.3, 0.1], dtype=torch.float64)
    q = (1 - 0.1 * h) ** 2
    exact = 0.01 * sigma.diagonal() * (1 - q**200) / (1 - q)
    assert ((spread / exact - 1).abs() < 4.5 * math.sqrt(2 / 1000)).all()
