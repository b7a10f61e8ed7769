"""Every dynamics against every oracle: the noise it draws, the covariance it claims, the loss it reaches."""

import math

import pytest
import torch

import noisescape as ns
from noisescape.dynamics.base import draw_batches
from noisescape.landscapes import quadratic

DRAWS = 100_000
BATCH = 3
ALL = {
    "gd": ns.GD(),
    "sgd": ns.SGD(BATCH),
    "sgd-without": ns.SGD(BATCH, replacement=False),
    "gld-constant": ns.GLDConstant(0.7),
    "gld-dynamic": ns.GLDDynamic(BATCH),
    "gld-diagonal": ns.GLDDiagonal(BATCH),
    "gld-diagonal-without": ns.GLDDiagonal(BATCH, replacement=False),
    "gld-leading": ns.GLDLeading(BATCH, k=2),
    "gld-leading-rescaled": ns.GLDLeading(BATCH, k=1, rescale=True),
    "gld-hessian": ns.GLDHessian(BATCH, k=2),
    "gld-top-eigenvector": ns.GLDTopEigenvector(BATCH),
    "gld-full": ns.GLDFull(BATCH),
    "gld-full-without": ns.GLDFull(BATCH, replacement=False),
    "gld-shuffled": ns.GLDShuffled(BATCH, shuffle_seed=3),
    "matched": ns.MatchedTrace(ns.GLDDiagonal(BATCH), 5.0),
}
MATCHED_TO_SIGMA = [name for name in ALL if name not in ("gd", "gld-constant", "gld-leading", "matched")]


@pytest.fixture(scope="module")
def regression():
    """Linear regression in three parameters: correlated, anisotropic gradients; D small enough to enumerate."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(9, 3, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 1.0, 0.4])
    targets = torch.randn(9, 1, generator=generator, dtype=torch.float64)

    def loss(theta, sample):
        return 0.5 * ((theta * sample[..., :3]).sum(-1) - sample[..., 3]) ** 2

    data = torch.cat([inputs, targets], dim=1)
    return ns.EmpiricalRisk.from_sample_loss(loss, data, torch.zeros(3, dtype=torch.float64))


@pytest.fixture(scope="module")
def theta():
    return torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64)


def expected_covariance(name, risk, theta):
    """Σ written down from the table of dynamics, by dense linear algebra."""
    rows = risk.per_sample_gradients(theta)
    centred = rows - rows.mean(0)
    number, dimension = rows.shape
    population = centred.T @ centred / number
    without = (number - BATCH) / (BATCH * (number - 1))
    sigma = population * (without if name.endswith("without") else 1 / BATCH)
    hessian = torch.autograd.functional.hessian(lambda t: risk.losses_graph(t).mean(), theta)
    values, vectors = torch.linalg.eigh(hessian)
    noise_values, noise_vectors = torch.linalg.eigh(sigma)
    eye = torch.eye(dimension, dtype=theta.dtype)
    if name == "gd":
        return 0 * eye
    if name.startswith(("sgd", "gld-full")):
        return sigma
    if name == "gld-shuffled":
        order = torch.randperm(3, generator=torch.Generator().manual_seed(3))
        assert order.tolist() != [0, 1, 2]
        permutation = eye[order]
        return permutation @ sigma @ permutation.T
    if name == "gld-constant":
        return 0.49 * eye
    if name == "gld-dynamic":
        return sigma.trace() / dimension * eye
    if name.startswith("gld-diagonal"):
        return torch.diag(sigma.diagonal())
    if name == "gld-leading":
        return noise_vectors[:, -2:] * noise_values[-2:] @ noise_vectors[:, -2:].T
    if name == "gld-leading-rescaled":
        return sigma.trace() * torch.outer(noise_vectors[:, -1], noise_vectors[:, -1])
    if name == "gld-hessian":
        best = vectors[:, -2:] * values[-2:] @ vectors[:, -2:].T
        return best * sigma.trace() / best.trace()
    if name == "gld-top-eigenvector":
        return sigma.trace() * torch.outer(vectors[:, -1], vectors[:, -1])
    assert name == "matched"
    return torch.diag(sigma.diagonal()) * 5.0 / sigma.trace()


@pytest.fixture(scope="module", autouse=True)
def _loss_graph(regression):
    """The regression's losses for autograd, written independently of the risk's own derivative code."""
    data = regression._function._data

    def losses(theta):
        return 0.5 * (data[:, :3] @ theta - data[:, 3]) ** 2

    regression.losses_graph = losses


@pytest.mark.parametrize("name", ALL)
def test_covariance_operator_is_that_of_the_table(name, regression, theta):
    found = ALL[name].covariance(regression, theta).dense()
    torch.testing.assert_close(found, expected_covariance(name, regression, theta), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MATCHED_TO_SIGMA)
def test_trace_is_matched_to_the_minibatch_noise(name, regression, theta):
    wanted = regression.noise_covariance(theta, BATCH, replacement=not name.endswith("without")).trace()
    torch.testing.assert_close(ALL[name].covariance(regression, theta).trace(), wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_draws_have_mean_zero_and_the_claimed_covariance(name, regression, theta):
    dynamics = ALL[name]
    replicas = theta.expand(DRAWS, -1)
    noisy, _ = dynamics.noisy_gradient(
        regression, replicas, dynamics.init(regression, replicas), torch.Generator().manual_seed(3)
    )
    noise = noisy - regression.gradient(theta)
    wanted = dynamics.covariance(regression, theta).dense()
    spread = wanted.diagonal().sqrt()
    assert (noise.mean(0).abs() <= 4.5 * spread / math.sqrt(DRAWS) + 1e-12).all()
    products = noise[:, :, None] * noise[:, None, :]
    error = products.std(0) / math.sqrt(DRAWS)
    assert ((products.mean(0) - wanted).abs() <= 4.5 * error + 1e-12).all()


@pytest.mark.parametrize("lr", [0.01, 0.55], ids=["small ηλ", "ηλ above 1"])
@pytest.mark.parametrize("name", ALL)
def test_loss_on_a_quadratic_follows_the_discrete_formula(name, lr):
    """Constant covariance, so the formula is exact for every noise; λ₁ = 3, so ηλ₁ is 0.03 or 1.65."""
    generator = torch.Generator().manual_seed(5)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    hessian = rotation * torch.tensor([3.0, 1.0, 0.1], dtype=torch.float64) @ rotation.T
    slopes = torch.randn(8, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5])
    risk = quadratic(hessian, slopes)
    dynamics, replicas, steps = ALL[name], 20_000, 12
    start = torch.zeros(3, dtype=torch.float64)
    run = ns.simulate(
        risk, dynamics, start, lr=lr, steps=steps, replicas=replicas, record={}, progress=False, seed=7
    )
    losses = 0.5 * ((run.theta @ hessian) * run.theta).sum(1)
    covariance = dynamics.covariance(risk, start).dense()
    wanted = ns.theory.expected_excess_loss(hessian, covariance, lr=lr, steps=steps)
    error = losses.std() / math.sqrt(replicas)
    assert (losses.mean() - wanted).abs() <= 4 * error + 1e-15


@pytest.mark.parametrize("name", [name for name in ALL if name != "gd"])
def test_replicas_draw_independent_noise(name, regression, theta):
    dynamics = ALL[name]
    replicas = theta.expand(4000, -1)
    noisy, _ = dynamics.noisy_gradient(
        regression, replicas, dynamics.init(regression, replicas), torch.Generator().manual_seed(0)
    )
    noise = noisy - regression.gradient(theta)
    half = len(noise) // 2
    correlation = (noise[:half] * noise[half:]).sum(1)
    assert correlation.mean().abs() <= 4 * correlation.std() / math.sqrt(half)


@pytest.mark.parametrize(
    "name", ["gld-dynamic", "gld-diagonal", "gld-leading", "gld-hessian", "gld-top-eigenvector"]
)
def test_root_of_replicas_is_the_root_of_each(name, regression):
    thetas = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    dynamics = ALL[name]
    together = dynamics.root(regression, thetas)
    for row, theta in zip(together, thetas, strict=True):
        torch.testing.assert_close(
            dynamics.operator(row).dense(),
            dynamics.covariance(regression, theta).dense(),
            rtol=1e-9,
            atol=1e-12,
        )


def test_gradient_penalty_descends_the_penalised_risk(regression, theta):
    strength = 0.05

    def penalised(point):
        value = regression.losses_graph(point).mean()
        (slope,) = torch.autograd.grad(value, point, create_graph=True)
        return value + strength * slope @ slope

    point = theta.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(penalised(point), point)
    dynamics = ns.GDGradientPenalty(strength)
    found, _ = dynamics.noisy_gradient(regression, theta, dynamics.init(regression, theta), torch.Generator())
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert not dynamics.covariance(regression, theta).dense().any()


@pytest.mark.parametrize("kind", [ns.GLDDiagonal, ns.GLDDynamic])
@pytest.mark.parametrize("replacement", [True, False])
def test_variances_from_batches_are_unbiased(kind, replacement, regression, theta):
    dynamics = kind(BATCH, replacement=replacement, batches=4)
    replicas = theta.expand(20_000, -1)
    root, _ = dynamics.refresh_root(regression, replicas, None, torch.Generator().manual_seed(0))
    squares = root.square().expand_as(replicas)
    wanted = dynamics.covariance(regression, theta).diagonal()
    error = squares.std(0) / len(squares) ** 0.5
    assert ((squares.mean(0) - wanted).abs() <= 4.5 * error).all()


@pytest.mark.parametrize(("name", "interval"), [("gld-diagonal", 3), ("gld-leading", 10)])
def test_covariance_is_recomputed_only_at_refreshes(name, interval, regression, theta):
    dynamics = ns.dynamics_by_name(name, batch_size=BATCH, k=2, refresh=interval)
    state, generator = dynamics.init(regression, theta), torch.Generator().manual_seed(0)
    roots = []
    for step in range(2 * interval):
        _, state = dynamics.noisy_gradient(regression, theta + step, state, generator)
        roots.append(state.root)
    for step in range(1, 2 * interval):
        same = torch.equal(roots[step], roots[step - 1])
        assert same == (step % interval != 0)


def test_sgd_without_replacement_never_repeats_a_sample():
    indices = draw_batches(torch.Size([2000]), 9, 4, False, torch.Generator().manual_seed(0))
    assert all(len(set(batch)) == 4 for batch in indices.tolist())
    counts = torch.bincount(indices.flatten(), minlength=9)
    assert ((counts - 2000 * 4 / 9).abs() < 5 * (2000 * 4 / 9) ** 0.5).all()


def test_hessian_noise_ignores_negative_curvature():
    """A saddle: only the positive direction may carry noise, all of the trace."""
    hessian = torch.diag(torch.tensor([2.0, -5.0], dtype=torch.float64))
    slopes = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    covariance = ns.GLDHessian(1, k=2).covariance(quadratic(hessian, slopes), torch.zeros(2, dtype=torch.float64))
    wanted = torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(covariance.dense(), wanted)


@pytest.mark.parametrize(
    ("dynamics", "message"),
    [
        (ns.SGD(0), "batch_size must be at least 1"),
        (ns.SGD(10, replacement=False), "exceeds the 9 samples"),
        (ns.GLDFull(10, replacement=False), "exceeds the 9 samples"),
        (ns.GLDLeading(3, k=4), "k must lie in 1..D = 3"),
        (ns.GLDHessian(3, k=0), "k must lie in 1..D = 3"),
        (ns.GLDDiagonal(3, refresh=0), "refresh must be at least 1"),
        (ns.GLDDynamic(3, batches=1), "batches must be at least 2"),
        (ns.GDGradientPenalty(-1.0), "strength must be at least 0"),
        (ns.GLDConstant(-1.0), "rho must be at least 0"),
        (ns.MatchedTrace(ns.GLDLeading(3, k=4), 1.0), "k must lie in 1..D = 3"),
    ],
)
def test_constants_that_do_not_fit_are_refused_before_work_starts(dynamics, message, regression, theta):
    with pytest.raises(ValueError, match=message):
        ns.simulate(regression, dynamics, theta, lr=0.1, steps=1, progress=False)


def test_lookup_by_name_gives_what_was_asked_for():
    assert ns.dynamics_by_name("gld-leading", batch_size=5, k=3, rho=1.0) == ns.GLDLeading(5, k=3)
    with pytest.raises(ValueError, match="did you mean gld-diagonal"):
        ns.dynamics_by_name("gld-diagnal", batch_size=5)
    with pytest.raises(ValueError, match="'sgd' needs batch_size"):
        ns.dynamics_by_name("sgd")


def test_every_dynamics_runs_on_a_model_and_keeps_its_covariance():
    """On a network: claimed covariance against the dense one built from per-sample gradients."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    data = (torch.randn(30, 4, dtype=torch.float64), torch.randint(0, 3, (30,)))
    risk = ns.EmpiricalRisk(model, torch.nn.functional.cross_entropy, data)
    theta = risk.parameters()
    rows = risk.per_sample_gradients(theta)
    sigma = (rows - rows.mean(0)).T @ (rows - rows.mean(0)) / 30 / 5
    for name in ns.DYNAMICS:
        dynamics = ns.dynamics_by_name(name, batch_size=5, k=4, rho=0.1, strength=0.01)
        run = ns.simulate(risk, dynamics, theta, lr=0.1, steps=3, progress=False)
        assert torch.isfinite(run.theta).all()
        found = dynamics.covariance(risk, theta).dense()
        if name in ("sgd", "gld-full"):
            torch.testing.assert_close(found, sigma, rtol=1e-9, atol=1e-12)
        elif name not in ("gd", "gd-gradient-penalty", "gld-constant", "gld-leading"):
            torch.testing.assert_close(found.trace(), sigma.trace(), rtol=1e-9, atol=1e-12)
        if name == "gld-leading":
            values, vectors = torch.linalg.eigh(sigma)
            best = vectors[:, -4:] * values[-4:] @ vectors[:, -4:].T
            torch.testing.assert_close(found, best, rtol=1e-8, atol=1e-12)
