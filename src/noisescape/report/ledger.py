"""The ledger as sections of a report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from noisescape.experiments.claims import Finding, Result
from noisescape.experiments.claims.lab_catalogue import LAB_CLAIMS
from noisescape.report.page import Judged, Section, Table, Tone, Verdict, Verdicts

TONES: dict[str, Tone] = {"supported": "good", "contradicted": "bad", "undecided": "care"}
"""The colour of a verdict, beside its word."""
LOOKS = ("claim", "experiment", "seeds", "effect [interval]", "p", "decides below", "crossed", "note")
EXPLORATORY = (
    "Exploratory intervals are at 95 % and corrected neither for the other claims nor for looking again; p is that "
    "of the t test behind them."
)
PRIMARY = (
    "Primary claims are tested at numbers of seeds fixed beforehand, as one family with an error of 5 %; their "
    "intervals are at the level of the look, so that they are clear of the threshold where it decides."
)


def ledger_sections(findings: Sequence[Finding]) -> list[Section]:
    """What was found of each claim, first; how each is judged, for the end of the page."""
    if not findings:
        return []
    claims = [finding for finding in findings if not finding.claim.control]
    controls = [finding for finding in findings if finding.claim.control]
    counted = tally(*judged_on(findings))
    scale = "Bars: intervals, on one scale for a claim; the dotted line is 0."
    items: list[Table | Verdicts] = []
    if claims:
        items.append(_verdicts(claims, f"{claimants(claims).capitalize()}. {scale}"))
    if (looks := _looks(findings)).rows:
        items.append(looks)
    if controls:
        items.append(_verdicts(controls, f"Controls beside them. {scale}"))
    primary = any(not finding.claim.exploratory for finding in findings)
    return [
        Section(
            "What holds and what does not",
            f"{counted} Every rule was written down before the run; it is given at the end of this page. "
            f"n counts seeds, or replicas for escape rates. {f'{PRIMARY} ' if primary else ''}{EXPLORATORY}",
            items,
        )
    ]


def judged_on(findings: Sequence[Finding]) -> tuple[Sequence[Finding], str]:
    """The findings that count, and what they are on: claims where there are any, or else controls."""
    claims = [finding for finding in findings if not finding.claim.control]
    return (claims, claimants(claims)) if claims else (findings, "controls")


def claimants(findings: Sequence[Finding]) -> str:
    """Whose claims these are, in words: the paper's, or those of the laws that came after it."""
    return "the later laws" if {finding.claim for finding in findings} <= {*LAB_CLAIMS} else "the paper's claims"


def rules_section(findings: Sequence[Finding]) -> list[Section]:
    """Statistic and rule of every claim that was judged."""
    judged = list(dict.fromkeys(finding.claim for finding in findings))
    if not judged:
        return []
    rows = [[claim.name, claim.statement, claim.where, claim.statistic, claim.rule] for claim in judged]
    table = Table(["name", "statement", "in the paper", "statistic", "rule"], rows, "How each claim is judged.")
    return [Section("How the claims are judged", "", [table])]


def tally(findings: Sequence[Finding], on: str = "the paper's claims") -> str:
    """The verdicts counted, primary and exploratory ones apart, as sentences.

    >>> tally([])
    'No claim was judged.'
    """
    parts = []
    for standing in ("primary", "exploratory"):
        counts = Counter(finding.result.verdict for finding in findings if finding.claim.standing == standing)
        verdicts = [
            f"{counts[verdict]} {verdict}"
            for verdict in ("supported", "contradicted", "undecided")
            if counts[verdict]
        ]
        if verdicts:
            total = counts.total()
            parts.append(f"Of {total} {standing} finding{'s' * (total != 1)} on {on}: {', '.join(verdicts)}.")
    return " ".join(parts) or "No claim was judged."


def p_text(p: float) -> str:
    """A p value; a dash where there is none.

    >>> p_text(0.034567), p_text(1.2e-9), p_text(0.0), p_text(float("nan"))
    ('0.0346', '1.2e-09', '0', '–')
    """
    return "–" if math.isnan(p) else f"{p:.3g}"


def _verdicts(findings: Sequence[Finding], caption: str) -> Verdicts:
    """Grouped by claim; whose runs they are of, only where there are several."""
    several = len({finding.source for finding in findings}) > 1
    claims = []
    for claim in dict.fromkeys(finding.claim for finding in findings):
        own = [finding for finding in findings if finding.claim is claim]
        counts = {finding.result.n for finding in own}
        standing = f"{claim.standing}, n = {counts.pop()}" if len(counts) == 1 else claim.standing
        claims.append(Judged(claim.statement, standing, _shown(own, several=several)))
    return Verdicts(claims, caption)


def _shown(findings: Sequence[Finding], *, several: bool) -> list[Verdict]:
    """The findings on one claim, on one scale; how many they are of, where that is not the same for all."""
    ends = [
        value
        for finding in findings
        for value in (finding.result.low, finding.result.effect, finding.result.high)
        if math.isfinite(value)
    ]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    same = len({finding.result.n for finding in findings}) == 1
    shown = []
    for finding in findings:
        result = finding.result
        details = [*([] if same else [f"n = {result.n}"])]
        details += [] if math.isnan(result.p) else [f"p = {p_text(result.p)}"]
        shown.append(
            Verdict(
                result.verdict,
                TONES[result.verdict],
                ", ".join(filter(None, (result.case, finding.source if several else ""))),
                finding.effect_text,
                _bar(result, low, high),
                [*details, *filter(None, [result.note])],
            )
        )
    return shown


def _bar(result: Result, low: float, high: float) -> tuple[float, float, float, float] | None:
    """Where 0, the interval's ends and the effect lie between the ends of a line, in per cent."""
    if high <= low or not all(map(math.isfinite, (result.low, result.high, result.effect))):
        return None
    zero, left, right, effect = (
        round(100 * (place - low) / (high - low), 1) for place in (0.0, result.low, result.high, result.effect)
    )
    return zero, left, right, effect


def _looks(findings: Sequence[Finding]) -> Table:
    rows = [
        [
            finding.claim.name,
            finding.source,
            str(look.n),
            finding.claim.shown(look.effect, look.low, look.high),
            p_text(look.p),
            p_text(look.boundary),
            "yes" if look.crossed else "no",
            look.veto or "",
        ]
        for finding in findings
        for look in finding.result.looks
    ]
    return Table(LOOKS, rows, "The looks of the primary claims that were taken.")
