"""All claims judged by all runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from noisescape.experiments.claims.catalogue import CLAIMS
from noisescape.experiments.claims.claim import Claim, Finding, Result
from noisescape.experiments.claims.evidence import Evidence
from noisescape.experiments.claims.pool import Pool, pooled
from noisescape.experiments.claims.primary import primary_results
from noisescape.runs.run import Run
from noisescape.runs.understood import understood


def ledger(runs: Sequence[Run]) -> list[Finding]:
    """Every claim judged by all runs that bear on it, in the order of the claims.

    Runs that differ in their seeds, place or arms only are pooled; those with other constants are judged apart.

    Raises:
        ValueError: two runs hold the same seed.
    """
    with understood(*runs):
        pools = pooled(runs)
        results = [_results(Evidence.whole(pool), _experiment(pool)) for pool in pools]
    counts = Counter(map(_experiment, pools))
    return [
        Finding(
            claim, _experiment(pool), ", ".join(run.path.name for run in pool.runs), _source(pool, counts), result
        )
        for claim in CLAIMS
        for pool, found in zip(pools, results, strict=True)
        for result in found.get(claim, ())
    ]


def _results(evidence: Evidence, experiment: str) -> dict[Claim, list[Result]]:
    claims = [claim for claim in CLAIMS if experiment in claim.experiments]
    primary = primary_results([claim for claim in claims if not claim.exploratory], evidence)
    return {claim: claim.judge(evidence) for claim in claims if claim.exploratory} | {
        claim: [result] for claim, result in primary.items()
    }


def _experiment(pool: Pool) -> str:
    return str(pool.runs[0].info["experiment"])


def _source(pool: Pool, counts: Counter[str]) -> str:
    """The experiment, and where its runs lie if there are others with other constants."""
    experiment = _experiment(pool)
    return (
        experiment if counts[experiment] == 1 else f"{experiment} ({', '.join(str(run.path) for run in pool.runs)})"
    )
