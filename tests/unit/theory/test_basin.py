"""Settled minima, quenches, matched losses and barriers, where each is known in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import noisescape as ns
from cases import Case
from noisescape.risk.hessian_pairs import leading_hessian_pairs
from noisescape.theory.basin import at_matched_loss, barrier, loss_along, quench, settle
from noisescape.theory.landscapes import quadratic

F64 = torch.float64
WELLS = ns.EmpiricalRisk.from_losses(lambda x: (x.square() - 1).square(), torch.ones(1, dtype=F64))
"""Minima at ±1, λ = 8 there; between them a barrier of 1."""


def bowl(*curvatures: float) -> ns.EmpiricalRisk:
    return quadratic(torch.diag(torch.tensor(curvatures, dtype=F64)), torch.zeros(2, len(curvatures), dtype=F64))


def point(*coordinates: float) -> Tensor:
    return torch.tensor(coordinates, dtype=F64)


# ---------------------------------------------------------------------- settle


@pytest.mark.parametrize("lr", [0.05, 0.2])
def test_settling_takes_the_steps_that_the_closed_form_says(lr: float) -> None:
    """‖ḡ‖ = λ|1 − ηλ|^k in one dimension."""
    risk, bound = bowl(3.0), 1e-3
    found = settle(risk, point(1.0), lr=lr, steps=500, gradient_norm=bound, largest_eigenvalue=4.0)
    assert found.steps == math.floor(math.log(bound / 3) / math.log(abs(1 - lr * 3))) + 1
    assert found.settled
    assert found.largest_eigenvalue == pytest.approx(3.0)
    assert found.gradient_norm == pytest.approx(3 * float(found.theta.abs()), rel=1e-12)
    assert found.loss == pytest.approx(1.5 * float(found.theta) ** 2, rel=1e-12)


def test_a_start_at_rest_is_left_where_it_is() -> None:
    found = settle(bowl(2.0, 1.0), point(0.0, 0.0), lr=0.1, steps=9, gradient_norm=0.1, largest_eigenvalue=3.0)
    assert (found.steps, found.settled) == (0, True)


def test_a_minimum_too_sharp_for_the_rate_to_come_is_not_settled() -> None:
    found = settle(bowl(5.0), point(1.0), lr=0.1, steps=50, gradient_norm=0.1, largest_eigenvalue=4.9)
    assert not found.settled
    assert found.steps == 50
    assert found.gradient_norm < 0.1


def test_steps_that_run_out_leave_it_unsettled_and_say_where() -> None:
    found = settle(bowl(1.0), point(1.0), lr=0.5, steps=3, gradient_norm=0.1, largest_eigenvalue=2.0)
    assert not found.settled
    torch.testing.assert_close(found.theta, point(0.125))


# ---------------------------------------------------------------------- quench


@pytest.mark.parametrize("level", [0.4, 0.05, 1e-6])
def test_a_quench_ends_on_the_level(level: float) -> None:
    risk = bowl(4.0, 1.0)
    found = quench(risk, point(1.0, 1.0), level=level, lr=0.2, steps=200)
    assert found.reached
    assert found.loss == pytest.approx(level, rel=1e-4)
    assert found.loss == pytest.approx(float(risk.loss(found.theta)), rel=1e-12)


def test_while_its_steps_are_short_a_quench_is_gradient_descent() -> None:
    risk, lr = bowl(4.0, 1.0), 0.1
    found = quench(risk, point(1.0, 1.0), level=0.0, lr=lr, steps=7)
    run = ns.simulate(risk, ns.GD(), point(1.0, 1.0), lr=lr, steps=7, progress=False)
    torch.testing.assert_close(found.theta, run.theta)
    assert (found.steps, found.reached) == (7, False)


@pytest.mark.parametrize("lr", [0.3, 0.5])
@pytest.mark.parametrize("start", [0.9, 1.1, 0.5])
def test_a_quench_stays_in_a_basin_that_gradient_descent_at_its_rate_leaves(lr: float, start: float) -> None:
    """λ = 8: at these rates ηλ is 2.4 and 4, and nothing stays at 1."""
    found = quench(WELLS, point(start), level=1e-8, lr=lr, steps=500)
    assert found.reached
    assert float(found.theta) == pytest.approx(1.0, abs=1e-4)
    left = ns.simulate(WELLS, ns.GD(), point(start), lr=lr, steps=500, progress=False)
    assert not abs(float(left.theta) - 1) < 1e-2


def test_a_quench_gets_down_where_kinks_make_single_steps_rise() -> None:
    """|x| + y²/100: descent hops over the kink and falls along it; every second step of it is a rise."""
    risk = ns.EmpiricalRisk.from_losses(lambda w: w[:1].abs() + w[1:].square() / 100, point(0.013, 1.0))
    found = quench(risk, point(0.013, 1.0), level=0.006, lr=0.01, steps=20_000)
    assert found.reached


def test_an_iterate_below_the_level_is_left_alone() -> None:
    found = quench(bowl(1.0), point(0.5), level=1.0, lr=0.1, steps=9)
    assert (found.steps, found.reached, float(found.theta)) == (0, True, 0.5)


def test_a_level_below_the_floor_is_not_reached() -> None:
    found = quench(WELLS, point(1.2), level=-1.0, lr=0.05, steps=300)
    assert not found.reached
    assert found.loss == pytest.approx(0.0, abs=1e-12)


# ---------------------------------------------------------------------- matched losses


def test_iterates_are_brought_to_the_lowest_of_their_losses() -> None:
    thetas = {"sharp": point(1.0, 0.0), "flat": point(0.0, 1.0)}
    found = at_matched_loss(bowl(4.0, 1.0), thetas, lr=0.1, steps=100)
    assert {name: one.loss for name, one in found.items()} == pytest.approx({"sharp": 0.5, "flat": 0.5}, rel=1e-4)
    assert found["flat"].steps == 0
    torch.testing.assert_close(found["sharp"].theta, point(0.5, 0.0), rtol=1e-3, atol=1e-12)


def test_iterates_are_brought_to_a_level_given() -> None:
    found = at_matched_loss(bowl(4.0), {"a": point(1.0), "b": point(-2.0)}, lr=0.1, steps=100, level=0.02)
    assert [one.reached for one in found.values()] == [True, True]
    assert [float(one.theta) for one in found.values()] == pytest.approx([0.1, -0.1], rel=1e-3)


@pytest.mark.parametrize("offset", [-5.0, -0.5, 0.0, 3.0])
def test_levels_of_either_sign_are_met(offset: float) -> None:
    risk = ns.EmpiricalRisk.from_losses(lambda x: x.square() + offset, point(1.0))
    found = quench(risk, point(1.0), level=0.5 + offset, lr=0.1, steps=99)
    assert found.reached
    assert found.loss == pytest.approx(0.5 + offset, abs=1e-4 * abs(0.5 + offset) + 1e-12)
    assert quench(risk, point(1.0), level=1.0 + offset, lr=0.1, steps=99).steps == 0
    matched = at_matched_loss(risk, {"low": point(0.5), "high": point(1.0)}, lr=0.1, steps=99)
    assert [one.reached for one in matched.values()] == [True, True]


def test_a_descent_that_diverges_is_refused_when_it_does() -> None:
    evaluated = []

    def steep(x: Tensor) -> Tensor:
        evaluated.append(1)
        return (1e30 * x.square()).exp()

    with pytest.raises(ns.NonFiniteLossError):
        settle(
            ns.EmpiricalRisk.from_losses(steep, point(1e-15)),
            point(1e-15),
            lr=1.0,
            steps=10_000,
            gradient_norm=1e-9,
            largest_eigenvalue=1.0,
        )
    assert len(evaluated) < 100


def test_a_minimum_that_is_too_sharp_is_not_looked_at_on_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def counted(*given: Any) -> Any:
        looks.append(1)
        return leading_hessian_pairs(*given)

    monkeypatch.setattr("noisescape.theory.basin.leading_hessian_pairs", counted)
    found = settle(bowl(4.0), point(1e-9), lr=0.1, steps=100, gradient_norm=0.1, largest_eigenvalue=1.0)
    assert (found.settled, found.steps, len(looks)) == (False, 100, 5)


def test_settling_for_no_steps_only_looks() -> None:
    found = settle(bowl(4.0), point(1.0), lr=0.1, steps=0, gradient_norm=9.0, largest_eigenvalue=9.0)
    assert (found.settled, found.steps, found.gradient_norm) == (True, 0, 4.0)


# ---------------------------------------------------------------------- along paths


def test_the_loss_along_a_path_is_that_of_its_points() -> None:
    path = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 1.0]], dtype=F64)
    found = loss_along(bowl(2.0, 4.0), path, points=3)
    torch.testing.assert_close(found.position, torch.tensor([0.0, 1.5, 3.0, 3.5, 4.0], dtype=F64) / 4)
    torch.testing.assert_close(found.loss, torch.tensor([0.0, 2.25, 9.0, 9.5, 11.0], dtype=F64))


def test_a_path_of_no_length_is_at_its_start() -> None:
    found = loss_along(bowl(2.0), torch.ones(2, 1, dtype=F64), points=2)
    assert found.position.tolist() == found.distance.tolist() == [0.0, 0.0]
    assert found.loss.tolist() == [1.0, 1.0]


BENT = torch.tensor([[0.5, -1.0], [2.0, 1.0], [2.0, 0.5], [-1.0, 0.0]], dtype=F64)


@pytest.mark.parametrize("about", [0, 1, 3, -2])
def test_a_quadratic_is_its_own_expansion_about_any_knot(about: int) -> None:
    found = loss_along(bowl(3.0, 0.5), BENT, points=7, about=about)
    torch.testing.assert_close(found.quadratic, found.loss)
    steps = BENT.diff(dim=0).norm(dim=1)
    assert float(found.distance[0]) == pytest.approx(-float(steps[: about % 4].sum()))
    torch.testing.assert_close(found.distance.diff(), found.position.diff() * steps.sum())


def test_the_expansion_of_a_network_is_that_of_its_gradient_and_dense_hessian(mlp: Case) -> None:
    risk, theta = mlp.risk(), mlp.theta
    generator = torch.Generator().manual_seed(0)
    path = theta + 0.3 * torch.randn(3, len(theta), generator=generator, dtype=theta.dtype)
    found = loss_along(risk, path, points=3, about=1)
    offsets = [path[0], path[:2].mean(0), path[1], path[1:].mean(0), path[2]]
    hessian, gradient = risk.hessian(path[1]).dense(), risk.gradient(path[1])
    for place, point_ in enumerate(offsets):
        away = point_ - path[1]
        expected = risk.loss(path[1]) + gradient @ away + 0.5 * away @ hessian @ away
        assert float(found.quadratic[place]) == pytest.approx(float(expected), rel=1e-10)
        assert float(found.loss[place]) == pytest.approx(float(risk.loss(point_)), rel=1e-12)


def test_near_a_minimum_the_loss_departs_from_its_expansion_at_third_order() -> None:
    """(x² − 1)² = 4s² + 4s³ + s⁴ at x = 1 + s."""
    found = loss_along(WELLS, torch.tensor([[0.9], [1.0], [1.1]], dtype=F64), points=5, about=1)
    s = found.distance
    torch.testing.assert_close(found.quadratic, 4 * s**2)
    torch.testing.assert_close(found.loss - found.quadratic, 4 * s**3 + s**4)


def test_half_precision_is_expanded_in_single() -> None:
    model = torch.nn.Linear(3, 2).to(torch.bfloat16)
    data = torch.randn(20, 3).bfloat16(), torch.arange(20) % 2
    risk = ns.EmpiricalRisk(model, torch.nn.functional.cross_entropy, data)
    theta = risk.parameters()
    found = loss_along(risk, torch.stack([theta, theta + 0.5]), points=3, about=0)
    assert found.quadratic.dtype == F64
    assert float(found.quadratic[0]) == pytest.approx(float(found.loss[0]), rel=0.01)


def test_what_is_drawn_is_the_loss_and_its_expansion_no_further_than_the_loss() -> None:
    path = torch.tensor([[-2.0], [1.0], [1.5]], dtype=F64)
    found = loss_along(WELLS, path, points=9, about=1)
    (axis,) = found.plot().axes
    drawn, expansion, centre = axis.lines
    assert list(drawn.get_xdata()) == found.distance.tolist()
    assert list(drawn.get_ydata()) == found.loss.tolist()
    assert list(expansion.get_ydata()) == found.quadratic.tolist()
    assert set(centre.get_xdata()) == {0}
    assert float(found.quadratic.max()) > axis.get_ylim()[1] > float(found.loss.max())
    (axis,) = loss_along(WELLS, path, points=9).plot().axes
    assert len(axis.lines) == 1
    assert axis.get_legend() is None
    (level,) = loss_along(bowl(2.0), torch.ones(2, 1, dtype=F64), about=0).plot().axes
    assert level.get_ylim()[0] < 1 < level.get_ylim()[1]


@pytest.mark.parametrize(("start", "end"), [(-1.0, 1.0), (-1.05, 0.9), (-0.7, 1.3), (1.3, -0.9)])
@pytest.mark.parametrize("points", [5, 8, 41])
def test_the_barrier_of_a_double_well_is_its_hill_over_the_higher_end(
    start: float, end: float, points: int
) -> None:
    higher = max((x**2 - 1) ** 2 for x in (start, end))
    assert barrier(WELLS, point(start), point(end), points=points) == pytest.approx(1 - higher, abs=1e-6)


def test_there_is_no_barrier_within_a_convex_basin() -> None:
    risk = bowl(4.0, 1.0)
    assert barrier(risk, point(1.0, 0.0), point(0.0, 1.0)) == 0
    assert barrier(risk, point(1.0, 0.0), point(1.0, 0.0)) == 0


def test_a_barrier_where_the_loss_overflows_is_infinite() -> None:
    risk = ns.EmpiricalRisk.from_losses(lambda x: torch.where(x.abs() < 0.3, torch.inf, x.square()), point(1.0))
    assert barrier(risk, point(-1.0), point(1.0)) == math.inf


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: quench(WELLS, point(1.0)[None], level=0, lr=0.1, steps=1),
            r"θ must have shape \(1,\), not \(1, 1\)",
        ),
        (lambda: quench(WELLS, point(1.0), level=0, lr=0.0, steps=1), "lr must be positive, not 0.0"),
        (
            lambda: settle(WELLS, point(1.0), lr=0.1, steps=1, gradient_norm=-1, largest_eigenvalue=1),
            "gradient_norm must be positive",
        ),
        (lambda: at_matched_loss(WELLS, {}, lr=0.1, steps=1), "no iterates to match"),
        (lambda: loss_along(WELLS, point(1.0)), "a path has at least two knots"),
        (lambda: barrier(WELLS, point(1.0), point(2.0), points=2), "points must be at least 3"),
        (lambda: loss_along(WELLS, torch.zeros(2, 1, dtype=F64), points=1), "points must be at least 2"),
        (
            lambda: loss_along(WELLS, torch.zeros(2, 1, dtype=F64), about=2),
            "about must be at most 1, not 2",
        ),
        (lambda: loss_along(WELLS, torch.zeros(2, 1, dtype=F64), about=1.0), "about must be an int, not 1.0"),
        (
            lambda: loss_along(WELLS, torch.tensor([[math.nan], [1.0]], dtype=F64), about=0),
            "not finite",
        ),
        (lambda: quench(WELLS, point(math.nan), level=0, lr=0.1, steps=1), "not finite"),
        (lambda: quench(WELLS, point(1.0), level=math.nan, lr=0.1, steps=1), "level must be a number, not nan"),
        (lambda: quench(WELLS, point(1.0), level=math.inf, lr=0.1, steps=1), "level must be finite, not inf"),
        (lambda: quench(WELLS, point(1.0), level=0, lr=0.1, steps=-1), "steps must be at least 0"),
        (lambda: quench(WELLS, [1.0], level=0, lr=0.1, steps=1), r"θ must be a flat torch\.Tensor"),
        (lambda: at_matched_loss(WELLS, {"a": point(1.0), "b": point(math.nan)}, lr=0.1, steps=1), "iterate 'b'"),
        (lambda: at_matched_loss(WELLS, {"a": point(1.0)[None]}, lr=0.1, steps=1), "iterate 'a' must have shape"),
        (lambda: barrier(WELLS, point(1.0), point(math.nan)), "end: .*not finite|end: .*nan"),
        (lambda: barrier(WELLS, point(1e200), point(1.0)), "start: "),
        (lambda: barrier(WELLS, point(1.0), point(1.0, 2.0)), r"end must have shape \(1,\)"),
        (lambda: loss_along(WELLS, torch.zeros(2, 3, dtype=F64)), r"each knot must have shape \(1,\)"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError, ns.NonFiniteLossError), match=message):
        call()
