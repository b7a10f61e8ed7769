"""``noisescape report`` and ``noisescape watch``: runs and logs, drawn anew or while they grow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noisescape.cli.app import app
from noisescape.cli.options import Json, Prefix, Quiet
from noisescape.cli.output import check_place, console, print_json, show_run

if TYPE_CHECKING:
    from noisescape.training.log import NoiseLog


@app.command()
def report(
    subject: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|LOG", help="Directory of a complete run, or a training's log with a monitor's figures."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Write the page to this file (a run's to this one too).", show_default=False),
    ] = None,
    prefix: Prefix = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Draw a run's figures and its report.html anew, or the page of a training's log."""
    from noisescape.report import open_subject, write_report
    from noisescape.runs.run import Run
    from noisescape.runs.storage import write_text

    check_place(out)
    found = open_subject(subject, prefix=prefix)
    if not isinstance(found, Run):
        _report_log(found, out, quiet=quiet, as_json=as_json)
        return
    path = write_report(found)
    if out is not None:
        write_text(out, path.read_text(encoding="utf-8"))
        path = out
    if as_json:
        print_json({"report": str(path), **found.summary()})
    else:
        show_run(found, path, quiet)


@app.command()
def watch(
    log: Annotated[
        Path,
        typer.Argument(
            help="What a training with a monitor logs to: CSV, JSON lines, TensorBoard, trainer_state.json, W&B; "
            "or a directory with one of them."
        ),
    ],
    once: Annotated[bool, typer.Option("--once", help="Print once, as also where output is no terminal.")] = False,
    every: Annotated[float, typer.Option(metavar="SECONDS", help="How often to look for more.")] = 5.0,
    prefix: Prefix = None,
) -> None:
    """The gradient noise of a training while it runs: latest figures, their intervals, curves; Ctrl-C ends it."""
    from noisescape.report.monitor_terminal import print_log, watch_log
    from noisescape.training.log import read_log

    terminal = console()
    if once or not terminal.is_terminal:
        print_log(read_log(log, prefix=prefix), terminal)
    else:
        watch_log(log, terminal, every=every, prefix=prefix)


def _report_log(log: NoiseLog, out: Path | None, *, quiet: bool, as_json: bool) -> None:
    from noisescape.report import write_noise_report
    from noisescape.report.monitor_terminal import print_log

    path = write_noise_report(log, out)
    if as_json:
        print_json({"report": str(path), "step": int(log.steps[-1]), "reports": len(log.steps), **log.latest()})
        return
    if not quiet:
        print_log(log, console())
    console().print(f"report: {path}", soft_wrap=True)
