"""Each sample normalised by itself, and warnings where that is not what is trained."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from criteria import CE, CLASSES, TOKENS, TRAINED, C, Focal, N, Shaped, T, X, ignoring, plain_gradient
from noisescape.risk import EmpiricalRisk
from noisescape.risk.criterion import NormalisationWarning


def test_ignored_targets_in_a_mean_of_ones_own_bring_a_warning() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    with pytest.warns(NormalisationWarning, match=r"targets tried are ignored, yet each counts as a loss of 0"):
        EmpiricalRisk(Shaped(C, T), loss, (X, ignoring(TOKENS)))


@pytest.mark.parametrize("name", ["ignored tokens", "an index of one's own", "pixels", "class weights", "partial"])
def test_a_sample_may_be_normalised_by_itself(name: str) -> None:
    case = TRAINED[name]
    model = case.model()
    with pytest.warns(NormalisationWarning, match=r'normalisation="criterion" measures what is trained'):
        risk = EmpiricalRisk(model, case.criterion, (X, case.targets), normalisation="sample")
    theta = risk.parameters()
    alone = [case.criterion(model(X[n : n + 1]), case.targets[n : n + 1]) for n in range(N)]
    kept = [value if bool(value.isfinite()) else 0 * model(X).sum() for value in alone]  # nothing of it counts
    assert_close(risk.losses(theta), torch.stack(kept).detach())
    assert_close(risk.gradient(theta), plain_gradient(model, sum(kept) / N))


def test_where_both_normalisations_are_one_there_is_no_warning() -> None:
    model = Shaped(C, T)
    one = EmpiricalRisk(model, CE(), (X, TOKENS), normalisation="sample")
    other = EmpiricalRisk(model, CE(), (X, TOKENS))
    assert_close(one.losses(one.parameters()), other.losses(one.parameters()))


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match=r'normalisation must be "criterion" or "sample", not \'batch\''):
        EmpiricalRisk(Shaped(C), CE(), (X, CLASSES), normalisation="batch")  # type: ignore[arg-type]


def test_a_criterion_that_counts_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no target counts: all are ignored"):
        EmpiricalRisk(Shaped(C, T), CE(), (X, torch.full_like(TOKENS, -100)))


class OverValid(Focal):
    """Divides by what it likes."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        values = super().forward(input, target)
        return values if self.reduction == "none" else values.sum() / (target != -100).sum()


def test_a_mean_that_is_not_known_brings_a_warning() -> None:
    with pytest.warns(NormalisationWarning, match=r"normalised as you train \(OverValid does not\)"):
        risk = EmpiricalRisk(Shaped(C, T), OverValid(reduction="mean"), (X, ignoring(TOKENS)))
    assert risk.sample_count == N


def test_no_warning_where_nothing_is_amiss() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", NormalisationWarning)
        for case in TRAINED.values():
            EmpiricalRisk(case.model(), case.criterion, (X, case.targets))
