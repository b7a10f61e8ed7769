"""One hidden layer: its network, its indicator and its training against what is known of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.testing import assert_close

from cases import F64, normal
from noisescape.experiments.one_hidden_layer import ONE_HIDDEN_LAYER, OneHiddenLayerConfig
from noisescape.experiments.protocols import one_hidden_layer as hidden
from noisescape.experiments.protocols.one_hidden_layer import FixedOutput, one_hidden_layer_risk
from noisescape.experiments.statistics import derived_seed
from noisescape.linops import product_trace
from noisescape.risk import EmpiricalRisk
from paper_runs import HIDDEN


def by_hand(theta: Tensor, width: int, clip: float, points: Tensor) -> Tensor:
    """Outputs of the network from its definition, (N,)."""
    weights, biases = theta[: 2 * width].view(width, 2), theta[2 * width :]
    signs = torch.tensor([1.0] * (width // 2) + [-1.0] * (width // 2), dtype=theta.dtype)
    return torch.clamp((torch.relu(points @ weights.T + biases) * signs).sum(1), clip, 1 - clip)


def trained(risk: EmpiricalRisk, steps: int) -> Tensor:
    theta = risk.parameters()
    for _ in range(steps):
        theta = theta - 0.02 * risk.gradient(theta)
    return theta


@pytest.mark.parametrize("steps", [0, 5, 40])
@pytest.mark.parametrize("width", [4, 16])
def test_the_indicator_of_one_hidden_layer_is_that_of_dense_matrices(width: int, steps: int) -> None:
    """H and Σ from autograd on the definition, in float64."""
    single = one_hidden_layer_risk(HIDDEN, width, 0)
    risk = single.to(F64)
    theta = trained(risk, steps)
    points, labels = (tensor.to(F64) for tensor in stored_points(HIDDEN, 0))

    def losses(theta: Tensor) -> Tensor:
        return (by_hand(theta, width, HIDDEN.clip, points) - labels) ** 2

    curvature = hessian(lambda theta: losses(theta).mean(), theta)
    rows = jacobian(losses, theta)
    covariance = torch.cov(rows.T, correction=0) / HIDDEN.batch_size
    active = rows.abs().sum(1) > 0
    assert 0 < int(active.sum()) < len(active), "some points are clipped and some are not"
    expected = {
        "loss": float(losses(theta).mean()),
        "trace_h": float(curvature.trace()),
        "trace_sigma": float(covariance.trace()),
        "trace_h_sigma": float((curvature @ covariance).trace()),
        "active_share": float(active.double().mean()),
    }
    expected["isotropic_reference"] = expected["trace_h"] * expected["trace_sigma"] / len(theta)
    expected["anisotropy"] = expected["trace_h_sigma"] / expected["isotropic_reference"]
    assert hidden.measured(risk, theta, HIDDEN) == pytest.approx(expected, rel=1e-9)
    assert hidden.measured(single, theta.float(), HIDDEN) == pytest.approx(expected, rel=2e-4)

    operators = risk.hessian(theta), risk.noise_covariance(theta, HIDDEN.batch_size)
    assert_close(operators[0].dense(), curvature, atol=1e-9, rtol=1e-9)
    assert_close(operators[1].dense(), covariance, atol=1e-9, rtol=1e-9)
    found = product_trace(*operators, rtol=0.02, seed=1)
    assert abs(found.value - expected["trace_h_sigma"]) <= 4.5 * found.stderr + 1e-9 * abs(found.value)


def stored_points(config: OneHiddenLayerConfig, repetition: int) -> tuple[Tensor, Tensor]:
    """What the risk holds."""
    samples: Any = one_hidden_layer_risk(config, config.widths[0], repetition)._samples
    return samples.inputs, samples.targets


def test_the_points_fill_their_square_and_the_labels_compare_their_coordinates() -> None:
    config = replace(HIDDEN, points=4000)
    points, labels = stored_points(config, 0)
    assert points.shape == (4000, 2)
    assert -2 <= float(points.min()) < -1.98
    assert 1.98 < float(points.max()) <= 2
    assert_close(points.mean(0), torch.zeros(2), atol=4 * 2 / math.sqrt(3 * 4000), rtol=0)
    assert labels.tolist() == [float(first >= second) for first, second in points.tolist()]
    assert not torch.equal(points, stored_points(config, 1)[0])


def test_every_width_sees_the_same_points_and_every_repetition_its_own() -> None:
    losses = {}
    for width, repetition in ((4, 0), (16, 0), (4, 1)):
        risk = one_hidden_layer_risk(HIDDEN, width, repetition)
        # all hidden units off: the output is the lower clip everywhere, and the losses show the labels
        losses[width, repetition] = risk.losses(torch.zeros_like(risk.parameters())).tolist()
    assert losses[4, 0] == losses[16, 0]
    assert losses[4, 0] != losses[4, 1]


@pytest.mark.parametrize("width", [2, 32, 100])
@pytest.mark.parametrize("clip", [1e-3, 0.2])
def test_half_the_output_signs_are_minus_and_the_output_is_clipped(width: int, clip: float) -> None:
    model = FixedOutput(width, clip, 0.5, seed=1)
    assert model.signs.tolist() == [1.0] * (width // 2) + [-1.0] * (width // 2)
    assert [name for name, _ in model.named_parameters()] == ["hidden.weight", "hidden.bias"]
    outputs = model(100 * normal(500, 2, seed=2, dtype=torch.float32)).detach()
    assert outputs.shape == (500,)
    assert clip - 1e-7 <= float(outputs.min()) == pytest.approx(clip)
    assert 1 - clip + 1e-7 >= float(outputs.max()) == pytest.approx(1 - clip)
    assert_close(model(torch.zeros(1, 2)).detach(), torch.tensor([0.5])), "in the middle at the start"


def test_the_initialisation_is_fixed_by_its_seed() -> None:
    one, again, other = (FixedOutput(64, 1e-3, 0.25, seed).hidden.weight for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    many = FixedOutput(4096, 1e-3, 0.25, 3).hidden.weight.detach()
    assert float(many.std()) == pytest.approx(0.25 / 64, rel=0.05)


def test_the_published_initialisation_is_uniform_weights_and_biases_alike() -> None:
    config = ONE_HIDDEN_LAYER.configure("as-published")
    theta = one_hidden_layer_risk(config, 100, 0).parameters()
    assert 0.098 < float(theta.abs().max()) <= 0.1
    biases = theta[200:]
    assert float(biases.min()) < -0.08
    assert float(biases.max()) > 0.08
    many = FixedOutput(4096, 1e-3, 0.25, 3, init_bound=1.0)
    assert float(many.hidden.bias.detach().std()) == pytest.approx(1 / 64 / math.sqrt(3), rel=0.05)
    assert float(many.hidden.weight.detach().std()) == pytest.approx(1 / 64 / math.sqrt(3), rel=0.05)


def test_the_published_learning_rate_is_whole_for_22_epochs_and_ends_at_a_tenth() -> None:
    """Counted from 0, epoch t has (31 − t)/10 of the rate from 21 on."""
    config = ONE_HIDDEN_LAYER.configure("as-published")
    rates = [config.rate("adam", 100, epoch) for epoch in range(31)]
    assert rates == pytest.approx([1e-3] * 21 + [1e-4 * (31 - epoch) for epoch in range(21, 31)])


def test_batches_without_replacement_have_a_smaller_trace() -> None:
    theta = one_hidden_layer_risk(HIDDEN, 16, 0).parameters()
    found = [
        hidden.measured(one_hidden_layer_risk(HIDDEN, 16, 0), theta, replace(HIDDEN, replacement=law))
        for law in (True, False)
    ]
    share = (HIDDEN.points - HIDDEN.batch_size) / (HIDDEN.points - 1)
    for name in ("trace_sigma", "trace_h_sigma", "isotropic_reference"):
        assert found[1][name] == pytest.approx(share * found[0][name])
        assert found[0][name] > 0
    assert found[1]["anisotropy"] == pytest.approx(found[0]["anisotropy"])


@pytest.mark.parametrize("optimiser", ["adam", "gd"])
@pytest.mark.parametrize("width", [32, 512])
def test_the_learning_rate_falls_linearly_over_the_last_epochs(optimiser: Any, width: int) -> None:
    config = OneHiddenLayerConfig()
    rates = [config.rate(optimiser, width, epoch) for epoch in range(config.epochs)]
    start = 1e-3 if optimiser == "adam" else 0.2 / width
    assert len(rates) == 31
    # counted from 1: epoch 21 still has the whole rate, epoch 31 an eleventh of it
    assert rates == pytest.approx([start] * 20 + [start * (32 - epoch) / 11 for epoch in range(21, 32)])
    assert min(rates) == rates[-1] == pytest.approx(start / 11)
    assert config.rate(optimiser, width, config.epochs) == 0.0, "where the line would have gone on to"


@pytest.mark.parametrize(("epochs", "decay_from"), [(10, 21), (20, 21), (31, 40)])
def test_the_learning_rate_is_positive_whatever_the_number_of_epochs(epochs: int, decay_from: int) -> None:
    """Refused, or never below 0 and at most its start."""
    try:
        config = replace(OneHiddenLayerConfig(), epochs=epochs, decay_from=decay_from)
    except ValueError:
        return
    assert all(0 < config.rate("gd", 32, epoch) <= config.gd_lr / 32 for epoch in range(epochs))


@pytest.mark.parametrize("optimiser", ["adam", "gd"])
def test_training_is_that_of_torch(optimiser: Any, tmp_path: Path) -> None:
    """Ten full-batch steps an epoch at the epoch's rate, by torch's own optimiser on the module."""
    config = replace(HIDDEN, epochs=4, decay_from=3, points=30)
    found = hidden.train(config, optimiser, 16, 0, checkpoint=tmp_path / "checkpoint.safetensors")
    points, labels = stored_points(config, 0)
    model = FixedOutput(16, config.clip, config.init_std, derived_seed(config.seed, 0, 1))
    kind = torch.optim.Adam if optimiser == "adam" else torch.optim.SGD
    stepper = kind(model.parameters(), lr=1.0)
    for epoch in range(4):
        for group in stepper.param_groups:
            group["lr"] = (1.0, 1.0, 1.0, 0.5)[epoch] * (1e-3 if optimiser == "adam" else 0.2 / 16)
        for _ in range(10):
            stepper.zero_grad()
            (model(points) - labels).square().mean().backward()
            stepper.step()
    assert_close(found.tensors["theta"], nn.utils.parameters_to_vector(model.parameters()).detach())
    assert sorted({row["step"] for row in found.rows}) == [10, 20, 30, 40]


@pytest.mark.parametrize("optimiser", ["adam", "gd"])
def test_training_goes_on_from_its_checkpoint_to_the_same_bits(
    optimiser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(HIDDEN, epochs=5, decay_from=3, points=30)
    whole = hidden.train(config, optimiser, 16, 0, checkpoint=tmp_path / "whole.safetensors")
    measured, calls = hidden.measured, iter((1, 1, 1, 0))

    def interrupted(*arguments: Any) -> dict[str, float]:
        if not next(calls):
            raise KeyboardInterrupt
        return measured(*arguments)

    checkpoint = tmp_path / "checkpoint.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(hidden, "measured", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hidden.train(config, optimiser, 16, 0, checkpoint=checkpoint)
    assert checkpoint.exists()
    resumed = hidden.train(config, optimiser, 16, 0, checkpoint=checkpoint)
    assert torch.equal(resumed.tensors["theta"], whole.tensors["theta"])
    assert resumed.rows == whole.rows
    assert not checkpoint.exists()
