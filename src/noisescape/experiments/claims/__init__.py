"""The claims of the paper, each with the rule that turns a run into a verdict.

The rules stand here before a run is made. An interval is a 95 % t interval over seeds of a difference taken
within seeds (same data, same starting point), or for escape rates a Newcombe interval over replicas. A claim is
*supported* or *contradicted* only if its interval lies clear of the threshold, else *undecided*. A *veto* leaves it
undecided whatever the interval says: a dynamics diverged, there is a single seed, or the noises compared were not
shown to be of the trace they should have. Verdicts are never read from notes, which are for readers.

Few claims are *primary*: they are tested at numbers of seeds fixed beforehand, as one family, so that the
probability of any wrong verdict among them is 5 %. All others are *exploratory*: their intervals are not corrected
for the other claims, nor for looking again. Runs that differ in their seeds only are pooled before anything is
judged.
"""

from noisescape.experiments.claims.catalogue import CLAIMS
from noisescape.experiments.claims.claim import Claim, Finding, Look, Result
from noisescape.experiments.claims.evidence import Evidence
from noisescape.experiments.claims.ledger import ledger
from noisescape.experiments.claims.rules import exceeds, falls, vanishes

__all__ = [
    "CLAIMS",
    "Claim",
    "Evidence",
    "Finding",
    "Look",
    "Result",
    "exceeds",
    "falls",
    "ledger",
    "vanishes",
]
