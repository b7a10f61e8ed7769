"""``python -m benchmarks.run [NAME…]``: measure, write the results, render the page."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks import harness, page

NAMES = (
    "indicator",
    "indicator_transformer",
    "steps",
    "toy",
    "products",
    "growth",
    "blocks",
    "construction",
    "monitor",
    "scaling",
    "measure",
    "long_sums",
    "pair_limits",
    "gpu",
)


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Some of {', '.join(NAMES)}. Default all.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = harness.RESULTS,
) -> None:
    """Time this library and its rivals on the same work, in turns."""
    console = Console()
    for name in names or NAMES:
        if name not in NAMES:
            raise typer.BadParameter(f"unknown benchmark {name!r}; known: {', '.join(NAMES)}")
    for name in names or NAMES:
        if name == "gpu" and not torch.cuda.is_available():
            console.print("gpu: there is none here; its figures stay as they were")
            continue
        console.rule(name)
        begun = time.perf_counter()
        outcome = importlib.import_module(f"benchmarks.{name}").run()
        stages = [outcome] if isinstance(outcome, harness.Outcome) else outcome
        for outcome in stages:  # long ones are written as they come
            path = harness.write(name, outcome, time.perf_counter() - begun, out)
        console.print(page.table(outcome.rows))
        console.print(path)
    if out == harness.RESULTS:
        console.print(page.write())


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
