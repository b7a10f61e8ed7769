"""Row 8: what watching the gradient noise adds to a training, for this library's monitor and for others' ways."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import noisescape as ns
from benchmarks.harness import Outcome, Row, interleaved
from noisescape.experiments.models import lenet
from noisescape.measurement.memory import AllocationTracker

STEPS = 300
"""A multiple of every period: of measured steps, of split ones, and of reports."""
EVERY = 100
REPEATS = 7
FREE, PROBED, MEMORY = 1.02, 1.05, 1.1
Step = Callable[[int], None]


class SmallGPT(nn.Module):
    """Two blocks of a decoder-only transformer, 160,000 parameters; logits by token."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=96, n_positions=32, n_embd=80, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
        )
        self.inner = GPT2LMHeadModel(config)
        self.inner.eval()  # no dropout, so that all sides train alike

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 32) ↦ (B, 32, 96)."""
        logits: Tensor = self.inner(tokens).logits
        return logits


@dataclass(frozen=True)
class Training:
    """A model, its optimiser and its batches.

    Attributes:
        model: as it starts.
        optimizer: of parameters.
        inputs: of all batches, (batches, B, ...).
        targets: likewise.
        losses: (outputs, targets) ↦ one loss a sample.
    """

    model: nn.Module
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    inputs: Tensor
    targets: Tensor
    losses: Callable[[Tensor, Tensor], Tensor]

    def loop(self, pieces: int, watch: Callable[[nn.Module, torch.optim.Optimizer], Step] | None = None) -> Loop:
        """A training of its own from the same start, in so many micro-steps."""
        model = copy.deepcopy(self.model)
        optimizer = self.optimizer(list(model.parameters()))
        return Loop(self, model, optimizer, pieces, None if watch is None else watch(model, optimizer))


@dataclass
class Loop:
    """One side: called, it trains on."""

    training: Training
    model: nn.Module
    optimizer: torch.optim.Optimizer
    pieces: int
    after: Step | None
    step: int = 0

    def __call__(self, steps: int = STEPS) -> None:
        """Train on."""
        for _ in range(steps):
            batch = self.step % len(self.training.inputs)
            self.optimizer.zero_grad()
            parts = zip(
                self.training.inputs[batch].chunk(self.pieces),
                self.training.targets[batch].chunk(self.pieces),
                strict=True,
            )
            for inputs, targets in parts:
                (self.training.losses(self.model(inputs), targets).mean() / self.pieces).backward()
            self.optimizer.step()
            self.step += 1
            if self.after is not None:
                self.after(self.step)

    def parameters(self) -> Tensor:
        """As trained so far, flat."""
        return torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])


def convolutional() -> Training:
    """The FashionMNIST LeNet with SGD, batches of 64."""
    draw = torch.Generator().manual_seed(0)
    return Training(
        lenet(0),
        lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
        torch.randn(20, 64, 1, 28, 28, generator=draw),
        torch.randint(0, 10, (20, 64), generator=draw),
        lambda outputs, targets: nn.functional.cross_entropy(outputs, targets, reduction="none"),
    )


def transformer() -> Training:
    """The small GPT with AdamW, batches of 16 sequences."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 96, (20, 16, 33), generator=draw)

    def losses(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)

    return Training(
        SmallGPT(),
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        tokens[..., :-1],
        tokens[..., 1:],
        losses,
    )


TRAININGS = {"LeNet, SGD": convolutional, "small GPT, AdamW": transformer}
LONG = {"LeNet, SGD": 6_000, "small GPT, AdamW": 2_500}
"""Steps of half a minute: before a twentieth of it is what a model's trial costs, nothing is probed."""


def watched(**options: object) -> Callable[[nn.Module, torch.optim.Optimizer], Step]:
    """By this library's monitor."""

    def watch(model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
        monitor = ns.Monitor(model, optimizer, every=EVERY, **options)  # type: ignore[arg-type]
        return lambda step: monitor.step() and None

    return watch


def probed(training: Training) -> Callable[[nn.Module, torch.optim.Optimizer], Step]:
    """By the monitor with its probes at the default overhead, on held-out data of one batch."""
    return watched(loss=training.losses, probe=(training.inputs[0], training.targets[0]))


def by_gns_pytorch(training: Training) -> Callable[[nn.Module, torch.optim.Optimizer], Step]:
    """gns-pytorch as its page shows it: every hundredth step, on a quarter of the batch, sampled parameters."""
    from gns_pytorch import compute_gns

    def watch(model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
        def after(step: int) -> None:
            if step % EVERY == 0:
                batch = step % len(training.inputs)
                compute_gns(training.losses(model(training.inputs[batch]), training.targets[batch]), model)

        return after

    return watch


def per_sample_layer_norms(model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    """nanoGNS' way (2411.00999): per-sample gradient norms of the layer norms alone, at every step."""
    found: dict[nn.Module, Tensor] = {}
    inputs: dict[nn.Module, Tensor] = {}

    def before(module: nn.LayerNorm, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs[module] = nn.functional.layer_norm(args[0], module.normalized_shape, eps=module.eps).detach()

        def arrived(gradient: Tensor) -> None:
            weight = (gradient * inputs.pop(module)).sum(1)
            found[module] = weight.square().sum(1) + gradient.sum(1).square().sum(1)

        output.register_hook(arrived)

    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(before)
    return lambda step: found.clear()


class Cockpit:
    """Cockpit's figures of gradient noise every hundredth step: norm of the gradient, norm test, inner test."""

    def __init__(self, training: Training) -> None:
        from backpack import extend
        from cockpit import Cockpit as Instrument
        from cockpit.quantities import GradNorm, InnerTest, NormTest
        from cockpit.utils.schedules import linear

        self.training = training
        self.model = extend(copy.deepcopy(training.model))
        self.optimizer = training.optimizer(list(self.model.parameters()))
        self.single, self.mean = extend(nn.CrossEntropyLoss(reduction="none")), extend(nn.CrossEntropyLoss())
        self.instrument = Instrument(
            list(self.model.parameters()),
            quantities=[kind(track_schedule=linear(EVERY)) for kind in (GradNorm, InnerTest, NormTest)],
        )
        self.step = 0

    def __call__(self, steps: int = STEPS) -> None:
        """Train on."""
        for _ in range(steps):
            batch = self.step % len(self.training.inputs)
            inputs, targets = self.training.inputs[batch], self.training.targets[batch]
            self.optimizer.zero_grad()
            outputs = self.model(inputs)
            loss = self.mean(outputs, targets)
            tracked = self.step % EVERY == 0
            about = {
                "batch_size": len(inputs),
                "individual_losses": self.single(outputs, targets) if tracked else None,
                "loss": loss,
                "optimizer": self.optimizer,
            }
            with self.instrument(self.step, info=about):
                loss.backward(create_graph=self.instrument.create_graph(self.step))
            self.optimizer.step()
            self.step += 1

    def parameters(self) -> Tensor:
        """As trained so far, flat."""
        return torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])


def run() -> Outcome:
    """Each training in turns: bare, watched, watched by others."""
    warnings.filterwarnings("ignore", module="cockpit|backpack|torch")
    outcome = Outcome()
    for name, make in TRAININGS.items():
        training = make()
        sides: dict[str, Loop | Cockpit] = {
            "bare, 2 micro-steps": training.loop(2),
            "monitor, 2 micro-steps": training.loop(2, watched()),
            "monitor reading every step, 2 micro-steps": training.loop(2, watched(measure_every=1)),
            "bare": training.loop(1),
            "monitor splitting batches": training.loop(1, watched()),
            "gns-pytorch": training.loop(1, by_gns_pytorch(training)),
        }
        if training.model.__class__ is SmallGPT:
            sides["layer norms per sample"] = training.loop(1, per_sample_layer_norms)
        else:
            sides["cockpit"] = Cockpit(training)
        for side in sides.values():
            side(7)
        for side_name, side in sides.items():
            reference = sides["bare, 2 micro-steps" if "2 micro" in side_name else "bare"]
            if side is not reference:
                what = f"{name}: parameters after 7 steps, {side_name}"
                outcome.agree(what, side.parameters(), reference.parameters(), 1e-6)
        # processor time of the one thread: what differs is a percent, less than what else a machine does
        seconds = interleaved(sides, REPEATS, clock=time.process_time)
        outcome.seconds |= {f"{name}: {side_name}": taken for side_name, taken in seconds.items()}
        for side_name, target in (
            ("monitor, 2 micro-steps", FREE),
            ("monitor reading every step, 2 micro-steps", None),
            ("monitor splitting batches", FREE),
            ("gns-pytorch", None),
            ("layer norms per sample", None),
            ("cockpit", None),
        ):
            if side_name in sides:
                against = "bare, 2 micro-steps" if "2 micro" in side_name else "bare"
                outcome.compare(f"{name}: 300 steps", f"{name}: {side_name}", f"{name}: {against}", target=target)
        with_probes(outcome, name, training)
        memory(outcome, name, training)
    return outcome


def with_probes(outcome: Outcome, name: str, training: Training) -> None:
    """Long trainings in turns, each from its start: a budget of wall time must not earn while others run."""
    bare, side = f"{name}: bare, from the start", f"{name}: monitor with probes"
    for _ in range(2):
        for label, watch in ((bare, None), (side, probed(training))):
            begun = time.process_time()
            training.loop(1, watch)(LONG[name])
            outcome.seconds.setdefault(label, []).append(time.process_time() - begun)
    outcome.compare(f"{name}: {LONG[name]:,} steps", side, bare, target=PROBED)


def memory(outcome: Outcome, name: str, training: Training) -> None:
    """Peak of what ten steps allocate, parameters and optimiser's state included, against the bare training's."""
    sides = {
        "bare, 2 micro-steps": training.loop(2),
        "monitor reading every step, 2 micro-steps": training.loop(2, watched(measure_every=1)),
        "bare": training.loop(1),
        "monitor splitting every batch": training.loop(1, watched(measure_every=1)),
    }
    peaks = {}
    for side, loop in sides.items():
        loop(2)
        held = sum(p.numel() * p.element_size() for p in loop.model.parameters()) + sum(
            value.numel() * value.element_size()
            for state in loop.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )
        with AllocationTracker() as ledger:
            loop(10)
        peaks[side] = held + ledger.peak
    outcome.figures[f"{name}: peak bytes"] = peaks
    for side, against in (
        ("monitor reading every step, 2 micro-steps", "bare, 2 micro-steps"),
        ("monitor splitting every batch", "bare"),
    ):
        ratio = peaks[side] / peaks[against]
        outcome.rows.append(
            Row(f"{name}: peak memory", f"{name}: {side}", f"{name}: {against}", ratio, target=MEMORY)
        )
