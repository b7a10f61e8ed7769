"""Batch-size advice against closed forms, and against every batch of a small quadratic."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

import noisescape as ns
from noisescape.errors import InvalidTypeError, InvalidValueError
from noisescape.runs.run import strict_json
from noisescape.training import BatchSizeAdvice, Interval, read_log

advise = ns.batch_size_advice
REPORT = {
    "noise/step": 300.0,
    "noise/batch_size": 64.0,
    "noise/pieces": 8.0,
    "noise/trace_covariance": 12.0,
    "noise/squared_gradient_norm": 0.1,
    "noise/scale": 120.0,
    "noise/scale_stderr": 15.0,
    "noise/scale_low": 90.0,
    "noise/scale_high": 170.0,
    "noise/lr": 0.05,
}
ADAM = REPORT | {
    "noise/preconditioned/trace_covariance": 4.0,
    "noise/preconditioned/squared_gradient_norm": 0.1,
    "noise/preconditioned/scale": 40.0,
    "noise/preconditioned/scale_low": 30.0,
    "noise/preconditioned/scale_high": 55.0,
}


def a_rule(found: BatchSizeAdvice, name: str) -> Interval:
    return next(rule.factor for rule in found.rules if rule.name == name)


# ---------------------------------------------------------------------- the equations


def best_step(hessian: np.ndarray, points: np.ndarray, start: np.ndarray, size: int) -> tuple[float, float]:
    """The learning rate with the least expected loss after one step, over every batch, and that loss's decrease."""
    gradients = (start - points) @ hessian
    batches = [gradients[list(chosen)].mean(0) for chosen in itertools.product(range(len(points)), repeat=size)]

    def loss(theta: np.ndarray) -> float:
        apart = theta - points.mean(0)
        return float(0.5 * apart @ hessian @ apart)

    def expected(lr: float) -> float:
        return float(np.mean([loss(start - lr * gradient) for gradient in batches]))

    found = minimize_scalar(expected, bounds=(0, 3), method="bounded", options={"xatol": 1e-10})
    return found.x, loss(start) - found.fun


@pytest.mark.parametrize("curvatures", [(0.7, 0.7), (2.0, 0.3)], ids=["isotropic", "ill-conditioned"])
@pytest.mark.parametrize("target", [1, 3, 4])
def test_the_speed_up_is_that_of_the_best_step_over_every_batch(curvatures: tuple[float, ...], target: int) -> None:
    generator = np.random.default_rng(0)
    points, start, hessian = generator.normal(size=(5, 2)), np.array([1.0, -0.5]), np.diag(curvatures)
    gradients = (start - points) @ hessian
    mean = gradients.mean(0)
    covariance = np.cov(gradients.T, bias=True)
    if len(set(curvatures)) == 1:
        scale = np.trace(covariance) / (mean @ mean)
    else:
        scale = np.trace(hessian @ covariance) / (mean @ hessian @ mean)
    (lr, decrease), (lr_there, decrease_there) = (best_step(hessian, points, start, size) for size in (2, target))
    found = advise(scale, batch_size=2, target=target, lr=lr)
    # as many times the steps as one step gains less; samples are steps times the batch size
    assert found.steps.value == pytest.approx(decrease / decrease_there, rel=1e-6)
    assert found.samples.value == pytest.approx(decrease / decrease_there * target / 2, rel=1e-6)
    assert found.rules[0].lr is not None
    assert found.rules[0].lr.value == pytest.approx(lr_there, rel=1e-6)


@pytest.mark.parametrize(("noise", "size", "target"), [(100.0, 32, 64), (3.0, 32, 64), (40.0, 64, 16), (5e4, 1, 8)])
def test_every_figure_is_its_closed_form(noise: float, size: int, target: int) -> None:
    def steps(batch: float) -> float:
        return 1 + noise / batch

    def surge(batch: float) -> float:
        return 1 / (math.sqrt(noise / batch) + math.sqrt(batch / noise))

    sgd = advise(noise, batch_size=size, target=target, trace_covariance=7.0)
    adam = advise(noise, batch_size=size, target=target, optimizer="adam")
    for found in (sgd, adam):
        assert found.steps.value == pytest.approx(steps(target) / steps(size))
        assert found.samples.value == pytest.approx(target * steps(target) / (size * steps(size)))
        assert found.relative_gradient_variance.value == pytest.approx(noise / size)
    assert sgd.gradient_variance == 7.0 / size
    assert a_rule(sgd, "noise-scale").value == pytest.approx(steps(size) / steps(target))
    assert a_rule(sgd, "linear").value == target / size
    assert a_rule(adam, "square-root").value == pytest.approx(math.sqrt(target / size))
    assert a_rule(adam, "surge").value == pytest.approx(surge(target) / surge(size))


def test_the_surge_peaks_at_the_noise_scale() -> None:
    to = {
        target: a_rule(advise(64.0, batch_size=8, target=target, optimizer="adam"), "surge").value
        for target in (16, 32, 63, 64, 65, 128, 256)
    }
    assert max(to, key=lambda target: to[target]) == 64
    assert to[32] == pytest.approx(to[128])


def test_far_from_the_noise_scale_are_the_two_limits() -> None:
    below, above = advise(1e9, batch_size=4), advise(1e-9, batch_size=4)
    assert below.steps.value == pytest.approx(0.5)
    assert below.samples.value == pytest.approx(1.0)
    assert a_rule(below, "noise-scale").value == pytest.approx(2.0)
    assert above.steps.value == pytest.approx(1.0)
    assert above.samples.value == pytest.approx(2.0)
    assert a_rule(above, "noise-scale").value == pytest.approx(1.0)
    assert (below.regime, above.regime) == ("noise", "curvature")


# ---------------------------------------------------------------------- intervals


@pytest.mark.parametrize("target", [8, 64])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_ends_are_the_figures_at_the_ends(target: int, optimizer: str) -> None:
    given = {"batch_size": 32, "target": target, "optimizer": optimizer, "lr": 0.1}
    found = advise(50.0, noise_scale_low=20.0, noise_scale_high=200.0, **given)
    low, high = advise(20.0, **given), advise(200.0, **given)

    def figures(advice: BatchSizeAdvice) -> list[Interval]:
        rates = [rule.lr for rule in advice.rules if rule.lr is not None]
        assert len(rates) == 2
        return [advice.steps, advice.samples, advice.relative_gradient_variance, *rates]

    for each, *ends in zip(figures(found), figures(low), figures(high), strict=True):
        assert [each.low, each.high] == pytest.approx(sorted(end.value for end in ends))
        assert each.low <= each.value <= each.high


def test_an_interval_without_an_upper_end_gives_the_limits() -> None:
    found = advise(100.0, batch_size=50, noise_scale_low=50.0, noise_scale_high=math.inf, lr=0.1)
    assert (found.steps.low, found.steps.high) == (0.5, 0.75)
    assert (found.samples.low, found.samples.high) == (1.0, 1.5)
    assert found.relative_gradient_variance.high == math.inf
    assert any("no upper end" in caveat for caveat in found.caveats)
    back = json.loads(strict_json(found.to_dict()), parse_constant=pytest.fail)
    assert back["noise_scale"] == {"value": 100.0, "low": 50.0, "high": None}
    assert back["steps"] == {"value": pytest.approx(2 / 3), "low": 0.5, "high": 0.75}


@pytest.mark.parametrize("value", [-300.0, math.nan])
def test_a_norm_that_is_not_told_from_zero_leaves_the_interval_alone(value: float) -> None:
    found = advise(value, batch_size=50, noise_scale_low=150.0, noise_scale_high=math.inf)
    assert math.isnan(found.steps.value)
    assert (found.steps.low, found.steps.high) == (0.5, 0.625)
    assert found.regime == "noise"
    assert "undetermined [150, ∞]" in str(found)
    assert "nan" not in str(found)


def test_an_infinite_noise_scale_gives_the_limits() -> None:
    found = advise(math.inf, batch_size=50, noise_scale_low=150.0, noise_scale_high=math.inf, optimizer="adam")
    assert (found.steps, found.samples) == (Interval(0.5, 0.5, 0.625), Interval(1.0, 1.0, 1.25))
    assert a_rule(found, "surge").value == pytest.approx(2**0.5)
    assert found.regime == "noise"
    assert str(found).startswith("noise scale ∞ [150, ∞] samples")
    steps = advise(math.inf, batch_size=50).steps
    assert (steps.value, math.isnan(steps.low), math.isnan(steps.high)) == (0.5, True, True)


def test_a_lower_end_below_zero_counts_as_zero() -> None:
    found = advise(10.0, batch_size=50, noise_scale_low=-5.0, noise_scale_high=30.0)
    assert (found.noise_scale.low, found.steps.high, found.samples.high) == (0.0, 1.0, 2.0)
    assert found.regime == "curvature"


def test_without_an_interval_none_is_made_up() -> None:
    found = advise(100.0, batch_size=50)
    assert not found.steps.known
    assert "[" not in str(found).split("\n")[0]
    assert any("No interval" in caveat for caveat in found.caveats)
    assert advise(100.0, batch_size=50, noise_scale_low=60.0).noise_scale == Interval(100.0, 60.0, math.inf)


def test_a_noise_scale_around_the_batch_size_decides_nothing() -> None:
    assert advise(60.0, batch_size=50, noise_scale_low=40.0, noise_scale_high=90.0).regime == "undecided"


# ---------------------------------------------------------------------- reports, logs, optimisers


def test_a_report_says_the_same_as_its_figures() -> None:
    found = BatchSizeAdvice.from_report(REPORT)
    assert found == advise(
        120.0,
        batch_size=64,
        noise_scale_low=90.0,
        noise_scale_high=170.0,
        lr=0.05,
        squared_gradient_norm=0.1,
        trace_covariance=12.0,
    )
    assert found.gradient_variance == 12.0 / 64
    asked = BatchSizeAdvice.from_report(REPORT, batch_size=32, lr=0.2, target=48)
    assert (asked.batch_size, asked.lr, asked.target) == (32, 0.2, 48)


def test_adams_own_metric_is_taken_where_there_is_one() -> None:
    found = BatchSizeAdvice.from_report(ADAM)
    assert (found.optimizer, found.metric, found.noise_scale) == (
        "adam",
        "preconditioned",
        Interval(40.0, 30.0, 55.0),
    )
    assert any("Adam's metric" in caveat for caveat in found.caveats)
    without = BatchSizeAdvice.from_report(REPORT, optimizer="adam")
    assert (without.metric, without.noise_scale.value) == ("gradient", 120.0)
    assert any("not in Adam's metric" in caveat for caveat in without.caveats)
    sgd = BatchSizeAdvice.from_report(ADAM, optimizer="sgd")
    assert (sgd.metric, sgd.noise_scale.value) == ("gradient", 120.0)
    assert sgd.caveats == BatchSizeAdvice.from_report(REPORT).caveats


def test_an_upper_end_that_could_not_be_written_is_infinite() -> None:
    found = BatchSizeAdvice.from_report(REPORT | {"noise/scale": -90.0, "noise/scale_high": math.nan})
    assert (found.noise_scale.low, found.noise_scale.high) == (90.0, math.inf)
    assert math.isnan(found.noise_scale.value)


def test_a_mean_batch_size_is_rounded_and_negative_estimates_are_told() -> None:
    given = {"noise/batch_size": 63.7, "noise/trace_covariance": -0.5, "noise/scale": -5.0, "noise/scale_low": 0.0}
    found = BatchSizeAdvice.from_report(REPORT | given)
    assert (found.batch_size, found.gradient_variance) == (64, -0.5 / 64)
    assert found.steps.high == 1.0
    assert BatchSizeAdvice.from_report(REPORT | {"noise/batch_size": 0.4}).batch_size == 1


def test_a_monitors_own_report_is_advice() -> None:
    """Per-sample gradients 2(w − x) with x ~ N(0, 1) in D = 3, B = 32: B_noise = 3/‖w‖²."""
    torch.manual_seed(0)
    w = torch.nn.Linear(3, 1, bias=False, dtype=torch.float64)
    w.weight.data.fill_(0.3)
    optimizer = torch.optim.SGD(w.parameters(), lr=1e-12)
    monitor = ns.Monitor(w, optimizer, every=400, measure_every=1, window=400)
    report: dict[str, float] = {}
    while not report:
        optimizer.zero_grad()
        for _ in range(4):
            x = torch.randn(8, 3, dtype=torch.float64)
            (
                w(torch.ones(8, 3, dtype=torch.float64)).mean() * 0 + (w.weight - x).square().sum(1).mean() / 4
            ).backward()
        optimizer.step()
        report = monitor.step()
    found = BatchSizeAdvice.from_report(report)
    assert found.batch_size == 32
    assert found.lr == 1e-12
    assert found.noise_scale.low < 3 / 0.27 < found.noise_scale.high
    assert found.steps.low < (1 + 3 / 0.27 / 64) / (1 + 3 / 0.27 / 32) < found.steps.high
    assert found.steps.high - found.steps.low < 0.05
    assert found.gradient_variance == pytest.approx(12 / 32, rel=0.1)


def test_a_learning_rate_of_zero_in_a_report_is_none_to_scale() -> None:
    assert BatchSizeAdvice.from_report(REPORT | {"noise/lr": 0.0}).lr is None


def test_a_log_speaks_by_its_last_row_with_a_noise_scale(tmp_path: Path) -> None:
    earlier = REPORT | {"noise/step": 200.0, "noise/scale": 80.0, "noise/scale_low": 60.0, "noise/scale_high": 99.0}
    later = {"noise/step": 400, "noise/overhead": 0.01}
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (earlier, REPORT, later, {"loss": 1.0})) + "\n")
    assert BatchSizeAdvice.from_log(read_log(path)) == BatchSizeAdvice.from_report(REPORT)
    asked = BatchSizeAdvice.from_log(read_log(path), target=256, optimizer="adam", lr=1e-3)
    assert asked == BatchSizeAdvice.from_report(REPORT, target=256, optimizer="adam", lr=1e-3)


def test_a_log_without_a_noise_scale_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"noise/step": 400, "noise/overhead": 0.01}) + "\n")
    with pytest.raises(InvalidValueError, match="has no noise/scale yet"):
        BatchSizeAdvice.from_log(read_log(path))


@pytest.mark.parametrize(
    ("kind", "rules"),
    [
        (torch.optim.SGD, {"noise-scale", "linear"}),
        (torch.optim.Adam, {"square-root", "surge"}),
        (torch.optim.AdamW, {"square-root", "surge"}),
        (torch.optim.RMSprop, {"square-root", "surge"}),
    ],
)
def test_an_optimiser_says_whose_rules_hold_and_from_which_rate(
    kind: type[torch.optim.Optimizer], rules: set[str]
) -> None:
    optimizer = kind([torch.nn.Parameter(torch.zeros(2))], lr=0.03)  # type: ignore[call-arg]
    found = advise(100.0, batch_size=50, optimizer=optimizer)
    assert {rule.name for rule in found.rules} == rules
    assert found.lr == 0.03
    assert all(
        rule.lr is not None and rule.lr.value == pytest.approx(0.03 * rule.factor.value) for rule in found.rules
    )


def test_the_text_has_every_figure_source_and_caveat() -> None:
    found = BatchSizeAdvice.from_report(ADAM)
    text = str(found)
    for part in (found.noise_scale, found.steps, found.samples, *(rule.factor for rule in found.rules)):
        assert str(part) in text
    assert all(caveat in text for caveat in found.caveats)
    for source in ("2505.23971", "2410.21676", "2507.07101", "2405.14578", "2205.10287"):
        assert source in text
    assert "1812.06162" in str(BatchSizeAdvice.from_report(REPORT))


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"noise_scale": -1.0}, "noise_scale must be at least 0, not -1.0"),
        ({"noise_scale": math.nan}, "give the interval"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"batch_size": True}, "batch_size must be a whole number"),
        ({"target": 32}, "target is batch_size itself, 32"),
        ({"target": -4}, "target must be a whole number"),
        ({"noise_scale_low": 150.0, "noise_scale_high": 200.0}, "noise_scale = 100.0 lies outside its interval"),
        ({"noise_scale_low": 20.0, "noise_scale_high": 10.0}, "is no interval of sizes"),
        ({"noise_scale_low": -9.0, "noise_scale_high": -1.0}, "is no interval of sizes"),
        ({"noise_scale_low": math.nan, "noise_scale_high": 200.0}, "is no interval of sizes"),
        ({"noise_scale_low": math.inf, "noise_scale_high": math.inf}, "is no interval of sizes"),
        ({"lr": 0.0}, "lr must be positive, not 0.0"),
        ({"lr": math.inf}, "lr must be finite, not inf"),
        ({"trace_covariance": math.inf}, "trace_covariance must be finite"),
        ({"squared_gradient_norm": math.nan}, "squared_gradient_norm must be a number, not nan"),
        ({"optimizer": "adamw"}, 'optimizer must be "sgd" or "adam", not \'adamw\''),
        ({"metric": "adam"}, 'metric must be "gradient" or "preconditioned"'),
        # Tr C divided by B, and a norm that is not squared
        ({"trace_covariance": 10.0 / 32, "squared_gradient_norm": 0.1}, "not divided by B"),
        ({"trace_covariance": 10.0, "squared_gradient_norm": 0.1**0.5}, "‖ḡ‖² is squared"),
    ],
)
def test_a_figure_that_makes_no_sense_is_refused(changed: dict[str, object], message: str) -> None:
    given = {"noise_scale": 100.0, "batch_size": 32} | changed
    with pytest.raises(InvalidValueError) as refused:
        advise(given.pop("noise_scale"), **given)  # type: ignore[arg-type]
    assert message in str(refused.value)


def test_an_optimiser_without_a_rule_is_named() -> None:
    with pytest.raises(InvalidValueError, match="learning rate of Adagrad"):
        advise(1.0, batch_size=2, optimizer=torch.optim.Adagrad([torch.nn.Parameter(torch.zeros(2))]))
    with pytest.raises(InvalidTypeError, match="not int"):
        advise(1.0, batch_size=2, optimizer=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        (("noise/scale", "noise/scale_low", "noise/scale_high"), "the report has no noise/scale"),
        (("noise/batch_size",), "the report has no noise/batch_size; give batch_size"),
    ],
)
def test_a_report_without_what_is_needed_is_refused(lacking: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        BatchSizeAdvice.from_report({key: value for key, value in REPORT.items() if key not in lacking})
