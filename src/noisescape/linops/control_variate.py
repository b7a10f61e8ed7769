"""Control variates: the gap Tr((A − Ã)B) between an operator and one with cheaper quadratic forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from noisescape.linops.estimate import Estimate
from noisescape.linops.operator import SymmetricOperator
from noisescape.linops.probing import warn_of_tolerance

PILOT = 2
"""Gap probes that decide whether the control is used, and nothing else."""
KEPT = 2
"""Gap probes that enter the value, at least."""
MOST_KEPT = 64
"""If the gap's share of the tolerance takes more, the control does not pay."""
GAP_SHARE = 1 / 8
"""The gap's share of the tolerance: small, as two probes estimate their spread poorly."""
MAIN_SHARE = math.sqrt(1 - GAP_SHARE**2)


class Gap:
    """Tr((A − Ã)B) by probes wᵀ(A − Ã)w with E wwᵀ = B, each two quadratic forms.

    Args:
        operator: A.
        control: Ã.
        draw: m ↦ m draws w as columns, (D, m).
    """

    def __init__(
        self, operator: SymmetricOperator, control: SymmetricOperator, draw: Callable[[int], Tensor]
    ) -> None:
        self._operator, self._control, self._draw = operator, control, draw
        self._values = torch.empty(0, dtype=operator.dtype, device=operator.device)

    def _probe(self, count: int) -> tuple[Tensor, Tensor]:
        """Forms of A and of A − Ã, (m,) each."""
        forms, gaps = [], []
        block = min(self._operator.block, self._control.block)
        for start in range(0, count, block):
            columns = self._draw(min(block, count - start))
            forms.append(self._operator.quadratic_forms(columns))
            gaps.append(forms[-1] - self._control.quadratic_forms(columns))
        return torch.cat(forms), torch.cat(gaps)

    def is_small(self, rtol: float) -> bool:
        """Whether few probes leave an error far below the tolerance; draws the first that are kept.

        The pilot is never kept: the value would come from draws that happened to look good. Where the first kept
        probes contradict it, the control is given up as well.
        """
        scale, pilot = self._probe(PILOT)
        if self._needed(pilot, rtol, scale) > KEPT:
            return False
        forms, self._values = self._probe(KEPT)
        return self._needed(self._values, rtol, torch.cat([scale, forms])) <= MOST_KEPT

    @staticmethod
    def _needed(gaps: Tensor, rtol: float, forms: Tensor) -> float:
        """How many probes of this spread keep to their share of the tolerance."""
        spread, allowed = float(gaps.std()), GAP_SHARE * rtol * abs(float(forms.mean()))
        if spread == 0:
            return 0.0
        return (spread / allowed) ** 2 if allowed > 0 and math.isfinite(spread) else math.inf

    def added(self, main: Estimate, rtol: float, *, left: Callable[[], int], what: str) -> Estimate:
        """Tr(AB) from an independent estimate that includes this gap's mean, with Welch's degrees of freedom.

        While the sum is not accurate enough and products are left, more probes are drawn.
        """
        rest = main.value - self._mean  # Tr(ÃB)
        while True:
            value, stderr = rest + self._mean, math.hypot(main.stderr, self._stderr)
            allowed = (rtol * abs(value)) ** 2 - main.stderr**2
            if stderr <= rtol * abs(value) or not math.isfinite(stderr) or allowed <= 0:
                break
            if left() < 2:
                warn_of_tolerance(what, stderr, abs(value), len(self._values), rtol, stacklevel=6)
                break
            have = len(self._values)
            wanted = min(math.ceil(have * self._stderr**2 / allowed), 8 * have) - have
            more = self._probe(min(max(KEPT, wanted), left() // 2))[1]
            self._values = torch.cat([self._values, more])
        shares = (main.stderr**4 / main.dof + self._stderr**4 / (len(self._values) - 1)) if stderr else 0.0
        return Estimate(value, stderr, main.cost, stderr**4 / shares if shares else math.inf)

    @property
    def mean(self) -> Tensor:
        """The mean of the probes kept so far, ()."""
        return self._values.mean()

    @property
    def _mean(self) -> float:
        return float(self.mean)

    @property
    def _stderr(self) -> float:
        return float(self._values.std()) / math.sqrt(len(self._values))
