"""Exit times against chains solved exactly, stochastic differential equations by quadrature, and known laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from scipy.integrate import cumulative_simpson
from torch import Tensor
from torch.testing import assert_close

import noisescape as ns
from cases import CASES, F64
from noisescape.errors import FailedError
from noisescape.linops import DeviationsOperator, SymmetricOperator
from noisescape.theory.exit_laws import discrete_exit_time, fit_exit_law, kramers_time
from noisescape.theory.exits import ExitTimes, exit_rate, exit_times, survival
from slowness import quick

OVERSHOOT = 0.5826
"""−ζ(½)/√(2π): a Gaussian walk crosses a line so many standard deviations of a step beyond it, in the mean."""


def point(*coordinates: float) -> Tensor:
    return torch.tensor(coordinates, dtype=F64)


def bowl(curvature: float = 1.0) -> ns.EmpiricalRisk:
    return ns.EmpiricalRisk.from_losses(lambda x: curvature / 2 * x.square(), point(1.0))


def wells(height: float, floor: float = 0.0) -> ns.EmpiricalRisk:
    """Minima at ±√h, L'' = 8 there, and a barrier of h between them, L'' = −4: curvatures do not depend on h."""
    return ns.EmpiricalRisk.from_losses(lambda x: floor + (x.square() - height).square() / height, point(1.0))


def slope_of_wells(x: Tensor, height: float) -> Tensor:
    return 4 * x * (x.square() - height) / height


@dataclass(frozen=True)
class LossNoise(ns.Dynamics):
    """ε ~ N(0, cL(θ)I)."""

    share: float
    name: ClassVar[str] = "loss-noise"

    def noise(
        self, risk: ns.EmpiricalRisk, theta: Tensor, previous: SymmetricOperator | None, generator: torch.Generator
    ) -> tuple[SymmetricOperator, Tensor | None]:
        deviation = (self.share * risk.loss(theta)).sqrt()[..., None].expand_as(theta)
        return DeviationsOperator(deviation.contiguous(), name="loss noise"), None


def seen(times: list[int], left: list[bool], lr: float = 0.1) -> ExitTimes:
    return ExitTimes(torch.tensor(times), torch.tensor(left), lr)


def exponential(rng: np.random.Generator, mean: float, limit: float, replicas: int) -> ExitTimes:
    """Exponential times cut off at a limit; in steps so short that their rounding does not count."""
    drawn = rng.exponential(mean, replicas)
    return ExitTimes(
        torch.from_numpy(np.ceil(np.minimum(drawn, limit)).astype(int)), torch.from_numpy(drawn < limit), 0.1
    )


def passage(
    loss: Callable[[np.ndarray], np.ndarray], spread: float, low: float, high: float, start: float
) -> np.ndarray:
    """Mean exit times of dx = −L'dt + s dW: from (low, high), and to high alone where low reflects.

    By the double integral ∫ e^{2L(y)/s²} dy ∫ (2/s²)e^{−2L(z)/s²} dz on a fine grid.
    """
    grid = np.linspace(low, high, 200_001)
    scaled = 2 * loss(grid) / spread**2
    below = cumulative_simpson(2 / spread**2 * np.exp(-scaled), x=grid, initial=0)
    scale = cumulative_simpson(np.exp(scaled), x=grid, initial=0)
    double = cumulative_simpson(np.exp(scaled) * below, x=grid, initial=0)
    at = np.searchsorted(grid, start - 1e-9)
    return np.array([scale[at] / scale[-1] * double[-1] - double[at], double[-1] - double[at]])


# ---------------------------------------------------------------------- simulated exits


@pytest.mark.parametrize(("lr", "edge", "expected"), [(0.5, 5.0, 3), (0.5, 8.0, 3), (0.5, 8.1, 4), (0.25, 5.0, 4)])
def test_a_descent_leaves_at_the_step_that_the_closed_form_says(lr: float, edge: float, expected: int) -> None:
    """x_k = (1 + 2η)^k on L = −x²."""
    hill = ns.EmpiricalRisk.from_losses(lambda x: -x.square(), point(1.0))
    options = {"lr": lr, "replicas": 3, "inside": lambda x: x[:, 0] < edge}
    found = exit_times(hill, ns.GD(), point(1.0), steps=9, **options)
    assert found.times.tolist() == [expected] * 3
    assert found.left.all()
    cut = exit_times(hill, ns.GD(), point(1.0), steps=expected - 1, **options)
    assert cut.times.tolist() == [expected - 1] * 3
    assert (cut.events, cut.exposure, cut.lr) == (0, 3 * (expected - 1), lr)


DYNAMICS = [
    (ns.SGD(2), 6),
    (ns.SGD(3, sampling="epoch"), 9),
    (ns.GLDFull(2), 6),
    (ns.GLDDiagonal(2, refresh=3), 5),
    (ns.GLDLeading(2, k=2, refresh=2), 6),
]


@pytest.mark.parametrize(("dynamics", "limit"), DYNAMICS, ids=[dynamics.name for dynamics, _ in DYNAMICS])
def test_exits_of_a_model_are_those_of_its_simulation(dynamics: ns.Dynamics, limit: int) -> None:
    """To the last bit the first step at which a recorder, asked at each, finds the replica outside."""
    risk = CASES["mlp cross-entropy"].risk()
    start = risk.parameters()

    def inside(theta: Tensor) -> Tensor:
        return (theta - start).norm(dim=-1) < 0.6

    found = exit_times(risk, dynamics, start, lr=0.2, steps=limit, replicas=6, inside=inside, seed=4)
    run = ns.simulate(
        risk,
        dynamics,
        start,
        lr=0.2,
        steps=limit,
        replicas=6,
        seed=4,
        every=1,
        record={"inside": lambda _risk, theta: inside(theta)},
        progress=False,
    )
    out = run.records["inside"].values == 0  # (steps + 1, R)
    assert_close(found.left, out.any(0))
    assert_close(found.times, torch.where(out.any(0), out.int().argmax(0), limit))
    assert 0 < found.events < 6


def test_a_larger_region_is_left_later_and_a_limit_only_cuts_off() -> None:
    """Replica by replica: what others did has no part in it."""
    options: dict[str, Any] = {"lr": 0.1, "replicas": 50, "seed": 1}
    noise = ns.GLDConstant(3.0)
    near, far = (
        exit_times(
            bowl(), noise, point(0.0), steps=300, inside=lambda x, edge=edge: x[:, 0].abs() < edge, **options
        )
        for edge in (0.9, 1.1)
    )
    assert (far.times >= near.times).all()
    assert (far.times > near.times).any()
    cut = exit_times(bowl(), noise, point(0.0), steps=20, inside=lambda x: x[:, 0].abs() < 0.9, **options)
    assert_close(cut.times, near.times.clamp_max(20))
    assert_close(cut.left, near.left & (near.times <= 20))


def test_a_replica_that_diverges_left_then_and_its_place_is_not_asked_about() -> None:
    asked = []

    def everywhere(theta: Tensor) -> Tensor:
        asked.append(theta)
        return torch.ones(len(theta), dtype=torch.bool)

    hill = ns.EmpiricalRisk.from_losses(lambda x: -x.square(), point(1.0))
    found = exit_times(hill, ns.GD(), point(1.0), lr=0.5, steps=99, replicas=2, inside=everywhere)
    assert found.times.tolist() == [27, 27]  # 2^27 > 10⁸
    cliff = ns.EmpiricalRisk.from_losses(lambda x: (x - 2).sqrt(), point(3.0))  # NaN below 2
    found = exit_times(cliff, ns.GLDConstant(1.0), point(2.5), lr=0.2, steps=99, replicas=5, inside=everywhere)
    assert found.left.all()
    assert torch.cat(asked).isfinite().all()


@pytest.mark.parametrize(("lr", "start"), [(0.05, 0.0), (0.5, 0.4)])
def test_simulated_exits_from_a_bowl_have_the_mean_of_the_chain_solved(lr: float, start: float) -> None:
    spread, replicas = 0.8, 4000
    noise = spread / math.sqrt(lr)  # of the gradient: ησ² = spread²
    exact = discrete_exit_time(
        lambda x: x - lr * x, lambda x: torch.full_like(x, lr * noise), -1.0, 1.0, start, points=60
    )
    found = exit_times(
        bowl(),
        ns.GLDConstant(noise),
        point(start),
        lr=lr,
        steps=3000,
        replicas=replicas,
        inside=lambda x: x[:, 0].abs() < 1,
        seed=2,
    )
    assert found.left.all()
    times = found.times.double()
    stderr = float(times.std()) / math.sqrt(replicas)
    assert stderr < 0.02 * exact.steps
    assert abs(float(times.mean()) - exact.steps) < 2.5 * stderr


# ---------------------------------------------------------------------- rates and survival


def test_the_interval_of_a_rate_is_that_of_chi_square() -> None:
    found = exit_rate(seen([4, 10, 2, 10, 10, 7], [True, False, True, False, False, True], lr=0.05), level=0.9)
    assert found.per_step == pytest.approx(3 / 43)
    assert found.low == pytest.approx(stats.chi2.ppf(0.05, 6) / 86)
    assert found.high == pytest.approx(stats.chi2.ppf(0.95, 8) / 86)
    assert found.per_time == pytest.approx((found.per_step / 0.05, found.low / 0.05, found.high / 0.05))


def test_without_an_exit_there_is_an_upper_bound_at_the_whole_level() -> None:
    found = exit_rate(seen([50, 50], [False, False]))
    assert (found.per_step, found.low) == (0, 0)
    assert math.exp(-100 * found.high) == pytest.approx(0.05)


@pytest.mark.parametrize(("replicas", "limit"), [(40, 600.0), (100, 2000.0)])
def test_the_interval_of_a_rate_covers_it_as_often_as_it_says(replicas: int, limit: float) -> None:
    rng, mean, repeats = np.random.default_rng(0), 1000.0, 4000
    found = [exit_rate(exponential(rng, mean, limit, replicas)) for _ in range(repeats)]
    assert 0.93 <= np.mean([one.low <= 1 / mean <= one.high for one in found]) <= 0.975
    # halves, too: neither end is beyond the rate more often than it should be
    assert np.mean([one.low > 1 / mean for one in found]) < 0.032
    assert np.mean([one.high < 1 / mean for one in found]) < 0.032


def test_the_survival_is_that_worked_out_by_hand() -> None:
    """Of 8 one leaves at 2, two at 3, one at 5, where one is last seen, one at 8; two are last seen at 9."""
    found = survival(seen([2, 3, 3, 5, 5, 8, 9, 9], [True, True, True, True, False, True, False, False], lr=0.3))
    assert found.steps.tolist() == [2, 3, 5, 8, 9]
    share = [7 / 8, 5 / 8, 5 / 8 * 4 / 5, 5 / 8 * 4 / 5 * 2 / 3]
    assert_close(found.share, torch.tensor([*share, share[-1]], dtype=F64))
    assert found.lr == 0.3
    greenwood = [1 / (8 * 7), 2 / (7 * 5), 1 / (5 * 4), 1 / (3 * 2)]
    for at, total in enumerate(np.cumsum(greenwood)):
        half = 1.959964 * math.sqrt(total) / abs(math.log(share[at]))
        assert float(found.low[at]) == pytest.approx(share[at] ** math.exp(half), rel=1e-5)
        assert float(found.high[at]) == pytest.approx(share[at] ** math.exp(-half), rel=1e-5)


def test_where_none_or_all_have_left_a_survival_has_no_interval() -> None:
    none = survival(seen([5, 5], [False, False]))
    assert none.share.tolist() == [1.0]
    assert none.low.isnan().all()
    both = survival(seen([2, 5], [True, True]))
    assert both.share.tolist() == [0.5, 0.0]
    assert both.low.isnan().tolist() == both.high.isnan().tolist() == [False, True]


# ---------------------------------------------------------------------- chains solved


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.3), (3.0, 0.5)])
def test_a_chain_without_memory_leaves_after_geometric_times(mean: float, std: float) -> None:
    staying = stats.norm.cdf(1, mean, std) - stats.norm.cdf(-1, mean, std)
    found = discrete_exit_time(
        lambda x: torch.full_like(x, mean), lambda x: torch.full_like(x, std), -1.0, 1.0, 0.3, points=40
    )
    assert found.steps == pytest.approx(1 / (1 - staying), rel=1e-11)
    assert found.error < 1e-9 * found.steps


def test_a_chain_goes_over_to_its_equation_as_the_square_root_of_the_rate() -> None:
    """And as the rate itself once the ends are moved by the overshoot of a Gaussian walk."""
    spread, plain, moved = 0.7, [], []
    for lr in (0.04, 0.01, 0.0025):
        step = math.sqrt(lr) * spread
        chain = discrete_exit_time(
            lambda x, lr=lr: x - lr * x, lambda x, step=step: torch.full_like(x, step), -1.0, 1.0, 0.2, points=200
        )
        plain.append(chain.steps * lr / passage(lambda x: x**2 / 2, spread, -1, 1, 0.2)[0] - 1)
        far = 1 + OVERSHOOT * step
        moved.append(chain.steps * lr / passage(lambda x: x**2 / 2, spread, -far, far, 0.2)[0] - 1)
    assert plain[0] / plain[1] == pytest.approx(2, rel=0.05)
    assert plain[1] / plain[2] == pytest.approx(2, rel=0.05)
    assert moved[0] / moved[1] == pytest.approx(4, rel=0.05)
    assert moved[1] / moved[2] == pytest.approx(4, rel=0.05)
    assert abs(moved[2]) < 0.004


def chain_of_wells(height: float, lr: float, deviation: Callable[[Tensor], Tensor], points: int = 400) -> float:
    """Steps from one minimum to the other under gradient noise of this standard deviation."""
    edge = math.sqrt(height)
    found = discrete_exit_time(
        lambda x: x - lr * slope_of_wells(x, height),
        lambda x: lr * deviation(x),
        -2.2 * edge,
        edge,
        -edge,
        points=points,
    )
    assert found.error < 1e-6 * found.steps
    return found.steps


# ---------------------------------------------------------------------- Kramers


def test_kramers_is_the_limit_of_the_double_integral_for_high_barriers() -> None:
    """Too low by 0.43/exponent in this well, and half of it to the top of the barrier."""
    for exponent in (8, 16, 32):
        found = kramers_time(8.0, -4.0, 1.0, lr=0.01, variance=2 / exponent / 0.01)
        spread = math.sqrt(2 / exponent)
        across = passage(lambda x: (x**2 - 1) ** 2, spread, -2.2, 1.0, -1.0)[1]
        top = passage(lambda x: (x**2 - 1) ** 2, spread, -2.2, 0.0, -1.0)[1]
        assert found.exponent == pytest.approx(exponent)
        assert (across / found.time - 1) * exponent == pytest.approx(0.43, abs=0.05)
        assert top / across == pytest.approx(0.5, rel=0.02)
        assert found.steps == found.time / 0.01


@pytest.mark.parametrize(("exponent", "close"), [(6, 0.08), (10, 0.045), (14, 0.03)])
def test_kramers_is_close_to_the_chain_solved_at_a_high_barrier(exponent: int, close: float) -> None:
    lr, variance = 0.002, 2 / exponent / 0.002
    exact = chain_of_wells(1.0, lr, lambda x: torch.full_like(x, math.sqrt(variance)))
    assert kramers_time(8.0, -4.0, 1.0, lr=lr, variance=variance).steps == pytest.approx(exact, rel=close)


def test_kramers_at_a_barrier_beyond_numbers_is_never() -> None:
    found = kramers_time(1.0, -1.0, 1.0, lr=0.01, variance=0.1)
    assert (found.steps, found.exponent) == (math.inf, pytest.approx(2000))


# ---------------------------------------------------------------------- the two laws


def test_a_fit_has_the_likelihood_and_the_information_of_exponential_times() -> None:
    rng, heights = np.random.default_rng(3), [1.0, 1.5, 2.5]
    groups = [exponential(rng, 50 * math.exp(height), 300, 20) for height in heights]
    found = fit_exit_law(groups, heights)

    def likelihood(intercept: float, slope: float, places: list[float], groups: list[ExitTimes] = groups) -> float:
        total = 0.0
        for group, place in zip(groups, places, strict=True):
            law = stats.expon(scale=math.exp(intercept + slope * place))
            times, left = group.times.numpy(), group.left.numpy()
            total += law.logpdf(times[left]).sum() + law.logsf(times[~left]).sum()
        return total

    for law, places in ((found.additive, heights), (found.multiplicative, np.log(heights).tolist())):
        a, b = law.intercept.value, law.slope.value
        assert law.log_likelihood == pytest.approx(likelihood(a, b, places), rel=1e-12)
        h = 1e-3
        around = np.array([[likelihood(a + i * h, b + j * h, places) for j in (-1, 0, 1)] for i in (-1, 0, 1)])
        assert around.argmax() == 4
        mixed = (around[2, 2] - around[2, 0] - around[0, 2] + around[0, 0]) / 4
        second = [
            [around[2, 1] + around[0, 1] - 2 * around[1, 1], mixed],
            [mixed, around[1, 2] + around[1, 0] - 2 * around[1, 1]],
        ]
        errors = np.sqrt(np.linalg.inv(-np.array(second) / h**2).diagonal())
        assert [law.intercept.stderr, law.slope.stderr] == pytest.approx(errors, rel=1e-3)
    own = sum(likelihood(math.log(one.exposure / one.events), 0, [0], [one]) for one in groups)
    assert found.saturated == pytest.approx(own, rel=1e-12)
    assert found.saturated > max(found.additive.log_likelihood, found.multiplicative.log_likelihood)


@pytest.mark.parametrize("which", quick(["additive"], ["multiplicative"]))
def test_fits_cover_the_truth_and_find_the_law(which: str) -> None:
    """Intervals of slope and intercept over repetitions; the deviance is that of χ² with barriers − 2 degrees."""
    rng, heights, slope, repeats = np.random.default_rng(1), np.array([0.5, 1.0, 2.0, 4.0]), 1.3, 1000
    places = heights if which == "additive" else np.log(heights)
    covered, right, deviance = np.zeros(2), 0, []
    for _ in range(repeats):
        groups = [exponential(rng, 200 * math.exp(slope * place), 4000, 30) for place in places]
        found = fit_exit_law(groups, heights.tolist())
        law = getattr(found, which)
        ends = [law.intercept.interval(), law.slope.interval()]
        covered += [low <= truth <= high for truth, (low, high) in zip((math.log(200), slope), ends, strict=True)]
        right += (found.difference > 0) == (which == "additive")
        deviance.append(2 * (found.saturated - law.log_likelihood))
    assert ((covered >= 0.93 * repeats) & (covered <= 0.97 * repeats)).all()
    assert right > 0.9 * repeats
    assert np.mean(deviance) == pytest.approx(2, abs=0.25)


def test_the_slopes_of_both_laws_are_those_of_chains_solved() -> None:
    """2/(ησ²), and 2/(ηc) + ½ with the losses below and above; log ΔL alone would mistake it."""
    lr, high = 0.002, np.array([4.0, 5.0, 6.0])
    times = [chain_of_wells(height, lr, lambda x: torch.full_like(x, lr**-0.5)) for height in high]  # ησ² = 1
    assert np.diff(np.log(times)) == pytest.approx([2, 2], rel=0.02)

    share, floor, heights = 0.5 / 0.01, 0.5, np.array([1.0, 2.0, 4.0])  # ηc = ½

    def deviation(height: float) -> Callable[[Tensor], Tensor]:
        return lambda x: (share * (floor + (x.square() - height).square() / height)).sqrt()

    times = [chain_of_wells(height, 0.01, deviation(height)) for height in heights]
    slopes = np.diff(np.log(times)) / np.diff(np.log1p(heights / floor))
    assert slopes == pytest.approx([4.5, 4.5], rel=0.03)


WATCHED_FOR, LR = 600, 0.02


def test_noise_that_does_not_change_shows_kramers_law() -> None:
    heights, noise = [1.0, 2.0, 3.0, 4.0], math.sqrt(2 / LR)  # ησ² = 2
    groups = [left_wells(height, ns.GLDConstant(noise), seed) for seed, height in enumerate(heights)]
    found = fit_exit_law(groups, heights)
    watched = [expected_of_wells(height, lambda x: np.full_like(x, noise)) for height in heights]
    limit = slope_of_expected(watched, heights)
    assert abs(found.additive.slope.value - limit) < 2.5 * found.additive.slope.stderr
    assert limit == pytest.approx(1, rel=0.05)  # 2/(ησ²)
    assert found.difference > 5
    assert found.saturated - found.additive.log_likelihood < 5


@pytest.mark.slow
def test_noise_in_proportion_to_the_loss_shows_the_power_law() -> None:
    heights, floor, share = [0.25, 0.5, 1.0, 2.0], 0.5, 1 / LR  # ηc = 1
    groups = [left_wells(height, LossNoise(share), seed, floor) for seed, height in enumerate(heights)]
    found = fit_exit_law(groups, heights, minima=[floor] * 4)
    watched = [
        expected_of_wells(height, lambda x, h=height: np.sqrt(share * (floor + (x**2 - h) ** 2 / h)))
        for height in heights
    ]
    limit = slope_of_expected(watched, np.log1p(np.array(heights) / floor))
    assert abs(found.multiplicative.slope.value - limit) < 2.5 * found.multiplicative.slope.stderr
    assert limit == pytest.approx(2.5, rel=0.05)  # 2/(ηc) + ½
    assert found.difference < -5
    assert found.saturated - found.multiplicative.log_likelihood < 5


def left_wells(height: float, noise: ns.Dynamics, seed: int, floor: float = 0.0) -> ExitTimes:
    edge = math.sqrt(height)
    return exit_times(
        wells(height, floor),
        noise,
        point(-edge),
        lr=LR,
        steps=WATCHED_FOR,
        replicas=600,
        inside=lambda x: (x[:, 0] < edge) & (x[:, 0] > -2.2 * edge),
        seed=seed,
    )


def expected_of_wells(height: float, deviation: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """Exits and steps watched to expect of a replica, by powers of the chain on cells of its interval."""
    edge = math.sqrt(height)
    ends = np.linspace(-2.2 * edge, edge, 201)
    cells = (ends[1:] + ends[:-1]) / 2
    means = cells - LR * 4 * cells * (cells**2 - height) / height
    chain = np.diff(stats.norm.cdf(ends, means[:, None], LR * deviation(cells)[:, None]), axis=1)
    staying, steps = np.ones(200), 0.0
    for _ in range(WATCHED_FOR):
        steps += np.interp(-edge, cells, staying)
        staying = chain @ staying
    return 1 - float(np.interp(-edge, cells, staying)), float(steps)


def slope_of_expected(watched: list[tuple[float, float]], places: Any) -> float:
    """The slope to which a fit tends with many replicas, times cut off and a law that holds nearly."""
    exits, steps = np.array(watched).T
    shifted = np.array(places) - np.mean(places)

    def loss(law: np.ndarray) -> float:
        logs = law[0] + law[1] * shifted
        return float(exits @ logs + steps @ np.exp(-logs))

    return float(optimize.minimize(loss, [np.log(steps / exits).mean(), 1.0], tol=1e-10, method="Nelder-Mead").x[1])


def test_two_barriers_cannot_tell_the_laws_apart() -> None:
    groups = [seen([3, 5, 9], [True, True, False]), seen([30, 50, 90], [True, True, False])]
    found = fit_exit_law(groups, [1.0, 3.0])
    assert found.difference == pytest.approx(0, abs=1e-9)
    assert found.additive.slope.value == pytest.approx(math.log(10) / 2)
    assert found.multiplicative.slope.value == pytest.approx(math.log(10) / math.log(3))
    assert found.additive.log_likelihood == pytest.approx(found.saturated)


def test_a_barrier_that_none_left_over_only_makes_the_slope_steeper() -> None:
    groups = [seen([30, 50, 90], [True, True, True]), seen([300, 500, 900], [True, True, True])]
    before = fit_exit_law(groups, [1.0, 2.0]).additive.slope.value
    after = fit_exit_law([*groups, seen([10**6] * 9, [False] * 9)], [1.0, 2.0, 3.0]).additive.slope.value
    assert after > before + 1


# ---------------------------------------------------------------------- what is refused

WATCHED = seen([3, 4], [True, True])
UNEVEN = seen([3, 4], [True, True], lr=0.2)
STILL = seen([3, 4], [False, False])


def tried(**changed: Any) -> ExitTimes:
    options: dict[str, Any] = {"lr": 0.1, "steps": 9, "replicas": 2, "inside": lambda x: x[:, 0].abs() < 2}
    start = changed.pop("theta", point(1.0))
    return exit_times(bowl(), changed.pop("dynamics", ns.GLDConstant(1.0)), start, **options | changed)


def solved(mean: Any = lambda x: x / 2, std: Any = torch.ones_like, low: float = -1.0, **options: Any) -> Any:
    return discrete_exit_time(mean, std, low, options.pop("high", 1.0), options.pop("start", 0.0), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tried(lr=0), "lr must be positive, not 0"),
        (lambda: tried(lr=math.nan), "lr must be positive, not nan"),
        (lambda: tried(steps=0), "steps must be at least 1, not 0"),
        (lambda: tried(replicas=0), "replicas must be at least 1, not 0"),
        (lambda: tried(theta=point(3.0)), "outside of the region"),
        (lambda: tried(theta=point(math.nan)), "the start is not finite"),
        (lambda: tried(theta=point(1.0)[None]), r"θ must have shape \(1,\)"),
        (lambda: tried(dynamics=ns.GLDConstant(-1.0)), "rho must be at least 0"),
        (lambda: tried(inside=lambda x: x < 2), r"one bool a replica, \(2,\), not torch.bool of shape \(2, 1\)"),
        (lambda: tried(inside=lambda x: x[:, 0]), r"not torch.float64 of shape \(2,\)"),
        (lambda: tried(inside=lambda x: True), "not bool: for example"),
        (lambda: seen([], []), "times must be whole numbers"),
        (lambda: ExitTimes([3], [True], 0.1), "times must be whole numbers, one a replica.*not list"),
        (lambda: ExitTimes(point(3.0), torch.tensor([True]), 0.1), "not torch.float64"),
        (lambda: ExitTimes(torch.tensor([3]), torch.tensor([1]), 0.1), r"left must be bool, \(1,\)"),
        (lambda: ExitTimes(torch.tensor([3]), torch.tensor([True, False]), 0.1), "left must be bool"),
        (lambda: seen([0], [True]), "counted from 1"),
        (lambda: seen([1], [True], lr=-0.1), "lr must be positive"),
        (lambda: exit_rate(WATCHED, level=1.0), "level lies strictly between 0 and 1"),
        (lambda: survival(WATCHED, level=0.0), "level lies strictly between 0 and 1"),
        (lambda: kramers_time(-1.0, -1.0, 1.0, lr=0.1, variance=1.0), "minimum_curvature must be positive"),
        (lambda: kramers_time(1.0, 1.0, 1.0, lr=0.1, variance=1.0), "saddle_curvature, .*must be < 0, not 1.0"),
        (lambda: kramers_time(1.0, -1.0, 0.0, lr=0.1, variance=1.0), "barrier must be positive"),
        (lambda: kramers_time(1.0, -1.0, 1.0, lr=0.1, variance=0.0), "variance must be positive"),
        (lambda: solved(start=1.0), "start must lie between low and high"),
        (lambda: solved(low=-math.inf), "start must lie between low and high, all finite"),
        (lambda: solved(points=0), "points must be at least 1, not 0"),
        (lambda: solved(rtol=0.0), "rtol must be positive"),
        (lambda: solved(mean=lambda x: x / 0), "step_mean must give a finite number"),
        (lambda: solved(mean=lambda x: 0.0), "step_mean must give a finite number"),
        (lambda: solved(std=lambda x: x[:, None]), "step_std must give a finite number"),
        (lambda: solved(std=torch.zeros_like), "the least step_std inside must be positive"),
        (lambda: fit_exit_law([WATCHED], [1.0, 2.0]), "must be equally many"),
        (lambda: fit_exit_law([WATCHED] * 2, [1.0, 2.0], minima=[]), "must be equally many"),
        (lambda: fit_exit_law([WATCHED] * 2, [0.0, 2.0]), "each of barriers and minima must be positive"),
        (
            lambda: fit_exit_law([WATCHED] * 2, [1.0, 2.0], minima=[1.0, 0.0]),
            "barriers and minima must be positive",
        ),
        (lambda: fit_exit_law([WATCHED, UNEVEN], [1.0, 2.0]), r"several lr, \[0.1, 0.2\]"),
        (lambda: fit_exit_law([WATCHED, STILL], [1.0, 2.0]), "fewer than two different barriers"),
        (lambda: fit_exit_law([WATCHED] * 2, [1.0, 1.0]), "fewer than two different barriers"),
        (lambda: fit_exit_law([], []), "fewer than two different barriers"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_nodes_too_far_apart_are_refused_with_how_many_it_takes() -> None:
    with pytest.raises(
        FailedError, match=r"too far for a step of standard deviation 0.01: take points=(\d+)"
    ) as error:
        solved(std=lambda x: torch.full_like(x, 0.3) - 0.29 * (x.abs() < 0.1), points=50)
    enough = int(str(error.value).rpartition("=")[2])
    assert solved(std=lambda x: torch.full_like(x, 0.3), points=enough).steps > 1


def test_an_exit_lost_in_rounding_is_refused() -> None:
    with pytest.raises(FailedError, match="drowns in rounding: lower the barrier"):
        solved(std=lambda x: torch.full_like(x, 0.1))


def test_an_error_above_what_is_allowed_is_refused() -> None:
    with pytest.raises(FailedError, match="raise points=6 or rtol"):
        solved(std=lambda x: torch.full_like(x, 0.5), points=6, rtol=1e-9)
