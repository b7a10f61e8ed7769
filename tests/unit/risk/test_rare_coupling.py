"""Chance and coupling that only a rare sample, alike samples or a full chunk show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import noisescape as ns
from cases import F64, classes, normal
from networks import X, Y, classifier_risk, network

CE = nn.functional.cross_entropy


class Switching(nn.Module):
    """Draws noise, or adds what other samples are, only where a rare token stands."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(50, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens).mean(1)
        rare = (tokens == 17).any(1)
        if bool(rare.any()):
            hidden = hidden + torch.randn_like(hidden) * rare[:, None]
        return self.head(hidden)


def test_randomness_of_one_sample_in_six_thousand_is_refused() -> None:
    tokens = 18 + classes(6000, 6, of=32, seed=1)
    tokens[4321, 2] = 17
    model, state = Switching(), torch.get_rng_state()
    with pytest.raises(ns.BatchCouplingError, match="draws random numbers"):
        ns.EmpiricalRisk(model, CE, (tokens, classes(6000, of=3, seed=2)), chunk_size=500)
    assert torch.equal(torch.get_rng_state(), state)


class Routed(nn.Module):
    """Top-1 experts that drop what exceeds their share of the batch times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router, self.experts, self.factor = nn.Linear(6, 4), nn.Parameter(torch.randn(4, 6, 3)), factor

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        value, expert = gates.max(-1)
        capacity = max(1, int(np.ceil(self.factor * len(x) / 4)))
        place = nn.functional.one_hot(expert, 4).cumsum(0).gather(1, expert[:, None])[:, 0]
        kept = (place <= capacity).to(x)
        return torch.einsum("ni,nio->no", x, self.experts[expert]) * (value * kept)[:, None]


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0, 3.0])
def test_capacity_that_only_alike_samples_exceed_is_refused(factor: float) -> None:
    with pytest.raises(ns.BatchCouplingError, match="influence each other"):
        ns.EmpiricalRisk(Routed(factor).to(F64), CE, (X, Y))


def test_generators_are_found_where_code_can_reach_them() -> None:
    generator = np.random.default_rng(0)
    model = network()

    def flipped(outputs: Tensor, targets: Tensor) -> Tensor:
        flip = torch.from_numpy(generator.random(len(targets)) < 1e-9)
        return CE(outputs, torch.where(flip, (targets + 1) % 3, targets), reduction="none")

    before = generator.bit_generator.state
    with pytest.raises(ns.BatchCouplingError, match="draws random numbers"):
        ns.EmpiricalRisk(model, flipped, (X, Y))
    assert generator.bit_generator.state == before


def test_replicas_with_batches_of_their_own_where_control_flow_reads_the_data() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x) if float(x.abs().max()) > 0.1 else self.layers(2 * x)

    risk = ns.EmpiricalRisk(Branching(), CE, (X, Y))
    theta = risk.parameters()
    both = torch.stack([theta, 1.1 * theta])
    indices = torch.tensor([[0, 5, 5], [7, 1, 2]])
    wanted = torch.stack([risk.minibatch_gradient(*pair) for pair in zip(both, indices, strict=True)])
    torch.testing.assert_close(risk.minibatch_gradient(both, indices), wanted)
    run = ns.simulate(risk, ns.SGD(4), theta, lr=0.1, steps=2, replicas=2, progress=False)
    assert not run.diverged.any()


def test_coupling_that_only_a_full_chunk_shows_is_refused_when_it_is_met() -> None:
    """Capacity beyond the samples tried: the first evaluation of a whole chunk is held against its parts."""

    class Capacity(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            kept = (torch.arange(len(x)) < 100).to(x)[:, None]
            return super().forward(x) * kept

    torch.manual_seed(0)
    risk = classifier_risk(Capacity(4, 3), normal(300, 4, seed=1))
    for call in (risk.losses, risk.gradient):
        with pytest.raises(ns.BatchCouplingError, match="between a batch of 300 and the same in two parts"):
            call(risk.parameters())
