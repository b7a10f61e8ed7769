"""What is recorded when along a run."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import noisescape as ns
from cases import Case, normal
from noisescape.simulation import recorders
from simulations import HESSIAN, START, bowl, run


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


@pytest.mark.parametrize("replicas", [None, 2])
def test_the_conditions_recorder_gives_what_measure_does(mlp: Case, replicas: int | None) -> None:
    risk, size = mlp.risk(), 3
    watch = {"along": recorders.conditions(size, k=8)}  # exact at this dimension
    found = run(risk, ns.GD(), mlp.theta, steps=1, replicas=replicas, record=watch).records
    values, vectors = torch.linalg.eigh(mlp.hessian())
    top, first = values[-1], vectors[:, -1]
    trace_h, sigma = mlp.hessian().trace(), mlp.covariance() / size
    expected = {
        "trace_h_sigma": (mlp.hessian() @ sigma).trace(),
        "trace_h_sigma_stderr": 0.0,
        "isotropic_reference": trace_h * sigma.trace() / len(first),
        "isotropic_reference_stderr": 0.0,
        "projection_coefficient": first @ sigma @ first * trace_h / (top * sigma.trace()),
        "decay_exponent": torch.log(top / values[-9]) / math.log(len(first)),
        "largest_eigenvalue": top,
    }
    assert found.keys() == {f"along/{name}" for name in expected}
    for name, value in expected.items():
        seen = found[f"along/{name}"].values[0].reshape(-1).tolist()
        assert seen == pytest.approx([float(value)] * (replicas or 1), rel=1e-6, abs=1e-12), name


@pytest.mark.parametrize("replicas", [None, 2])
def test_the_gradient_recorder_gives_its_two_forms(mlp: Case, replicas: int | None) -> None:
    watch = {"gradient": recorders.gradient}
    found = run(mlp.risk(), ns.GD(), mlp.theta, steps=1, replicas=replicas, record=watch).records
    gradient = mlp.gradients().mean(0)
    expected = {"squared_norm": gradient @ gradient, "curvature": gradient @ mlp.hessian() @ gradient}
    assert found.keys() == {f"gradient/{name}" for name in expected}
    for name, value in expected.items():
        seen = found[f"gradient/{name}"].values[0].reshape(-1).tolist()
        assert seen == pytest.approx([float(value)] * (replicas or 1), rel=1e-9), name


def test_the_alignment_recorder_gives_a_and_its_control(mlp: Case) -> None:
    found = run(mlp.risk(), ns.GD(), mlp.theta, steps=1, record={"a": recorders.alignment(seed=3)}).records
    alone = ns.relative_alignment(mlp.risk(), mlp.theta, seed=3)
    for kind in ("noise", "shuffled", "gain"):
        assert float(found[f"a/{kind}"].values[0]) == pytest.approx(getattr(alone, kind).value, rel=1e-9)
        assert float(found[f"a/{kind}_stderr"].values[0]) == 0
