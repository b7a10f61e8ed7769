"""What a monitor reports over a made-up training, and loggers that write it down."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Report = dict[str, float]


def reports(steps: Sequence[int] = (100, 200, 300), *, scale: float = 250.0, groups: bool = False) -> list[Report]:
    """A report at each step: a noise scale that grows, its upper end infinite at the first."""
    made = []
    for index, step in enumerate(steps):
        trace, value = 500.0 + index, scale * (1 + index)
        squared = trace / value
        report = {
            "noise/step": float(step),
            "noise/batch_size": 64.0,
            "noise/pieces": 4.0,
            "noise/measured_steps": 50.0,
            "noise/skipped_steps": 0.0,
            "noise/trace_covariance": trace,
            "noise/trace_covariance_stderr": 12.5,
            "noise/squared_gradient_norm": squared,
            "noise/squared_gradient_norm_stderr": squared / 8,
            "noise/scale": value,
            "noise/scale_stderr": value / 8,
            "noise/scale_low": value * 0.8,
            "noise/scale_high": value * 1.25 if index else math.inf,
            "noise/lr": 0.1,
        }
        if groups:
            for name, share in (("body", 0.7), ("head", 0.3)):
                report |= {
                    f"noise/group/{name}/scale": value * share,
                    f"noise/group/{name}/scale_low": value * share * 0.7,
                    f"noise/group/{name}/scale_high": value * share * 1.4,
                }
        made.append(report)
    return made


def probed(report: Report, *, top_eigenvalue: float = 15.0) -> Report:
    """The report with what a probe adds to it."""
    edge = 2 / report["noise/lr"]
    return report | {
        "noise/preconditioned/trace_covariance": 31.0,
        "noise/preconditioned/squared_gradient_norm": 0.25,
        "noise/preconditioned/scale": 124.0,
        "noise/preconditioned/scale_low": 90.0,
        "noise/preconditioned/scale_high": 190.0,
        "noise/probe/top_eigenvalue": top_eigenvalue,
        "noise/probe/stability_edge": edge,
        "noise/probe/top_eigenvalue_over_edge": top_eigenvalue / edge,
        "noise/probe/batch_sharpness": 18.0,
        "noise/probe/batch_sharpness_stderr": 1.5,
        "noise/overhead": 0.031,
    }


def as_csv(rows: Sequence[Mapping[str, float]], path: Path) -> Path:
    """A table with empty cells where a row lacks a figure."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_json_lines(rows: Sequence[Mapping[str, float]], path: Path) -> Path:
    """An object a line, infinity as Python writes it."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def as_events(rows: Sequence[Mapping[str, float]], path: Path) -> Path:
    """A directory with a TensorBoard event file."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(path)) as writer:
        for row in rows:
            for key, value in row.items():
                writer.add_scalar(key, value, int(row["noise/step"]))
    return path


def as_new_style_events(rows: Sequence[Mapping[str, float]], path: Path) -> Path:
    """The same as tensors, which is how newer writers store scalars."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(path)) as writer:
        for row in rows:
            for key, value in row.items():
                writer.add_scalar(key, value, int(row["noise/step"]), new_style=True)
    return path


def as_lightning_csv(rows: Sequence[Mapping[str, float]], path: Path) -> Path:
    """The directory of Lightning's CSVLogger."""
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(str(path), name="log")
    for row in rows:
        logger.log_metrics({"loss": 0.5}, step=int(row["noise/step"]) - 1)
        logger.log_metrics(dict(row), step=int(row["noise/step"]))
        logger.save()
    return path


def as_lightning_events(rows: Sequence[Mapping[str, float]], path: Path) -> Path:
    """The directory of Lightning's TensorBoardLogger."""
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(str(path), name="log")
    for row in rows:
        logger.log_metrics(dict(row), step=int(row["noise/step"]))
    logger.finalize("success")
    return path


def as_trainer_state(rows: Sequence[Mapping[str, float]], path: Path) -> Path:
    """The output directory of a transformers Trainer with one checkpoint."""
    from transformers import TrainerState

    state = TrainerState(
        log_history=[{"loss": 0.5, "step": 1}, *({**row, "step": row["noise/step"]} for row in rows)]
    )
    checkpoint = path / "checkpoint-300"
    checkpoint.mkdir(parents=True)
    state.save_to_json(str(checkpoint / "trainer_state.json"))
    return path


def as_transformers_events(rows: Sequence[Mapping[str, float]], path: Path) -> Path:
    """What transformers' own callback for TensorBoard makes of the logs: it puts train/ before every name."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.integrations import TensorBoardCallback

    with SummaryWriter(str(path)) as writer:
        callback = TensorBoardCallback(tb_writer=writer)
        arguments = TrainingArguments(str(path / "output"), use_cpu=True, report_to=[])
        for row in rows:
            state = TrainerState(global_step=int(row["noise/step"]))
            callback.on_log(arguments, state, TrainerControl(), logs=dict(row))
    return path


def as_wandb(rows: Sequence[Mapping[str, float]], path: Path) -> Path:
    """The directory of a W&B run that never went online."""
    import wandb

    path.mkdir(parents=True, exist_ok=True)
    with wandb.init(
        dir=str(path), project="noise", mode="offline", settings=wandb.Settings(silent=True, console="off")
    ) as run:
        for row in rows:
            run.log({"loss": 0.5})
            run.log(dict(row))
    wandb.teardown()  # its process has the last records until then
    return path


WRITERS: dict[str, Callable[[Sequence[Mapping[str, float]], Path], Path]] = {
    "csv": lambda rows, path: as_csv(rows, path.with_suffix(".csv")),
    "json lines": lambda rows, path: as_json_lines(rows, path.with_suffix(".jsonl")),
    "tensorboard": as_events,
    "tensorboard, new style": as_new_style_events,
    "lightning csv": as_lightning_csv,
    "lightning tensorboard": as_lightning_events,
    "transformers state": as_trainer_state,
    "transformers tensorboard": as_transformers_events,
    "wandb": as_wandb,
}
