"""The critical batch size, measured: branches from one checkpoint train on with larger batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from noisescape.errors import FailedError, InvalidTypeError, InvalidValueError
from noisescape.linops import Estimate
from noisescape.risk.randomness import Generators
from noisescape.risk.samples import TensorSamples
from noisescape.runs.progress import steps_bar
from noisescape.scalars import LARGEST, check_number
from noisescape.training.batch_size import optimizer_kind
from noisescape.training.branch_files import BranchFiles
from noisescape.training.branch_samples import BranchSamples, MappedSamples, branch_samples, held_by
from noisescape.training.branch_training import Checkpoint, Laboratory, Loss, Plan, check_checkpoint

Rule = Literal["auto", "linear", "sqrt", "constant"]
Verdict = Literal["base", "not worse", "worse", "undecided"]
Bracket = Literal["at least", "between", "below", "undecided"]


@dataclass(frozen=True)
class Branch:
    """What training with one batch size came to.

    Attributes:
        multiple: of the base branch's batch size.
        batch_size: samples in an optimiser step.
        lr: η of the first parameter group.
        steps: of the optimiser.
        samples: steps times batch size, the same for all branches.
        loss: the smoothed final loss, mean over seeds ± standard error; infinite where a seed diverged.
        difference: that loss minus the base branch's, paired by seed; its interval is Student's over seeds.
        diverged: how many seeds ended in a loss that is not finite.
        verdict: of the 95 % interval of the difference: below the tolerance (``"not worse"``), above it
            (``"worse"``) or around it (``"undecided"``).
    """

    multiple: int
    batch_size: int
    lr: float
    steps: int
    samples: int
    loss: Estimate
    difference: Estimate
    diverged: int
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """All of it in JSON's own types; what is infinite is null in strict JSON."""
        return {
            "multiple": self.multiple,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "steps": self.steps,
            "samples": self.samples,
            "loss": self.loss.to_dict(),
            "difference": self.difference.to_dict(),
            "diverged": self.diverged,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class BranchedCheck:
    """The measured critical batch size, and the branches it was read from.

    Attributes:
        branches: in increasing order of the batch size, the base branch first.
        at_least: the largest batch size up to which every branch was not worse; None where that is the base branch.
        below: the smallest batch size that was worse; None if none was.
        tolerance: by how much a loss may be higher and still count as not worse.
        seeds: of the orders of the samples.
        rule: how the learning rate followed the batch size.
        start: the evaluation at the checkpoint, before any branch.
    """

    branches: tuple[Branch, ...]
    at_least: int | None
    below: int | None
    tolerance: float
    seeds: tuple[int, ...]
    rule: str
    start: float

    @property
    def bracket(self) -> Bracket:
        """What is known of the critical batch size."""
        if self.at_least is not None:
            return "at least" if self.below is None else "between"
        return "undecided" if self.below is None else "below"

    @property
    def answer(self) -> str:
        """The critical batch size in words."""
        match self.bracket:
            case "at least":
                return f"at least {self.at_least}"
            case "between":
                return f"between {self.at_least} and {self.below}"
            case "below":
                return f"below {self.below}"
        return "undecided"

    def to_dict(self) -> dict[str, Any]:
        """All of it in JSON's own types."""
        return {
            "bracket": self.bracket,
            "at_least": self.at_least,
            "below": self.below,
            "tolerance": self.tolerance,
            "seeds": list(self.seeds),
            "rule": self.rule,
            "start": self.start,
            "branches": [branch.to_dict() for branch in self.branches],
        }

    def __str__(self) -> str:
        lines = [f"critical batch size: {self.answer} (tolerance {self.tolerance:g}, {len(self.seeds)} seeds)"]
        for branch in self.branches:
            low, high = branch.difference.interval()
            change = "" if branch.verdict == "base" else f", {branch.difference.value:+.4f} [{low:.4f}, {high:.4f}]"
            loss = f"diverged with {branch.diverged} seeds" if branch.diverged else f"loss {branch.loss}{change}"
            settings = f"B = {branch.batch_size}, lr {branch.lr:.4g}, {branch.steps} steps"
            lines.append(f"{settings}: {loss}: {branch.verdict}")
        return "\n".join(lines)


def branched_check(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    data: Any,
    *,
    batch_size: int,
    samples: int,
    tolerance: float,
    multiples: Sequence[int] = (1, 2, 4, 8),
    seeds: int | Sequence[int] = 5,
    rule: Rule = "auto",
    evaluation: Callable[[nn.Module], float] | Any | None = None,
    micro_batch_size: int | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> BranchedCheck:
    """Measure the critical batch size at a checkpoint by training on from it, after arXiv 2505.23971.

    Copies of model and optimiser, with all their states, go on with batches of B·k samples for every multiple k,
    each on the same samples in the same order, for several orders. The critical batch size is the largest whose
    smoothed final loss is not worse than that of batch size B by more than ``tolerance``. What counts is the 95 %
    Student interval of the differences paired by order; a branch between two verdicts is ``"undecided"``, and more
    ``seeds`` may decide it (added until they do, intervals cover less than they say). Intervals are for one
    comparison each; batch sizes are taken in increasing order up to the first that is not shown to be fine, so that
    the lower bound needs no correction for their number.

    The learning rate keeps its value of the checkpoint, times a factor by ``rule``; momentum, Adam's β and weight
    decay stay as they are. Gradients are taken as they come: autocast belongs in the model's forward.

    Nothing of what is passed changes: not the model, its buffers or gradients, the optimiser, or any generator.

    Args:
        model: at the checkpoint; trained in the modes it is in, or in training mode if it is in evaluation mode.
        optimizer: of PyTorch's kind, over the model's parameters; its states go on.
        loss: loss(outputs, targets), the *mean* over a batch.
        data: (inputs, targets) tensors, a map-style ``Dataset``, or a ``DataLoader``, of which the data set and
            ``collate_fn`` are taken. A data set that draws at random goes on to do so.
        batch_size: B of the base branch, the batch size in use.
        samples: to train each branch on; rounded down so that all branches end after the same number.
        tolerance: over 0, in units of the loss.
        multiples: whole numbers, 1 first.
        seeds: how many orders, at least 2, or their seeds.
        rule: η of a branch over that of the base: k (``"linear"``), √k (``"sqrt"``), 1 (``"constant"``); ``"auto"``
            is linear for SGD and √k for Adam and its kin.
        evaluation: what is compared: held-out data of the same kind as ``data``, or a function of a model, which is
            in evaluation mode; by default the loss in evaluation mode on a fixed subset of ``data``. Means over up
            to four places in the last quarter of training.
        micro_batch_size: at most so many samples in one backward pass, for batches that do not fit in memory.
            BatchNorm then sees these smaller batches.
        out: a directory, in which every finished branch is kept; with the same one a later call goes on, also with
            more seeds.
        progress: show a bar where there is a terminal.

    Raises:
        ValueError: arguments that make no sense, before any work; a directory of another check.
        TypeError: something that cannot be trained or copied, before any work.
        NonFiniteLossError: the loss at the checkpoint is not finite.
        RuntimeError: the base branch diverged.
    """
    checkpoint = Checkpoint(model, optimizer, loss)
    check_checkpoint(checkpoint)
    orders = _seeds(seeds)
    ks = _multiples(multiples)
    found_samples = branch_samples(data)
    held_out = evaluation if evaluation is None or callable(evaluation) else branch_samples(evaluation)
    plan = _plan(batch_size, ks, samples, found_samples, _resolved(rule, optimizer), micro_batch_size)
    check_number("tolerance", tolerance)
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise InvalidValueError(f"tolerance must be over 0, in units of the loss, not {tolerance}")
    generators = Generators(
        model.modules(), loss, evaluation, *(held_by(each) for each in (found_samples, held_out))
    )
    laboratory = Laboratory(checkpoint, found_samples, held_out, plan, generators)
    start = laboratory.start()
    files = None
    if out is not None:
        with generators.kept():
            files = BranchFiles.open(Path(out), _identity(checkpoint, found_samples, held_out, plan), start)
    losses = _train_all(laboratory, ks, orders, files, progress)
    lr = float(optimizer.param_groups[0]["lr"])
    branches = tuple(_branch(k, plan, lr, losses[k], losses[1], tolerance) for k in ks)
    at_least, below = _bounds(branches)
    return BranchedCheck(branches, at_least, below, tolerance, orders, plan.rule, start)


def _train_all(
    laboratory: Laboratory,
    multiples: Sequence[int],
    seeds: Sequence[int],
    files: BranchFiles | None,
    progress: bool,
) -> dict[int, np.ndarray]:
    """Smoothed final losses, (seeds,), by multiple."""
    plan = laboratory.plan
    found: dict[int, list[float]] = {multiple: [] for multiple in multiples}
    with steps_bar("branches, samples", plan.samples * len(multiples) * len(seeds), shown=progress) as advance:
        for seed in seeds:
            for multiple in multiples:
                losses = files.read(multiple, seed) if files else None
                if losses is None:
                    losses = laboratory.train(multiple, seed, advance)
                    if files:
                        files.write(multiple, seed, losses)
                else:
                    advance(plan.samples)
                if multiple == 1 and not math.isfinite(losses[-1]):
                    raise FailedError(
                        f"the base branch, batch size {plan.batch_size}, diverged with seed {seed}, so that "
                        "nothing can be compared with it: lower the learning rate, or start from another checkpoint"
                    )
                found[multiple].append(math.fsum(losses) / len(losses))
    return {multiple: np.asarray(each) for multiple, each in found.items()}


def _branch(multiple: int, plan: Plan, lr: float, losses: np.ndarray, base: np.ndarray, tolerance: float) -> Branch:
    diverged = int((~np.isfinite(losses)).sum())
    size = multiple * plan.batch_size
    difference = _mean(losses - base)
    return Branch(
        multiple=multiple,
        batch_size=size,
        lr=lr * plan.factor(multiple),
        steps=plan.samples // size,
        samples=plan.samples,
        loss=_mean(losses),
        difference=difference,
        diverged=diverged,
        verdict="base" if multiple == 1 else _verdict(difference, tolerance),
    )


def _mean(values: np.ndarray) -> Estimate:
    """Mean over seeds; infinite, as a fact without an error, where one of them is."""
    if not np.isfinite(values).all():
        return Estimate(math.inf, 0.0)
    return Estimate(float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5), dof=len(values) - 1)


def _verdict(difference: Estimate, tolerance: float) -> Verdict:
    low, high = difference.interval()
    if low > tolerance:
        return "worse"
    return "not worse" if high <= tolerance else "undecided"


def _bounds(branches: Sequence[Branch]) -> tuple[int | None, int | None]:
    """The largest batch size up to which all are fine, and the smallest that is worse; none if they contradict."""
    larger = branches[1:]
    worse = [branch.batch_size for branch in larger if branch.verdict == "worse"]
    fine = [branch.batch_size for branch in larger if branch.verdict == "not worse"]
    if worse and fine and max(fine) > min(worse):
        return None, None
    at_least = None
    for branch in larger:
        if branch.verdict != "not worse":
            break
        at_least = branch.batch_size
    return at_least, min(worse, default=None)


def _plan(
    batch_size: int,
    multiples: Sequence[int],
    samples: int,
    data: BranchSamples,
    rule: str,
    micro_batch_size: int | None,
) -> Plan:
    for name, value in (("batch_size", batch_size), ("samples", samples), ("micro_batch_size", micro_batch_size)):
        optional = name == "micro_batch_size" and value is None
        if not optional and (type(value) is not int or value < 1):
            raise InvalidValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    largest = batch_size * multiples[-1]
    if largest > data.count:
        raise InvalidValueError(
            f"batches of {batch_size} × {multiples[-1]} = {largest} exceed the {data.count} samples of the "
            "data: give smaller multiples"
        )
    # all branches are at the same number of samples only after whole numbers of steps of each
    unit = batch_size * math.lcm(*multiples)
    if samples < unit:
        raise InvalidValueError(
            f"samples = {samples} is too few: all branches take whole steps after {unit} samples, so "
            "give at least that"
        )
    units = samples // unit
    places = sorted({units - place * units // 16 for place in range(4)})
    return Plan(batch_size, units * unit, tuple(place * unit for place in places), micro_batch_size, rule)


def _resolved(rule: Rule, optimizer: torch.optim.Optimizer) -> str:
    if rule not in get_args(Rule):
        raise InvalidValueError(f"rule must be one of {', '.join(get_args(Rule))}, not {rule!r}")
    if rule != "auto":
        return rule
    try:
        return {"sgd": "linear", "adam": "sqrt"}[optimizer_kind(optimizer)]
    except InvalidValueError:
        raise InvalidValueError(
            f'rule="auto" knows SGD and Adam, not {type(optimizer).__name__}; give rule="linear", "sqrt" '
            'or "constant"'
        ) from None


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(seeds, bool) or not isinstance(seeds, (int, Iterable)):
        raise InvalidTypeError(f"seeds must be a number of them or a sequence of ints, not {seeds!r}")
    found = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not all(type(seed) is int and 0 <= seed <= LARGEST for seed in found) or len(set(found)) != len(found):
        raise InvalidValueError(f"seeds must be different whole numbers of at least 0, not {seeds}")
    if len(found) < 2:
        raise InvalidValueError(
            f"seeds must be at least 2, for a standard error of their difference, not {len(found)}"
        )
    return found


def _multiples(multiples: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(multiples, Iterable):
        raise InvalidTypeError(f"multiples must be whole numbers, such as (1, 2, 4, 8), not {multiples!r}")
    found = tuple(multiples)
    if not all(type(multiple) is int for multiple in found):
        raise InvalidTypeError(f"multiples must be whole numbers, not {multiples}")
    if len(found) < 2 or found[0] != 1 or list(found) != sorted(set(found)):
        raise InvalidValueError(
            f"multiples must be 1 and larger ones in increasing order, e.g. 1, 2, 4, 8, not {found}"
        )
    return found


def _identity(checkpoint: Checkpoint, data: BranchSamples, held_out: object, plan: Plan) -> dict[str, Any]:
    """What a directory's branches must share with those that go on in it; seeds and tolerance may change."""
    compared = held_out.digest() if isinstance(held_out, TensorSamples | MappedSamples) else type(held_out).__name__
    return {
        "batch_size": plan.batch_size,
        "samples": plan.samples,
        "evaluated_at": list(plan.evaluated_at),
        "micro_batch_size": plan.micro_batch_size,
        "rule": plan.rule,
        **checkpoint.digest(),
        "data": data.digest(),
        "evaluation": compared,
    }
