"""Models without a loss for each sample, or with none that θ determines: refused, with thing and mend."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import F64
from noisescape.errors import BatchCouplingError
from noisescape.risk import EmpiricalRisk
from refusable import DATA, TEXT, Clamping, Reentrant, X, Y, linear, unreduced


class Embedded(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4, **options), nn.Linear(4, 3)
        self.to(F64)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.embedding(words).mean(1))


class Complex(nn.Module):
    def __init__(self, *, mixed: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.complex128))
        if mixed:
            self.bias = nn.Parameter(torch.zeros(3, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.complex128) @ self.weight).abs()


class Temperature(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(0.3, dtype=F64))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return unreduced(outputs * self.log_temperature.exp(), targets)


def _closing_over_a_tensor() -> Callable[[Tensor, Tensor], Tensor]:
    scale = torch.tensor(0.3, dtype=F64, requires_grad=True)
    return lambda outputs, targets: unreduced(outputs * scale, targets)


class Hidden(nn.Module):
    """Holds what it computes with where PyTorch does not look."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.linear, self.held = linear(), [held]

    def forward(self, x: Tensor) -> Tensor:
        return self._with(self.linear(x), self.held[0])

    def _with(self, found: Tensor, held: Any) -> Tensor:
        return held(found) if isinstance(held, nn.Module) else found * held


class Untracked(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 3, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


class Inferring(Untracked):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Momentum(nn.Module):
    """A copy that follows the trained layer, updated on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = linear()
        self.follower = copy.deepcopy(self.trained).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for slow, fast in zip(self.follower.parameters(), self.trained.parameters(), strict=True):
                slow.mul_(0.9).add_(fast, alpha=0.1)
        return self.trained(x) + self.follower(x)


class OwnLoss(nn.Module):
    """As models of a hub: a mapping of outputs, with a loss where there are labels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.linear(x)

        class Output(dict[str, Any]):
            loss = None if labels is None else F.cross_entropy(logits, labels)

        return Output(logits=logits)


Mistake = tuple[Callable[[], nn.Module], Any, Any, type[Exception] | tuple[type[Exception], ...], str]
MISTAKES: dict[str, Mistake] = {
    "TorchScript": (
        lambda: torch.jit.script(linear()),
        unreduced,
        DATA,
        TypeError,
        r"TorchScript module.*pass the nn\.Module it was made from",
    ),
    "TorchScript inside": (
        lambda: nn.Sequential(torch.jit.script(linear())),
        unreduced,
        DATA,
        TypeError,
        r"TorchScript.*nn\.Module it was made from",
    ),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(3)),
        unreduced,
        DATA,
        ValueError,
        r"uninitialised \(lazy\) tensors: 0\.weight.*run one batch through it first",
    ),
    "max_norm": (
        lambda: Embedded(max_norm=1.0),
        unreduced,
        TEXT,
        ValueError,
        r"Embedding with max_norm.*max_norm=None",
    ),
    "sparse gradients": (
        lambda: Embedded(sparse=True),
        unreduced,
        TEXT,
        ValueError,
        r"sparse=True.*set sparse=False",
    ),
    "scaled by frequency": (
        lambda: Embedded(scale_grad_by_freq=True),
        unreduced,
        TEXT,
        BatchCouplingError,
        r"scale_grad_by_freq=True.*scale_grad_by_freq=False",
    ),
    "integers": (
        linear,
        unreduced,
        (X.long(), Y),
        ValueError,
        r"inputs are torch\.int64.*inputs\.to\(torch\.float64",
    ),
    "complex": (
        lambda: Complex(mixed=False),
        unreduced,
        DATA,
        ValueError,
        r"weight are complex.*view_as_real.*view_as_complex",
    ),
    "complex beside real": (
        lambda: Complex(mixed=True),
        unreduced,
        DATA,
        ValueError,
        r"weight are complex.*view_as",
    ),
    "loss with parameters": (
        linear,
        Temperature(),
        DATA,
        ValueError,
        r"\(log_temperature\), which θ would lack.*requires_grad_\(False\)",
    ),
    "loss over a trainable tensor": (
        linear,
        _closing_over_a_tensor(),
        DATA,
        ValueError,
        r"outside θ: a tensor of shape \(\) that neither.*register them.*requires_grad_\(False\)",
    ),
    "trainable tensor in a list": (
        lambda: Hidden(torch.ones(3, dtype=F64, requires_grad=True)),
        unreduced,
        DATA,
        ValueError,
        r"outside θ: a tensor of shape \(3,\) that neither.*register them",
    ),
    "layer in a list": (
        lambda: Hidden(linear(3)),
        unreduced,
        DATA,
        ValueError,
        r"outside θ: a tensor of shape \(3, 3\).*register them",
    ),
    "no_grad": (
        Untracked,
        unreduced,
        DATA,
        ValueError,
        r"do not depend on any trainable.*no_grad or inference_mode",
    ),
    "inference_mode": (Inferring, unreduced, DATA, ValueError, r"no_grad or inference_mode"),
    "re-entrant checkpoints": (Reentrant, unreduced, DATA, (ValueError, RuntimeError), r"use_reentrant=False"),
    "momentum": (Momentum, unreduced, DATA, ValueError, r"changes the frozen parameter|remembers what it saw"),
    "its own loss": (
        OwnLoss,
        lambda out, y: out.loss,
        ((X, Y), Y),
        ValueError,
        r"shape \(\).*compute it again from its logits: lambda out, labels",
    ),
    "no loss of its own": (OwnLoss, lambda out, y: out.loss, DATA, TypeError, r"returned NoneType, not a tensor"),
    "a mapping of outputs": (
        OwnLoss,
        nn.CrossEntropyLoss(),
        DATA,
        TypeError,
        r"the model returns Output, which cross_entropy does not take.*out\.logits",
    ),
    "two precisions": (
        lambda: nn.Sequential(nn.Linear(4, 4), linear()),
        unreduced,
        DATA,
        ValueError,
        r"several dtypes.*model\.to\(dtype\)",
    ),
    "another precision": (lambda: nn.Linear(4, 3), unreduced, DATA, ValueError, r"mixed dtypes.*data\.to\("),
    "two devices": (
        lambda: nn.Sequential(nn.Linear(4, 4, device="meta"), nn.Linear(4, 3)),
        unreduced,
        DATA,
        ValueError,
        r"mixed devices: .*cpu, meta; use model\.to",
    ),
    "data elsewhere": (linear, unreduced, (X.to("meta"), Y), ValueError, r"mixed devices.*\.to\('cpu'\)"),
    "errors for losses": (
        linear,
        lambda out, y: out.argmax(1) != y,
        DATA,
        TypeError,
        r"losses are torch\.bool.*real floating-point",
    ),
    "pairs": (
        linear,
        lambda out, y: F.cross_entropy(out @ out.T, torch.arange(len(out)), reduction="none"),
        DATA,
        BatchCouplingError,
        r"influence each other.*a loss that is a sum over samples",
    ),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_with_the_thing_and_the_mend(name: str) -> None:
    model, loss, data, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        EmpiricalRisk(model(), loss, data)


class Stretched(Clamping):
    """Already within the bounds: clamping again changes nothing, but where θ is moved."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.weight.clamp_(-0.1, 0.1)


@pytest.mark.parametrize("model", [Clamping, Stretched])
def test_parameters_changed_in_the_forward_pass_are_refused(model: type[nn.Module]) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"in place|inplace"):
        EmpiricalRisk(model(), unreduced, DATA)
