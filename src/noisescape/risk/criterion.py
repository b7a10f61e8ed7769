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

from noisescape.errors import BatchCouplingError, InvalidTypeError, InvalidValueError

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
WATCHED = 2**16
"""Tensors of a loss with so many numbers at most are compared by value: ``weight.data`` leaves no other trace."""


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
            raise InvalidTypeError(f"loss must be callable as loss(outputs, targets), not {type(loss).__name__}")
        if isinstance(loss, type):
            raise InvalidTypeError(
                f"the loss is the class {loss.__name__}, not one of its objects; pass {loss.__name__}()"
            )
        if normalisation not in get_args(Normalisation):
            raise InvalidValueError(f'normalisation must be "criterion" or "sample", not {normalisation!r}')
        self.loss = loss
        self.normalisation = normalisation
        self.scale: float | None = None
        self.reduction = _reduction(loss)
        self._written: set[str] = set()
        self._remembered: set[str] = set()
        self._settings = _with_values(_settings(loss))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy's tensors are others, whose versions count anew."""
        self.__dict__.update(state)
        self._settings = _with_values(_settings(self.loss))

    def values(self, outputs: Any, targets: Any) -> Tensor:
        """The unreduced loss, (n,) or (n, T, …).

        Raises:
            BatchCouplingError: it depends on what the loss saw before.
        """
        try:
            return self._values(outputs, targets)
        except (TypeError, AttributeError) as error:
            function = _builtin(self.loss)[0]
            if function is None or isinstance(outputs, Tensor):
                raise
            raise InvalidTypeError(
                f"the model returns {type(outputs).__name__}, which {function.__name__} does not take; take the "
                f"tensor out of it in the loss: lambda out, y: {function.__name__}(out.logits, y, "
                "reduction='none'), or out[0]"
            ) from error

    def _values(self, outputs: Any, targets: Any) -> Tensor:
        loss = _unreduced(self.loss, self.reduction)
        if inspect.isroutine(loss) or isinstance(loss, functools.partial) or _builtin(loss)[0] is not None:
            return loss(outputs, targets)
        before = _settings(loss)
        found = loss(outputs, targets)
        written = _changes(before, _settings(loss)) - self._written
        if written:  # a counter, say: no setting, unless it shows in the values
            again = loss(outputs, targets)
            if isinstance(found, Tensor) and not torch.allclose(found, again, equal_nan=True):
                self._remembered |= written
                self._check_memory()
            self._written |= written
        return found

    def _check_memory(self) -> None:
        if self._remembered:
            raise BatchCouplingError(
                f"the loss remembers what it saw ({', '.join(sorted(self._remembered))}): its values differ from "
                "one call to the next, so they are no function of θ; hold that fixed, or pass a loss without memory"
            )

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
        if isinstance(self.loss, functools.partial):
            options = {k: convert(v) if isinstance(v, Tensor) else v for k, v in self.loss.keywords.items()}
            other.loss = functools.partial(self.loss.func, *self.loss.args, **options)
            other._settings = _with_values(_settings(other.loss))
        return other  # a module's are converted where it is evaluated: a copy would lose the model's parameters

    # ------------------------------------------------------------------ what is known of it

    def is_exponential_family(self) -> bool:
        """Whether it is a negative log-likelihood in natural parameters, so that Fisher = Gauss–Newton.

        Softmax and binary cross-entropy with logits and squared loss are; class or position weights are no part of
        a likelihood, and a subclass may compute anything.
        """
        function, options = _builtin(self.loss)
        weighted = options.get("weight") is not None or options.get("pos_weight") is not None
        return function in _EXPONENTIAL_FAMILY and not weighted

    def correct(self, outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        """Where a prediction is the target's class, and where there is a target at all: two of (n, …), boolean.

        The class is the largest output along dimension 1. Outputs shaped as floating targets are labels of their
        own, which a loss of logits predicts above 0 and one of probabilities above ½.

        Raises:
            ValueError: outputs and targets that are neither.
        """
        if not isinstance(targets, Tensor):
            raise InvalidValueError(
                f"accuracy compares outputs with one tensor of targets, not {type(targets).__name__}; say what "
                "counts as correct with risk.metric(theta, function)"
            )
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
            raise InvalidValueError(
                f"accuracy compares the largest of several outputs (n, C, …) with targets (n, …) that are classes; "
                f"here outputs are {tuple(outputs.shape)}, targets {tuple(targets.shape)} of {targets.dtype}. One "
                "output a sample is a class for binary cross-entropy only; otherwise say what counts as correct "
                "with risk.metric(theta, function)"
            )
        if function is None and outputs.ndim > 2 and outputs.argmax(-1).shape == targets.shape:
            raise InvalidValueError(
                f"accuracy takes classes to lie along dimension 1 of the outputs {tuple(outputs.shape)}; with "
                f"targets {tuple(targets.shape)} they may as well lie along the last. Say what counts as correct "
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
            self._check_ignored(outputs, targets)
            return
        weights = self.weights(targets)
        if weights is not None and self.normalisation == "sample":  # said of all data
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch's own opinions of a reduction
                reduced = self.loss(outputs, targets)
        except (RuntimeError, TypeError, ValueError):  # it works only unreduced
            return
        if not isinstance(reduced, Tensor) or reduced.numel() != 1 or not bool(torch.isfinite(reduced).all()):
            return
        ours = losses.double().mean()
        if weights is not None and self.scale is not None:  # W of these samples in place of W of all
            ours = ours * len(losses) / (self.scale * weights.double().sum())
        elif self.reduction == "sum":
            ours = ours * len(losses)
        theirs = reduced.double().squeeze()
        error = {torch.float64: 1e-8, torch.float32: 1e-3}.get(losses.dtype, 3e-2)
        if bool((ours - theirs).abs() > error * theirs.abs() + 1e-6 * losses.double().abs().amax()):
            warnings.warn(
                f"the risk is the mean of one loss a sample, which is {float(ours):.4g} for {len(losses)} samples; "
                f"the loss itself reduces them to {float(theirs):.4g}. What is measured is the former. "
                + _mend(weights is not None, type(self.loss).__name__),
                NormalisationWarning,
                stacklevel=6,
            )

    def _check_ignored(self, outputs: Any, targets: Any) -> None:
        """Warn if the mean over a sample's values counts ignored targets, as no reduction says otherwise."""
        values = self.values(outputs, targets)
        if not isinstance(targets, Tensor) or targets.is_floating_point() or values.ndim < 2:
            return
        ignored = targets == _builtin(self.loss)[1].get("ignore_index", IGNORED)
        if values.numel() != ignored.numel() or not bool(ignored.any()) or bool(ignored.all()):
            return
        if bool((values.reshape(ignored.shape)[ignored] == 0).all()):
            warnings.warn(
                f"{int(ignored.sum())} of {ignored.numel()} targets tried are ignored, yet each counts as a loss "
                "of 0 in the mean over a sample's values, for the loss says nothing of its reduction. Pass "
                "nn.CrossEntropyLoss(ignore_index=…) itself, which divides by the targets that count, or a loss "
                "that returns one value a sample, (n,), normalised as you train",
                NormalisationWarning,
                stacklevel=7,
            )

    def check_unchanged(self) -> None:
        """Refuse a loss that is not what it was.

        Raises:
            ValueError: naming what changed.
            BatchCouplingError: it depends on what it saw before.
        """
        self._check_memory()
        now = _settings(self.loss)
        changed = _changes([each for each, _ in self._settings], now) - self._written
        values = {each[0]: each[1] for each in now}
        for (name, *_), value in self._settings:
            if value is not None and name not in self._written | changed and not _equal(values[name], value):
                changed.add(name)
        if not changed:
            return
        raise InvalidValueError(
            f"the loss has changed since the risk was built ({', '.join(sorted(changed))}): what was decided on "
            "the old one need not hold; build the risk anew"
        )


def _mend(weighted: bool, name: str) -> str:
    if weighted:
        return 'normalisation="criterion" measures the latter'
    return f"Pass a loss that returns one value a sample, (n,), normalised as you train ({name} does not)"


def _reduction(loss: Any) -> str | None:
    """The reduction a loss comes with; None if it knows none that could be undone."""
    if isinstance(loss, nn.Module):
        of_class = getattr(type(loss), "reduction", None)
        fixed = isinstance(of_class, property) and of_class.fset is None
        found = None if fixed else getattr(loss, "reduction", None)
        return found if isinstance(found, str) else None
    with contextlib.suppress(TypeError, ValueError):
        parameter = inspect.signature(loss).parameters.get("reduction")
        if parameter is not None and isinstance(parameter.default, str):
            return parameter.default
    return None


def _unreduced(loss: Any, reduction: str | None) -> Loss:
    """The loss without its reduction. A module's copy shares its tensors and submodules, as they are now."""
    if reduction is None:
        return loss
    if not isinstance(loss, nn.Module):
        return functools.partial(loss, reduction="none")
    copied: Any = copy.copy(loss)
    copied.reduction = "none"
    return copied


def _builtin(loss: Any) -> tuple[Callable[..., Tensor] | None, dict[str, Any]]:
    """The function of PyTorch that a loss is, and its settings; a subclass with its own forward may be anything."""
    if isinstance(loss, nn.Module):
        of_class = next((f for kind, f in _MODULES.items() if type(loss).forward is kind.forward), None)
        hooked = loss._forward_hooks or loss._forward_pre_hooks or "forward" in loss.__dict__
        if of_class is None or hooked or type(loss).__call__ is not nn.Module.__call__:
            return None, {}
        return of_class, {**loss.__dict__, **loss._buffers}
    if isinstance(loss, functools.partial) and not loss.args and loss.func in _MODULES.values():
        return loss.func, dict(loss.keywords)
    return (loss if any(loss is known for known in _MODULES.values()) else None), {}


_PLAIN = (int, float, complex, str, bool, type(None))
Setting = tuple[str, Any, int]


def _settings(loss: Any) -> list[Setting]:
    """What a loss computes with: plain attributes and tensors, with a tensor's version."""
    held: dict[str, Any] = {}
    if isinstance(loss, functools.partial):
        held = {**{f"argument {n}": value for n, value in enumerate(loss.args)}, **loss.keywords}
    elif isinstance(loss, nn.Module):
        for prefix, module in loss.named_modules():
            if module._parameters and module is not loss:  # part of a model, which may train
                continue
            for name, value in {**module.__dict__, **module._buffers}.items():
                if name != "training":
                    held[f"{prefix}.{name}" if prefix else name] = value
    elif not inspect.isroutine(loss):
        held = dict(getattr(loss, "__dict__", {}))
    found: list[Setting] = []
    for name, value in held.items():
        if isinstance(value, Tensor):
            found.append((name, value, 0 if value.is_inference() else value._version))
        elif isinstance(value, _PLAIN):
            found.append((name, value, 0))
        elif isinstance(value, (list, tuple)) and all(isinstance(each, _PLAIN) for each in value):
            found.append((name, tuple(value), 0))
    return found


def _with_values(settings: list[Setting]) -> list[tuple[Setting, Tensor | None]]:
    """With a copy of each small tensor, which is not where changing it waits for another device."""
    return [
        (each, each[1].detach().clone() if isinstance(each[1], Tensor) and _small(each[1]) else None)
        for each in settings
    ]


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or torch.equal(one.nan_to_num(), other.nan_to_num())


def _small(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout is torch.strided and tensor.numel() <= WATCHED


def _changes(before: list[Setting], after: list[Setting]) -> set[str]:
    """Names of what is not the same."""
    one, other = {each[0]: each for each in before}, {each[0]: each for each in after}
    return {name for name in one.keys() | other.keys() if not _same(one.get(name), other.get(name))}


def _same(one: Setting | None, other: Setting | None) -> bool:
    if one is None or other is None or one[2] != other[2]:
        return False
    if one[1] is other[1]:
        return True
    if isinstance(one[1], Tensor) or type(one[1]) is not type(other[1]):
        return False
    return bool(one[1] == other[1]) or repr(one[1]) == repr(other[1])  # nan
