"""Small double-precision models of the kinds people bring, each with data and a reference by plain autograd.

The reference never calls the package. It runs a second copy of the module, into which θ is loaded, one sample at
a time: gradients are one reverse pass, products with the Hessian two, Gauss–Newton products explicit Jacobians.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, prune
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from cases import F64, classes, cubed, normal
from noisescape.risk import EmpiricalRisk

BATCH_SIZE = 3


# ---------------------------------------------------------------------- an architecture and its reference


@dataclass
class Architecture:
    """How to build a model and its data, and what is asked of it.

    Attributes:
        build: the module, its parameters drawn from the global generator.
        data: (inputs, targets), or a list of such batches.
        loss: as given to the risk.
        reference: builds the module of the reference, in double precision, where that must be another one.
        gauss_newton: whether outputs are one tensor and the loss is convex in them.
        tolerance: relative, of values and first derivatives.
        bend_tolerance: relative, of second derivatives.
        bends: whether plain autograd has second derivatives; otherwise products with H may be refused.
        dtype: of the risk; the reference is always in double precision.
        step: of the central differences that check the reference.
        used_before: whether gradients are first asked for at the module's own parameters, where some are 0:
            what is decided on first use must not hang on that.
    """

    build: Callable[[], nn.Module]
    data: Callable[[], Any]
    loss: Callable[..., Any] = F.cross_entropy
    reference: Callable[[], nn.Module] | None = None
    gauss_newton: bool = True
    tolerance: float = 1e-8
    bend_tolerance: float = 1e-8
    bends: bool = True
    dtype: torch.dtype = F64
    step: float = 1e-4
    used_before: bool = False

    @functools.cached_property
    def subject(self) -> Examined:
        return Examined(self)


@contextmanager
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        yield


def samples_of(data: Any) -> list[tuple[Any, Any]]:
    """Every sample as a batch of one."""
    batches = data if isinstance(data, list) else [data]
    singles = []
    for inputs, targets in batches:
        for n in range(len(targets)):

            def one(leaf: Any, n: int = n) -> Any:
                return leaf[n : n + 1] if isinstance(leaf, Tensor) else leaf

            singles.append(tree_map(one, (inputs, targets)))
    return singles


def cast(leaf: Any, dtype: torch.dtype) -> Any:
    return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


class Examined:
    """A risk over an architecture, and the reference's figures at one θ; everything is computed once."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        data = architecture.data()
        with seeded():
            model = architecture.build().to(architecture.dtype)
        with seeded():
            self.reference = (architecture.reference or architecture.build)().to(F64)
        self.samples = samples_of(data)
        self.trainable = [p for p in self.reference.parameters() if p.requires_grad]
        own = torch.cat([p.detach().reshape(-1) for p in self.trainable])
        # away from the module's own parameters, so that using those by mistake shows
        self.theta = (own + 0.1 * normal(len(own), seed=11)).to(architecture.dtype)
        with torch.no_grad():
            parts = self.theta.split([p.numel() for p in self.trainable])
            for parameter, part in zip(self.trainable, parts, strict=True):
                parameter.copy_(part.view_as(parameter))
        self.directions = normal(len(own), 3, seed=8)
        self._model = model
        self._data = tree_map(lambda leaf: cast(leaf, architecture.dtype), data)

    @functools.cached_property
    def _risk_or_error(self) -> EmpiricalRisk | Exception:
        try:
            risk = EmpiricalRisk(self._model, self.architecture.loss, self._data)
            if self.architecture.used_before:
                risk.per_sample_gradients(risk.parameters())
            return risk
        except Exception as error:  # kept: every test of this architecture reports it without building anew
            return error

    @property
    def given(self) -> Tensor:
        """The directions as the risk takes them."""
        return self.directions.to(self.architecture.dtype)

    @property
    def risk(self) -> EmpiricalRisk:
        if isinstance(self._risk_or_error, Exception):
            raise self._risk_or_error.with_traceback(None)
        return self._risk_or_error

    # ------------------------------------------------------------------ plain autograd

    def outputs(self, inputs: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            if isinstance(inputs, dict):
                return self.reference(**inputs)
            return self.reference(*inputs) if isinstance(inputs, tuple) else self.reference(inputs)

    def value(self, outputs: Any, targets: Any) -> Tensor:
        """The loss of a batch of one; beyond one value a sample, their mean."""
        return self.architecture.loss(outputs, targets).mean()

    def _slope(self, value: Tensor, **options: Any) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # checkpoints run the forward pass again
            found = torch.autograd.grad(value, self.trainable, allow_unused=True, **options)
        parts = [
            torch.zeros_like(p) if slope is None else slope for p, slope in zip(self.trainable, found, strict=True)
        ]
        return torch.cat([part.reshape(-1) for part in parts])

    @functools.cached_property
    def first(self) -> tuple[Tensor, Tensor]:
        """ℓ and G."""
        values, rows = [], []
        for inputs, targets in self.samples:
            value = self.value(self.outputs(inputs), targets)
            values.append(value.detach())
            rows.append(self._slope(value).detach())
        return torch.stack(values), torch.stack(rows)

    @property
    def losses(self) -> Tensor:
        return self.first[0]

    @property
    def rows(self) -> Tensor:
        return self.first[1]

    @property
    def centred(self) -> Tensor:
        return self.rows - self.rows.mean(0)

    @functools.cached_property
    def bent(self) -> Tensor:
        """H times the three directions and the N centred gradients, (D, 3 + N)."""
        columns = torch.cat([self.directions, self.centred.T], dim=1)
        total = torch.zeros_like(columns)
        for inputs, targets in self.samples:
            if self.architecture.bends:
                slope = self._slope(self.value(self.outputs(inputs), targets), create_graph=True)
                for k, column in enumerate(columns.T):
                    along = slope @ column
                    if along.requires_grad:
                        total[:, k] += self._slope(along, retain_graph=True)
            else:
                for k, column in enumerate(columns.T):
                    total[:, k] += self._difference(inputs, targets, column)
        return total / len(self.samples)

    def _difference(self, inputs: Any, targets: Any, direction: Tensor) -> Tensor:
        """The derivative of a sample's gradient by central differences of fourth order."""
        step = self.architecture.step
        total = torch.zeros_like(direction)
        unit = direction / direction.norm()
        parts = unit.split([p.numel() for p in self.trainable])
        kept = [p.detach().clone() for p in self.trainable]
        for multiple, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            with torch.no_grad():
                for parameter, part, start in zip(self.trainable, parts, kept, strict=True):
                    parameter.copy_(start + multiple * step * part.view_as(parameter))
            total += weight * self._slope(self.value(self.outputs(inputs), targets)) / (12 * step)
        with torch.no_grad():
            for parameter, start in zip(self.trainable, kept, strict=True):
                parameter.copy_(start)
        return total * direction.norm()

    @property
    def hessian_products(self) -> Tensor:
        return self.bent[:, :3]

    @property
    def indicator(self) -> float:
        """Tr(HΣ_B) = (1/NB) Σ_n d_nᵀHd_n, d_n the centred gradients."""
        return float((self.bent[:, 3:] * self.centred.T).sum()) / len(self.samples) / BATCH_SIZE

    @property
    def noise_products(self) -> Tensor:
        return self.centred.T @ (self.centred @ self.directions) / len(self.samples) / BATCH_SIZE

    @functools.cached_property
    def gauss_newton_products(self) -> Tensor:
        """(1/N) Σ Jᵀ(∇²ℓ)J times the directions, J one output after the other."""
        total = torch.zeros_like(self.directions)
        for inputs, targets in self.samples:
            outputs = self.outputs(inputs)
            flat = outputs.reshape(-1)
            jacobian = torch.stack([self._slope(output, retain_graph=True) for output in flat]).detach()

            def loss(point: Tensor, shape: torch.Size = outputs.shape, targets: Any = targets) -> Tensor:
                return self.value(point.view(shape), targets)

            # some models return single precision, whatever their parameters are
            curvature = torch.autograd.functional.hessian(loss, flat.detach().double())
            total += jacobian.T @ (curvature @ (jacobian @ self.directions))
        return total / len(self.samples)


# ---------------------------------------------------------------------- losses


def of_logits(outputs: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.logits, targets, reduction="none")


def of_token_logits(outputs: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.logits.movedim(-1, 1), targets, reduction="none")


def elbo(outputs: tuple[Tensor, Tensor, Tensor], targets: Tensor) -> Tensor:
    picture, mean, log_variance = outputs
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
    return F.binary_cross_entropy_with_logits(picture, targets, reduction="none").sum(1) + kl


def square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().flatten(1).sum(1)


# ---------------------------------------------------------------------- models of libraries


class Logits(nn.Module):
    """Logits alone, (n, C, ...), of a model that returns more."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.model(*args, **kwargs).logits.movedim(-1, 1)


_NO_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=11, n_positions=6, n_embd=8, n_layer=2, n_head=2, n_inner=12, use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **_NO_TOKENS,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def gpt2_checkpointed() -> nn.Module:
    model = gpt2()
    with _of_an_older_name():
        model.gradient_checkpointing_enable()
    return model.train()


@contextmanager
def _of_an_older_name() -> Iterator[None]:
    """Transformers warns of the name that most scripts, and peft, still use."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning
        )
        yield


def gpt2_lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    options = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}
    with _of_an_older_name():
        return get_peft_model(gpt2(), LoraConfig(r=2, lora_dropout=0.0, **options)).eval()


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8, use_cache=False, **_NO_TOKENS,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=13, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=8, num_labels=3, pad_token_id=0,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def bert_lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    with _of_an_older_name():
        return get_peft_model(
            bert(), LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
        ).eval()


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=11, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", use_cache=False, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, image_size=4, patch_size=2,
        num_channels=1, num_labels=3,
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


def mixtral(experts: str) -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=8,
        use_cache=False, **_NO_TOKENS,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    model.set_experts_implementation(experts)
    return model


def mamba() -> nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=11, hidden_size=6, state_size=3, num_hidden_layers=1, conv_kernel=2, time_step_rank=2,
        use_cache=False, **_NO_TOKENS,
    )  # fmt: skip
    return MambaForCausalLM(config).eval()


# ---------------------------------------------------------------------- recurrent and convolutional


class Sequential(nn.Module):
    """The last state of a recurrent layer, classified."""

    def __init__(self, cell: Callable[..., nn.Module], **options: Any) -> None:
        super().__init__()
        self.cell = cell(3, 5, batch_first=True, **options)
        self.head = nn.Linear(10 if options.get("bidirectional") else 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def conv_with(norm: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), norm, nn.SiLU(), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip


def conv1d_batch_norm() -> nn.Module:
    norm = nn.BatchNorm1d(4)
    norm.running_mean.copy_(torch.linspace(-1, 1, 4))
    norm.running_var.copy_(torch.linspace(0.5, 2, 4))
    body = nn.Sequential(nn.Conv1d(2, 4, 3), norm, nn.GELU(), nn.Flatten(), nn.Linear(16, 3))
    return body.eval()


def rms_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.Tanh(), nn.Linear(6, 6), nn.RMSNorm(6), nn.Linear(6, 3))


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*weight_norm.* is deprecated", category=FutureWarning)
        first = nn.utils.weight_norm(nn.Conv1d(2, 4, 3))
    return nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))


def new_weight_norm() -> nn.Module:
    first, last = parametrizations.weight_norm(nn.Conv1d(2, 4, 3)), parametrizations.weight_norm(nn.Linear(16, 3))
    return nn.Sequential(first, nn.Tanh(), nn.Flatten(), last)


class WeightNormFormula(nn.Module):
    """g·v/‖v‖ over all but the first dimension."""

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return v * (g / v.square().sum(tuple(range(1, v.ndim)), keepdim=True).sqrt())


def old_weight_norm_by_formula() -> nn.Module:
    """PyTorch's second derivative of its fused weight norm is wrong (gradgradcheck fails): no reference."""
    model = old_weight_norm()
    (hook,) = model[0]._forward_pre_hooks.values()
    hook.compute_weight = lambda module: WeightNormFormula()(module.weight_g, module.weight_v)
    return model


def new_weight_norm_by_formula() -> nn.Module:
    model = new_weight_norm()
    for layer in (model[0], model[3]):
        layer.parametrizations.weight[0] = WeightNormFormula()
    return model


def spectral_norm(kind: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(kind(nn.Linear(4, 6)), nn.Tanh(), kind(nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, 3)).eval()


class UNet(nn.Module):
    """Down, up and across: a number for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
        self.up, self.last = nn.Conv2d(5, 3, 3, padding=1), nn.Conv2d(6, 1, 1)
        self.enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.tanh(self.first(x))
        deep = torch.tanh(self.down(F.max_pool2d(wide, 2)))
        return self.last(torch.cat([wide, torch.tanh(self.up(self.enlarge(deep)))], dim=1))


class Pools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 3 + 4 + 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.conv(x))
        most, mean = F.max_pool2d(y, 3, 2), F.avg_pool2d(y, 2)
        pools = [F.adaptive_avg_pool2d(most, (1, 3)), F.adaptive_max_pool2d(mean, 1), F.adaptive_avg_pool2d(y, 2)]
        return self.head(torch.cat([pool.flatten(1) for pool in pools], dim=1))


def unusual_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=2, dilation=2), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=4), nn.Tanh(),
        nn.ConvTranspose2d(4, 2, 3, stride=2), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


class Residual(nn.Module):
    """Activations and sums in place, as torchvision writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = (nn.Conv2d(i, 4, 3, padding=1) for i in (1, 4, 4))
        self.norm, self.relu, self.head = nn.BatchNorm2d(4).eval(), nn.ReLU(inplace=True), nn.Linear(4, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.second(self.relu(self.norm(self.first(x))))
        y += x
        return self.head(self.relu(y).mean((2, 3)))


def segmentation() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.GELU(), nn.Conv2d(4, 3, 1))


# ---------------------------------------------------------------------- graphs, physics, mixtures


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
            slope = torch.autograd.grad(u, points, torch.ones_like(u), create_graph=True)[0]
            along = slope[:, 1:]
            bend = torch.autograd.grad(along, points, torch.ones_like(along), create_graph=True)[0]
        return slope[:, :1] - bend[:, 1:]


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


# ---------------------------------------------------------------------- parameters in unusual places


class TiedEmbeddings(nn.Module):
    """One parameter under two names: a language model whose output layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(7, 5), nn.Linear(5, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.embedding(tokens)))).movedim(-1, 1)


def shared_submodule() -> nn.Module:
    norm = nn.LayerNorm(4)
    return nn.Sequential(norm, nn.Linear(4, 4), norm, nn.Tanh(), nn.Linear(4, 3))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return self.head(x)


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.random_unstructured(model[2], "weight", amount=0.3)
    return model


def frozen_backbone() -> nn.Module:
    backbone = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    backbone.requires_grad_(False)
    return nn.Sequential(backbone, nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 3))


class LowRank(nn.Module):
    """W + BA over a frozen W; B starts at zero."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / 2)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


def low_rank() -> nn.Module:
    return nn.Sequential(LowRank(nn.Linear(4, 8)), nn.Tanh(), LowRank(nn.Linear(8, 3)))


class Spectral(nn.Module):
    """A layer in Fourier space whose complex weights are made of real parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(2, 2, 4, 2) / 2), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.fft.rfft(x, norm="ortho")
        mixed = torch.einsum("nik,iok->nok", waves, torch.view_as_complex(self.weight))
        return self.head(torch.tanh(torch.fft.irfft(mixed, n=6, norm="ortho")).flatten(1))


class Cubic(nn.Module):
    """An activation of one's own, a Function without forward mode and without a rule for vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(cubed(self.first(x)))


# ---------------------------------------------------------------------- text and attention


class Text(nn.Module):
    """The mean of the embeddings of the tokens that are there, classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        there = (tokens != 0).unsqueeze(-1)
        mean = (self.embedding(tokens) * there).sum(1) / there.sum(1)
        return self.head(torch.tanh(mean))


class PaddedText(Text):
    """The padding's embedding counts, though it is never learned."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(tokens)).mean(1))


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(9, 4, mode="mean"), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.bag(tokens)))


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        mixed, _ = self.attention(x, x, x, key_padding_mask=key_padding_mask, need_weights=False)
        return self.head(mixed.mean(1) if scale is None else mixed.mean(1) * scale)


class OwnKernel(nn.Module):
    """Attention under a choice of kernels made inside the forward pass."""

    def __init__(self, *backends: SDPBackend) -> None:
        super().__init__()
        self.backends = list(backends)
        self.project, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in self.project(x).chunk(3, -1))
        with sdpa_kernel(self.backends):
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 5), nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.tanh(self.left(left)) * self.right(right))


# ---------------------------------------------------------------------- data


N = 6


def vectors(width: int = 4, of: int = 3) -> tuple[Tensor, Tensor]:
    return normal(N, width, seed=1), classes(N, of=of, seed=2)


def pictures(channels: int = 1, side: int = 6) -> tuple[Tensor, Tensor]:
    return normal(N, channels, side, side, seed=4), classes(N, of=3, seed=5)


def signals() -> tuple[Tensor, Tensor]:
    return normal(N, 2, 6, seed=4), classes(N, of=3, seed=5)


def tokens(of: int = 11, length: int = 5) -> tuple[Tensor, Tensor]:
    """What comes next, at every place."""
    text = classes(N, length + 1, of=of, seed=6)
    return text[:, :-1], text[:, 1:]


_LENGTHS = (6, 3, 5, 2, 4, 6)


def padded(length: int = 6, of: int = 9, lengths: tuple[int, ...] = _LENGTHS) -> Tensor:
    """Token 0 beyond each sample's length; the first sample is full."""
    text = classes(len(lengths), length, of=of - 1, seed=7) + 1
    return text * (torch.arange(length) < torch.tensor(lengths)[:, None])


def bert_batch(length: int = 6, lengths: tuple[int, ...] = _LENGTHS) -> tuple[dict[str, Any], Tensor]:
    text = padded(length, 13, lengths)
    return {"input_ids": text, "attention_mask": (text != 0).long()}, classes(len(lengths), of=3, seed=2)


def bert_without_types() -> tuple[dict[str, Any], Tensor]:
    inputs, targets = bert_batch()
    return {**inputs, "token_type_ids": None}, targets


def bert_padded_by_batch() -> list[tuple[dict[str, Any], Tensor]]:
    return [bert_batch(4, (4, 2)), bert_batch(6, (5, 6, 3)), bert_batch(3, (3,))]


def t5_data() -> tuple[dict[str, Any], Tensor]:
    source, (given, wanted) = padded(5, 11, (5, 3, 4, 5, 2, 4)), tokens(length=4)
    mask = (source != 0).long()
    return {"input_ids": source, "attention_mask": mask, "decoder_input_ids": given}, wanted


def attention_data() -> tuple[dict[str, Any], Tensor]:
    missing = torch.arange(6) >= torch.tensor(_LENGTHS)[:, None]
    return {"x": normal(N, 6, 4, seed=6), "key_padding_mask": missing, "scale": None}, classes(N, of=3, seed=5)


def heat_data() -> tuple[Tensor, Tensor]:
    points = normal(N, 2, seed=1)
    return points, torch.sin(math.pi * points[:, :1])


FLASH, MATH = SDPBackend.FLASH_ATTENTION, SDPBackend.MATH
SOFT = functools.partial(F.cross_entropy, label_smoothing=0.1)
# second derivatives through several layers of normalisation and attention round off a little more
DEEP: dict[str, Any] = {"bend_tolerance": 1e-6}
# transformers' own RMSNorm and Mamba compute in single precision inside, whatever the model's
PARTLY_SINGLE: dict[str, Any] = {"tolerance": 1e-5, "bend_tolerance": 1e-4, "step": 3e-2}

ARCHITECTURES: dict[str, Architecture] = {
    # ------------------------------------------------------------------ of libraries
    "gpt2": Architecture(gpt2, tokens, of_token_logits, gauss_newton=False, **DEEP),
    "gpt2 checkpointed, training": Architecture(
        gpt2_checkpointed, tokens, of_token_logits, gauss_newton=False, **DEEP
    ),
    "gpt2 lora by peft": Architecture(
        gpt2_lora, tokens, of_token_logits, gauss_newton=False, used_before=True, **DEEP
    ),
    "llama": Architecture(lambda: Logits(llama()), tokens, **PARTLY_SINGLE),
    "bert": Architecture(bert, bert_batch, of_logits, gauss_newton=False, **DEEP),
    "bert lora by peft": Architecture(
        bert_lora, bert_batch, of_logits, gauss_newton=False, used_before=True, **DEEP
    ),
    "bert, None among the inputs": Architecture(bert, bert_without_types, of_logits, gauss_newton=False, **DEEP),
    "bert, padded by batch": Architecture(lambda: Logits(bert()), bert_padded_by_batch, **DEEP),
    "t5": Architecture(lambda: Logits(t5()), t5_data, **PARTLY_SINGLE),
    "vit": Architecture(lambda: Logits(vit()), lambda: pictures(side=4), **DEEP),
    "mixtral, eager experts": Architecture(lambda: Logits(mixtral("eager")), tokens, **PARTLY_SINGLE),
    # the grouped product is for single precision alone
    "mixtral, grouped experts": Architecture(
        lambda: Logits(mixtral("grouped_mm")),
        tokens,
        reference=lambda: Logits(mixtral("eager")),
        dtype=torch.float32,
        tolerance=1e-4,
        bend_tolerance=1e-3,
        step=3e-2,
    ),
    "mamba": Architecture(lambda: Logits(mamba()), tokens, **PARTLY_SINGLE),
    # ------------------------------------------------------------------ recurrent and convolutional
    "lstm": Architecture(lambda: Sequential(nn.LSTM), lambda: (normal(N, 4, 3, seed=6), classes(N, of=3, seed=5))),
    "gru, both ways": Architecture(
        lambda: Sequential(nn.GRU, bidirectional=True), lambda: (normal(N, 4, 3, seed=6), classes(N, of=3, seed=5))
    ),
    "rnn of two layers": Architecture(
        lambda: Sequential(nn.RNN, num_layers=2), lambda: (normal(N, 4, 3, seed=6), classes(N, of=3, seed=5))
    ),
    "batch norm in eval": Architecture(conv1d_batch_norm, signals),
    "group norm": Architecture(lambda: conv_with(nn.GroupNorm(2, 4)), pictures),
    "layer norm": Architecture(lambda: conv_with(nn.LayerNorm([4, 6, 6])), pictures),
    "instance norm": Architecture(lambda: conv_with(nn.InstanceNorm2d(4, affine=True)), pictures),
    "local response norm": Architecture(lambda: conv_with(nn.LocalResponseNorm(3, alpha=0.5)), pictures),
    "rms norm": Architecture(rms_norm, vectors, SOFT),
    "weight norm, old": Architecture(old_weight_norm, signals, reference=old_weight_norm_by_formula),
    "weight norm, new": Architecture(new_weight_norm, signals, reference=new_weight_norm_by_formula),
    "spectral norm, old": Architecture(lambda: spectral_norm(nn.utils.spectral_norm), vectors),
    "spectral norm, new": Architecture(lambda: spectral_norm(parametrizations.spectral_norm), vectors),
    "u-net": Architecture(UNet, lambda: (normal(N, 1, 4, 4, seed=4), normal(N, 1, 4, 4, seed=5)), F.mse_loss),
    "pools": Architecture(Pools, pictures),
    "depthwise, dilated, transposed": Architecture(unusual_convolutions, lambda: pictures(2)),
    "residual in place": Architecture(Residual, pictures),
    "segmentation": Architecture(
        segmentation, lambda: (normal(N, 1, 4, 4, seed=4), classes(N, 4, 4, of=3, seed=5)), nn.CrossEntropyLoss()
    ),
    # ------------------------------------------------------------------ graphs, physics, mixtures
    "graph, dense": Architecture(lambda: GraphNet(torch.strided), lambda: (normal(N, 4, 3, seed=6), vectors()[1])),
    "graph, sparse coo": Architecture(
        lambda: GraphNet(torch.sparse_coo), lambda: (normal(N, 4, 3, seed=6), vectors()[1])
    ),
    "graph, sparse csr": Architecture(
        lambda: GraphNet(torch.sparse_csr), lambda: (normal(N, 4, 3, seed=6), vectors()[1])
    ),
    "physics by autograd": Architecture(Heat, heat_data, nn.MSELoss()),
    "physics by transforms": Architecture(HeatByTransforms, heat_data, nn.MSELoss()),
    "soft mixture": Architecture(SoftMixture, vectors),
    "top-2 mixture": Architecture(TopMixture, vectors),
    "variational, noise given": Architecture(
        Autoencoder,
        lambda: ((normal(N, 6, seed=1), normal(N, 2, seed=2)), classes(N, 6, of=2, seed=3).to(F64)),
        elbo,
        gauss_newton=False,
    ),
    "hypernetwork": Architecture(
        Hypernetwork, lambda: ((normal(N, 4, seed=1), normal(N, 2, seed=3)), vectors()[1]), nn.CrossEntropyLoss()
    ),
    "equilibrium": Architecture(Equilibrium, vectors),
    "flow": Architecture(
        Flow, lambda: (normal(N, 3, seed=1), normal(N, 3, seed=2)), negative_likelihood, gauss_newton=False
    ),
    "spatial transformer": Architecture(Transformer2d, pictures),
    "products over groups": Architecture(Products, vectors),
    "huber loss": Architecture(SoftMixture, lambda: (vectors()[0], normal(N, 3, seed=2)), nn.HuberLoss(delta=0.7)),
    # PyTorch has no second derivatives of the next three
    "radial basis": Architecture(RadialBasis, vectors, bends=False, bend_tolerance=1e-6),
    "mobile activations": Architecture(mobile, vectors, bends=False, bend_tolerance=1e-6),
    "ctc": Architecture(
        Listener,
        lambda: (normal(N, 6, 3, seed=6), 1 + classes(N, 2, of=3, seed=5)),
        ctc,
        gauss_newton=False,
        bends=False,
        bend_tolerance=1e-6,
    ),
    # ------------------------------------------------------------------ parameters in unusual places
    "tied embeddings": Architecture(TiedEmbeddings, lambda: tokens(7)),
    "shared submodule": Architecture(shared_submodule, vectors),
    "checkpointed": Architecture(Checkpointed, vectors),
    "pruned": Architecture(pruned, vectors),
    "frozen backbone": Architecture(frozen_backbone, pictures),
    "low rank by hand": Architecture(low_rank, vectors, used_before=True),
    "fourier layer of real parameters": Architecture(Spectral, signals),
    "own function": Architecture(Cubic, vectors),
    # ------------------------------------------------------------------ text and attention
    "mean-pooled text": Architecture(Text, lambda: (padded(), vectors()[1])),
    "padding never learned": Architecture(PaddedText, lambda: (padded(), vectors()[1])),
    # PyTorch has no second derivative of it
    "embedding bag": Architecture(Bag, lambda: (padded(), vectors()[1]), bends=False, bend_tolerance=1e-6),
    "attention with missing keys": Architecture(Attentive, attention_data),
    "attention by a kernel of its own": Architecture(
        lambda: OwnKernel(FLASH, MATH),
        lambda: (normal(N, 4, 4, seed=6), vectors()[1]),
        reference=lambda: OwnKernel(MATH),
    ),
    "two inputs, a tuple": Architecture(
        TwoTowers, lambda: ((normal(N, 4, seed=1), normal(N, 3, seed=3)), normal(N, 3, seed=2)), square
    ),
    "two inputs, a dict": Architecture(
        TwoTowers, lambda: ({"right": normal(N, 3, seed=3), "left": normal(N, 4, seed=1)}, vectors()[1])
    ),
}
