"""A claim, the verdict on it, and what a run found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from noisescape.errors import InvalidValueError
from noisescape.experiments.claims.evidence import Evidence

Verdict = Literal["supported", "contradicted", "undecided"]
Judge = Callable[[Evidence], "list[Result]"]
"""What a run says of a claim: a result for every case, none where the run has nothing to say."""


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
    judge: Judge = field(repr=False)
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
