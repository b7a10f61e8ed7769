"""What a measured noise scale says about the batch size, and what it does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from noisescape.errors import InvalidTypeError, InvalidValueError, kind_of
from noisescape.scalars import check_number, check_positive, check_real

if TYPE_CHECKING:
    from noisescape.training.log import NoiseLog

Kind = Literal["sgd", "adam"]
"""What a rule for the learning rate depends on: whether an optimiser's step grows with the gradient or not."""
Metric = Literal["gradient", "preconditioned"]

PREFIX = "noise/"
SAME_RATIO = 0.05
"""Relative difference of the noise scale and Tr C/‖ḡ‖² that rounding by a logger may leave."""


@dataclass(frozen=True)
class Interval:
    """A figure with the ends of its interval.

    Attributes:
        value: NaN where the figure could not be told from any other.
        low, high: its 95 % interval, as the noise scale's was; both NaN where that was not known.

    >>> print(Interval(0.62, 0.55, math.inf))
    0.62 [0.55, ∞]
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def known(self) -> bool:
        """Whether the ends are known."""
        return not math.isnan(self.low)

    def mapped(self, function: Callable[[float], float]) -> Interval:
        """A monotone function of the figure, with the ends of its interval in order."""
        value = math.nan if math.isnan(self.value) else function(self.value)
        if not self.known:
            return Interval(value)
        return Interval(value, *sorted((function(self.low), function(self.high))))

    def to_dict(self) -> dict[str, float]:
        """Value and ends."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        value = "undetermined" if math.isnan(self.value) else _short(self.value)
        if not self.known or self.low == self.high:
            return value
        return f"{value} [{_short(self.low)}, {_short(self.high)}]"


@dataclass(frozen=True)
class LearningRateRule:
    """A rule of thumb for the learning rate at another batch size.

    Attributes:
        name: of the rule.
        factor: η at the target over η now.
        lr: η at the target; None where the present one is not known.
        statement: the rule.
        source: where it comes from.
    """

    name: str
    factor: Interval
    lr: Interval | None
    statement: str
    source: str

    def to_dict(self) -> dict[str, Any]:
        """All of it in JSON's own types."""
        return {
            "name": self.name,
            "factor": self.factor.to_dict(),
            "lr": None if self.lr is None else self.lr.to_dict(),
            "statement": self.statement,
            "source": self.source,
        }


@dataclass(frozen=True)
class BatchSizeAdvice:
    """What :func:`batch_size_advice` makes of a noise scale.

    Attributes:
        batch_size: B, samples in an optimiser step.
        target: B′, the batch size asked about.
        noise_scale: B_noise, in samples. NaN where the squared gradient norm could not be told from zero.
        metric: that of the noise scale, Tr C/‖ḡ‖² (``"gradient"``) or Tr(DC)/ḡᵀDḡ (``"preconditioned"``).
        optimizer: ``"sgd"`` or ``"adam"``.
        lr: η now, if known.
        steps: S(B′)/S(B) = (1 + B_noise/B′)/(1 + B_noise/B).
        samples: E(B′)/E(B) = (B′ + B_noise)/(B + B_noise), with E = S·B.
        relative_gradient_variance: B_noise/B, the variance of the minibatch gradient over its squared mean, in the
            noise scale's metric.
        gradient_variance: Tr C/B, the trace of the covariance of the minibatch *gradient*; an update's is η² times
            that under plain SGD. None where Tr C is not known.
        squared_gradient_norm: ‖ḡ‖², if known; unbiased estimates, of Tr C too, may be negative.
        rules: for the learning rate, rules of thumb.
        caveats: what the figures do not say.
    """

    batch_size: int
    target: int
    noise_scale: Interval
    metric: Metric
    optimizer: Kind
    lr: float | None
    steps: Interval
    samples: Interval
    relative_gradient_variance: Interval
    gradient_variance: float | None
    squared_gradient_norm: float | None
    rules: tuple[LearningRateRule, ...]
    caveats: tuple[str, ...]

    @classmethod
    def from_report(
        cls,
        report: Mapping[str, float],
        *,
        batch_size: int | None = None,
        lr: float | None = None,
        optimizer: Kind | torch.optim.Optimizer | None = None,
        target: int | None = None,
    ) -> BatchSizeAdvice:
        """Advice from what a monitor reported at one step.

        Args:
            report: what ``Monitor.step`` returned, with ``noise/scale``, ``noise/scale_low`` and
                ``noise/scale_high`` among its keys. An upper end that a logger could not write counts as infinite.
            batch_size: B; the report's ``noise/batch_size`` by default.
            lr: η; the report's ``noise/lr`` by default.
            optimizer: by default Adam's rules where the report has figures in a preconditioned metric, else SGD's.
                With Adam's rules the preconditioned noise scale is taken where there is one.
            target: B′; 2B by default.

        Raises:
            ValueError: the report has no noise scale, or no batch size and none is given.
        """

        if not isinstance(report, Mapping):
            raise InvalidTypeError(f"report must be what Monitor.step returns, not {kind_of(report)}")

        def read(name: str) -> float | None:
            found = report.get(PREFIX + name)
            return None if found is None or math.isnan(found) else float(found)

        preconditioned = any(read(f"preconditioned/{name}") is not None for name in ("scale", "scale_low"))
        if optimizer is None:
            optimizer = "adam" if preconditioned else "sgd"
        metric: Metric = "preconditioned" if preconditioned and optimizer_kind(optimizer) == "adam" else "gradient"
        place = "preconditioned/" if metric == "preconditioned" else ""
        if batch_size is None:
            reported = read("batch_size")
            if reported is None:
                raise InvalidValueError(f"the report has no {PREFIX}batch_size; give batch_size")
            batch_size = max(1, round(reported))  # a mean over steps, of which some may have had less
        low, high = read(f"{place}scale_low"), read(f"{place}scale_high")
        scale = read(f"{place}scale")
        if scale is None and low is None:
            raise InvalidValueError(
                f"the report has no {PREFIX}{place}scale, or no number there yet: give what Monitor.step returns"
            )
        return batch_size_advice(
            math.nan if scale is None else scale,
            batch_size=batch_size,
            noise_scale_low=low,
            noise_scale_high=high,
            lr=(read("lr") or None) if lr is None else lr,  # 0 where a schedule begins or ends
            optimizer=optimizer,
            metric=metric,
            squared_gradient_norm=read("squared_gradient_norm"),
            trace_covariance=read("trace_covariance"),
            target=target,
        )

    @classmethod
    def from_log(
        cls,
        log: NoiseLog,
        *,
        batch_size: int | None = None,
        lr: float | None = None,
        optimizer: Kind | torch.optim.Optimizer | None = None,
        target: int | None = None,
    ) -> BatchSizeAdvice:
        """Advice from the last row of a log that has a noise scale; arguments as in :meth:`from_report`.

        Raises:
            ValueError: no row has one.
        """
        from noisescape.training.log import NoiseLog  # with NumPy, which a report does without

        if not isinstance(log, NoiseLog):
            raise InvalidTypeError(f"log must be a NoiseLog, which read_log(path) reads, not {kind_of(log)}")
        report = log.at_last(f"{PREFIX}scale_low") or log.at_last(f"{PREFIX}scale")
        if not report:
            raise InvalidValueError(f"{log.path} has no {PREFIX}scale yet: train on, or log more often")
        return cls.from_report(report, batch_size=batch_size, lr=lr, optimizer=optimizer, target=target)

    @property
    def regime(self) -> Literal["noise", "curvature", "undecided"]:
        """Whether the interval of the noise scale lies above B, below it, or around it.

        Above, steps are limited by noise and a larger batch saves most of what it costs; below, by curvature.
        """
        scale = self.noise_scale
        low, high = (scale.low, scale.high) if scale.known else (scale.value, scale.value)
        if low > self.batch_size:
            return "noise"
        return "curvature" if high < self.batch_size else "undecided"

    def to_dict(self) -> dict[str, Any]:
        """All figures; an infinite end of an interval stays infinite here and is null in strict JSON."""
        return {
            "batch_size": self.batch_size,
            "target": self.target,
            "noise_scale": self.noise_scale.to_dict(),
            "metric": self.metric,
            "regime": self.regime,
            "optimizer": self.optimizer,
            "lr": self.lr,
            "steps": self.steps.to_dict(),
            "samples": self.samples.to_dict(),
            "relative_gradient_variance": self.relative_gradient_variance.to_dict(),
            "gradient_variance": self.gradient_variance,
            "squared_gradient_norm": self.squared_gradient_norm,
            "rules": [rule.to_dict() for rule in self.rules],
            "caveats": list(self.caveats),
        }

    def __str__(self) -> str:
        lines = [
            f"noise scale {self.noise_scale} samples, batch size {self.batch_size}: {_REGIMES[self.regime]}",
            f"{self.batch_size} → {self.target}: {self.steps} times the steps, {self.samples} times the samples",
        ]
        for rule in self.rules:
            lr = "" if rule.lr is None else f", lr {rule.lr}"
            lines.append(f"learning rate, {rule.name} rule ({rule.source}): × {rule.factor}{lr}")
        return "\n".join([*lines, *(f"* {caveat}" for caveat in self.caveats)])


_REGIMES = {
    "noise": "steps are limited by noise",
    "curvature": "steps are limited by curvature",
    "undecided": "near the noise scale, or not told from it",
}


def batch_size_advice(
    noise_scale: float,
    *,
    batch_size: int,
    noise_scale_low: float | None = None,
    noise_scale_high: float | None = None,
    lr: float | None = None,
    optimizer: Kind | torch.optim.Optimizer = "sgd",
    metric: Metric = "gradient",
    squared_gradient_norm: float | None = None,
    trace_covariance: float | None = None,
    target: int | None = None,
) -> BatchSizeAdvice:
    """What to expect of another batch size, from the gradient noise scale B_noise.

    At the best constant learning rate for each B, the steps and samples to a loss are (1812.06162)::

        S(B) = S_min (1 + B_noise/B)        E(B) = S(B)·B = S_min (B + B_noise)

    which is exact for one step on a quadratic with B_noise = Tr(HC)/ḡᵀHḡ, and for Tr C/‖ḡ‖² where H ∝ I. Learning
    rates: with SGD η ∝ 1/(1 + B_noise/B), linear in B far below B_noise and constant far above; with Adam η ∝ √B,
    or the surge η ∝ 1/(√(B_noise/B) + √(B/B_noise)), which falls again beyond B_noise (2405.14578). All are
    monotone in B_noise between two batch sizes, so the ends of its interval give theirs.

    Args:
        noise_scale: B_noise, in samples, of the *gradient*: Tr C/‖ḡ‖² with C not divided by B. An estimate that is
            negative or NaN is no value: its interval speaks for it. Infinite, as a monitor reports it where the
            estimate of ‖ḡ‖² is not positive, it gives the limits.
        batch_size: B, samples in an optimiser step over all micro-steps and ranks.
        noise_scale_low: the lower end of its interval. Below 0 counts as 0; alone, the upper end is infinite.
        noise_scale_high: the upper end, which may be infinite; alone, the lower end is 0. Without both, no
            intervals are given.
        lr: η now; the first parameter group's where ``optimizer`` is one of PyTorch's.
        optimizer: whose rules apply; Adam's also hold for RMSprop and for what is named after Adam.
        metric: ``"preconditioned"`` if the noise scale is Tr(DC)/ḡᵀDḡ with D of Adam.
        squared_gradient_norm: ‖ḡ‖².
        trace_covariance: Tr C, not divided by B.
        target: B′; 2B by default.

    Raises:
        ValueError: sizes that are not whole and positive, ends of the interval that do not enclose the value, a
            noise scale that is not the ratio of the given Tr C and ‖ḡ‖².

    >>> found = batch_size_advice(100.0, batch_size=50, noise_scale_low=50.0, noise_scale_high=math.inf, lr=0.1)
    >>> print(found.steps, found.samples, found.rules[0].lr, sep="; ")
    0.6667 [0.5, 0.75]; 1.333 [1, 1.5]; 0.15 [0.1333, 0.2]
    """
    size = _whole("batch_size", batch_size)
    other = 2 * size if target is None else _whole("target", target)
    if other == size:
        raise InvalidValueError(f"target is batch_size itself, {size}; give another, or none for 2B")
    kind = optimizer_kind(optimizer)
    if metric not in get_args(Metric):
        raise InvalidValueError(f'metric must be "gradient" or "preconditioned", not {metric!r}')
    if lr is None and isinstance(optimizer, torch.optim.Optimizer):
        lr = float(optimizer.param_groups[0]["lr"])
    if lr is not None:
        check_positive("lr", lr)
    for name, value in (("trace_covariance", trace_covariance), ("squared_gradient_norm", squared_gradient_norm)):
        if value is not None:
            check_real(name, value)
    scale = _scale(noise_scale, noise_scale_low, noise_scale_high)
    if metric == "gradient":
        _check_ratio(scale.value, trace_covariance, squared_gradient_norm)

    def samples(noise: float) -> float:
        return 1.0 if math.isinf(noise) else (other + noise) / (size + noise)

    growth = other / size
    return BatchSizeAdvice(
        batch_size=size,
        target=other,
        noise_scale=scale,
        metric=metric,
        optimizer=kind,
        lr=lr,
        steps=scale.mapped(lambda noise: samples(noise) / growth),
        samples=scale.mapped(samples),
        relative_gradient_variance=scale.mapped(lambda noise: noise / size),
        gradient_variance=None if trace_covariance is None else trace_covariance / size,
        squared_gradient_norm=squared_gradient_norm,
        rules=_rules(kind, scale, samples, growth, lr),
        caveats=_caveats(kind, metric, scale),
    )


def _rules(
    kind: Kind, scale: Interval, samples: Callable[[float], float], growth: float, lr: float | None
) -> tuple[LearningRateRule, ...]:
    def rule(name: str, factor: Interval, statement: str, source: str) -> LearningRateRule:
        at_target = None if lr is None else factor.mapped(lambda times: lr * times)
        return LearningRateRule(name, factor, at_target, statement, source)

    if kind == "sgd":
        return (
            rule(
                "noise-scale",
                scale.mapped(lambda noise: growth / samples(noise)),
                "η ∝ 1/(1 + B_noise/B): linear far below the noise scale, constant far above",
                "arXiv 1812.06162",
            ),
            rule("linear", _exactly(growth), "η ∝ B, for B far below the noise scale", "arXiv 1706.02677"),
        )
    return (
        rule("square-root", _exactly(math.sqrt(growth)), "η ∝ √B", "arXiv 2205.10287"),
        rule(
            "surge",
            scale.mapped(lambda noise: math.sqrt(growth) / samples(noise)),
            "η ∝ 1/(√(B_noise/B) + √(B/B_noise)): like √B below the noise scale, falling beyond it",
            "arXiv 2405.14578",
        ),
    )


def _caveats(kind: Kind, metric: Metric, scale: Interval) -> tuple[str, ...]:
    found = [
        "The noise scale is not the critical batch size: where that was measured, the two have been found to "
        "differ (arXiv 2505.23971). Before you rely on a larger batch, train branches from a checkpoint: "
        "branched_check.",
        "It holds for now: the batch size that pays grows as training sees more data, and hardly with the size of "
        "the model (arXiv 2410.21676). Ask again later, and do not carry it over from early steps.",
        "A larger batch is worth having for the devices it fills. Accumulating gradients on one device to reach it "
        "saves no time; small batches train as well with settings of their own (arXiv 2507.07101).",
        "The learning rates are rules of thumb: starting points for a search of your own.",
    ]
    if kind == "adam" and metric == "gradient":
        found.append(
            "The noise scale is that of plain gradients, not in Adam's metric: Adam's steps weigh coordinates "
            "otherwise, and their noise scale may be another."
        )
    if kind == "adam" and metric == "preconditioned":
        found.append(
            "The noise scale is in Adam's metric, D = diag(1/(√v̂ + ε)), taken as fixed; the surge rule was derived "
            "for steps by the gradient's sign."
        )
    if kind == "sgd" and metric == "preconditioned":
        found.append(
            "The noise scale is in Adam's metric, but the rules are SGD's, which steps along the gradient."
        )
    if math.isinf(scale.high):
        found.append(
            "The interval has no upper end: the squared gradient norm is not told from zero. Measure over more "
            "steps, or with more samples."
        )
    if not scale.known:
        found.append("No interval of the noise scale was given, so that none of these figures has one.")
    return tuple(found)


def _scale(value: float, low: float | None, high: float | None) -> Interval:
    """The noise scale; a negative or missing estimate is no value, and its interval must speak for it."""
    for name, given in (("noise_scale", value), ("noise_scale_low", low), ("noise_scale_high", high)):
        if given is not None or name == "noise_scale":
            check_number(name, given)
    if low is None and high is None:
        if math.isnan(value) or value < 0:
            raise InvalidValueError(
                f"noise_scale must be at least 0, not {value}; where the squared gradient norm is not told "
                "from zero, give the interval: noise_scale_low, noise_scale_high=math.inf"
            )
        return Interval(value)
    low = 0.0 if low is None else low
    high = math.inf if high is None else high
    if math.isnan(low) or math.isnan(high) or high < max(low, 0.0) or math.isinf(max(low, 0.0)):
        raise InvalidValueError(f"noise_scale_low to noise_scale_high, {low} to {high}, is no interval of sizes")
    if math.isnan(value) or value < 0:
        return Interval(math.nan, max(low, 0.0), high)
    if not low <= value <= high:
        raise InvalidValueError(f"noise_scale = {value} lies outside its interval, {low} to {high}")
    return Interval(value, max(low, 0.0), high)


def _check_ratio(scale: float, trace: float | None, norm: float | None) -> None:
    """A Tr C that is already divided by B, or a norm that is not squared, shows here."""
    if trace is None or norm is None or norm <= 0 or not math.isfinite(scale):
        return
    if not math.isclose(trace / norm, scale, rel_tol=SAME_RATIO):
        raise InvalidValueError(
            f"noise_scale = {scale:g}, but trace_covariance/squared_gradient_norm = {trace / norm:g}; Tr C is "
            "that of single samples, not divided by B, and ‖ḡ‖² is squared"
        )


def optimizer_kind(optimizer: Kind | torch.optim.Optimizer) -> Kind:
    """Whether SGD's rules for the learning rate hold, or Adam's.

    Raises:
        ValueError: neither is known to.
    """
    if isinstance(optimizer, str):
        if optimizer not in get_args(Kind):
            raise InvalidValueError(f'optimizer must be "sgd" or "adam", not {optimizer!r}')
        return optimizer  # type: ignore[return-value]
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidTypeError(
            f'optimizer must be "sgd", "adam" or an optimiser of PyTorch\'s, not {type(optimizer).__name__}'
        )
    name = type(optimizer).__name__.lower()
    if "adam" in name or "rmsprop" in name:
        return "adam"
    if "sgd" in name:
        return "sgd"
    raise InvalidValueError(
        f"no rule for the learning rate of {type(optimizer).__name__} is known here; say whose to take: "
        '"sgd" or "adam"'
    )


def _whole(name: str, value: float) -> int:
    if not isinstance(value, bool):
        check_number(name, value)
    if isinstance(value, bool) or not math.isfinite(value) or value != int(value) or value < 1:
        raise InvalidValueError(f"{name} must be a whole number of at least 1, not {value}")
    return int(value)


def _exactly(value: float) -> Interval:
    return Interval(value, value, value)


def _short(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.4g}"
