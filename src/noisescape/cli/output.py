"""What the commands print and write: tables for people, JSON for programs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from noisescape.errors import MissingPathError, OccupiedPathError, StorageError
from noisescape.experiments.registry import EXPERIMENTS

if TYPE_CHECKING:
    from rich.console import Console

    from noisescape.runs.run import Run


def console(*, stderr: bool = False) -> Console:
    """The terminal."""
    from noisescape.cli.terminal import Terminal

    return Terminal(stderr=stderr)


def check_place(out: Path | None) -> None:
    """Refuse, before any work, a file that could not be written after it.

    Raises:
        OSError: a directory in its place, none to hold it, or one that nothing may be written to.
    """
    if out is None:
        return
    if out.is_dir():
        raise OccupiedPathError(f"{out} is a directory: give --out the name of a file")
    if not out.parent.is_dir():
        raise MissingPathError(f"there is no directory {out.parent} for {out.name}: make it, or give another --out")
    if not os.access(out.parent, os.W_OK):
        raise StorageError(f"nothing may be written to {out.parent}: give another --out")


def deliver(found: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """To a file, where one is asked for, and to standard output as JSON, where that is."""
    from noisescape.runs.run import strict_json
    from noisescape.runs.storage import write_text

    if out is not None:
        write_text(out, strict_json(found))
    if as_json:
        typer.echo(strict_json(found))


def print_json(found: dict[str, Any]) -> None:
    """To standard output."""
    deliver(found, None, as_json=True)


def outcome(run: Run) -> dict[str, Any]:
    """What a run found, and what it took."""
    return {**run.summary(), **run.timing()}


def findings_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The ledger of runs, as JSON has it."""
    from noisescape.experiments.claims import ledger

    return [finding.to_dict() for finding in ledger(runs)]


def print_ledger(runs: Sequence[Run], *, verbose: bool = False) -> None:
    """The ledger of runs, where they bear on any claim."""
    from noisescape.experiments.claims import ledger
    from noisescape.report.ledger_terminal import ledger_text

    if findings := ledger(runs):
        console().print(ledger_text(findings, verbose=verbose))


def show_run(run: Run, report_path: Path, quiet: bool) -> None:
    """A complete run's tables, unless they are not wanted, and where its report is."""
    from noisescape.runs.understood import understood

    terminal = console()
    if not quiet:
        with understood(run):
            terminal.print(EXPERIMENTS[run.info["experiment"]].summary_table(run.summary()))
        print_ledger([run])
        if seconds := run.timing().get("seconds"):
            terminal.print(f"{seconds / 60:.1f} minutes")
    terminal.print(f"report: {report_path}", soft_wrap=True)
