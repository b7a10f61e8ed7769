"""The networks and data that the benchmarks run on."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import noisescape as ns
from noisescape.experiments.data import image_split
from noisescape.experiments.fashion_mnist import FashionMNISTConfig
from noisescape.experiments.models import lenet, vgg11
from noisescape.runs.storage import read_bundle, write_bundle

EARLY_STEPS = 1050
"""After a plateau of 600 steps; the loss is 1.003."""
CACHE = Path(__file__).parent / "cache"
BATCH_SIZE = 20


@dataclass(frozen=True)
class Problem:
    """A model with data of its own and the parameters in force, for rivals that take a module."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor

    @functools.cached_property
    def risk(self) -> ns.EmpiricalRisk:
        """The same as a risk that may spend what makes it fast: rivals hold what they hold."""
        data = self.inputs, self.targets
        return ns.EmpiricalRisk(self.model, nn.functional.cross_entropy, data, memory_budget=2**30)

    @property
    def theta(self) -> Tensor:
        """The module's parameters."""
        return self.risk.parameters()

    def step_cost(self) -> None:
        """One full-batch gradient as a training loop takes it: the unit of cost."""
        self.model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(self.model(self.inputs), self.targets).backward()

    def gradient(self) -> Tensor:
        """The flat gradient left by :meth:`step_cost`."""
        self.step_cost()
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])


def lenet_at_minimum() -> Problem:
    """The FashionMNIST LeNet at its gradient-descent minimum: 1,000 clean and 200 corrupted images, 3,000 steps."""
    config = FashionMNISTConfig(seed=0)
    split = image_split("fashion_mnist", seed=0, clean=config.clean, corrupted=config.corrupted, test=10)
    model = lenet(0, init_std=config.init_std)
    problem = Problem(model, split.images, split.labels)
    kept = CACHE / "lenet.safetensors"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        trajectory = ns.simulate(
            problem.risk, ns.GD(), problem.theta, lr=config.gd_lr, steps=config.gd_steps, record={}
        )
        write_bundle(kept, {"theta": trajectory.theta}, {})
    model.load_state_dict(problem.risk.state_dict(read_bundle(kept).tensors["theta"]))
    return problem


def lenet_early() -> Problem:
    """The same LeNet early in its training, at a loss of about 1."""
    config = FashionMNISTConfig(seed=0)
    split = image_split("fashion_mnist", seed=0, clean=config.clean, corrupted=config.corrupted, test=10)
    model = lenet(0, init_std=config.init_std)
    problem = Problem(model, split.images, split.labels)
    trajectory = ns.simulate(problem.risk, ns.GD(), problem.theta, lr=config.gd_lr, steps=EARLY_STEPS, record={})
    model.load_state_dict(problem.risk.state_dict(trajectory.theta))
    return problem


class Transformer(nn.Module):
    """Predicts the next token: pre-normalised blocks of causal attention and a perceptron, learned positions."""

    def __init__(self, *, tokens: int, length: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.tokens, self.positions = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.attend = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(depth))
        self.project = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.widen = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(depth))
        self.narrow = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth + 1))
        self.head = nn.Linear(width, tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits with the tokens of the vocabulary along dimension 1, as cross-entropy takes them: (n, V, T)."""
        places = torch.arange(tokens.shape[1]).expand_as(tokens).contiguous()
        x = self.tokens(tokens) + self.positions(places)
        for depth in range(len(self.attend)):
            mixed = self.attend[depth](self.norms[2 * depth](x)).unflatten(2, (3, self.heads, -1))
            query, key, value = mixed.transpose(1, 3).unbind(2)
            seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + self.project[depth](seen.transpose(1, 2).flatten(2))
            hidden = self.widen[depth](self.norms[2 * depth + 1](x))
            x = x + self.narrow[depth](nn.functional.gelu(hidden))
        return self.head(self.norms[-1](x)).movedim(2, 1)


def small_transformer(samples: int) -> Problem:
    """1.3 million parameters, sequences of 64 tokens whose next one mostly follows from the present one."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(tokens=256, length=64, width=128, depth=6, heads=4)
    follower = torch.randperm(256, generator=generator)
    tokens = torch.randint(256, (samples, 65), generator=generator)
    for place in range(64):
        follows = torch.rand(samples, generator=generator) < 0.8
        tokens[:, place + 1] = torch.where(follows, follower[tokens[:, place]], tokens[:, place + 1])
    return Problem(model, tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def transformer_in_training() -> Problem:
    """The small transformer after sixty steps of AdamW, where its loss has fallen from 5.7 to 1.3."""
    problem = small_transformer(128)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(problem.model.parameters(), lr=1e-3)
    for _ in range(60):
        chosen = torch.randperm(len(problem.inputs), generator=generator)[:16]
        optimizer.zero_grad()
        nn.functional.cross_entropy(problem.model(problem.inputs[chosen]), problem.targets[chosen]).backward()
        optimizer.step()
    return problem


def random_lenet(samples: int) -> Problem:
    """The LeNet on noise."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 1, 28, 28, generator=generator)
    return Problem(lenet(0, init_std=0.1), inputs, torch.randint(10, (samples,), generator=generator))


def random_vgg(width: float, samples: int) -> Problem:
    """VGG-11 of some width on noise."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 3, 32, 32, generator=generator)
    return Problem(vgg11(0, width=width), inputs, torch.randint(10, (samples,), generator=generator))


def random_mlp(samples: int) -> Problem:
    """Three layers of 784, 256 and 256 units on noise."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layers = [nn.Linear(784, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10)]
    inputs = torch.randn(samples, 784, generator=generator)
    return Problem(nn.Sequential(*layers), inputs, torch.randint(10, (samples,), generator=generator))
