"""The claims of the paper, each with the rule that turns a run into a verdict.

The rules stand here before a run is made. An interval is a 95 % t interval over seeds of a difference taken
within seeds (same data, same starting point), or for escape rates a Newcombe interval over replicas. A claim is
*supported* or *contradicted* only if its interval lies clear of the threshold, else *undecided*. A *veto* leaves it
undecided whatever the interval says: a dynamics diverged, there is a single seed, or the noises compared were not
shown to be of the trace they should have. Only measurement shows that: the interval over seeds of the injected over
the target trace must lie within SAME_TRACE. Verdicts are never read from notes, which are for readers.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from noisescape.errors import InvalidValueError
from noisescape.experiments.statistics import mean_over, rank_correlation, rate_difference
from noisescape.runs.run import Run

Verdict = Literal["supported", "contradicted", "undecided"]
FLATTENING = ("sgd", "gld-leading", "gld-hessian", "gld-top-eigenvector")
NOT_FLATTENING = ("gld-constant", "gld-dynamic", "gld-diagonal")
SAME_SHARPNESS = 0.1
"""A difference of expected sharpness by less than this share counts as none."""
SAME_LOSS = 0.05
"""A mean excess of training loss below this counts as none."""
SAME_ACCURACY = 0.01
"""A difference of test accuracy below this counts as none."""
SAME_RATE = 0.05
"""A difference of escape rates below this counts as none."""
SAME_TRACE = (0.8, 1.25)
"""An injected trace within these shares of its target counts as matched."""
NOISELESS = ("gd", "gd-gradient-penalty")
"""Dynamics without noise, that have no trace to match."""
ALIGNED = 0.1
"""The projection coefficient a is bounded away from 0 if it is over this."""


@dataclass(frozen=True)
class Result:
    """A verdict and what it rests on.

    Attributes:
        verdict: supported, contradicted or undecided.
        effect: the statistic.
        low: end of its 95 % interval.
        high: end of its 95 % interval.
        n: seeds, or replicas.
        case: which of several, "width 32" say; may be empty.
        veto: why it is undecided whatever the interval says; None where the interval decides.
        remark: what a reader should know besides.
    """

    verdict: Verdict
    effect: float
    low: float
    high: float
    n: int
    case: str = ""
    veto: str | None = None
    remark: str = ""

    def __post_init__(self) -> None:
        if self.veto is not None and self.verdict != "undecided":
            raise InvalidValueError(f"vetoed ({self.veto}) and yet {self.verdict}: a veto leaves a claim undecided")

    @property
    def note(self) -> str:
        """Veto and remark in a line; for readers only."""
        return "; ".join(filter(None, (self.veto, self.remark)))


@dataclass(frozen=True)
class Claim:
    """One statement and how it is judged.

    Attributes:
        name: short, for tables.
        statement: what is claimed.
        where: in the paper; controls have a reason in its place.
        statistic: what is computed.
        rule: from statistic to verdict.
        experiments: whose runs it is judged by.
        judge: the rule as code.
        form: how the statistic is printed.
        control: whether it stands beside the paper's claims rather than among them.
    """

    name: str
    statement: str
    where: str
    statistic: str
    rule: str
    experiments: tuple[str, ...]
    judge: Callable[[Evidence], list[Result]] = field(repr=False)
    form: str = "{:.3g}"
    control: bool = False


@dataclass(frozen=True)
class Finding:
    """What one run says of one claim.

    Attributes:
        claim: which.
        experiment: of the run.
        run: the name of its directory.
        source: the experiment, and the run where the ledger has several of that experiment.
        result: the verdict.
    """

    claim: Claim
    experiment: str
    run: str
    source: str
    result: Result

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        texts = ("name", "statement", "where", "statistic", "rule", "control")
        return {
            **{key: getattr(self.claim, key) for key in texts},
            "experiment": self.experiment,
            "run": self.run,
            **{key: getattr(self.result, key) for key in ("case", "verdict", "effect", "low", "high", "n")},
            "veto": self.result.veto,
            "note": self.result.note,
        }

    @property
    def effect_text(self) -> str:
        """The statistic with its interval."""
        result = self.result
        if not math.isfinite(result.effect):
            return "–"
        shown = self.claim.form.format(result.effect)
        if not (math.isfinite(result.low) and math.isfinite(result.high)):
            return shown
        return f"{shown} [{self.claim.form.format(result.low)}, {self.claim.form.format(result.high)}]"


class Evidence:
    """A complete run, asked for one figure of every seed."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.config: dict[str, Any] = run.info["config"]
        self.summary = run.summary()

    @property
    def seeds(self) -> int:
        """How many repetitions."""
        return int(self.config["seeds"])

    @cached_property
    def _values(self) -> dict[tuple[str, str, str], dict[int, list[tuple[int, float]]]]:
        found: dict[tuple[str, str, str], dict[int, list[tuple[int, float]]]] = {}
        for row in self.run.metrics().to_pylist():
            key = row["phase"], row["dynamics"], row["metric"]
            found.setdefault(key, {}).setdefault(row["seed"], []).append((row["step"], row["value"]))
        return found

    def series(self, phase: str, dynamics: str, metric: str, seed: int) -> list[tuple[int, float]]:
        """(step, value) pairs in order; none where nothing was recorded."""
        return sorted(self._values.get((phase, dynamics, metric), {}).get(seed, []))

    def at(self, phase: str, dynamics: str, metric: str, step: int) -> list[float]:
        """One value a seed, NaN for those that stopped before."""
        return [dict(self.series(phase, dynamics, metric, seed)).get(step, math.nan) for seed in range(self.seeds)]

    def last(self, phase: str, dynamics: str, metric: str) -> list[float]:
        """The value at the last step of the run, for every seed."""
        return self.at(phase, dynamics, metric, int(self.config["steps"]))

    def ran(self, dynamics: str) -> bool:
        """Whether the run has that dynamics."""
        return dynamics in self.config["dynamics"]

    def trace_ratio(self, phase: str, dynamics: str) -> list[float]:
        """Injected over target trace, summed along the trajectory at the same steps, for every seed.

        NaN where no step has both.
        """
        ratios = []
        for seed in range(self.seeds):
            injected = dict(self.series(phase, dynamics, "injected", seed))
            target = dict(self.series(phase, dynamics, "trace_target", seed))
            common = [
                step
                for step, value in injected.items()
                if math.isfinite(value) and math.isfinite(target.get(step, math.nan))
            ]
            total = sum(target[step] for step in common)
            ratios.append(sum(injected[step] for step in common) / total if total else math.nan)
        return ratios

    def trace_veto(self, phase: str, *dynamics: str) -> str | None:
        """Why these noises are not shown to be of their target's trace; None if they are."""
        reasons = (self._trace_veto(phase, name) for name in dynamics if name not in NOISELESS)
        return "; ".join(filter(None, reasons)) or None

    def _trace_veto(self, phase: str, name: str) -> str | None:
        ratios = self.trace_ratio(phase, name)
        missing = sum(not math.isfinite(ratio) for ratio in ratios)
        if missing:
            where = "" if missing == len(ratios) else f" in {missing} of {len(ratios)} seeds"
            return f"the injected trace of {name} was not measured{where}"
        low, high = mean_over(ratios).interval()
        least, most = SAME_TRACE
        if least <= low and high <= most:
            return None
        if len(ratios) < 2:
            return f"one seed shows nothing of the injected trace of {name}"
        told = f"{name} was injected at {low:.2g} to {high:.2g} times its target trace"
        return told if high < least or low > most else f"too few seeds to show the trace of {name}: {told}"


def ledger(runs: Sequence[Run]) -> list[Finding]:
    """Every claim judged by every run that bears on it, in the order of the claims."""
    evidence = [Evidence(run) for run in runs]
    counts = Counter(run.info["experiment"] for run in runs)

    def source(run: Run) -> str:
        experiment = str(run.info["experiment"])
        return experiment if counts[experiment] == 1 else f"{experiment} ({run.path})"

    return [
        Finding(claim, found.run.info["experiment"], found.run.path.name, source(found.run), result)
        for claim in CLAIMS
        for found in evidence
        if found.run.info["experiment"] in claim.experiments
        for result in claim.judge(found)
    ]


# ---------------------------------------------------------------------- from values to verdicts


def exceeds(values: Sequence[float], threshold: float, *, case: str = "", veto: str | None = None) -> Result:
    """Supported if the mean's interval lies above the threshold, contradicted if below."""
    return _judged(values, lambda low, high: (low > threshold, high < threshold), case, veto)


def falls(values: Sequence[float], *, case: str = "", veto: str | None = None) -> Result:
    """Supported if the mean's interval lies below 0, contradicted if above."""
    return _judged(values, lambda low, high: (high < 0, low > 0), case, veto)


def does_not_fall(values: Sequence[float], margin: float, *, case: str = "", veto: str | None = None) -> Result:
    """Supported if the mean's interval lies above −margin, contradicted if below."""
    return _judged(values, lambda low, high: (low > -margin, high < -margin), case, veto)


def vanishes(values: Sequence[float], margin: float, *, case: str = "", veto: str | None = None) -> Result:
    """Supported if the mean's interval lies within ±margin, contradicted if outside."""
    return _judged(
        values, lambda low, high: (-margin < low and high < margin, high < -margin or low > margin), case, veto
    )


def _judged(
    values: Sequence[float],
    decide: Callable[[float, float], tuple[bool, bool]],
    case: str,
    veto: str | None,
) -> Result:
    found = mean_over(values)
    low, high = found.interval()
    missing = sum(not math.isfinite(value) for value in values)
    reasons = (
        f"diverged or not defined in {missing} of {len(values)} seeds" if missing else None,
        "one seed decides nothing" if len(values) < 2 else None,
        veto,
    )
    whole = "; ".join(filter(None, reasons)) or None
    supported, contradicted = decide(low, high)
    verdict: Verdict = "supported" if supported else "contradicted" if contradicted else "undecided"
    verdict = verdict if whole is None else "undecided"
    return Result(verdict, found.value, low, high, len(values) - missing, case, whole)


# ---------------------------------------------------------------------- judges: the toy


def _toy_rates(evidence: Evidence, geometry: str) -> dict[str, tuple[int, int, float]]:
    """(successes, replicas, indicator) of every dynamics."""
    found = evidence.summary if geometry == "published" else evidence.summary["controls"].get(geometry)
    if found is None:
        return {}
    return {
        name: (round(rate["rate"] * rate["n"]), rate["n"], found["trace_h_sigma"][name]["value"])
        for name, rate in found["success"].items()
    }


def _toy_order(evidence: Evidence) -> list[Result]:
    rates = _toy_rates(evidence, "published")
    pairs = [
        (more, less) for more, less in itertools.permutations(rates, 2) if rates[more][2] > 1.05 * rates[less][2]
    ]
    if not pairs:
        veto = "no two dynamics differ in Tr(HΣ)"
        return [Result("undecided", math.nan, math.nan, math.nan, 0, veto=veto)]
    differences = [
        (rate_difference(rates[more][:2], rates[less][:2], comparisons=len(pairs)), more, less)
        for more, less in pairs
    ]
    least, more, less = min(differences, key=lambda entry: entry[0].value)
    wrong = [f"{b} over {a}" for found, a, b in differences if found.high < 0]
    open_pairs = [f"{a} and {b}" for found, a, b in differences if found.low <= 0 <= found.high]
    verdict: Verdict = "contradicted" if wrong else "undecided" if open_pairs else "supported"
    remark = f"smallest between {more} and {less}"
    if open_pairs:
        remark += f"; not told apart: {', '.join(open_pairs)}"
    if wrong:
        remark += f"; against the order: {', '.join(wrong)}"
    return [
        Result(verdict, least.value, least.low, least.high, rates[more][1], f"{len(pairs)} pairs", remark=remark)
    ]


def _toy_rotated(evidence: Evidence) -> list[Result]:
    published, rotated = _toy_rates(evidence, "published"), _toy_rates(evidence, "rotated")
    return [
        _same_rate(published[name][:2], rotated[name][:2], len(rotated) - 1, name)
        for name in rotated
        if name != "gd"
    ]


def _toy_isotropic(evidence: Evidence) -> list[Result]:
    rates = _toy_rates(evidence, "isotropic")
    if not rates:
        return []
    names = [name for name in rates if name not in ("gd", "gld-constant")]
    return [
        _same_rate(rates[name][:2], rates["gld-constant"][:2], len(names), f"{name} and gld-constant")
        for name in names
    ]


def _same_rate(one: tuple[int, int], other: tuple[int, int], comparisons: int, case: str) -> Result:
    found = rate_difference(one, other, comparisons=comparisons)
    verdict: Verdict = "undecided"
    if found.low > -SAME_RATE and found.high < SAME_RATE:
        verdict = "supported"
    elif found.high < -SAME_RATE or found.low > SAME_RATE:
        verdict = "contradicted"
    return Result(verdict, found.value, found.low, found.high, other[1], case)


# ---------------------------------------------------------------------- judges: networks


def _indicator_one_hidden(evidence: Evidence) -> list[Result]:
    results = []
    by_case: dict[tuple[str, int], dict[int, list[float]]] = {}
    for row in evidence.run.metrics().to_pylist():
        if row["metric"] == "anisotropy":
            own = by_case.setdefault((row["optimiser"], row["width"]), {}).setdefault(row["seed"], [])
            own.append(row["value"])
    for (optimiser, width), seeds in sorted(by_case.items()):
        values = [_mean_log(own) for own in seeds.values()]
        least = min((value for own in seeds.values() for value in own if value > 0), default=math.nan)
        found = exceeds(values, 0.0, case=f"{optimiser}, width {width}")
        results.append(_exponentiated(found, f"at least {least:.0f} at every epoch" if least > 1 else ""))
    return results


def _indicator_along(evidence: Evidence) -> list[Result]:
    values, least = [], math.inf
    for seed in range(evidence.seeds):
        indicator = dict(evidence.series("descent", "gd", "along/trace_h_sigma", seed))
        reference = dict(evidence.series("descent", "gd", "along/isotropic_reference", seed))
        end = int(evidence.config["gd_steps"])
        indicator[end] = evidence.at("minimum", "gd", "trace_h_sigma", end)[seed]
        reference[end] = evidence.at("minimum", "gd", "isotropic_reference", end)[seed]
        # where TrH is not positive there is no isotropic reference to exceed
        ratios = [indicator[step] / reference[step] for step in indicator if reference[step] > 0]
        values.append(_mean_log(ratios))
        least = min([least, *ratios])
    note = f"at least {least:.0f} at every step measured" if math.isfinite(least) else ""
    return [_exponentiated(exceeds(values, 0.0), note)]


def _mean_log(values: Sequence[float]) -> float:
    logs = [math.log(value) if value > 0 else math.nan for value in values]
    return sum(logs) / len(logs) if logs else math.nan


def _exponentiated(found: Result, remark: str) -> Result:
    def exp(value: float) -> float:
        return math.exp(value) if value < 700 else math.inf

    return replace(found, effect=exp(found.effect), low=exp(found.low), high=exp(found.high), remark=remark)


def _at_minimum(metric: str, threshold: float) -> Callable[[Evidence], list[Result]]:
    def judge(evidence: Evidence) -> list[Result]:
        values = evidence.at("minimum", "gd", metric, int(evidence.config["gd_steps"]))
        return [exceeds(values, threshold)]

    return judge


def _excess_loss(evidence: Evidence, dynamics: str) -> list[float]:
    """Mean over the recorded steps of the training loss above that of gradient descent, for every seed."""
    values = []
    for seed in range(evidence.seeds):
        own = dict(evidence.series("escape", dynamics, "loss", seed))
        base = dict(evidence.series("escape", "gd", "loss", seed))
        common = [step for step in base if step > 0]
        values.append(sum(own.get(step, math.nan) - base[step] for step in common) / len(common))
    return values


def _relative_sharpness(evidence: Evidence, dynamics: str) -> list[float]:
    """Expected sharpness over that of gradient descent, less 1, both means over the last half; for every seed."""
    half = int(evidence.config["steps"]) / 2

    def late(name: str, seed: int) -> float:
        values = [v for step, v in evidence.series("escape", name, "sharpness/signed", seed) if step >= half]
        return sum(values) / len(values) if values else math.nan

    bases = [late("gd", seed) for seed in range(evidence.seeds)]
    return [late(dynamics, seed) / base - 1 if base > 0 else math.nan for seed, base in enumerate(bases)]


def _escapes(*names: str) -> Callable[[Evidence], list[Result]]:
    def judge(evidence: Evidence) -> list[Result]:
        return [
            exceeds(_excess_loss(evidence, name), 0.0, case=name, veto=evidence.trace_veto("escape", name))
            for name in names
            if evidence.ran(name) and evidence.ran("gd")
        ]

    return judge


def _stays(*names: str) -> Callable[[Evidence], list[Result]]:
    def judge(evidence: Evidence) -> list[Result]:
        return [
            vanishes(_excess_loss(evidence, name), SAME_LOSS, case=name, veto=evidence.trace_veto("escape", name))
            for name in names
            if evidence.ran(name) and evidence.ran("gd")
        ]

    return judge


def _flatter(*names: str) -> Callable[[Evidence], list[Result]]:
    def judge(evidence: Evidence) -> list[Result]:
        return [
            falls(_relative_sharpness(evidence, name), case=name, veto=evidence.trace_veto("escape", name))
            for name in names
            if evidence.ran(name) and evidence.ran("gd")
        ]

    return judge


def _not_flatter(*names: str) -> Callable[[Evidence], list[Result]]:
    def judge(evidence: Evidence) -> list[Result]:
        return [
            does_not_fall(
                _relative_sharpness(evidence, name),
                SAME_SHARPNESS,
                case=name,
                veto=evidence.trace_veto("escape", name),
            )
            for name in names
            if evidence.ran(name) and evidence.ran("gd")
        ]

    return judge


def _full_as_sgd(evidence: Evidence) -> list[Result]:
    if not all(map(evidence.ran, ("gld-full", "sgd", "gd"))):
        return []
    changes = zip(_relative_sharpness(evidence, "gld-full"), _relative_sharpness(evidence, "sgd"), strict=True)
    veto = evidence.trace_veto("escape", "gld-full", "sgd")
    return [vanishes([full - sgd for full, sgd in changes], SAME_SHARPNESS, veto=veto)]


def _accuracy_follows(evidence: Evidence) -> list[Result]:
    groups = [[name for name in group if evidence.ran(name)] for group in (FLATTENING, NOT_FLATTENING)]
    if not all(groups):
        return []

    def mean_accuracy(names: Sequence[str]) -> Iterator[float]:
        columns = [evidence.last("escape", name, "test_accuracy") for name in names]
        return (sum(own) / len(own) for own in zip(*columns, strict=True))

    aligned, other = map(mean_accuracy, groups)
    veto = evidence.trace_veto("escape", *groups[0], *groups[1])
    return [exceeds([a - b for a, b in zip(aligned, other, strict=True)], 0.0, veto=veto)]


def _accuracy_order(evidence: Evidence) -> list[Result]:
    pairs = (("sgd", "gld-diagonal"), ("gld-diagonal", "gld-dynamic"), ("gld-diagonal", "gld-constant"))
    return [
        exceeds(
            _accuracy_gain(evidence, more, less),
            0.0,
            case=f"{more} over {less}",
            veto=evidence.trace_veto("training", more, less),
        )
        for more, less in pairs
        if evidence.ran(more) and evidence.ran(less)
    ]


def _accuracy_same(*pairs: tuple[str, str]) -> Callable[[Evidence], list[Result]]:
    def judge(evidence: Evidence) -> list[Result]:
        return [
            vanishes(
                _accuracy_gain(evidence, one, other),
                SAME_ACCURACY,
                case=f"{one} and {other}",
                veto=evidence.trace_veto("training", one, other),
            )
            for one, other in pairs
            if evidence.ran(one) and evidence.ran(other)
        ]

    return judge


def _accuracy_gain(evidence: Evidence, more: str, less: str) -> list[float]:
    columns = (evidence.last("training", name, "test_accuracy") for name in (more, less))
    return [a - b for a, b in zip(*columns, strict=True)]


def _flatter_generalises(evidence: Evidence) -> list[Result]:
    names = evidence.config["dynamics"]
    sharpness = [evidence.last("training", name, "sharpness/signed") for name in names]
    accuracy = [evidence.last("training", name, "test_accuracy") for name in names]
    by_seed = zip(zip(*sharpness, strict=True), zip(*accuracy, strict=True), strict=True)
    return [falls([rank_correlation(one, other) for one, other in by_seed])]


ESCAPES = ("fashion-mnist", "digits")
TRAININGS = ("svhn", "cifar10")
_TRACE = (
    "Undecided unless the injected trace was measured and its interval over seeds lies within "
    f"{SAME_TRACE[0]:g} to {SAME_TRACE[1]:g} of its target."
)

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "toy-order",
        "Escape rates on the 2-D toy are ordered as Tr(HΣ) predicts.",
        "2-D toy example",
        "Difference of escape rates of every two dynamics whose Tr(HΣ) at the start differs by over 5 %; Newcombe "
        "intervals, Bonferroni-corrected.",
        "Supported if every difference is clear of 0 in the predicted direction, contradicted if one is in the "
        "other.",
        ("toy-2d",),
        _toy_order,
        "{:+.1%}",
    ),
    Claim(
        "indicator-one-hidden-layer",
        "Tr(HΣ) exceeds its isotropic reference along training of one-hidden-layer networks.",
        "one-hidden-layer experiment",
        "Geometric mean over epochs of Tr(HΣ)/Tr(HΣ̄); interval over seeds.",
        "Supported if the interval lies above 1, contradicted if below.",
        ("one-hidden-layer",),
        _indicator_one_hidden,
        "{:.4g}",
    ),
    Claim(
        "indicator-along",
        "Tr(HΣ) exceeds its isotropic reference along training of the network.",
        "FashionMNIST experiment",
        "Geometric mean of Tr(HΣ)/Tr(HΣ̄) over the measured steps and the minimum; interval over seeds.",
        "Supported if the interval lies above 1, contradicted if below.",
        ESCAPES,
        _indicator_along,
        "{:.4g}",
    ),
    Claim(
        "ill-conditioned",
        "H is ill-conditioned at the minimum: λ_{k+1} = λ₁·D^{−d} with d > ½.",
        "condition (1)",
        "d at the minimum; interval over seeds.",
        "Supported if the interval lies above ½, contradicted if below.",
        ESCAPES,
        _at_minimum("decay_exponent", 0.5),
    ),
    Claim(
        "aligned",
        "The noise is aligned with the curvature: the projection coefficient a is bounded away from 0.",
        "condition (2)",
        "a at the minimum; interval over seeds.",
        f"Supported if the interval lies above {ALIGNED:g}, contradicted if below.",
        ESCAPES,
        _at_minimum("projection_coefficient", ALIGNED),
    ),
    Claim(
        "escapes",
        "SGD, leading, Hessian and first-eigenvector noise leave the minimum that gradient descent found.",
        "FashionMNIST experiment; escaping efficiency",
        "Training loss above that of gradient descent continued from the same minimum, mean over the recorded "
        "steps, "
        "within seeds.",
        f"Supported if the interval lies above 0, contradicted if below. {_TRACE}",
        ESCAPES,
        _escapes(*FLATTENING),
        "{:+.3f}",
    ),
    Claim(
        "stays",
        "Constant, dynamic and diagonal noise of the same trace do not leave it.",
        "FashionMNIST experiment; escaping efficiency",
        "As for 'escapes'.",
        f"Supported if the interval lies within ±{SAME_LOSS}, contradicted if outside. {_TRACE}",
        ESCAPES,
        _stays(*NOT_FLATTENING),
        "{:+.3f}",
    ),
    Claim(
        "flatter",
        "SGD, leading, Hessian and first-eigenvector noise find flatter ground.",
        "FashionMNIST experiment",
        "Expected sharpness relative to that of gradient descent continued from the same minimum, both "
        "averaged over "
        "the last half of the steps, within seeds.",
        f"Supported if the interval lies below 0, contradicted if above. {_TRACE}",
        ESCAPES,
        _flatter(*FLATTENING),
        "{:+.0%}",
    ),
    Claim(
        "not-flatter",
        "Constant, dynamic and diagonal noise of the same trace do not.",
        "FashionMNIST experiment",
        "As for 'flatter'.",
        f"Supported if the interval lies above −{SAME_SHARPNESS:.0%}, contradicted if below. {_TRACE}",
        ESCAPES,
        _not_flatter(*NOT_FLATTENING),
        "{:+.0%}",
    ),
    Claim(
        "accuracy-follows",
        "Test accuracy follows: the noises that flatten also generalise better.",
        "FashionMNIST experiment",
        "Mean test accuracy at the last step of the four noises that flatten, minus that of the other three, "
        "within seeds.",
        f"Supported if the interval lies above 0, contradicted if below. {_TRACE}",
        ESCAPES,
        _accuracy_follows,
        "{:+.1%}",
    ),
    Claim(
        "accuracy-order",
        "SGD generalises better than diagonal noise, and that better than isotropic noise.",
        "SVHN and CIFAR-10 experiments",
        "Differences of test accuracy at the last step, within seeds.",
        f"Supported if the interval lies above 0, contradicted if below. {_TRACE}",
        TRAININGS,
        _accuracy_order,
        "{:+.1%}",
    ),
    Claim(
        "isotropic-as-gd",
        "Constant and dynamic noise generalise about as gradient descent does.",
        "SVHN and CIFAR-10 experiments",
        "Differences of test accuracy at the last step, within seeds.",
        f"Supported if the interval lies within ±{SAME_ACCURACY:.0%}, contradicted if outside. {_TRACE}",
        TRAININGS,
        _accuracy_same(("gld-constant", "gd"), ("gld-dynamic", "gd")),
        "{:+.1%}",
    ),
    Claim(
        "flatter-generalises",
        "Flatter end points generalise better.",
        "SVHN and CIFAR-10 experiments",
        "Spearman's correlation of expected sharpness and test accuracy over the dynamics, within seeds.",
        "Supported if the interval over seeds lies below 0, contradicted if above.",
        TRAININGS,
        _flatter_generalises,
        "{:+.2f}",
    ),
    Claim(
        "turned-basin",
        "Tr(HΣ) decides alone: in a basin turned by 90° the same Tr(HΣ) escapes as often.",
        "in the published geometry the steep direction also points at the exit",
        "Escape rate in the published minus that in the turned basin; Newcombe intervals, Bonferroni-corrected.",
        f"Supported if the interval lies within ±{SAME_RATE:.0%}, contradicted if outside.",
        ("toy-2d",),
        _toy_rotated,
        "{:+.1%}",
        control=True,
    ),
    Claim(
        "isotropic-basin",
        "Tr(HΣ) decides alone: in an isotropic basin every noise escapes as often as constant noise.",
        "there every shape of noise has the same Tr(HΣ)",
        "Escape rate minus that of constant noise; Newcombe intervals, Bonferroni-corrected.",
        f"Supported if the interval lies within ±{SAME_RATE:.0%}, contradicted if outside.",
        ("toy-2d",),
        _toy_isotropic,
        "{:+.1%}",
        control=True,
    ),
    Claim(
        "gaussian-escapes",
        "Gaussian noise with the full covariance of SGD leaves the minimum: no batches are needed.",
        "separates the covariance from the rest of SGD's law",
        "As for 'escapes'.",
        f"Supported if the interval lies above 0, contradicted if below. {_TRACE}",
        ESCAPES,
        _escapes("gld-full"),
        "{:+.3f}",
        control=True,
    ),
    Claim(
        "shuffled-stays",
        "Noise with SGD's spectrum along shuffled directions does not leave it: alignment is needed.",
        "separates the directions from the spectrum",
        "As for 'escapes'.",
        f"Supported if the interval lies within ±{SAME_LOSS}, contradicted if outside. {_TRACE}",
        ESCAPES,
        _stays("gld-shuffled"),
        "{:+.3f}",
        control=True,
    ),
    Claim(
        "gaussian-flattens",
        "Gaussian noise with the full covariance of SGD flattens, too.",
        "separates the covariance from the rest of SGD's law",
        "As for 'flatter'.",
        f"Supported if the interval lies below 0, contradicted if above. {_TRACE}",
        ESCAPES,
        _flatter("gld-full"),
        "{:+.0%}",
        control=True,
    ),
    Claim(
        "gaussian-as-sgd",
        "That Gaussian noise flattens as much as SGD: the covariance is all that counts.",
        "separates the covariance from the rest of SGD's law",
        "Relative expected sharpness, as for 'flatter', under full Gaussian noise minus that under SGD, within "
        "seeds.",
        f"Supported if the interval lies within ±{SAME_SHARPNESS:.0%}, contradicted if outside. {_TRACE}",
        ESCAPES,
        _full_as_sgd,
        "{:+.0%}",
        control=True,
    ),
    Claim(
        "shuffled-does-not-flatten",
        "Noise with SGD's spectrum along shuffled directions does not flatten.",
        "separates the directions from the spectrum",
        "As for 'flatter'.",
        f"Supported if the interval lies above −{SAME_SHARPNESS:.0%}, contradicted if below. {_TRACE}",
        ESCAPES,
        _not_flatter("gld-shuffled"),
        "{:+.0%}",
        control=True,
    ),
    Claim(
        "noise-is-needed",
        "Without noise, gradient descent with a penalty on the gradient's norm does not flatten.",
        "asks whether flattening needs noise at all",
        "As for 'flatter'.",
        f"Supported if the interval lies above −{SAME_SHARPNESS:.0%}, contradicted if below.",
        ESCAPES,
        _not_flatter("gd-gradient-penalty"),
        "{:+.0%}",
        control=True,
    ),
    Claim(
        "gaussian-generalises-as-sgd",
        "Training with the full-covariance Gaussian generalises as SGD does.",
        "separates the covariance from the rest of SGD's law",
        "Difference of test accuracy at the last step, within seeds.",
        f"Supported if the interval lies within ±{SAME_ACCURACY:.0%}, contradicted if outside. {_TRACE}",
        TRAININGS,
        _accuracy_same(("gld-full", "sgd")),
        "{:+.1%}",
        control=True,
    ),
)
"""The ledger's claims, in the paper's order; then the controls."""
