"""The ledger in a terminal: numbers stay whole however narrow it is."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from noisescape.experiments.claims import Claim, Finding

UNCORRECTED = "Exploratory: 95 % intervals, corrected neither for the other claims nor for looking again."
STYLES = {"supported": "green", "contradicted": "red", "undecided": "yellow"}
"""The colour of a verdict."""


def ledger_text(findings: Sequence[Finding], *, verbose: bool = False) -> Group:
    """The ledger: each claim, then a row a finding and its looks; ``verbose`` adds statistic and rule."""
    several = len({finding.source for finding in findings}) > 1
    parts: list[RenderableType] = []
    for claim in dict.fromkeys(finding.claim for finding in findings):
        parts += ["", _heading(claim)]
        if verbose:
            parts += [Padding(Text(said, style="dim"), (0, 0, 0, 2)) for said in (claim.statistic, claim.rule)]
        parts.append(_rows([finding for finding in findings if finding.claim is claim], several=several))
    if any(finding.claim.exploratory for finding in findings):
        parts += ["", Text(UNCORRECTED, style="dim")]
    return Group(*parts)


def _heading(claim: Claim) -> Text:
    said = f"{'Control: ' if claim.control else ''}{claim.statement} "
    return Text.assemble((said, "bold"), (f"({claim.standing})", "dim"))


def _rows(findings: Sequence[Finding], *, several: bool) -> Padding:
    """What was found of one claim; whose runs it was found in, only where there are several."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(min_width=12, no_wrap=True)  # the longest verdict, so that all claims stand in line
    grid.add_column(overflow="fold", min_width=24)
    grid.add_column(no_wrap=True)
    for finding in findings:
        result = finding.result
        case = " ".join(filter(None, (finding.source if several else "", result.case)))
        effect = f"{finding.effect_text}, n = {result.n}"
        grid.add_row(Text(result.verdict, style=STYLES[result.verdict]), Text(case), Text(effect))
        notes = [result.note] if result.note else []
        for look in result.looks:
            decides = "crossed" if look.crossed else "not crossed"
            notes.append(f"look at {look.n} seeds: p = {look.p:.2g}, decides below {look.boundary:.2g}: {decides}")
        for note in notes:
            grid.add_row("", Text(note, style="dim"), "")
    return Padding(grid, (0, 0, 0, 2))
