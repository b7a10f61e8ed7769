"""Every dynamics against every oracle: the noise it draws, the covariance it claims, the loss it reaches."""

import math

import pytest
import torch

import noisescape as ns
from noisescape.experiments.published import PublishedHessian, PublishedLeading
from noisescape.risk.gradients import fits_gradients
from noisescape.theory.landscapes import quadratic

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
def test_covariance_of_replicas_is_the_covariance_of_each(name, regression):
    thetas = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    dynamics = ALL[name]
    together = dynamics.covariance(regression, thetas)
    for row, theta in enumerate(thetas):
        torch.testing.assert_close(
            together.replica(row).dense(),
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
    found, _ = dynamics.noise(regression, replicas, None, torch.Generator().manual_seed(0))
    squares = found.diagonal()
    wanted = dynamics.covariance(regression, theta).diagonal()
    error = squares.std(0) / len(squares) ** 0.5
    assert ((squares.mean(0) - wanted).abs() <= 4.5 * error).all()


@pytest.mark.parametrize(("name", "interval"), [("gld-diagonal", 3), ("gld-leading", 10)])
def test_covariance_is_recomputed_only_at_refreshes(name, interval, regression, theta):
    dynamics = ns.dynamics_by_name(name, batch_size=BATCH, k=2, refresh=interval)
    state, generator = dynamics.init(regression, theta), torch.Generator().manual_seed(0)
    found = []
    for step in range(2 * interval):
        _, state = dynamics.noisy_gradient(regression, theta + step, state, generator)
        found.append(state.covariance.diagonal())
    for step in range(1, 2 * interval):
        same = torch.equal(found[step], found[step - 1])
        assert same == (step % interval != 0)


def test_sgd_without_replacement_never_repeats_a_sample(regression):
    dynamics = ns.SGD(4, replacement=False)
    indices = dynamics.draw_batch(regression, torch.Size([2000]), torch.Generator().manual_seed(0))
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


# ---------------------------------------------------------------------- claimed covariances of larger problems

SPECTRA = {"flat": 0.0, "decaying": 1.0}


def slopes_of(count, dimension, decay, dtype=torch.float64):
    scale = torch.arange(1, dimension + 1, dtype=dtype) ** -decay
    return scale * torch.randn(count, dimension, generator=torch.Generator().manual_seed(4), dtype=dtype)


def with_slopes(slopes, hessian=None, **options):
    """Per-sample gradients slopes[n] + Hθ at every θ."""
    dimension = slopes.shape[-1]
    hessian = torch.eye(dimension, dtype=slopes.dtype) if hessian is None else hessian

    def loss(theta, slope):
        return (theta * slope).sum(-1) + 0.5 * ((theta @ hessian) * theta).sum(-1)

    return ns.EmpiricalRisk.from_sample_loss(loss, slopes, torch.zeros(dimension, dtype=slopes.dtype), **options)


def covariance_of(slopes):
    centred = slopes.double() - slopes.double().mean(0)
    return centred.T @ centred / len(slopes) / BATCH


def best_part(matrix, k):
    """The best part of rank k of a positive matrix, by LAPACK."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors[:, -k:] * values[-k:] @ vectors[:, -k:].T


def assert_same_matrix(found, wanted, rtol):
    assert (found.double() - wanted).norm() <= rtol * wanted.norm()


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("decay", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize(
    ("count", "dimension", "dtype", "rtol", "budget"),
    [
        (300, 400, torch.float64, 1e-9, None),
        (400, 300, torch.float64, 1e-9, None),
        (300, 400, torch.float32, 1e-4, None),
        (300, 400, torch.float64, 1e-9, 100_000),
        (4500, 150, torch.float64, 1e-9, None),
    ],
    ids=["wide", "tall", "float32", "gradients not held", "more samples than a Gram matrix takes"],
)
def test_leading_covariance_is_the_best_part_of_its_rank(count, dimension, dtype, rtol, budget, decay, rescale):
    slopes = slopes_of(count, dimension, decay, dtype)
    risk = with_slopes(slopes, memory_budget=budget)
    theta = risk.parameters()
    assert fits_gradients(risk, theta) == (budget is None)
    dynamics = ns.GLDLeading(BATCH, k=12, rescale=rescale)
    sigma = covariance_of(slopes)
    wanted = best_part(sigma, 12)
    wanted = wanted * (sigma.trace() / wanted.trace() if rescale else 1.0)
    assert_same_matrix(dynamics.covariance(risk, theta).dense(), wanted, rtol)
    assert_same_matrix(
        ns.MatchedTrace(dynamics, 2.0).covariance(risk, theta).dense(), wanted * 2 / wanted.trace(), rtol
    )


def test_leading_covariance_of_replicas_is_the_best_part_at_each():
    slopes = slopes_of(40, 30, 0.0)
    rotations = torch.linalg.qr(torch.randn(3, 30, 30, generator=torch.Generator().manual_seed(1)).double()).Q
    risk = with_slopes(torch.stack([slopes @ rotation for rotation in rotations]))
    for rescale in (False, True):
        dynamics = ns.GLDLeading(BATCH, k=4, rescale=rescale)
        found = dynamics.covariance(risk, torch.zeros(3, 30, dtype=torch.float64))
        for row, rotation in enumerate(rotations):
            sigma = covariance_of(slopes @ rotation)
            wanted = best_part(sigma, 4)
            wanted = wanted * (sigma.trace() / wanted.trace() if rescale else 1.0)
            assert_same_matrix(found.replica(row).dense(), wanted, 1e-9)


def test_leading_covariance_of_a_lower_rank_is_all_of_it():
    slopes = slopes_of(7, 300, 0.0)
    risk = with_slopes(slopes)
    found = ns.GLDLeading(BATCH, k=20).covariance(risk, risk.parameters()).dense()
    assert_same_matrix(found, covariance_of(slopes), 1e-9)


@pytest.mark.parametrize("decay", SPECTRA.values(), ids=SPECTRA)
def test_leading_noise_of_a_trajectory_captures_what_is_said_of_its_sketch(decay):
    slopes = slopes_of(300, 400, decay)
    risk = with_slopes(slopes)
    dynamics = ns.GLDLeading(BATCH, k=12)
    found, gradient = dynamics.noise(risk, risk.parameters(), None, torch.Generator())
    share = found.trace() / best_part(covariance_of(slopes), 12).trace()
    assert (0.9 if decay == 0 else 0.99) < share <= 1 + 1e-12
    torch.testing.assert_close(gradient, slopes.mean(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("decay", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize("name", ["gld-hessian", "gld-top-eigenvector", "published"])
def test_hessian_covariance_is_exact_in_spectra_that_do_not_decay(name, decay, dtype):
    """D beyond what is solved densely; eigenvalues of both signs, those close together included."""
    slopes = slopes_of(60, 300, 0.0, dtype)
    bends = slopes_of(450, 300, decay / 2)
    hessian = bends.T @ bends / 450
    hessian = hessian - 0.3 * hessian.diagonal().mean() * torch.eye(300, dtype=torch.float64)
    risk = with_slopes(slopes, hessian.to(dtype))
    sigma, k = covariance_of(slopes), 1 if name == "gld-top-eigenvector" else 8
    values, vectors = torch.linalg.eigh(hessian)
    if name == "published":
        chosen = values.abs().argsort()[-k:]
        vectors, values = vectors[:, chosen], values[chosen]
        wanted = vectors * values.abs() @ vectors.T * sigma.trace() / values.sum().abs()
        dynamics = PublishedHessian(BATCH, k=k)
    else:
        wanted = best_part(hessian, k)
        wanted = wanted * sigma.trace() / wanted.trace()
        dynamics = ns.GLDTopEigenvector(BATCH) if k == 1 else ns.GLDHessian(BATCH, k=k)
    rtol = 1e-8 if dtype == torch.float64 else 2e-3
    assert_same_matrix(dynamics.covariance(risk, risk.parameters()).dense(), wanted, rtol)
    matched = ns.MatchedTrace(dynamics, 2.0)
    assert_same_matrix(
        matched.covariance(risk, risk.parameters()).dense(), wanted * 2 / wanted.trace(), max(rtol, 1e-6)
    )


@pytest.mark.parametrize("decay", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize(
    "dynamics",
    [
        ns.SGD(BATCH),
        ns.SGD(BATCH, replacement=False),
        ns.GLDFull(BATCH),
        ns.GLDDiagonal(BATCH, batches=3, refresh=7),
        ns.GLDDynamic(BATCH, batches=3, refresh=7),
        ns.GLDShuffled(BATCH, shuffle_seed=2),
    ],
    ids=repr,
)
def test_other_covariances_are_exact_whatever_a_trajectory_estimates(dynamics, decay):
    slopes = slopes_of(200, 150, decay)
    risk = with_slopes(slopes)
    sigma = covariance_of(slopes) * (1 if dynamics.replacement else (200 - BATCH) / 199)
    if isinstance(dynamics, ns.GLDShuffled):
        order = torch.randperm(150, generator=torch.Generator().manual_seed(2))
        sigma = sigma[order][:, order]
    elif isinstance(dynamics, ns.GLDDynamic):
        sigma = torch.eye(150, dtype=sigma.dtype) * sigma.trace() / 150
    elif isinstance(dynamics, ns.GLDDiagonal):
        sigma = torch.diag(sigma.diagonal())
    assert_same_matrix(dynamics.covariance(risk, risk.parameters()).dense(), sigma, 1e-10)


# ---------------------------------------------------------------------- a matched trace along a trajectory

GAUSSIAN = {
    "constant": ns.GLDConstant(0.7),
    "dynamic": ns.GLDDynamic(BATCH),
    "dynamic, refreshed": ns.GLDDynamic(BATCH, refresh=3),
    "dynamic from batches": ns.GLDDynamic(BATCH, batches=4, refresh=2),
    "diagonal": ns.GLDDiagonal(BATCH),
    "diagonal from batches": ns.GLDDiagonal(BATCH, batches=4, refresh=2),
    "leading, sketched": ns.GLDLeading(BATCH, k=3, refresh=2),
    "leading, rescaled": ns.GLDLeading(BATCH, k=3, refresh=2, rescale=True),
    "hessian, followed": ns.GLDHessian(BATCH, k=3, refresh=2),
    "top eigenvector, followed": ns.GLDTopEigenvector(BATCH, refresh=2),
    "published leading": PublishedLeading(BATCH, k=3, refresh=3),
    "published hessian": PublishedHessian(BATCH, k=3, refresh=2),
}


@pytest.fixture(scope="module")
def network():
    """D = 139: beyond what is solved densely, with enough samples for a sketch of three directions."""
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(5, 15), torch.nn.Tanh(), torch.nn.Linear(15, 3), torch.nn.Tanh())
    data = (torch.randn(120, 5, dtype=torch.float64), torch.randint(0, 3, (120,)))
    return ns.EmpiricalRisk(model.double(), torch.nn.functional.cross_entropy, data)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_a_matched_trajectory_draws_the_inner_noise_rescaled(name, network):
    inner, target = GAUSSIAN[name], 0.5
    matched = ns.MatchedTrace(inner, target)
    generators = [torch.Generator().manual_seed(8) for _ in range(2)]
    theta, drift = (
        network.parameters(),
        0.01 * torch.randn(network.dimension, generator=torch.Generator().manual_seed(1)),
    )
    states = [inner.init(network, theta), matched.init(network, theta)]
    for step in range(7):
        point = theta + step * drift
        slope = network.gradient(point)
        own, states[0] = inner.noisy_gradient(network, point, states[0], generators[0])
        found, states[1] = matched.noisy_gradient(network, point, states[1], generators[1])
        factor = (target / states[0].covariance.trace()).sqrt()
        torch.testing.assert_close(found - slope, factor * (own - slope), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(states[1].covariance.trace(), torch.tensor(target, dtype=torch.float64))
        assert torch.equal(*(generator.get_state() for generator in generators)), "no draw more, none less"
    assert matched.name == inner.name


@pytest.mark.parametrize("name", ["dynamic from batches", "diagonal from batches", "leading, sketched"])
def test_matched_replicas_draw_the_inner_noise_rescaled(name, network):
    inner = GAUSSIAN[name]
    matched = ns.MatchedTrace(inner, 0.5)
    thetas = network.parameters() + 0.1 * torch.randn(
        3, network.dimension, generator=torch.Generator().manual_seed(1)
    )
    noises, traces = [], []
    for dynamics in (inner, matched):
        noisy, state = dynamics.noisy_gradient(
            network, thetas, dynamics.init(network, thetas), torch.Generator().manual_seed(8)
        )
        noises.append(noisy - network.gradient(thetas))
        traces.append(state.covariance.trace())
    torch.testing.assert_close(traces[1], torch.full((3,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(noises[1], noises[0] * (0.5 / traces[0]).sqrt()[:, None], rtol=1e-6, atol=1e-9)


def test_a_matched_dynamics_asks_for_no_second_gradient(network, monkeypatch):
    """The pass that gives the covariance gives ∇L, which the matched noise keeps."""
    matched = ns.MatchedTrace(ns.GLDDiagonal(BATCH), 1.0)
    theta = network.parameters()
    slope = network.gradient(theta)
    monkeypatch.setattr(type(network), "gradient", lambda *_: pytest.fail("∇L was there already"))
    _, found = matched.noise(network, theta, None, torch.Generator())
    torch.testing.assert_close(found, slope)
    matched.noisy_gradient(network, theta, matched.init(network, theta), torch.Generator())


def test_published_leading_noise_is_injected_on_refresh_steps_only(network):
    dynamics = ns.MatchedTrace(PublishedLeading(BATCH, k=3, refresh=3), 1.0)
    theta, generator = network.parameters(), torch.Generator().manual_seed(0)
    state, slope = dynamics.init(network, theta), network.gradient(network.parameters())
    quiet = []
    for _ in range(7):
        noisy, state = dynamics.noisy_gradient(network, theta, state, generator)
        quiet.append(torch.equal(noisy, slope))
    assert quiet == [step % 3 != 0 for step in range(7)]
