"""``noisescape claims``: the ledger of runs that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from noisescape.cli.app import app
from noisescape.cli.options import Json
from noisescape.cli.output import check_place, deliver, findings_of, print_ledger


@app.command()
def claims(
    runs: Annotated[
        list[Path], typer.Argument(help="Directories of complete runs, or of several such; seeds are pooled.")
    ],
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also print each claim's statistic and rule.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Also write the ledger to this JSON file.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """The ledger: what the paper claims, and what these runs found."""
    from noisescape.runs.places import open_runs

    check_place(out)
    found = open_runs(runs)
    deliver({"findings": findings_of(found)}, out, as_json)
    if not as_json:
        print_ledger(found, verbose=verbose)
