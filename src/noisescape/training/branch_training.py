"""One branch: training goes on from a copy of a checkpoint with another batch size, in one order of the samples."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from noisescape.errors import InvalidTypeError, InvalidValueError, NonFiniteLossError
from noisescape.risk.randomness import Generators
from noisescape.risk.samples import digest
from noisescape.risk.trees import Tree, map_tensors
from noisescape.training.branch_samples import BranchSamples, sample_order

Loss = Callable[[Any, Any], Tensor]
EVALUATED = 2048
"""Samples at most in the fixed subset on which branches are compared where no other evaluation is asked for."""


@dataclass(frozen=True)
class Checkpoint:
    """Model, optimiser and loss as they were handed over; they are copied together and never trained themselves."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss

    def copied(self) -> Checkpoint:
        """A copy, whose optimiser steps the copy's parameters and goes on with their states.

        Raises:
            TypeError: one of them cannot be copied, or the copies do not belong together.
        """
        try:
            model, optimizer, loss = copy.deepcopy((self.model, self.optimizer, self.loss))
        except Exception as error:  # whatever a module of theirs raises
            raise InvalidTypeError(
                f"the model and its optimiser cannot be copied ({type(error).__name__}: {error}); branches "
                "train on copies: take what copy.deepcopy refuses out of the model"
            ) from error
        found = Checkpoint(model, optimizer, loss)
        if not found.belongs_together:
            raise InvalidTypeError(
                f"a copy of {type(optimizer).__name__} does not step the copied model's parameters; it must "
                "keep them in param_groups, as PyTorch's optimisers do"
            )
        return found

    @property
    def belongs_together(self) -> bool:
        """Whether every parameter that the optimiser steps is the model's, or the loss's."""
        modules = [self.model, *([self.loss] if isinstance(self.loss, nn.Module) else [])]
        known = {id(parameter) for module in modules for parameter in module.parameters()}
        return all(id(each) in known for group in self.optimizer.param_groups for each in group["params"])

    @property
    def device(self) -> torch.device:
        """That of the model's parameters."""
        return next(self.model.parameters()).device

    def digest(self) -> dict[str, str]:
        """Checksums of the model's and the optimiser's states."""
        return {"model": digest(self.model.state_dict()), "optimizer": digest(self.optimizer.state_dict())}


@dataclass(frozen=True)
class Plan:
    """What all branches share.

    Attributes:
        batch_size: B of the base branch.
        samples: how many each branch trains on.
        evaluated_at: after how many samples each is evaluated, in increasing order; the last is ``samples``.
        micro_batch_size: samples at most in one backward pass; gradients of several add up to the batch's mean.
        rule: how the learning rate follows the batch size.
    """

    batch_size: int
    samples: int
    evaluated_at: tuple[int, ...]
    micro_batch_size: int | None
    rule: str

    def factor(self, multiple: int) -> float:
        """η of the branch with ``multiple``·B over that of the base branch."""
        return {"linear": float(multiple), "sqrt": math.sqrt(multiple), "constant": 1.0}[self.rule]


@dataclass(frozen=True)
class Laboratory:
    """Where branches are trained and compared."""

    checkpoint: Checkpoint
    samples: BranchSamples
    evaluation: Callable[[nn.Module], float] | BranchSamples | None
    plan: Plan
    generators: Generators

    def start(self) -> float:
        """The evaluation of the checkpoint itself, once the loss was tried.

        Raises:
            TypeError, ValueError: the loss is no mean over the samples of a batch.
            NonFiniteLossError: nothing can be compared with a loss that is not finite.
        """
        with self.generators.kept():
            seed_all(0)
            copied = self.checkpoint.copied()
            with _evaluating(copied.model):
                inputs, targets = self._take(torch.arange(min(self.plan.batch_size, self.samples.count)))
                outputs = call(copied.model, inputs)
                _check_reduction(copied.loss, outputs, targets)
            found = self._evaluated(copied)
        if not math.isfinite(found):
            raise NonFiniteLossError(f"the evaluation at the checkpoint gives {found}: branches cannot be compared")
        return found

    def train(self, multiple: int, seed: int, advance: Callable[[int], None]) -> list[float]:
        """Evaluations of the branch with ``multiple``·B at ``plan.evaluated_at``; infinite once it has diverged.

        The order of the samples, and what is drawn at random on the way, depend on the seed alone, so that branches
        of one seed differ in as little as can be.

        Args:
            multiple: of B.
            seed: of everything random.
            advance: called with a number of samples done.
        """
        plan = self.plan
        size = multiple * plan.batch_size
        found: list[float] = []
        done = 0
        with self.generators.kept():
            of_order, of_training = (
                int(word) for word in np.random.SeedSequence(seed).generate_state(2, np.uint32)
            )
            order = sample_order(self.samples.count, plan.samples, torch.Generator().manual_seed(of_order))
            seed_all(of_training)
            copied = self.checkpoint.copied()
            if not copied.model.training:
                copied.model.train()
            for group in copied.optimizer.param_groups:
                group["lr"] = group["lr"] * plan.factor(multiple)
            for batch in torch.split(order, size):
                finite = self._step(copied, batch)
                done += len(batch)
                if finite and done == plan.evaluated_at[len(found)]:
                    found.append(self._evaluated(copied))
                    finite = math.isfinite(found[-1])
                advance(len(batch))
                if not finite:
                    advance(plan.samples - done)
                    kept = [value for value in found if math.isfinite(value)]
                    return kept + [math.inf] * (len(plan.evaluated_at) - len(kept))
        return found

    def _step(self, copied: Checkpoint, batch: Tensor) -> bool:
        """One step of the optimiser; False if the loss was not finite."""
        copied.optimizer.zero_grad(set_to_none=True)
        for part in torch.split(batch, self.plan.micro_batch_size or len(batch)):
            inputs, targets = self._take(part)
            loss = copied.loss(call(copied.model, inputs), targets)
            if not math.isfinite(loss.item()):
                return False
            (loss * (len(part) / len(batch))).backward()
        copied.optimizer.step()
        return True

    def _evaluated(self, copied: Checkpoint) -> float:
        """What branches are compared by; leaves no trace in the model, nor in what is drawn after it."""
        with self.generators.kept(), _evaluating(copied.model):
            seed_all(0)
            if callable(self.evaluation):
                return float(self.evaluation(copied.model))
            held_out = self.samples if self.evaluation is None else self.evaluation
            indices = torch.arange(held_out.count)
            if self.evaluation is None and held_out.count > EVALUATED:
                indices = torch.randperm(held_out.count, generator=torch.Generator().manual_seed(0))[:EVALUATED]
            total = 0.0
            for part in torch.split(indices, self.plan.micro_batch_size or self.plan.batch_size):
                inputs, targets = self._take(part, held_out)
                total += float(copied.loss(call(copied.model, inputs), targets)) * len(part)
            return total / len(indices)

    def _take(self, indices: Tensor, samples: BranchSamples | None = None) -> tuple[Tree, Tree]:
        device = self.checkpoint.device
        inputs, targets = (samples or self.samples).take(indices)
        return map_tensors(lambda each: each.to(device), inputs), map_tensors(lambda each: each.to(device), targets)


def call(model: nn.Module, inputs: Tree) -> Any:
    """The model's outputs: a mapping by keywords, a tuple or list by position."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def check_checkpoint(checkpoint: Checkpoint) -> None:
    """Refuse what no branch can be trained from.

    Raises:
        TypeError, ValueError: the message says what to pass.
    """
    model, optimizer = checkpoint.model, checkpoint.optimizer
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, DistributedDataParallel):
        raise InvalidTypeError(
            "branches train in one process: pass the module inside DistributedDataParallel, .module"
        )
    if next(model.parameters(), None) is None:
        raise InvalidValueError("the model has no parameters to train")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidTypeError(f"optimizer must be one of PyTorch's, not {type(optimizer).__name__}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InvalidTypeError(
            "LBFGS evaluates the loss several times a step; branches take optimisers that do it once"
        )
    if not callable(checkpoint.loss) or isinstance(checkpoint.loss, type):
        raise InvalidTypeError("loss must be callable as loss(outputs, targets), e.g. nn.CrossEntropyLoss()")
    if not checkpoint.belongs_together:
        raise InvalidValueError(
            "the optimiser steps parameters that are not the model's: pass the two that belong together"
        )


def seed_all(seed: int) -> None:
    """Seed the generators that models and data sets draw from: PyTorch's, NumPy's and Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (the global one is what a data set may use)
    random.seed(seed)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients; every module's mode as it was afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _check_reduction(loss: Loss, outputs: Any, targets: Tree) -> None:
    """Refuse a loss that is no mean over samples: a sum would multiply the learning rate by the batch size."""
    single = loss(outputs, targets)
    if not isinstance(single, Tensor):
        raise InvalidTypeError(f"loss gives {type(single).__name__}, not a tensor with the mean loss of a batch")
    if single.numel() != 1:
        raise InvalidValueError(f"loss gives a tensor of shape {tuple(single.shape)}, not the mean loss of a batch")
    if not math.isfinite(float(single)):
        raise NonFiniteLossError(f"the loss of the first samples is {float(single)} at the checkpoint")

    def twice(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor]) if tensor.ndim else tensor

    try:
        doubled = float(loss(map_tensors(twice, outputs), map_tensors(twice, targets)))
    except Exception:  # outputs that are more than samples along the first dimension cannot be tried so
        return
    if float(single) != 0 and math.isclose(doubled, 2 * float(single), rel_tol=1e-3):
        raise InvalidValueError(
            "loss is a sum over the samples of a batch, which would multiply the learning rate by the batch size; "
            'give their mean (reduction="mean")'
        )
