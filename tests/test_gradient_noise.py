"""What a gradient covariance claims of itself in the precision it has, and what a risk reads at each call."""

import pytest
import torch

import noisescape as ns
from cases import classes, generator, normal
from noisescape.linops.probing import rademacher


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_spike_does_not_hide_the_bulk(dtype: torch.dtype) -> None:
    """One direction far above many small ones: float32 cannot resolve their pairs, and must not call the rank 1."""
    generator = torch.Generator().manual_seed(0)
    number, dimension = 1500, 1600
    slopes = 0.02 * torch.randn(number, dimension, generator=generator, dtype=torch.float64)
    slopes[:, 0] = torch.randn(number, generator=generator, dtype=torch.float64)
    slopes = slopes.to(dtype)
    risk = ns.EmpiricalRisk.from_sample_loss(
        lambda theta, slope: (theta * slope).sum(-1), slopes, torch.zeros(dimension, dtype=dtype)
    )
    covariance = risk.noise_covariance(risk.parameters(), 1)
    identity = ns.linops.DiagonalOperator(torch.ones(dimension, dtype=dtype))
    exact = float((slopes.double() - slopes.double().mean(0)).square().sum()) / number
    found = ns.product_trace(identity, covariance, rtol=0.01)
    assert found.value == pytest.approx(exact, abs=4 * found.stderr + 1e-5 * exact)
    assert ns.GLDLeading(1, k=20).covariance(risk, risk.parameters()).factor.shape == (dimension, 20)


def test_minibatches_are_counted_in_whole_samples() -> None:
    with pytest.raises(TypeError, match=r"an int, not 3\.5"):
        ns.dynamics_by_name("sgd", batch_size=3.5).init(
            ns.EmpiricalRisk.from_losses(lambda w: w**2, torch.ones(4)), torch.ones(4)
        )


def test_outputs_broadcast_against_targets_are_refused_even_where_values_agree() -> None:
    model, inputs = torch.nn.Linear(3, 1), torch.randn(6, 3)
    with pytest.warns(UserWarning, match="broadcasting"), pytest.raises(ValueError, match="broadcast against"):
        ns.EmpiricalRisk(model, torch.nn.functional.mse_loss, (inputs, torch.zeros(6)))


def test_a_risk_follows_its_module_through_further_training() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)).eval()
    data = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
    risk = ns.EmpiricalRisk(model, torch.nn.functional.cross_entropy, data)
    model.train()
    for _ in range(5):
        model(3 + 2 * data[0])  # moves the running statistics
    model.eval()
    wanted = torch.nn.functional.cross_entropy(model(data[0]), data[1])
    torch.testing.assert_close(risk.loss(risk.parameters()), wanted.detach())


def test_noise_without_a_root_cannot_be_rescaled() -> None:
    with pytest.raises(TypeError, match="GLDFull draws its noise without a covariance root"):
        ns.MatchedTrace(ns.GLDFull(10), 1.0)


def test_accuracy_reads_logits_where_a_model_returns_more() -> None:
    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3, 2)

        def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.head(inputs)}

    model, data = Classifier(), (torch.randn(8, 3), torch.randint(0, 2, (8,)))
    risk = ns.EmpiricalRisk(
        model, lambda out, y: torch.nn.functional.cross_entropy(out["logits"], y, reduction="none"), data
    )
    wanted = (model.head(data[0]).argmax(1) == data[1]).float().mean()
    torch.testing.assert_close(risk.accuracy(risk.parameters()), wanted)


def test_replicas_share_the_memory_budget() -> None:
    risk = ns.EmpiricalRisk.from_sample_loss(
        lambda theta, x: ((theta - x) ** 2).sum(-1), torch.randn(400, 50), torch.zeros(50), memory_budget=2**20
    )
    sizes = {rows.shape[-2] for rows in risk.per_sample_gradient_chunks(torch.zeros(20, 50))}
    assert max(sizes) * 20 * 50 * 4 <= 2**20
    assert len(sizes) >= 1


@pytest.mark.parametrize("budget", [2**16, 2**30], ids=["streamed", "held"])
def test_the_search_for_directions_shares_no_numbers_with_the_probes_of_any_seed(budget: int) -> None:
    """Probes that V was made from would lie in its span: what is outside would seem smaller than it is."""
    count, k = 300, 8
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)).double()
    data = normal(count, 16, seed=1), classes(count, of=5, seed=2)
    risk = ns.EmpiricalRisk(model, torch.nn.functional.cross_entropy, data, memory_budget=budget)
    covariance = risk.noise_covariance(risk.parameters(), 1)
    assert risk.holds_gradients(risk.parameters()) == (budget > 2**16)
    carried = covariance.split(k).carried
    for seed in range(20):
        probes = rademacher(count, k, carried, generator(seed))
        share = float((carried.T @ probes).square().sum() / probes.square().sum())
        assert share < 2 * k / count
