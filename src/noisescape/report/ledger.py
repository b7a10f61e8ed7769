"""The ledger as sections of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from noisescape.experiments.claims import Finding
from noisescape.report.page import Section, Table

COLUMNS = ("verdict", "claim", "case", "experiment", "effect [95 % interval]", "n", "note")


def ledger_sections(findings: Sequence[Finding]) -> list[Section]:
    """What was found of each claim, first; how each is judged, for the end of the page."""
    if not findings:
        return []
    claims = [finding for finding in findings if not finding.claim.control]
    controls = [finding for finding in findings if finding.claim.control]
    counted = tally(claims) if claims else tally(controls, "controls")
    items = [_table(claims, "The paper's claims."), _table(controls, "Controls beside them.")]
    return [
        Section(
            "What holds and what does not",
            f"{counted} Every rule was written down before the run; it is given at the end of this page. "
            "n counts seeds, or replicas for escape rates.",
            [item for item in items if item.rows],
        )
    ]


def rules_section(findings: Sequence[Finding]) -> list[Section]:
    """Statistic and rule of every claim that was judged."""
    judged = list(dict.fromkeys(finding.claim for finding in findings))
    if not judged:
        return []
    rows = [[claim.name, claim.statement, claim.where, claim.statistic, claim.rule] for claim in judged]
    table = Table(["name", "statement", "in the paper", "statistic", "rule"], rows, "How each claim is judged.")
    return [Section("How the claims are judged", "", [table])]


def tally(findings: Sequence[Finding], on: str = "the paper's claims") -> str:
    """The verdicts counted, as a sentence.

    >>> tally([])
    'No claim was judged.'
    """
    if not findings:
        return "No claim was judged."
    counts = Counter(finding.result.verdict for finding in findings)
    parts = [
        f"{counts[verdict]} {verdict}" for verdict in ("supported", "contradicted", "undecided") if counts[verdict]
    ]
    return f"Of {len(findings)} findings on {on}: {', '.join(parts)}."


def _table(findings: Sequence[Finding], caption: str) -> Table:
    rows, shown = [], None
    for finding in findings:
        result = finding.result
        statement = finding.claim.statement if finding.claim is not shown else ""
        shown = finding.claim
        rows.append(
            [
                result.verdict,
                statement,
                result.case,
                finding.source,
                finding.effect_text,
                str(result.n),
                result.note,
            ]
        )
    return Table(COLUMNS, rows, caption)
