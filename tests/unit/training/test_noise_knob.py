"""The noise knob: a batch's gradient with the covariance of a smaller batch's, against enumeration and by draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import noisescape as ns
from noisescape.training import noise_knob

POPULATION = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
"""Gradients of five samples."""


def covariance(rows: Tensor) -> Tensor:
    """Centred, divided by their number."""
    centred = rows - rows.mean(0)
    return centred.T @ centred / len(rows)


def gradient(rows: Tensor, batch_size: float, generator: torch.Generator | None = None) -> Tensor:
    """Of the re-weighted batch, where ℓ_i = g_iᵀθ, so that rows are the gradients of single samples."""
    theta = torch.zeros(rows.shape[1], dtype=rows.dtype, requires_grad=True)
    ns.as_if_batch(rows @ theta, batch_size, generator=generator).backward()
    assert theta.grad is not None
    return theta.grad


def weights(count: int, batch_size: float, generator: torch.Generator | None = None, **kind: Any) -> Tensor:
    losses = torch.ones(count, requires_grad=True, **kind)
    ns.as_if_batch(losses, batch_size, generator=generator).backward()
    assert losses.grad is not None
    return losses.grad


def each_design_point(count: int, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts ±√B·e_j in place of z: 2B equally likely points with the mean 0 and the covariance I of a normal z.

    What is linear in z then has its exact mean and covariance over them.
    """
    for sign, place in itertools.product((1.0, -1.0), range(count)):
        point = torch.zeros(count, dtype=torch.float64)
        point[place] = sign * math.sqrt(count)
        patch.setattr(noise_knob, "_standard_normal", lambda losses, generator, point=point: point)
        yield


def enumerated(batches: Iterable[tuple[int, ...]], batch_size: float, patch: pytest.MonkeyPatch) -> Tensor:
    """The gradient for every batch and every point of the design."""
    return torch.stack(
        [
            gradient(POPULATION[list(batch)], batch_size)
            for batch in batches
            for _ in each_design_point(len(batch), patch)
        ]
    )


# ---------------------------------------------------------------------- mean and covariance, by enumeration


@pytest.mark.parametrize(("count", "batch_size"), [(2, 1), (3, 1), (3, 2), (3, 3), (3, 0.25), (2, 1.7), (4, 2.5)])
def test_over_all_batches_the_covariance_is_that_of_the_smaller_batch(
    count: int, batch_size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = enumerated(itertools.product(range(5), repeat=count), batch_size, monkeypatch)
    assert_close(found.mean(0), POPULATION.mean(0), rtol=0, atol=1e-12)
    assert_close(covariance(found), covariance(POPULATION) / batch_size, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("count", "batch_size"), [(2, 1), (3, 1), (3, 2), (4, 1), (4, 3), (5, 2), (5, 5)])
def test_without_replacement_it_is_that_of_the_smaller_batch_drawn_so(
    count: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = enumerated(itertools.combinations(range(5), count), batch_size, monkeypatch)
    small = torch.stack([POPULATION[list(batch)].mean(0) for batch in itertools.combinations(range(5), batch_size)])
    assert_close(found.mean(0), POPULATION.mean(0), rtol=0, atol=1e-12)
    assert_close(covariance(found), covariance(small), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("pieces", "batch_size"), [(2, 1), (2, 3), (3, 2), (3, 0.5)])
def test_pieces_that_are_averaged_take_their_share_of_the_batch_size(
    pieces: int, batch_size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Micro-steps or ranks: with b/K each, the mean of K independent pieces has the covariance C/b."""
    each = enumerated(itertools.product(range(2), repeat=2), batch_size / pieces, monkeypatch)
    averaged = torch.stack([torch.stack(chosen).mean(0) for chosen in itertools.product(each, repeat=pieces)])
    assert_close(covariance(averaged), covariance(POPULATION[:2]) / batch_size, rtol=1e-12, atol=1e-12)


def test_equal_draws_on_all_ranks_leave_the_covariance_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Σ(z_i − z̄) = 0, so between independent samples nothing adds up."""
    ranks, batch_size = 2, 1.5
    found = [
        torch.stack([gradient(POPULATION[[*batch]], batch_size / ranks) for batch in pieces]).mean(0)
        for pieces in itertools.product(itertools.product(range(3), repeat=2), repeat=ranks)
        for _ in each_design_point(2, monkeypatch)
    ]
    assert_close(covariance(torch.stack(found)), covariance(POPULATION[:3]) / batch_size, rtol=1e-12, atol=1e-12)


def test_given_the_batch_the_mean_over_the_noise_is_the_batchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = enumerated([(0, 3, 3)], 0.5, monkeypatch)
    assert_close(found.mean(0), POPULATION[[0, 3, 3]].mean(0), rtol=0, atol=1e-12)


# ---------------------------------------------------------------------- by draws


@pytest.mark.parametrize(("count", "batch_size"), [(8, 2), (8, 7.5), (2, 0.5)])
def test_drawn_weights_have_the_stated_mean_and_covariance(count: int, batch_size: float) -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.stack([weights(count, batch_size, generator, dtype=torch.float64) for _ in range(4000)])
    assert_close(drawn.sum(1), torch.ones(4000, dtype=torch.float64), rtol=0, atol=1e-12)
    centred = drawn - 1 / count
    assert ((centred.mean(0)).abs() < 4 * drawn.std(0) / 4000**0.5).all()
    scale = (count / batch_size - 1) * count / (count - 1)
    expected = scale / count**2 * (torch.eye(count, dtype=torch.float64) - 1 / count)
    products = centred[:, :, None] * centred[:, None, :]
    assert ((products.mean(0) - expected).abs() < 4 * products.std(0) / 4000**0.5).all()


def test_a_networks_gradient_has_the_noise_of_the_smaller_batch() -> None:
    """Batches of 16 drawn with replacement from 30 samples, as if of 4: total covariance C/4 within its error."""
    torch.manual_seed(2)
    inputs, targets = torch.randn(30, 4, dtype=torch.float64), torch.randint(0, 3, (30,))
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    risk = ns.EmpiricalRisk(model, nn.functional.cross_entropy, (inputs, targets))
    theta = risk.parameters()
    mean = risk.gradient(theta)
    dense = risk.noise_covariance(theta, 4) @ torch.eye(len(theta), dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    noise = []
    for _ in range(3000):
        batch = torch.randint(30, (16,), generator=generator)
        model.zero_grad()
        losses = nn.functional.cross_entropy(model(inputs[batch]), targets[batch], reduction="none")
        ns.as_if_batch(losses, 4, generator=generator).backward()
        noise.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]) - mean)
    drawn = torch.stack(noise)

    def within(values: Tensor, expected: Tensor) -> None:
        assert abs(values.mean() - expected) < 4 * values.std() / len(values) ** 0.5

    within(drawn.square().sum(1), dense.trace())
    for direction in (torch.linalg.eigh(dense)[1][:, -1], mean / mean.norm()):
        within(drawn @ direction, torch.tensor(0.0))
        within((drawn @ direction).square(), direction @ dense @ direction)
    plain = risk.noise_covariance(theta, 16).trace()
    assert drawn.square().sum(1).mean() > 2 * plain, "the batch's own noise is a quarter of it"


# ---------------------------------------------------------------------- in a training step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_its_own_size_a_batch_has_the_plain_mean_and_nothing_is_drawn(dtype: torch.dtype) -> None:
    losses = torch.rand(7, dtype=dtype, requires_grad=True)
    before = torch.get_rng_state()
    found = ns.as_if_batch(losses, 7)
    assert torch.equal(found, losses.mean())
    assert found.dtype == dtype
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.autograd.grad(found, losses)[0], torch.full((7,), 1 / 7, dtype=dtype))
    assert float(ns.as_if_batch(torch.tensor([3.0]), 1)) == 3.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_half_precision_are_summed_in_single(dtype: torch.dtype) -> None:
    losses = torch.linspace(0.5, 3.0, 301, dtype=dtype, requires_grad=True)
    for batch_size in (301, 16):
        found = ns.as_if_batch(losses, batch_size, generator=torch.Generator().manual_seed(0))
        exact = ns.as_if_batch(losses.detach().float(), batch_size, generator=torch.Generator().manual_seed(0))
        assert found.dtype == torch.float32
        assert torch.equal(found.detach(), exact)
        (own,) = torch.autograd.grad(found, losses)
        assert own.dtype == dtype
        assert_close(own.float(), weights(301, batch_size, torch.Generator().manual_seed(0)), rtol=0.01, atol=1e-7)


def test_under_autocast_it_is_the_same_sum() -> None:
    model, inputs = nn.Linear(6, 4), torch.randn(12, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(inputs).square().mean(1)
        assert losses.dtype == torch.bfloat16
        found = ns.as_if_batch(losses, 3, generator=torch.Generator().manual_seed(5))
    outside = ns.as_if_batch(losses, 3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(found, outside)
    found.backward()
    assert model.weight.grad is not None
    assert model.weight.grad.isfinite().all()


def test_the_generator_decides_and_torchs_own_is_the_default() -> None:
    losses = torch.rand(6)
    one, other, again = (
        ns.as_if_batch(losses, 2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1, 0)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    torch.manual_seed(0)
    first, second = ns.as_if_batch(losses, 2), ns.as_if_batch(losses, 2)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, ns.as_if_batch(losses, 2))
    before = torch.get_rng_state()
    ns.as_if_batch(losses, 2, generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), before), "a generator of one's own leaves torch's alone"


def test_a_generator_may_be_of_another_device_than_the_losses() -> None:
    drawn = torch.Generator().manual_seed(0)
    found = ns.as_if_batch(torch.rand(4, device="meta"), 2, generator=drawn)
    assert found.device.type == "meta"
    assert not torch.equal(drawn.get_state(), torch.Generator().manual_seed(0).get_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpus_own_generator_draws_there() -> None:
    losses = torch.rand(6, device="cuda", dtype=torch.float64)
    one, again = (ns.as_if_batch(losses, 2, generator=torch.Generator("cuda").manual_seed(3)) for _ in range(2))
    assert one.device == losses.device
    assert torch.equal(one, again)
    by_cpu = ns.as_if_batch(losses, 2, generator=torch.Generator().manual_seed(3))
    assert_close(by_cpu.cpu(), ns.as_if_batch(losses.cpu(), 2, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_it_is_traced_whole_and_draws_anew_each_time(dynamic: bool | None) -> None:
    step = torch.compile(
        lambda losses, size: noise_knob.as_if_batch(losses, size),
        backend="aot_eager",
        fullgraph=True,
        dynamic=dynamic,
    )
    for count in (8, 9, 12):
        losses = torch.rand(count, requires_grad=True)
        drawn = [torch.autograd.grad(step(losses, 2), losses)[0] for _ in range(2)]
        assert not torch.equal(*drawn)
        for own in drawn:
            assert_close(own.sum(), torch.tensor(1.0))
        assert_close(step(losses, count), losses.mean())


def test_compiled_with_a_generator_it_draws_what_it_draws_else() -> None:
    step = torch.compile(lambda losses, own: noise_knob.as_if_batch(losses, 2, generator=own), backend="aot_eager")
    losses = torch.rand(8)
    found = step(losses, torch.Generator().manual_seed(4))
    assert_close(found, ns.as_if_batch(losses, 2, generator=torch.Generator().manual_seed(4)))


def test_statistics_of_batch_normalisation_are_those_of_a_plain_step() -> None:
    inputs = torch.randn(32, 5)
    buffers, gradients = [], []
    for batch_size in (32, 4):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1))
        losses = model(inputs).square().squeeze(1)
        ns.as_if_batch(losses, batch_size).backward()
        buffers.append({name: buffer.clone() for name, buffer in model.named_buffers()})
        gradients.append(model[0].weight.grad)
    assert all(torch.equal(buffers[0][name], buffers[1][name]) for name in buffers[0])
    assert int(buffers[0]["1.num_batches_tracked"]) == 1
    assert not torch.equal(*gradients)


def test_losses_that_are_not_finite_stay_visible() -> None:
    """A gradient scaler must see them."""
    for value in (math.inf, math.nan):
        assert not torch.isfinite(ns.as_if_batch(torch.tensor([1.0, value, 2.0]), 2))


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("losses", "batch_size", "message"),
    [
        (torch.tensor(1.0), 1, r'not of shape \(\); take the loss unreduced: reduction="none"'),
        (torch.ones(4, 7), 2, r"not of shape \(4, 7\); reduce each sample's own .*flatten\(1\)\.mean\(1\)"),
        (torch.ones(4), 8, r"batch_size = 8, but there are only 4 losses.*drop_last=True"),
        (torch.ones(4), 4.001, "batch_size = 4.001, but there are only 4 losses"),
        (torch.ones(0), 1, "there are only 0 losses"),
        (torch.ones(4), 0, "batch_size must be positive and finite, not 0"),
        (torch.ones(4), -2, "batch_size must be positive and finite, not -2"),
        (torch.ones(4), math.nan, "batch_size must be positive and finite, not nan"),
        (torch.ones(4), math.inf, "batch_size must be positive and finite, not inf"),
        (torch.ones(1), 0.5, "one sample has no spread to make noise of; give at least two losses"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_mend(losses: Tensor, batch_size: float, message: str) -> None:
    with pytest.raises(ns.errors.InvalidValueError, match=message) as caught:
        ns.as_if_batch(losses, batch_size)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("losses", "batch_size", "message"),
    [
        (torch.ones(4, dtype=torch.int64), 2, "losses must be a floating-point tensor, not torch.int64"),
        (torch.ones(4, dtype=torch.complex64), 2, "losses must be a floating-point tensor, not torch.complex64"),
        ([1.0, 2.0], 2, "losses must be a floating-point tensor, not list"),
        (torch.ones(4), "2", "batch_size must be a number of samples, not '2'"),
        (torch.ones(4), True, "batch_size must be a number of samples, not True"),
        (torch.ones(4), None, "batch_size must be a number of samples, not None"),
        (torch.ones(4), torch.tensor(2), "batch_size must be a number of samples"),
    ],
)
def test_what_is_of_the_wrong_kind_is_refused(losses: Any, batch_size: Any, message: str) -> None:
    with pytest.raises(ns.errors.InvalidTypeError, match=message):
        ns.as_if_batch(losses, batch_size)


def test_numbers_of_numpy_are_numbers() -> None:
    for batch_size in (np.int64(2), np.float32(2.0)):
        found = weights(4, batch_size, torch.Generator().manual_seed(0))
        assert torch.equal(found, weights(4, 2, torch.Generator().manual_seed(0)))
