"""The loop: what is recorded when, seeds, replicas, divergence as an outcome, and the stationary law."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import noisescape as ns
from cases import F64, Case, bowl_risk, normal, symmetric
from noisescape.simulation import recorders
from noisescape.simulation.loop import RUNAWAY
from noisescape.simulation.records import Trajectory
from noisescape.theory.landscapes import quadratic

CONSTANTS = {"batch_size": 3, "k": 2, "rho": 0.05, "refresh": 1, "strength": 0.01}
ALL = {name: ns.dynamics_by_name(name, **CONSTANTS) for name in ns.DYNAMICS}
NOISY = [name for name in ALL if name not in ("gd", "gd-gradient-penalty")]
HESSIAN = symmetric(3, torch.tensor([1.5, 0.6, 0.2]), seed=1)
SLOPES = normal(8, 3, seed=2) * torch.tensor([1.0, 2.0, 0.5])
START = torch.tensor([1.0, -2.0, 0.5], dtype=F64)


def bowl() -> ns.EmpiricalRisk:
    return quadratic(HESSIAN, SLOPES)


def run(
    risk: ns.EmpiricalRisk, dynamics: ns.Dynamics, theta: Tensor, lr: float = 0.1, steps: int = 10, **options
) -> Trajectory:
    return ns.simulate(risk, dynamics, theta, lr=lr, steps=steps, progress=False, **options)


# ---------------------------------------------------------------------- recorders


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (10, 3, [0, 3, 6, 9, 10]),
        (10, 5, [0, 5, 10]),
        (3, 7, [0, 3]),
        (1, 1, [0, 1]),
        (5, None, [0, 1, 2, 3, 4, 5]),
        (250, None, [*range(0, 251, 2)]),
    ],
)
def test_plain_recorders_are_called_at_multiples_of_every_and_at_the_end(
    steps: int, every: int | None, expected: list[int]
) -> None:
    calls = []

    def watch(_risk: ns.EmpiricalRisk, theta: Tensor) -> Tensor:
        calls.append(theta.clone())
        return theta[0]

    found = run(bowl(), ns.GD(), START, steps=steps, every=every, record={"first": watch}).records["first"]
    assert found.steps.tolist() == expected
    assert len(calls) == len(expected)
    assert_close(found.values, torch.stack(calls)[:, 0])


def test_recorders_see_the_parameters_of_their_step() -> None:
    expected, theta = [], START
    for _ in range(5):
        expected.append(theta)
        theta = theta - 0.1 * HESSIAN @ theta
    record = {f"w{axis}": lambda _, theta, axis=axis: theta[axis] for axis in range(3)}
    found = run(bowl(), ns.GD(), START, steps=4, record=record).records
    assert_close(
        torch.stack([found[f"w{axis}"].values for axis in range(3)], dim=1),
        torch.stack(expected),
        rtol=1e-12,
        atol=1e-14,
    )


def test_a_recorder_with_steps_of_its_own_is_called_at_those_only() -> None:
    own = recorders.at_steps(recorders.loss, [7, 0, 4, 99])
    found = run(bowl(), ns.GD(), START, steps=10, every=5, record={"loss": recorders.loss, "own": own})
    assert found.records["own"].steps.tolist() == [0, 4, 7]
    assert found.records["loss"].steps.tolist() == [0, 5, 10]
    assert found.records["own"].values[0] == found.records["loss"].values[0]


def test_the_loss_is_recorded_unless_something_else_is_asked_for() -> None:
    assert run(bowl(), ns.GD(), START).records.keys() == {"loss"}
    assert run(bowl(), ns.GD(), START, record={}).records == {}


def test_mappings_become_one_record_a_part() -> None:
    def parts(_risk: ns.EmpiricalRisk, theta: Tensor) -> dict[str, Tensor | float]:
        return {"first": theta[..., 0], "constant": 3.0}

    for replicas in (None, 2):
        found = run(bowl(), ns.GD(), START, replicas=replicas, record={"w": parts}, steps=2).records
        assert found.keys() == {"w/first", "w/constant"}
        assert found["w/constant"].values.shape == ((3,) if replicas is None else (3, 2))
        assert (found["w/constant"].values == 3).all()


@pytest.mark.parametrize("replicas", [None, 3])
def test_a_recorder_on_another_risk_sees_that_risk(mlp: Case, replicas: int | None) -> None:
    held_out = (mlp.inputs[:4], 2 - mlp.targets[:4])
    risk = mlp.risk()
    record = {
        "own": recorders.loss,
        "other": recorders.on(risk.with_data(held_out), recorders.loss),
        "accuracy": recorders.accuracy,
        "surprise": recorders.metric(lambda outputs, targets: (outputs.argmax(1) != targets).double()),
    }
    found = run(risk, ns.GD(), mlp.theta, steps=1, replicas=replicas, record=record)
    own = mlp.losses(mlp.theta).mean()
    other = mlp.by_hand(mlp.outputs(mlp.theta, held_out[0]), held_out[1]).mean()
    right = (mlp.outputs(mlp.theta, mlp.inputs).argmax(1) == mlp.targets).double().mean()
    for name, expected in (("own", own), ("other", other), ("accuracy", right), ("surprise", 1 - right)):
        first = found.records[name].values[0]
        assert first.shape == (() if replicas is None else (3,))
        assert_close(first, expected.detach().expand_as(first), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("replacement", [True, False])
def test_the_indicator_recorder_gives_the_dense_product_trace(mlp: Case, replacement: bool) -> None:
    factor = 1 / 3 if replacement else (mlp.count - 3) / (3 * (mlp.count - 1))
    expected = float((mlp.hessian() * mlp.covariance()).sum()) * factor
    watch = {"indicator": recorders.indicator(3, replacement=replacement)}
    single = run(mlp.risk(), ns.GD(), mlp.theta, steps=1, record=watch).records
    several = run(mlp.risk(), ns.GD(), mlp.theta, steps=1, replicas=2, record=watch).records
    assert single["indicator/stderr"].values[0] == 0, "exact at this dimension"
    # recorded through float32
    assert float(single["indicator/value"].values[0]) == pytest.approx(expected, rel=1e-6)
    assert several["indicator/value"].values[0].tolist() == pytest.approx([expected] * 2, rel=1e-6)


def test_the_sharpness_recorder_measures_every_replica_on_its_own() -> None:
    starts = normal(3, 3, seed=4)
    watch = {"sharpness": recorders.sharpness(0.1, draws=20, seed=5)}
    found = run(bowl(), ns.GD(), starts, steps=1, record=watch).records
    for replica, theta in enumerate(starts):
        alone = ns.expected_sharpness(bowl(), theta, delta=0.1, draws=20, seed=5)
        for part, value in (
            ("signed", alone.signed.value),
            ("signed_stderr", alone.signed.stderr),
            ("absolute", alone.absolute.value),
            ("absolute_stderr", alone.absolute.stderr),
        ):
            seen = float(found[f"sharpness/{part}"].values[0, replica])
            assert seen == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("replicas", [None, 2])
def test_rows_are_tidy(replicas: int | None) -> None:
    watch = {"loss": recorders.loss, "late": recorders.at_steps(recorders.loss, [2])}
    found = run(bowl(), ns.SGD(2), START, steps=2, replicas=replicas, record=watch)
    rows = list(found.rows(phase="escape", seed=7))
    copies = replicas or 1
    assert len(rows) == 3 * copies + copies
    assert {tuple(row) for row in rows} == {("phase", "seed", "dynamics", "replica", "step", "metric", "value")}
    assert len({(row["metric"], row["step"], row["replica"]) for row in rows}) == len(rows)
    assert {(row["phase"], row["seed"], row["dynamics"]) for row in rows} == {("escape", 7, "sgd")}
    for row in rows:
        record = found.records[row["metric"]]
        values = record.values[record.steps.tolist().index(row["step"])]
        assert row["value"] == float(values.reshape(-1)[row["replica"]])


def test_every_step_is_announced() -> None:
    seen: list[int] = []
    run(bowl(), ns.GD(), START, steps=4, on_step=seen.append)
    assert seen == [1, 2, 3, 4]


# ---------------------------------------------------------------------- seeds, replicas, learning rates


@pytest.mark.parametrize("replicas", [None, 3])
@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_run_other_seed_other_run(name: str, replicas: int | None) -> None:
    def final(seed: int) -> Tensor:
        return run(bowl(), ALL[name], START, steps=5, replicas=replicas, seed=seed).theta

    first = final(3)
    assert torch.equal(first, final(3))
    assert torch.equal(first, final(4)) == (name not in NOISY)


@pytest.mark.parametrize("name", NOISY)
def test_replicas_of_one_start_part_ways(name: str) -> None:
    found = run(bowl(), ALL[name], START, steps=5, replicas=4).theta
    assert found.shape == (4, 3)
    assert len(torch.unique(found, dim=0)) == 4


@pytest.mark.parametrize("name", ALL)
def test_a_small_model_runs_in_replicas(name: str, mlp: Case) -> None:
    starts = mlp.theta + 0.1 * normal(3, len(mlp.theta), seed=9)
    watch = {"loss": recorders.loss, "accuracy": recorders.accuracy}
    found = run(mlp.risk(), ALL[name], starts, steps=3, record=watch)
    assert found.theta.shape == starts.shape
    assert torch.isfinite(found.theta).all()
    assert not found.diverged.any()
    assert found.records["loss"].values.shape == (4, 3)
    assert_close(found.records["loss"].values[0], torch.stack([mlp.losses(row).mean() for row in starts]))
    assert (found.theta != starts).any(1).all()


@pytest.mark.parametrize("kind", ["closed form", "vector of losses", "model"])
def test_replicas_of_gradient_descent_are_the_single_runs(kind: str, mlp: Case) -> None:
    if kind == "model":
        risk, starts = mlp.risk(), mlp.theta + 0.1 * normal(3, len(mlp.theta), seed=9)
    else:
        risk = bowl_risk("of a sample" if kind == "closed form" else "of all samples")
        starts = normal(3, 3, seed=9)
    together = run(risk, ns.GD(), starts, lr=0.05, steps=6)
    for row, start in enumerate(starts):
        alone = run(risk, ns.GD(), start, lr=0.05, steps=6)
        assert_close(together.theta[row], alone.theta, rtol=1e-10, atol=1e-12)
        assert_close(together.records["loss"].values[:, row], alone.records["loss"].values, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("lr", [0.01, 0.5, 1.3], ids=["small", "large", "ηλ near 2"])
def test_gradient_descent_on_a_quadratic_contracts_exactly(lr: float) -> None:
    values, vectors = torch.linalg.eigh(HESSIAN)
    expected = vectors @ ((1 - lr * values) ** 40 * (vectors.T @ START))
    assert_close(run(bowl(), ns.GD(), START, lr=lr, steps=40).theta, expected, rtol=1e-10, atol=1e-12)


def test_a_schedule_is_asked_at_every_step_from_zero() -> None:
    asked = []

    def schedule(step: int) -> float:
        asked.append(step)
        return 0.5 / (1 + step)

    values, vectors = torch.linalg.eigh(HESSIAN)
    shrunk = torch.stack([1 - 0.5 / (1 + step) * values for step in range(6)]).prod(0)
    found = run(bowl(), ns.GD(), START, lr=schedule, steps=6)
    assert asked == [*range(6)]
    assert_close(found.theta, vectors @ (shrunk * (vectors.T @ START)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("replicas", [None, 2])
def test_the_users_model_and_start_are_left_alone(mlp: Case, replicas: int | None) -> None:
    model = mlp.model().train()
    model[0].bias.grad = torch.ones_like(model[0].bias)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = mlp.theta.clone()
    risk = ns.EmpiricalRisk(model, mlp.loss, mlp.data)
    for name in ("sgd", "gld-leading", "gld-hessian"):
        run(risk, ALL[name], start, steps=2, replicas=replicas)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert torch.equal(model[0].bias.grad, torch.ones_like(model[0].bias))
    assert model[2].bias.grad is None
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(start, mlp.theta)
    assert not start.requires_grad


# ---------------------------------------------------------------------- divergence


def test_divergence_ends_a_single_run_with_a_nan_at_its_step() -> None:
    """Every step doubles |θ|, so the bound is passed at the first 2^k over it."""
    line = quadratic(torch.eye(1, dtype=F64), torch.zeros(2, 1, dtype=F64))
    seen: list[int] = []
    found = run(line, ns.GD(), torch.ones(1, dtype=F64), lr=3.0, steps=1000, every=10, on_step=seen.append)
    passed = math.ceil(math.log2(RUNAWAY))
    assert found.diverged.shape == ()
    assert bool(found.diverged)
    assert int(found.diverged_at) == passed == 27
    assert torch.isnan(found.theta).all()
    record = found.records["loss"]
    assert record.steps.tolist() == [0, 10, 20, passed]
    assert_close(record.values[:-1], 0.5 * torch.tensor([1.0, 4.0**10, 4.0**20], dtype=F64))
    assert math.isnan(record.values[-1])
    assert seen == [*range(1, passed)]


def test_a_run_within_bounds_is_not_called_diverged() -> None:
    found = run(bowl(), ns.GD(), torch.stack([START, -START]))
    assert found.diverged_at.tolist() == [-1, -1]
    assert found.diverged.tolist() == [False, False]


def power(exponent: int, dtype: torch.dtype) -> ns.EmpiricalRisk:
    """Σ (θ − p)^m/m: from far out every step overshoots.

    With m = 8 in float32 it lands where losses and gradients are finite and squares of gradients are not.
    """
    points = (0.3 * normal(8, 2, seed=3)).to(dtype)

    def loss(theta: Tensor, point: Tensor) -> Tensor:
        return ((theta - point) ** exponent).sum(-1) / exponent

    return ns.EmpiricalRisk.from_sample_loss(loss, points, torch.zeros(2, dtype=dtype))


def precipice(dtype: torch.dtype) -> ns.EmpiricalRisk:
    """Σ exp((θ − p)²): one overshoot lands, at a moderate θ, where the loss is infinite."""
    points = (0.1 * normal(8, 2, seed=3)).to(dtype)

    def loss(theta: Tensor, point: Tensor) -> Tensor:
        return torch.exp((theta - point) ** 2).sum(-1)

    return ns.EmpiricalRisk.from_sample_loss(loss, points, torch.zeros(2, dtype=dtype))


LANDSCAPES = {
    "quartic": (power(4, F64), 30.0),
    "overflowing squares": (power(8, torch.float32), 5.5),
    "precipice": (precipice(F64), 2.6),
}
WATCH = {
    "loss": recorders.loss,
    "indicator": recorders.indicator(3),
    "sharpness": recorders.sharpness(1e-2, draws=3),
}


@pytest.mark.parametrize("watch", [{}, WATCH], ids=["unwatched", "watched"])
@pytest.mark.parametrize("landscape", LANDSCAPES)
@pytest.mark.parametrize("name", ALL)
def test_a_diverging_run_is_an_outcome_not_a_crash(
    name: str, landscape: str, watch: dict[str, recorders.Recorder]
) -> None:
    risk, far = LANDSCAPES[landscape]
    start = torch.full((2,), far, dtype=risk.dtype)
    found = run(risk, ALL[name], start, steps=30, every=1, record=watch)
    assert bool(found.diverged)
    assert torch.isnan(found.theta).all()
    for record in found.records.values():
        assert int(record.steps[-1]) == int(found.diverged_at) < 30
        assert math.isnan(record.values[-1])


@pytest.mark.parametrize("watch", [{}, WATCH], ids=["unwatched", "watched"])
@pytest.mark.parametrize("landscape", LANDSCAPES)
@pytest.mark.parametrize("name", ALL)
def test_the_other_replicas_go_on_when_one_diverges(
    name: str, landscape: str, watch: dict[str, recorders.Recorder]
) -> None:
    risk, far = LANDSCAPES[landscape]
    starts = torch.tensor([[0.1, -0.1], [far, far], [0.0, 0.2]], dtype=risk.dtype)
    found = run(risk, ALL[name], starts, steps=12, every=1, record=watch)
    assert found.diverged.tolist() == [False, True, False]
    assert torch.isnan(found.theta[1]).all()
    assert torch.isfinite(found.theta[[0, 2]]).all()
    when = int(found.diverged_at[1])
    assert 1 <= when < 12
    for record in found.records.values():
        assert record.steps.tolist() == [*range(13)]
        assert torch.isfinite(record.values[:, [0, 2]]).all()
        assert torch.isnan(record.values[when:, 1]).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("replicas", [None, 2])
def test_a_diverging_model_is_an_outcome_not_a_crash(name: str, replicas: int | None, mlp: Case) -> None:
    risk = ns.EmpiricalRisk(mlp.model(), torch.nn.functional.mse_loss, (mlp.inputs, normal(11, 3, seed=2)))
    found = run(risk, ALL[name], mlp.theta, lr=1e5, steps=60, replicas=replicas, record=WATCH, every=1)
    assert found.diverged.all()
    assert torch.isnan(found.theta).all()


@pytest.mark.parametrize("name", ["gld-hessian", "gld-top-eigenvector", "gld-leading"])
@pytest.mark.parametrize("replicas", [None, 2])
def test_a_larger_diverging_model_is_an_outcome_not_a_crash(name: str, replicas: int | None) -> None:
    """Over 128 parameters eigenvectors come from Lanczos, which has its own way to choke on overflow."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.exp((outputs - targets) ** 2)

    model = torch.nn.Linear(50, 3).double()
    torch.nn.init.constant_(model.weight, 0.01)
    risk = ns.EmpiricalRisk(model, loss, (normal(9, 50, seed=1), 0.1 * normal(9, 3, seed=2)))
    found = run(risk, ALL[name], risk.parameters(), lr=1e3, steps=9, replicas=replicas, record=WATCH, every=1)
    assert found.diverged.all()
    assert (found.diverged_at > 1).all(), "the noise was drawn where nothing was finite"


def test_an_error_that_is_no_divergence_is_raised() -> None:
    class Broken(ns.GD):
        def noisy_gradient(self, *_arguments: object) -> object:
            raise RuntimeError("a bug")

    for start in (START, START.expand(2, -1)):
        with pytest.raises(RuntimeError, match="a bug"):
            run(bowl(), Broken(), start)


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"lr": 0.0}, "lr must be positive, not 0"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"lr": math.nan}, "lr must be positive, not nan"),
        ({"replicas": 0}, "replicas must be at least 1, not 0"),
        ({"every": 0}, "every must be at least 1, not 0"),
        ({"every": -2}, "every must be at least 1, not -2"),
        ({"theta": START.expand(2, -1), "replicas": 2}, r"start of shape \(R, D\) already has its replicas"),
        ({"theta": START * math.inf}, "the starting θ is not finite"),
        ({"theta": START[:2]}, r"θ must have shape \(3,\)"),
        ({"theta": START.float()}, "θ is torch.float32 but the risk is torch.float64"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, object], message: str) -> None:
    arguments = {"theta": START, "lr": 0.1, "steps": 3} | changes
    theta = arguments.pop("theta")
    with pytest.raises(ValueError, match=message):
        ns.simulate(bowl(), ns.GD(), theta, progress=False, **arguments)


# ---------------------------------------------------------------------- the stationary law and its limits

COVARIANCE = SLOPES.sub(SLOPES.mean(0)).T @ SLOPES.sub(SLOPES.mean(0)) / len(SLOPES)


def test_curvature_and_noise_of_these_tests_do_not_commute() -> None:
    assert (HESSIAN @ COVARIANCE - COVARIANCE @ HESSIAN).abs().max() > 0.1


@pytest.mark.parametrize("lr", [0.3, 0.9], ids=["small ηλ", "ηλ above 1"])
@pytest.mark.parametrize("name", NOISY)
def test_a_long_run_reaches_the_stationary_covariance(name: str, lr: float) -> None:
    replicas, risk = 2000, bowl()
    slowest = 1 - lr * 0.2
    steps = math.ceil(math.log(1e-4) / math.log(slowest))
    found = run(risk, ALL[name], torch.zeros(3, dtype=F64), lr=lr, steps=steps, replicas=replicas, record={}).theta
    noise = ALL[name].covariance(risk, torch.zeros(3, dtype=F64)).dense()
    expected = ns.theory.stationary_covariance(HESSIAN, noise, lr=lr)
    products = found[:, :, None] * found[:, None, :]
    error = products.std(0) / math.sqrt(replicas)
    assert ((products.mean(0) - expected).abs() <= 4.5 * error).all()
    assert (error <= 0.1 * expected.diagonal().max()).all(), "tight enough to tell a wrong factor"


def covariances(lr: float, steps: int) -> Tensor:
    """Cov θ_k by the recursion, one step at a time."""
    contraction = torch.eye(3, dtype=F64) - lr * HESSIAN
    spread = torch.zeros(3, 3, dtype=F64)
    for _ in range(steps):
        spread = contraction @ spread @ contraction.T + lr**2 * COVARIANCE
    return spread


@pytest.mark.parametrize("lr", [0.01, 0.3, 1.2])
@pytest.mark.parametrize("steps", [1, 7, 200])
def test_expected_excess_loss_is_that_of_the_recursion(lr: float, steps: int) -> None:
    expected = 0.5 * (HESSIAN * covariances(lr, steps)).sum()
    found = ns.theory.expected_excess_loss(HESSIAN, COVARIANCE, lr=lr, steps=steps)
    assert_close(found, expected, rtol=1e-10, atol=0)


def test_expected_excess_loss_counts_flat_and_marginal_directions() -> None:
    """ηλ = 0 adds nothing; ηλ = 2 grows linearly; ηλ > 2 exponentially."""
    noise = torch.eye(1, dtype=F64)
    for value, expected in ((0.0, 0.0), (2.0, 10.0), (3.0, 1.5 * sum(4.0**k for k in range(10)))):
        found = ns.theory.expected_excess_loss(value * noise, noise, lr=1.0, steps=10)
        assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("lr", [0.05, 0.4, 1.2])
def test_stationary_covariance_is_the_recursions_limit(lr: float) -> None:
    found = ns.theory.stationary_covariance(HESSIAN, COVARIANCE, lr=lr)
    assert_close(found, covariances(lr, 5000), rtol=1e-9, atol=1e-12)
    long = ns.theory.expected_excess_loss(HESSIAN, COVARIANCE, lr=lr, steps=5000)
    assert_close(0.5 * (HESSIAN * found).sum(), long, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("values", "lr"), [([1.0, 0.0, 1.0], 0.1), ([1.0, -1.0, 1.0], 0.1), ([1.0, 0.5, 20.0], 0.1)]
)
def test_without_a_stationary_law_there_is_a_clear_error(values: list[float], lr: float) -> None:
    with pytest.raises(ValueError, match=r"must lie strictly between 0 and 2/lr = 20"):
        ns.theory.stationary_covariance(torch.diag(torch.tensor(values, dtype=F64)), COVARIANCE, lr=lr)


def test_ornstein_uhlenbeck_is_the_first_order_limit_of_the_discrete_formula() -> None:
    time = 1.5

    def gap(lr: float) -> float:
        exact = ns.theory.expected_excess_loss(HESSIAN, COVARIANCE, lr=lr, steps=round(time / lr))
        limit = ns.theory.ou_expected_excess_loss(HESSIAN, COVARIANCE, lr=lr, time=time)
        return float(exact / limit - 1)

    gaps = [gap(time / steps) for steps in (300, 600, 1200, 2400)]
    for coarse, fine in itertools.pairwise(gaps):
        assert coarse / fine == pytest.approx(2, rel=0.02)
    assert 0 < gaps[-1] < 1e-3


def test_the_indicator_is_the_short_time_limit() -> None:
    product = float((HESSIAN * COVARIANCE).sum())
    for time, closeness in ((1e-2, 2e-2), (1e-4, 2e-4), (1e-6, 2e-6)):
        early = float(ns.theory.ou_expected_excess_loss(HESSIAN, COVARIANCE, lr=0.1, time=time))
        assert early == pytest.approx(ns.theory.escaping_efficiency(product, lr=0.1, time=time), rel=closeness)


def test_after_long_only_the_trace_of_the_noise_counts() -> None:
    late = ns.theory.ou_expected_excess_loss(HESSIAN, COVARIANCE, lr=0.1, time=1e4)
    assert_close(late, 0.1 / 4 * COVARIANCE.trace(), rtol=1e-12, atol=0)


def test_ou_stationary_covariance_solves_lyapunovs_equation_and_is_the_small_step_limit() -> None:
    found = ns.theory.ou_stationary_covariance(HESSIAN, COVARIANCE, lr=0.1)
    assert_close(HESSIAN @ found + found @ HESSIAN, 0.1 * COVARIANCE, rtol=1e-12, atol=1e-14)
    eye = torch.eye(3, dtype=F64)
    by_kronecker = torch.linalg.solve(
        torch.kron(HESSIAN, eye) + torch.kron(eye, HESSIAN), 0.1 * COVARIANCE.flatten()
    )
    assert_close(found.flatten(), by_kronecker, rtol=1e-10, atol=1e-14)
    gaps = []
    for lr in (0.02, 0.01):
        discrete = ns.theory.stationary_covariance(HESSIAN, COVARIANCE, lr=lr)
        gaps.append(float((discrete - ns.theory.ou_stationary_covariance(HESSIAN, COVARIANCE, lr=lr)).norm() / lr))
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.05)
