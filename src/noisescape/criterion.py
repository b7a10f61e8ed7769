"""The loss that a user trains with, as one value a sample."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Loss = Callable[[Any, Any], Tensor]
Normalisation = Literal["criterion", "sample"]

_MODULES: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.CrossEntropyLoss: F.cross_entropy,
    nn.NLLLoss: F.nll_loss,
    nn.MSELoss: F.mse_loss,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
    nn.BCELoss: F.binary_cross_entropy,
}
_WEIGHTED = (F.cross_entropy, F.nll_loss)
_EXPONENTIAL_FAMILY = (F.cross_entropy, F.mse_loss, F.binary_cross_entropy_with_logits)
IGNORED = -100


class NormalisationWarning(UserWarning):
    """The risk is another mean of the losses than the one that is trained on."""


class Criterion:
    """loss(outputs, targets), unreduced, and how its values make up the loss of a sample.

    A loss may give a sample several values (tokens, pixels). They are averaged where the loss reduces by ``"mean"``
    or not at all, summed where it reduces by ``"sum"`` or ``"batchmean"``.

    PyTorch's cross-entropy and negative log-likelihood divide by the sum of the weights of all targets, ignored
    ones counting nothing: Σ_i w_i ℓ_i / Σ_i w_i. ``normalisation`` says what that means for a sample n with values
    i ∈ n:

    * ``"criterion"``: ℓ_n = (N/W) Σ_{i∈n} w_i ℓ_i, with W = Σ_i w_i over the whole data set. Then L = (1/N) Σ ℓ_n
      is what the criterion gives for all data at once. (A minibatch's own ratio has a random denominator; to first
      order in its relative spread it is the mean of these ℓ_n.)
    * ``"sample"``: ℓ_n = Σ_{i∈n} w_i ℓ_i / Σ_{i∈n} w_i, what the criterion gives for the sample alone; 0 where
      nothing of it counts.

    Args:
        loss: a function or an ``nn`` loss. Its present settings count; one that changes later is refused.
        normalisation: see above; losses other than these two are not concerned.
    """

    def __init__(self, loss: Loss | nn.Module, normalisation: Normalisation = "criterion") -> None:
        if not callable(loss):
            raise TypeError(f"loss must be callable as loss(outputs, targets), not {type(loss).__name__}")
        if normalisation not in get_args(Normalisation):
            raise ValueError(f'normalisation must be "criterion" or "sample", not {normalisation!r}')
        self.loss = loss
        self.normalisation = normalisation
        self.scale: float | None = None
        self.reduction, self._unreduced = _unreduced(loss)
        self._settings = _settings(loss)

    def values(self, outputs: Any, targets: Any) -> Tensor:
        """The unreduced loss, (n,) or (n, T, …)."""
        return self._unreduced(outputs, targets)

    def losses(self, outputs: Any, targets: Any) -> Tensor:
        """ℓ, (n,)."""
        return self.of_values(self.values(outputs, targets), targets)

    def of_values(self, values: Tensor, targets: Any) -> Tensor:
        """ℓ, (n,), from the unreduced loss."""
        flat = values.flatten(1) if values.ndim > 1 else values[:, None]
        weights = self.weights(targets)
        if weights is not None and self.normalisation == "sample":
            of_sample = weights.flatten(1).sum(1) if weights.ndim > 1 else weights
            return flat.sum(1) / torch.where(of_sample > 0, of_sample, 1)
        if weights is not None and self.scale is not None:
            return flat.sum(1) * self.scale
        if values.ndim == 1:
            return values
        return flat.sum(1) if self.reduction in ("sum", "batchmean") else flat.mean(1)

    def weights(self, targets: Any) -> Tensor | None:
        """w of each value, shaped as the targets; None where the loss is a plain mean of its values."""
        function, options = _builtin(self.loss)
        if function not in _WEIGHTED or self.reduction != "mean":
            return None
        if not isinstance(targets, Tensor) or targets.is_floating_point():  # probabilities of classes
            return None
        counted = targets != options.get("ignore_index", IGNORED)
        weight = options.get("weight")
        if weight is None:
            return counted
        found = weight.to(targets.device)[torch.where(counted, targets, 0)]
        return torch.where(counted, found, 0)

    def with_scale(self, scale: float | None) -> Criterion:
        """The same loss on other data: ``scale`` is N/W of those."""
        other = copy.copy(self)
        other.scale = scale
        return other

    def converted(self, convert: Callable[[Tensor], Tensor]) -> Criterion:
        """The same loss with its tensors (class weights) converted."""
        other = copy.copy(self)
        if isinstance(self.loss, nn.Module):
            with torch.no_grad():
                other.loss = copy.deepcopy(self.loss)._apply(convert)
        elif isinstance(self.loss, functools.partial):
            options = {k: convert(v) if isinstance(v, Tensor) else v for k, v in self.loss.keywords.items()}
            other.loss = functools.partial(self.loss.func, *self.loss.args, **options)
        else:
            return other
        other.reduction, other._unreduced = _unreduced(other.loss)
        other._settings = _settings(other.loss)
        return other

    # ------------------------------------------------------------------ what is known of it

    def is_exponential_family(self) -> bool:
        """Whether it is a negative log-likelihood in natural parameters, so that Fisher = Gauss–Newton.

        Softmax and binary cross-entropy with logits and squared loss are; class or position weights are no part of
        a likelihood, and a subclass may compute anything.
        """
        function, options = _builtin(self.loss)
        weighted = options.get("weight") is not None or options.get("pos_weight") is not None
        return function in _EXPONENTIAL_FAMILY and not weighted

    def correct(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Where a prediction is the target's class, and where there is a target at all: two of (n, …), boolean.

        The class is the largest output along dimension 1. Outputs shaped as floating targets are labels of their
        own, which a loss of logits predicts above 0 and one of probabilities above ½.

        Raises:
            ValueError: outputs and targets that are neither.
        """
        function, options = _builtin(self.loss)
        if targets.is_floating_point() and outputs.shape == targets.shape:
            if function is F.cross_entropy:
                return outputs.argmax(1) == targets.argmax(1), torch.ones_like(targets.argmax(1), dtype=torch.bool)
            thresholds = {F.binary_cross_entropy_with_logits: 0.0, F.binary_cross_entropy: 0.5}
            if function in thresholds:
                found = (outputs > thresholds[function]) == (targets > 0.5)
                return found, torch.ones_like(found)
        classes = outputs.ndim >= 2 and outputs.shape[1] > 1
        if not classes or targets.is_floating_point() or targets.shape != outputs.argmax(1).shape:
            raise ValueError(
                f"accuracy compares the largest of several outputs (n, C, …) with targets (n, …) that are classes; "
                f"here outputs are {tuple(outputs.shape)}, targets {tuple(targets.shape)} of {targets.dtype}. One "
                "output a sample is a class for binary cross-entropy only; otherwise say what counts as correct "
                "with risk.metric(theta, function)"
            )
        ignored = options.get("ignore_index", IGNORED) if function in _WEIGHTED else IGNORED
        return outputs.argmax(1) == targets, targets != ignored

    def check_reduction(self, outputs: Any, targets: Any, losses: Tensor) -> None:
        """Warn if the loss, reduced as it came, is another mean of these samples than ``losses`` make.

        Warns:
            NormalisationWarning: naming both.
        """
        if self.reduction in (None, "none"):
            return
        try:
            reduced = self.loss(outputs, targets)
        except (RuntimeError, TypeError, ValueError):  # it works only unreduced
            return
        if not isinstance(reduced, Tensor) or reduced.numel() != 1 or not bool(torch.isfinite(reduced).all()):
            return
        weights = self.weights(targets)
        ours = losses.double().mean()
        if weights is not None and self.scale is not None:  # W of these samples in place of W of all
            ours = ours * len(losses) / (self.scale * weights.double().sum())
        elif self.reduction == "sum":
            ours = ours * len(losses)
        theirs = reduced.double().squeeze()
        error = 1e-8 if losses.dtype == torch.float64 else 1e-2
        if bool((ours - theirs).abs() > error * theirs.abs() + 1e-6 * losses.double().abs().amax()):
            warnings.warn(
                f"the risk is the mean of one loss a sample, which is {float(ours):.4g} for {len(losses)} samples; "
                f"the loss itself reduces them to {float(theirs):.4g}. What is measured is the former. "
                + _mend(weights is not None, type(self.loss).__name__),
                NormalisationWarning,
                stacklevel=6,
            )

    def check_unchanged(self) -> None:
        """Refuse a loss that is not what it was.

        Raises:
            ValueError: naming what changed.
        """
        now = _settings(self.loss)
        if len(now) == len(self._settings) and all(map(_same, now, self._settings)):
            return
        changed = sorted(
            {name for name, *_ in now}.symmetric_difference({name for name, *_ in self._settings})
            or {one[0] for one, other in zip(now, self._settings, strict=False) if not _same(one, other)}
        )
        raise ValueError(
            f"the loss has changed since the risk was built ({', '.join(changed)}): what was decided on the old "
            "one need not hold; build the risk anew"
        )


def _mend(weighted: bool, name: str) -> str:
    if weighted:
        return 'normalisation="criterion" measures the latter'
    return f"Pass a loss that returns one value a sample, (n,), normalised as you train ({name} does not)"


def _unreduced(loss: Loss | nn.Module) -> tuple[str | None, Loss]:
    """The reduction a loss comes with, None if it knows none, and the loss without."""
    if isinstance(loss, nn.Module):
        if not hasattr(loss, "reduction"):
            return None, loss
        unreduced: Any = copy.copy(loss)  # tensors and submodules stay shared with the user's
        reduction, unreduced.reduction = unreduced.reduction, "none"
        return reduction, unreduced
    with contextlib.suppress(TypeError, ValueError):
        parameter = inspect.signature(loss).parameters.get("reduction")
        if parameter is not None:
            default = parameter.default
            bound: Any = functools.partial(loss, reduction="none")  # type: ignore[call-arg]
            return (default if isinstance(default, str) else None), bound
    return None, loss


def _builtin(loss: Any) -> tuple[Callable[..., Tensor] | None, dict[str, Any]]:
    """The function of PyTorch that a loss is, and its settings; a subclass may be anything."""
    if type(loss) in _MODULES:
        return _MODULES[type(loss)], {**loss.__dict__, **loss._buffers}
    if isinstance(loss, functools.partial) and not loss.args and loss.func in _MODULES.values():
        return loss.func, dict(loss.keywords)
    return (loss if any(loss is known for known in _MODULES.values()) else None), {}


def _settings(loss: Any) -> list[tuple[str, Any, int]]:
    """What a loss module computes with: plain attributes and tensors, with a tensor's version."""
    if isinstance(loss, functools.partial):
        held = dict(loss.keywords)
    elif isinstance(loss, nn.Module):
        held = {}
        for prefix, module in loss.named_modules():
            if module._parameters and module is not loss:  # part of a model, which may train
                continue
            for name, value in {**module.__dict__, **module._buffers}.items():
                if isinstance(value, (Tensor, int, float, str, bool, type(None))) and name != "training":
                    held[f"{prefix}.{name}" if prefix else name] = value
    else:
        return []
    return [(name, value, value._version if isinstance(value, Tensor) else 0) for name, value in held.items()]


def _same(one: tuple[str, Any, int], other: tuple[str, Any, int]) -> bool:
    if one[0] != other[0] or one[2] != other[2]:
        return False
    if one[1] is other[1]:
        return True
    return not isinstance(one[1], Tensor) and type(one[1]) is type(other[1]) and bool(one[1] == other[1])
