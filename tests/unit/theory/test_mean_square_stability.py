"""The threshold of mean-square stability against Kronecker products, enumerated batches and simulations."""

from __future__ import annotations

import itertools

import pytest
import torch

import noisescape as ns
from noisescape.risk.sample_curvature import SampleGaussNewton, SampleHessians
from noisescape.theory import mean_square_bound, mean_square_threshold
from noisescape.theory.second_moments import HeldForms, after_step, worst_deviation
from slowness import quick

F64 = torch.float64


def curvatures(count, dimension, rank, seed=0):
    """Positive curvatures of very unlike strength, (N, D, D)."""
    generator = torch.Generator().manual_seed(seed)
    roots = torch.randn(count, dimension, rank, generator=generator, dtype=F64)
    return (roots @ roots.mT) * torch.rand(count, 1, 1, generator=generator, dtype=F64) ** 3


def bowls(samples):
    """ℓ_n(θ) = ½θᵀH_nθ: all have their minimum at 0."""

    def loss(theta, curvature):
        return 0.5 * (theta * (curvature @ theta[..., None])[..., 0]).sum(-1)

    return ns.EmpiricalRisk.from_sample_loss(loss, samples, torch.zeros(samples.shape[1], dtype=F64))


def by_kronecker(samples, share):
    """2/λ_max(C⁺D) with C = ½(H⊗I + I⊗H) and D = (1−p)H⊗H + p·mean H_n⊗H_n formed."""
    mean, eye = samples.mean(0), torch.eye(samples.shape[1], dtype=F64)
    linear = (torch.kron(mean, eye) + torch.kron(eye, mean)) / 2
    second = (1 - share) * torch.kron(mean, mean) + share * torch.stack([torch.kron(h, h) for h in samples]).mean(0)
    values, vectors = torch.linalg.eigh(linear)
    kept = values > 1e-9 * values[-1]
    root = vectors[:, kept] / values[kept].sqrt()
    return 2 / float(torch.linalg.eigvalsh(root.mT @ second @ root)[-1])


def share_of(batch, count, replacement):
    return 1 / batch if replacement else (count - batch) / (batch * (count - 1))


PROBLEMS = [(7, 3, 1), (5, 8, 1), (9, 6, 2), (5, 8, 3), (12, 2, 1), (4, 1, 1)]


@pytest.mark.parametrize("replacement", [True, False], ids=["with replacement", "without"])
@pytest.mark.parametrize(
    ("count", "dimension", "rank", "batch"),
    quick(
        [(9, 6, 2, 4), (12, 2, 1, 1)],
        [(*problem, batch) for problem in PROBLEMS for batch in (1, 2, 4)],
    ),
)
def test_threshold_is_that_of_the_kronecker_products(count, dimension, rank, batch, replacement):
    samples = curvatures(count, dimension, rank)
    found = mean_square_threshold(
        bowls(samples), torch.zeros(dimension, dtype=F64), batch_size=batch, replacement=replacement,
        curvature="hessian",
    )  # fmt: skip
    wanted = by_kronecker(samples, share_of(batch, count, replacement))
    assert found.threshold == pytest.approx(wanted, rel=1e-8)
    assert found.growth(found.threshold) == pytest.approx(1, abs=1e-7)
    assert found.growth(0.9 * wanted) < 1 < found.growth(1.1 * wanted)


@pytest.mark.slow
def test_few_of_many_directions_are_enough():
    falling = torch.arange(1, 121, dtype=F64) ** -1.5
    samples = falling[:, None] * curvatures(80, 120, 1, seed=3) * falling
    theta = torch.zeros(120, dtype=F64)
    found = mean_square_threshold(bowls(samples), theta, batch_size=2, curvature="hessian")
    wanted = 2 / worst_deviation(HeldForms(samples), 0.5)[0]
    assert found.directions < 100
    assert wanted * (1 - 1e-9) <= found.threshold <= wanted * (1 + 1e-3)


@pytest.mark.parametrize("seed", quick([5], range(8)))
def test_a_strong_sample_that_shares_no_direction_with_the_others_is_found(seed):
    """Rare features: 160 samples on four directions, 46 on one each, one of these strong."""
    inputs = torch.zeros(206, 50, dtype=F64)
    inputs[:160, :4] = torch.randn(160, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)
    inputs[160:, 4:] = torch.eye(46, dtype=F64)
    inputs[160, 4] = 10**0.5
    model = torch.nn.Linear(50, 1, bias=False).double()
    data = inputs, torch.zeros(206, 1, dtype=F64)
    risk = ns.EmpiricalRisk(model, lambda found, wanted: (found - wanted).square().sum(1) / 2, data)
    found = mean_square_threshold(risk, risk.parameters(), batch_size=1, seed=seed)
    assert found.threshold == pytest.approx(0.2, rel=1e-6)
    along = torch.zeros(50, dtype=F64)
    along[4] = 1
    assert found.threshold <= mean_square_bound(risk, risk.parameters(), along, batch_size=1) * (1 + 1e-9)


@pytest.mark.parametrize("replacement", [True, False], ids=["with replacement", "without"])
def test_second_moment_is_that_of_all_sequences_of_batches(replacement):
    samples, lr, batch, steps = curvatures(4, 3, 2), 0.3, 2, 3
    choose = itertools.product(range(4), repeat=batch) if replacement else itertools.combinations(range(4), batch)
    batches = [samples[list(chosen)].mean(0) for chosen in choose]
    start = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    squares = []
    for sequence in itertools.product(batches, repeat=steps):
        deviation = start
        for curvature in sequence:
            deviation = deviation - lr * curvature @ deviation
        squares.append(deviation.square().sum())
    moment = torch.outer(start, start)
    for _ in range(steps):
        moment = after_step(HeldForms(samples), share_of(batch, 4, replacement), lr, moment)
    torch.testing.assert_close(moment.trace(), torch.stack(squares).mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("times", "grows"), [(0.7, False), (1.4, True)])
def test_simulated_sgd_diverges_beyond_the_threshold_alone(times, grows):
    samples, batch, steps = curvatures(6, 3, 1, seed=2), 2, 12
    risk, start = bowls(samples), torch.tensor([1.0, 1.0, 1.0], dtype=F64)
    found = mean_square_threshold(risk, torch.zeros(3, dtype=F64), batch_size=batch, curvature="hessian")
    lr = times * found.threshold
    ends = ns.simulate(
        risk, ns.SGD(batch), start, lr=lr, steps=steps, replicas=40_000, record={}, progress=False
    ).theta.square().sum(1)  # fmt: skip
    moment = torch.outer(start, start)
    for _ in range(steps):
        moment = after_step(HeldForms(samples), 1 / batch, lr, moment)
    assert (ends.mean() - moment.trace()).abs() <= 4 * ends.std() / len(ends) ** 0.5
    for _ in range(400):
        moment = after_step(HeldForms(samples), 1 / batch, lr, moment)
    assert (moment.trace() > 1e3) == grows
    assert (found.growth(lr) > 1) == grows


def network(loss, targets):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    return ns.EmpiricalRisk(model, loss, (torch.randn(9, 3, dtype=F64), targets))


NETWORKS = {
    "squared loss": lambda: network(torch.nn.MSELoss(), torch.randn(9, 2, dtype=F64)),
    "cross-entropy": lambda: network(torch.nn.CrossEntropyLoss(), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1])),
}


def dense_hessians(risk, theta):
    found = []
    for single in risk._samples.between(0, risk.sample_count).singles():

        def loss(point, single=single):
            return risk._function.losses(point, single)[0]

        found.append(torch.autograd.functional.hessian(loss, theta))
    return torch.stack(found)


def dense_gauss_newton(risk, theta):
    found = []
    for single in risk._samples.between(0, risk.sample_count).singles():

        def outputs(point, single=single):
            return risk._function.outputs(point, single.inputs)[0]

        def loss(outputs, single=single):
            return risk._function.losses_of_outputs(theta, outputs[None], single.targets)[0]

        jacobian = torch.autograd.functional.jacobian(outputs, theta)
        inner = torch.autograd.functional.hessian(loss, outputs(theta))
        found.append(jacobian.mT @ inner @ jacobian)
    return torch.stack(found)


KINDS = {"hessian": (SampleHessians, dense_hessians), "gauss-newton": (SampleGaussNewton, dense_gauss_newton)}


@pytest.mark.parametrize("chunk", quick([2], [None]))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_products_with_the_curvature_of_samples_are_those_of_autograd(name, kind, chunk):
    risk = NETWORKS[name]()
    risk._chunk_size = chunk
    theta = risk.parameters()
    make, dense = KINDS[kind]
    samples, wanted = make(risk, theta), dense(risk, theta)
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(len(theta), width, generator=generator, dtype=F64) for width in (2, 3))
    weights = torch.randn(9, 2, 4, generator=generator, dtype=F64)
    torch.testing.assert_close(samples.forms(left, right), left.mT @ wanted @ right, rtol=1e-9, atol=1e-12)
    combined = (wanted @ left @ weights).mean(0)
    torch.testing.assert_close(samples.combined(left, weights), combined, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", quick(["cross-entropy"], NETWORKS))
def test_threshold_of_a_network(name):
    risk = NETWORKS[name]()
    theta = risk.parameters()
    found = mean_square_threshold(risk, theta, batch_size=3, rtol=1e-6)
    wanted = 2 / worst_deviation(HeldForms(dense_gauss_newton(risk, theta)), 1 / 3)[0]
    assert found.threshold == pytest.approx(wanted, rel=1e-5)
    direction = torch.randn(len(theta), generator=torch.Generator().manual_seed(2), dtype=F64)
    assert mean_square_bound(risk, theta, direction, batch_size=3) >= wanted


def test_all_samples_without_replacement_are_gradient_descent():
    samples = curvatures(5, 4, 2)
    theta = torch.zeros(4, dtype=F64)
    found = mean_square_threshold(bowls(samples), theta, batch_size=5, replacement=False, curvature="hessian")
    assert found.threshold == found.descent
    assert found.descent == pytest.approx(2 / float(torch.linalg.eigvalsh(samples.mean(0))[-1]), rel=1e-9)


def test_one_direction_bounds_the_threshold_and_where_samples_share_it_is_it():
    generator = torch.Generator().manual_seed(0)
    axis = torch.nn.functional.normalize(torch.randn(4, generator=generator, dtype=F64), dim=0)
    strengths = torch.tensor([0.1, 3.0, 1.0], dtype=F64)
    risk, theta = bowls(strengths[:, None, None] * torch.outer(axis, axis)), torch.zeros(4, dtype=F64)
    bound = mean_square_bound(risk, theta, 5 * axis, batch_size=2, curvature="hessian")
    mean, square = strengths.mean(), strengths.square().mean()
    assert bound == pytest.approx(float(2 * mean / (0.5 * mean**2 + 0.5 * square)), rel=1e-12)
    found = mean_square_threshold(risk, theta, batch_size=2, curvature="hessian")
    assert found.threshold == pytest.approx(bound, rel=1e-9)


def test_a_saddle_is_no_minimum():
    samples = torch.diag_embed(torch.tensor([[1.0, -0.5], [2.0, -0.1]], dtype=F64))
    with pytest.raises(ValueError, match=r"θ is no minimum: H has the curvature -0\.3 along a direction"):
        mean_square_threshold(bowls(samples), torch.zeros(2, dtype=F64), batch_size=1, curvature="hessian")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 10, "replacement": False}, "10"),
        ({"batch_size": 1, "max_directions": 4}, "raise max_directions or rtol"),
    ],
)
def test_what_cannot_be_asked(options, message):
    risk = NETWORKS["squared loss"]()
    with pytest.raises((ValueError, ns.NoisescapeError), match=message):
        mean_square_threshold(risk, risk.parameters(), **options)


def test_a_direction_without_curvature_bounds_nothing():
    samples = torch.diag_embed(torch.tensor([[1.0, 0.0]], dtype=F64))
    with pytest.raises(ValueError, match="curvature 0 along this direction"):
        mean_square_bound(
            bowls(samples), torch.zeros(2, dtype=F64), torch.tensor([0.0, 1.0]), batch_size=1, curvature="hessian"
        )


def test_no_curvature_at_all():
    risk = bowls(torch.zeros(3, 2, 2, dtype=F64))
    with pytest.raises(ValueError, match="no sample's loss has any curvature"):
        mean_square_threshold(risk, torch.zeros(2, dtype=F64), batch_size=1, curvature="hessian")
