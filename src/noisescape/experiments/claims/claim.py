"""A claim, the verdict on it, and what runs found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from noisescape.errors import InvalidValueError
from noisescape.experiments.claims.evidence import Evidence

Verdict = Literal["supported", "contradicted", "undecided"]
Judge = Callable[[Evidence], "list[Result]"]
"""What runs say of a claim: a result for every case, none where they have nothing to say."""


@dataclass(frozen=True)
class Look:
    """One look of a primary claim at its first seeds.

    Attributes:
        n: how many.
        effect: the statistic.
        low: end of its interval at the level 1 − boundary, clear of the threshold exactly where p < boundary.
        high: the other end.
        p: of the t test, two-sided.
        boundary: the nominal p below which the look decides, at the level that Holm's procedure gave the claim.
        crossed: whether it does; never where there is a veto.
        veto: why the look decides nothing, whatever its p.
    """

    n: int
    effect: float
    low: float
    high: float
    p: float
    boundary: float
    crossed: bool
    veto: str | None = None


@dataclass(frozen=True)
class Result:
    """A verdict and what it rests on.

    Attributes:
        verdict: supported, contradicted or undecided.
        effect: the statistic.
        low: end of its 95 % interval; for a primary claim that of the look that is shown.
        high: the other end.
        n: seeds, or replicas.
        case: which of several, "width 32" say; may be empty.
        veto: why it is undecided whatever the interval says; None where the interval decides.
        remark: what a reader should know besides.
        p: two-sided, of the t test behind the interval against the threshold, or against the nearer end of a
            margin; NaN where there is none.
        looks: those taken, of a primary claim.
    """

    verdict: Verdict
    effect: float
    low: float
    high: float
    n: int
    case: str = ""
    veto: str | None = None
    remark: str = ""
    p: float = math.nan
    looks: tuple[Look, ...] = ()

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
        family: "primary" for those whose error is controlled together; None for the exploratory ones.
        looks: the numbers of seeds at which a primary claim is tested, fixed before the runs.
        compares: the dynamics of a primary claim; its seeds are those in which all of them ran.
        plan: (root seed, repetitions) of the runs that a primary claim is tested by, in the order in which they
            count, fixed before they were made. Others' runs, none of which are among them, count in their own.
    """

    name: str
    statement: str
    where: str
    statistic: str
    rule: str
    experiments: tuple[str, ...]
    judge: Judge = field(repr=False)
    form: str = "{:.3g}"
    control: bool = False
    family: Literal["primary"] | None = None
    looks: tuple[int, ...] = ()
    compares: tuple[str, ...] = ()
    plan: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if (self.family is None) != (not self.looks):
            raise InvalidValueError(f"the claim '{self.name}' needs looks if it is primary, and only then")

    @property
    def exploratory(self) -> bool:
        """Whether its verdict is not corrected for the other claims."""
        return self.family is None

    @property
    def standing(self) -> str:
        """How its verdict is to be read, in a word."""
        return self.family or "exploratory"

    def shown(self, effect: float, low: float, high: float) -> str:
        """The statistic with its interval, as text."""
        if not math.isfinite(effect):
            return "–"
        shown = self.form.format(effect)
        if not (math.isfinite(low) and math.isfinite(high)):
            return shown
        return f"{shown} [{self.form.format(low)}, {self.form.format(high)}]"


@dataclass(frozen=True)
class Finding:
    """What one run, or several pooled, say of one claim.

    Attributes:
        claim: which.
        experiment: of the runs.
        run: the names of their directories.
        source: the experiment, and the runs where the ledger has others of that experiment with other constants.
        result: the verdict.
    """

    claim: Claim
    experiment: str
    run: str
    source: str
    result: Result

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        texts = ("name", "statement", "where", "statistic", "rule", "control", "family", "exploratory")
        return {
            **{key: getattr(self.claim, key) for key in texts},
            "experiment": self.experiment,
            "run": self.run,
            **{key: getattr(self.result, key) for key in ("case", "verdict", "effect", "low", "high", "n", "p")},
            "looks": [asdict(look) for look in self.result.looks],
            "veto": self.result.veto,
            "note": self.result.note,
        }

    @property
    def effect_text(self) -> str:
        """The statistic with its interval."""
        return self.claim.shown(self.result.effect, self.result.low, self.result.high)
