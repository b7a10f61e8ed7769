"""C, F and H beside each other, against dense matrices."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, F64, WIDER, Case, normal, symmetric
from noisescape.linops import DenseOperator, IsotropicOperator
from noisescape.measurement import Comparison, compare_noise_and_curvature, compare_operators
from noisescape.risk import EmpiricalRisk


def dense(case: Case) -> dict[str, Tensor]:
    return {"C": case.covariance(), "F": case.gauss_newton(), "H": case.hessian()}


def figures(matrices: dict[str, Tensor], k: int) -> dict[tuple[str, str], float]:
    """Every figure from its definition."""
    found: dict[tuple[str, str], float] = {}
    top = {}
    for name, matrix in matrices.items():
        values, vectors = torch.linalg.eigh(matrix)
        top[name] = vectors[:, -k:]
        found["traces", name] = float(matrix.trace())
        found["largest", name] = float(values[-1])
    for one, other in itertools.combinations(matrices, 2):
        a, b = matrices[one], matrices[other]
        pair = f"{one}/{other}"
        found["cosines", pair] = float((a @ b).trace() / (a.norm() * b.norm()))
        angles = torch.linalg.svdvals(top[one].T @ top[other])  # cosines of the principal angles
        found["overlaps", pair] = float(angles.square().mean())
        found["top_ratios", pair] = found["largest", one] / found["largest", other]
    return found


def value(found: Comparison, part: str, name: str) -> float:
    kept = getattr(found, part)[name]
    return kept if isinstance(kept, float) else kept.value


@pytest.mark.parametrize("name", ["mlp cross-entropy", "mlp squared", "logistic", "conv"])
def test_every_figure_is_that_of_dense_matrices(name: str) -> None:
    case = CASES[name]
    found = compare_noise_and_curvature(case.risk(), case.theta, k=3, rtol=1e-7)  # dearer by probes
    for (part, which), expected in figures(dense(case), 3).items():
        assert value(found, part, which) == pytest.approx(expected, rel=1e-7), (part, which)
    assert all(e.stderr == 0 for e in [*found.traces.values(), *found.cosines.values()])
    assert all(e.stderr < 1e-8 for e in found.largest.values())
    assert found.cosines.keys() == found.overlaps.keys() == {"C/F", "C/H", "F/H"}


@pytest.mark.slow
@pytest.mark.usefixtures("by_probes")
def test_errors_are_stated_and_hold() -> None:
    expected = figures(dense(WIDER), 4)
    for seed in range(6):
        found = compare_noise_and_curvature(WIDER.risk(), WIDER.theta, k=4, rtol=0.05, seed=seed)
        for part in ("traces", "cosines"):
            for which, estimate in getattr(found, part).items():
                assert abs(estimate.value - expected[part, which]) < 4.5 * estimate.stderr + 1e-9, (part, which)
        for name in ("F", "H"):
            assert 0 < found.traces[name].stderr < 0.06 * found.traces[name].value
        for which, overlap in found.overlaps.items():
            assert overlap == pytest.approx(expected["overlaps", which], rel=1e-6)


def test_multiples_of_one_matrix_are_at_no_angle() -> None:
    matrix = symmetric(6, torch.tensor([5.0, 3, 1, 0.5, 0.2, -1]), seed=1)
    others = {"one": DenseOperator(matrix), "thrice": DenseOperator(3 * matrix)}
    found = compare_operators(others, k=2)
    assert found.cosines["one/thrice"].value == pytest.approx(1, rel=1e-12)
    assert found.overlaps["one/thrice"] == pytest.approx(1, rel=1e-12)
    assert found.top_ratios["one/thrice"].value == pytest.approx(1 / 3, rel=1e-12)
    kept = json.loads(json.dumps(found.to_dict()))
    assert kept["traces"]["thrice"]["value"] == pytest.approx(3 * float(matrix.trace()))
    assert (kept["k"], kept["overlaps"]["one/thrice"]) == (2, pytest.approx(1))


def test_matrices_that_share_no_direction_are_at_a_right_angle() -> None:
    left, right = torch.diag(torch.tensor([2.0, 1, 0, 0])), torch.diag(torch.tensor([0.0, 0, 3, 1]))
    found = compare_operators({"left": DenseOperator(left), "right": DenseOperator(right)}, k=2)
    assert found.cosines["left/right"].value == 0
    assert found.overlaps["left/right"] == pytest.approx(0, abs=1e-12)


def test_noise_of_lower_rank_than_k_is_compared_as_far_as_it_goes() -> None:
    """Three samples: C has rank 2."""
    case = Case(lambda: nn.Linear(4, 3), normal(3, 4, seed=1), torch.tensor([0, 1, 2]))
    found = compare_noise_and_curvature(case.risk(), case.theta, k=5)
    assert 0 < found.overlaps["C/H"] <= 2 / 5 + 1e-9
    assert found.k == 5


def test_a_fisher_information_may_be_given_where_none_is_known() -> None:
    model = nn.Linear(3, 1, dtype=F64)
    data = (normal(9, 3, seed=1), normal(9, seed=2))
    risk = EmpiricalRisk(model, lambda out, y: (out[:, 0] - y).abs().pow(1.5), data)
    theta = risk.parameters()
    with pytest.raises(ValueError, match="needs the model's predictive distribution"):
        compare_noise_and_curvature(risk, theta, k=2)
    given = compare_noise_and_curvature(
        risk, theta, k=2, fisher=IsotropicOperator(torch.tensor(2.0, dtype=F64), risk.dimension)
    )
    assert given.traces["F"].value == pytest.approx(2.0 * risk.dimension)


def test_what_cannot_be_compared_is_refused() -> None:
    one = DenseOperator(torch.eye(3))
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        compare_operators({"a": one, "b": one}, k=0)
    with pytest.raises(ValueError, match="two operators or more, not 1"):
        compare_operators({"a": one})
    with pytest.raises(ValueError, match="sizes differ"):
        compare_operators({"a": one, "b": DenseOperator(torch.eye(4))}, k=1)
