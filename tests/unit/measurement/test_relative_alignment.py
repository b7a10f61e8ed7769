"""A, free of D and B, and its control, against dense matrices and cases whose value is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from cases import CASES, F64, WIDER, Batches, Case, normal
from noisescape.linops import DenseOperator, IsotropicOperator
from noisescape.measurement import relative_alignment
from noisescape.measurement.relative_alignment import RelativeAlignment
from noisescape.risk import EmpiricalRisk, shuffled_covariance
from noisescape.theory.landscapes import quadratic

NAMES = ("mlp cross-entropy", "mlp squared", "logistic", "conv", "sequence", "tied weights", "no forward mode")


def order(case: Case, seed: int) -> Tensor:
    return torch.randperm(case.count, generator=torch.Generator().manual_seed(seed))


def dealt(case: Case, order: Tensor) -> Tensor:
    """C with sample n's Jacobian and the residual of sample order[n], from its definition."""
    jacobians = case.output_jacobians()
    outputs = case.outputs(case.theta, case.inputs).detach().requires_grad_()
    (residuals,) = torch.autograd.grad(case.by_hand(outputs, case.targets).sum(), outputs)
    rows = torch.stack([jacobians[n].T @ residuals[order[n]].flatten() for n in range(case.count)])
    return torch.cov(rows.T, correction=0)


def alignment(hessian: Tensor, covariance: Tensor) -> float:
    met = (hessian @ covariance).trace() / covariance.trace()
    return float(met * hessian.trace() / (hessian @ hessian).trace())


@pytest.mark.parametrize("name", NAMES)
def test_shuffled_residuals_are_those_of_other_samples(name: str) -> None:
    case = CASES[name]
    assert_close(dealt(case, torch.arange(case.count)), case.covariance(), rtol=1e-9, atol=1e-12)
    found = shuffled_covariance(case.risk(), case.theta, seed=3)
    expected = dealt(case, order(case, 3))
    assert_close(found.dense(), expected, rtol=1e-9, atol=1e-10)
    assert float(found.trace()) == pytest.approx(float(expected.trace()), rel=1e-9)
    assert not torch.allclose(expected, case.covariance(), rtol=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_a_and_its_control_are_those_of_dense_matrices(name: str) -> None:
    case = CASES[name]
    found = relative_alignment(case.risk(), case.theta, seed=3)
    noise, shuffled = (alignment(case.hessian(), c) for c in (case.covariance(), dealt(case, order(case, 3))))
    assert found.noise.value == pytest.approx(noise, rel=1e-8)
    assert found.shuffled.value == pytest.approx(shuffled, rel=1e-8)
    assert found.gain.value == pytest.approx(noise / shuffled, rel=1e-8)
    assert found.noise.stderr == found.shuffled.stderr == found.gain.stderr == 0, "exact at this dimension"


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_data_that_are_streamed_get_the_same_residuals(chunk_size: int | None) -> None:
    case = CASES["mlp cross-entropy"]
    streamed = EmpiricalRisk(
        case.model(), case.loss, Batches(case, [5, 3, 3]), memory_budget=1 << 14, chunk_size=chunk_size
    )
    found = shuffled_covariance(streamed, case.theta, seed=3).dense()
    assert_close(found, dealt(case, order(case, 3)), rtol=1e-9, atol=1e-11)


def test_other_seeds_are_other_permutations() -> None:
    case = CASES["mlp cross-entropy"]
    one, again, other = (shuffled_covariance(case.risk(), case.theta, seed=seed).dense() for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_noise_in_proportion_to_the_curvature_has_the_value_one() -> None:
    case = CASES["mlp cross-entropy"]
    proportional = relative_alignment(case.risk(), case.theta, hessian=DenseOperator(7 * case.covariance()))
    assert proportional.noise.value == pytest.approx(1, rel=1e-12)
    assert proportional.shuffled.value != pytest.approx(1, rel=0.01)
    round_ = IsotropicOperator(torch.tensor(2.0, dtype=F64), case.risk().dimension)
    assert relative_alignment(case.risk(), case.theta, hessian=round_).noise.value == pytest.approx(1, rel=1e-12)


def regression(residuals: str, count: int = 6000) -> RelativeAlignment:
    """Linear regression at the true weights: x ~ N(0, diag(4, 1, ¼)), and residuals of the given law."""
    x = normal(count, 3, seed=1) * torch.tensor([2.0, 1.0, 0.5], dtype=F64)
    scale = x[:, 0].abs() if residuals == "along the first input" else 1.0
    targets = scale * normal(count, seed=2)
    model = nn.Linear(3, 1, bias=False, dtype=F64)
    risk = EmpiricalRisk(model, lambda out, y: (out[:, 0] - y) ** 2, (x, targets))
    return relative_alignment(risk, torch.zeros(3, dtype=F64), seed=5)


def test_residuals_that_know_nothing_of_their_sample_gain_nothing() -> None:
    """C = 4·E[r²]·E[xxᵀ] ∝ H = 2·E[xxᵀ]: A = 1, shuffled or not."""
    found = regression("free")
    assert found.noise.value == pytest.approx(1, rel=0.05)
    assert found.shuffled.value == pytest.approx(1, rel=0.05)
    assert found.gain.value == pytest.approx(1, rel=0.05)


def test_residuals_that_grow_along_the_curvature_gain() -> None:
    """r = |x₁|z: C ∝ E[x₁²xxᵀ] = 4·diag(12, 1, ¼), shuffled ∝ diag(4, 1, ¼); H ∝ the latter."""
    found = regression("along the first input")
    h, c = torch.tensor([4.0, 1.0, 0.25]), torch.tensor([12.0, 1.0, 0.25])
    expected = float((h @ c / c.sum()) / (h @ h / h.sum()))
    assert expected > 1.1
    assert found.gain.value == pytest.approx(expected, rel=0.05)
    assert found.noise.value == pytest.approx(expected, rel=0.05)
    assert found.shuffled.value == pytest.approx(1, rel=0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("by_probes")
def test_errors_are_stated_and_hold() -> None:
    risk = WIDER.risk()
    misses = []
    for seed in range(20):
        found = relative_alignment(risk, WIDER.theta, rtol=0.05, seed=seed)
        noise, shuffled = (
            alignment(WIDER.hessian(), c) for c in (WIDER.covariance(), dealt(WIDER, order(WIDER, seed)))
        )
        for estimate, exact in (
            (found.noise, noise),
            (found.shuffled, shuffled),
            (found.gain, noise / shuffled),
        ):
            # a few skewed probes may leave a degree of freedom or two, and the interval of a quotient wide
            assert 0 < estimate.stderr < (0.15 if estimate.dof > 4 else 1) * abs(estimate.value)
            misses.append((estimate.value - exact) / estimate.stderr)
    assert max(map(abs, misses)) < 4.5
    # neither far too small nor far too large: the mean square of 60 unit scores, some of them correlated
    assert 0.4 < sum(miss**2 for miss in misses) / len(misses) < 2


def test_where_there_are_no_residuals_there_is_no_control() -> None:
    with pytest.raises(ValueError, match="shuffled residuals needs a model with outputs"):
        relative_alignment(quadratic(torch.eye(2), normal(5, 2, dtype=torch.float32)), torch.zeros(2))


def test_a_loss_that_reads_the_parameters_is_refused() -> None:
    model = nn.Linear(2, 1, dtype=F64)

    def decayed(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets) ** 2 + model.weight.square().sum()

    risk = EmpiricalRisk(model, decayed, (normal(9, 2, seed=1), normal(9, seed=2)))
    with pytest.raises(ValueError, match="as shuffled residuals needs"):
        shuffled_covariance(risk, risk.parameters())


def test_outputs_of_unlike_shapes_are_refused() -> None:
    class Echo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x[..., None])[..., 0]

    batches = [(torch.randn(3, width), torch.randn(3, width)) for width in (2, 4)]
    risk = EmpiricalRisk(Echo(), nn.MSELoss(), batches)
    with pytest.raises(ValueError, match="outputs have one shape"):
        shuffled_covariance(risk, risk.parameters())
