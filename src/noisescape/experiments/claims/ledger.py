"""All claims judged by all runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from noisescape.experiments.claims.catalogue import CLAIMS
from noisescape.experiments.claims.claim import Finding
from noisescape.experiments.claims.evidence import Evidence
from noisescape.runs.run import Run


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
