"""Small real trainings, each through a plain loop, Lightning and transformers, on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.trainer_callback import PrinterCallback

import noisescape as ns

Sample = dict[str, Tensor]
Report = dict[str, float]


class ConvNet(nn.Module):
    """For digits; it is called as models of transformers are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10))

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.body(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return ConvNet().double()


def digits(count: int) -> list[Sample]:
    images = load_digits()
    pixels = torch.tensor(images.images[:count, None] / 16)
    return [
        {"pixel_values": image, "labels": label}
        for image, label in zip(pixels, torch.tensor(images.target[:count]), strict=True)
    ]


def language_model() -> nn.Module:
    torch.manual_seed(0)
    nothing = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=128, n_positions=16, n_embd=16, n_layer=2, n_head=2, **nothing, **tokens)
    ).double()
    model.loss_type = "ForCausalLM"  # as it is, but the Trainer does not know, and counts first labels too
    return model


def text(count: int) -> list[Sample]:
    """Rows of 16 characters of the description that comes with the digits."""
    rows = torch.tensor(list(load_digits().DESCR.encode("ascii", "replace")))[: 16 * count].view(count, 16)
    return [{"input_ids": row, "labels": row} for row in rows]


def vision_transformer() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    drops = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return ViTForImageClassification(
        ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **sizes, **drops)
    ).double()


@dataclass(frozen=True)
class Case:
    """A training.

    Attributes:
        model: makes it.
        samples: gives that many.
        optimizer: of its parameters.
        size: of a micro-batch.
        pieces: micro-batches of a step.
        steps: of the optimiser.
        clip: gradients to this norm; 0: not.
    """

    model: Callable[[], nn.Module]
    samples: Callable[[int], list[Sample]]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    size: int = 6
    pieces: int = 2
    steps: int = 8
    clip: float = 0.0

    @property
    def data(self) -> list[Sample]:
        return self.samples(self.size * self.pieces * self.steps)

    @property
    def batches(self) -> list[Sample]:
        return batched(self.data, self.size)


def batched(samples: Sequence[Sample], size: int) -> list[Sample]:
    return [
        {key: torch.stack([sample[key] for sample in samples[at : at + size]]) for key in samples[0]}
        for at in range(0, len(samples), size)
    ]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


CASES = {
    "conv net, two micro-steps": Case(conv_net, digits, sgd),
    "conv net, one": Case(conv_net, digits, sgd, pieces=1, size=12),
    "language model, two micro-steps": Case(language_model, text, adamw, size=4, clip=0.5),
    "language model, one": Case(language_model, text, adamw, size=4, pieces=1),
    "vision transformer, two micro-steps": Case(vision_transformer, digits, adamw, clip=0.5),
    "vision transformer, one": Case(vision_transformer, digits, adamw, pieces=1),
}


# ---------------------------------------------------------------------- three loops


def plain(case: Case, device: str = "cpu") -> Report:
    model = case.model().to(device)
    optimizer = case.optimizer(model.parameters())
    monitor = ns.Monitor(model, optimizer, every=case.steps, measure_every=1)
    report: Report = {}
    for number, batch in enumerate(case.batches, 1):
        there = {key: value.to(device) for key, value in batch.items()}
        (model(**there)["loss"] / case.pieces).backward()
        if number % case.pieces == 0:
            if case.clip:
                nn.utils.clip_grad_norm_(model.parameters(), case.clip)
            optimizer.step()
            optimizer.zero_grad()
            report = monitor.step() or report
    return report


class Module(pl.LightningModule):
    """A model as it is used in most LightningModules: a child, called by the training step."""

    def __init__(self, model: nn.Module, optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
        super().__init__()
        self.model = model
        self.make = optimizer

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        return self.model(**batch)["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make(self.parameters())


LIGHTNING_SAYS = (
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated",
    "ignore:.*does not have many workers",
)
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def lightning_trainer(case: Case, **options: Any) -> pl.Trainer:
    known = {**QUIET, "max_epochs": 1, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1}
    return pl.Trainer(
        **{**known, "accumulate_grad_batches": case.pieces, "gradient_clip_val": case.clip or None, **options}
    )


def by_lightning(case: Case) -> Report:
    callback = ns.training.LightningNoiseMonitor(every=case.steps, measure_every=1)
    trainer = lightning_trainer(case, callbacks=[callback])
    trainer.fit(Module(case.model(), case.optimizer), DataLoader(case.batches, batch_size=None))
    return callback.report


def transformers_trainer(
    case: Case,
    out: Path,
    callbacks: list[Any],
    *,
    model: nn.Module | None = None,
    data: Any = None,
    evaluated: Any = None,
    kind: type[Trainer] = Trainer,
    **options: Any,
) -> Trainer:
    model = model if model is not None else case.model()
    arguments = {
        "per_device_train_batch_size": case.size,
        "gradient_accumulation_steps": case.pieces,
        "num_train_epochs": 1,
        "max_grad_norm": case.clip,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **options,
    }
    trainer = kind(
        model,
        TrainingArguments(str(out), **arguments),
        train_dataset=data if data is not None else case.data,
        eval_dataset=evaluated,
        optimizers=(case.optimizer(model.parameters()), None),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def by_transformers(case: Case, out: Path) -> Report:
    callback = ns.training.TransformersNoiseMonitor(every=case.steps, measure_every=1)
    trainer = transformers_trainer(case, out, [callback])
    trainer.train()
    return callback.report
