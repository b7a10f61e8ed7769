"""The options that several commands share, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noisescape.errors import InvalidValueError, unknown
from noisescape.experiments.experiment import DATA_DIR, SEEDS

if TYPE_CHECKING:
    import torch

    from noisescape.runs.tasks import Engine

Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Out = Annotated[
    Path | None,
    typer.Option(help="Directory of the run; runs/EXPERIMENT-TIME by default.", show_default=False),
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1 …")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no table.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON summary to standard output, nothing else.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Processes; one a core by default.", show_default=False)]
EngineName = Annotated[
    str, typer.Option("--engine", help="Where the tasks are done: local (this machine), ray (a cluster).")
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Of the Ray cluster: auto, HOST:6379, ray://HOST:10001; none: begin one here.", show_default=False
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Continue the run in --out, or else the latest unfinished one in runs/."),
]
Prefix = Annotated[
    str | None,
    typer.Option(
        help="What the figures' names begin with, if not noise/, with or without a logger's own.",
        show_default=False,
    ),
]
Seeds = Annotated[int | None, typer.Option(help=SEEDS.help, show_default=False)]
DataDir = Annotated[Path | None, typer.Option(help=DATA_DIR.help, show_default=False)]
PRESETS = {
    "quick": "two cores, minutes",
    "two-cores": "two cores, hours; compared at one training loss",
    "gpu": "a GPU, minutes, full width; compared at one training loss",
    "paper": "published size",
    "as-published": "with the faults of the published code",
    "poster": "as on the poster that it is compared with",
}
SUITE_PRESETS = ("quick", "paper", "as-published")
"""Those that every experiment of the paper has."""


def device_named(name: str) -> torch.device:
    """What ``--device`` says; refused where there is none."""
    import torch

    from noisescape.risk.arguments import checked_device

    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidValueError(f"device '{name}' asked for, but PyTorch sees no GPU here; use --device cpu")
    return checked_device(name)


def place_of(name: str, out: Path | None, resume: bool) -> Path:
    """The run's directory, by ``--out`` and ``--resume``."""
    from noisescape.runs.places import default_run_path, unfinished_run

    if out is not None:
        return out
    return (unfinished_run(name) if resume else None) or default_run_path(name)


def engine_named(name: str, address: str | None, jobs: int | None) -> Engine:
    """What ``--engine``, ``--address`` and ``--jobs`` say."""
    from noisescape.runs.local_engine import Local
    from noisescape.runs.ray_engine import Ray

    if name == "ray":
        return Ray(address, jobs)
    if name != "local":
        raise unknown("engine", name, ["local", "ray"])
    if address is not None:
        raise InvalidValueError("--address is of a Ray cluster: add --engine ray, or leave it out")
    return Local(jobs)


def text_of(path: Path | None) -> str | None:
    """A path as constants hold it."""
    return None if path is None else str(path)
