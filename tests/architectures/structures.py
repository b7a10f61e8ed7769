"""Graphs, physics, mixtures and other models of unusual structure, with their losses."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import F64


def elbo(outputs: tuple[Tensor, Tensor, Tensor], targets: Tensor) -> Tensor:
    picture, mean, log_variance = outputs
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
    return F.binary_cross_entropy_with_logits(picture, targets, reduction="none").sum(1) + kl


def square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().flatten(1).sum(1)


_EDGES = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2]])


class GraphNet(nn.Module):
    """Each sample its own features on the nodes of one fixed graph, whose adjacency is a buffer."""

    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        adjacency = torch.eye(4, dtype=F64)
        adjacency[_EDGES[:, 0], _EDGES[:, 1]] = adjacency[_EDGES[:, 1], _EDGES[:, 0]] = 1
        adjacency = adjacency / adjacency.sum(1, keepdim=True)
        if layout == torch.sparse_csr:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
                adjacency = adjacency.to_sparse_csr()
        elif layout == torch.sparse_coo:
            adjacency = adjacency.to_sparse_coo()
        self.register_buffer("adjacency", adjacency)
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 3)

    def _spread(self, x: Tensor) -> Tensor:
        nodes = x.movedim(1, 0)
        mixed = self.adjacency @ nodes.reshape(4, -1)
        return mixed.reshape(nodes.shape).movedim(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(self._spread(x)))
        return self.second(self._spread(hidden)).mean(1)


class Heat(nn.Module):
    """The residual u_t − u_xx of a network u(t, x), differentiated as most people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, points: Tensor) -> Tensor:
        with torch.enable_grad():
            points = points.detach().clone().requires_grad_(True)
            u = self.net(points)
            first = torch.autograd.grad(u, points, torch.ones_like(u), create_graph=True)[0]
            along = first[:, 1:]
            second = torch.autograd.grad(along, points, torch.ones_like(along), create_graph=True)[0]
        return first[:, :1] - second[:, 1:]


class HeatByTransforms(Heat):
    def forward(self, points: Tensor) -> Tensor:
        def u(point: Tensor) -> Tensor:
            return self.net(point).squeeze(-1)

        def residual(point: Tensor) -> Tensor:
            return torch.func.grad(u)(point)[0] - torch.func.hessian(u)(point)[1, 1]

        return torch.func.vmap(residual)(points)[:, None]


class SoftMixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router, self.head = nn.Linear(4, 3), nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        return self.head(sum(shares[:, k, None] * expert(x) for k, expert in enumerate(self.experts)))


class TopMixture(SoftMixture):
    """Each expert sees only the samples routed to it."""

    def forward(self, x: Tensor) -> Tensor:
        shares, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        shares = shares / shares.sum(-1, keepdim=True)
        mixed = torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            rows, slots = (chosen == k).nonzero(as_tuple=True)
            if len(rows):
                mixed = mixed.index_add(0, rows, shares[rows, slots, None] * expert(x[rows]))
        return self.head(mixed)


class Autoencoder(nn.Module):
    """Variational, with its noise given."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 8), nn.Linear(2, 6)
        self.mean, self.log_variance = nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = torch.tanh(self.encoder(x))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        return self.decoder(mean + noise * (0.5 * log_variance).exp()), mean, log_variance


class Hypernetwork(nn.Module):
    """A network that makes the weights of another, for each sample its own."""

    def __init__(self) -> None:
        super().__init__()
        self.maker = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3 * 4 + 3))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        made = self.maker(context)
        return torch.einsum("nij,nj->ni", made[:, :12].view(-1, 3, 4), x) + made[:, 12:]


class Equilibrium(nn.Module):
    """A fixed number of steps towards a fixed point of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.turn, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        injected = self.inward(x)
        z = torch.zeros_like(injected)
        for _ in range(8):
            z = torch.tanh(self.turn(z) + injected)
        return self.head(z)


class Flow(nn.Module):
    """A normalising flow of two layers: the image and the logarithm of its volume."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = nn.ParameterList(torch.eye(3) + torch.randn(3, 3) / 4 for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        volume = x.new_zeros(len(x))
        for turn in self.turns:
            x = x @ turn
            volume = volume + torch.linalg.slogdet(turn).logabsdet + (2 * F.logsigmoid(2 * x) - 2 * x).sum(1)
            x = torch.tanh(x)
        return x, volume


def negative_likelihood(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    image, volume = outputs
    return (image - targets).square().sum(1) / 2 - volume


class Transformer2d(nn.Module):
    """A spatial transformer: the picture is looked at from where the network chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.head = nn.Linear(36, 6), nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        pose = torch.tensor([1.0, 0, 0, 0, 1, 0], dtype=x.dtype) + 0.1 * torch.tanh(self.look(x.flatten(1)))
        grid = F.affine_grid(pose.view(-1, 2, 3), list(x.shape), align_corners=False)
        return self.head(F.grid_sample(x, grid, align_corners=False).flatten(1))


class RadialBasis(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centres, self.head = nn.Parameter(torch.randn(5, 4)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.exp(-torch.cdist(x, self.centres) / 2))


class Products(nn.Module):
    """Hidden units multiplied within groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = 1 + 0.5 * torch.tanh(self.first(x))
        groups = torch.tensor([0, 1, 2, 0, 1, 2]).expand(len(x), 6)
        ones = torch.ones(len(x), 3, dtype=x.dtype)
        return self.second(ones.scatter_reduce(1, groups, hidden, "prod"))


def mobile() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Hardswish(), nn.Linear(6, 6), nn.Hardsigmoid(), nn.Linear(6, 3))


class Listener(nn.Module):
    """Log-probabilities of symbols over time, (n, T, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0]).log_softmax(-1)


def ctc(outputs: Tensor, targets: Tensor) -> Tensor:
    count, time = outputs.shape[:2]
    lengths = torch.full((count,), time), torch.full((count,), targets.shape[1])
    return F.ctc_loss(outputs.movedim(0, 1), targets, *lengths, reduction="none")
