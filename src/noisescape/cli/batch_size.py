"""``noisescape batch-size``: what a training's log says of its batch size."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from noisescape.cli.app import app
from noisescape.cli.options import Json, Quiet
from noisescape.cli.output import console, deliver
from noisescape.cli.user_function import call
from noisescape.errors import InvalidTypeError, InvalidValueError


@app.command("batch-size")
def batch_size(
    log: Annotated[
        Path, typer.Argument(metavar="RUN_OR_LOG", help="A log of a monitor's reports, or the directory it is in.")
    ],
    target: Annotated[
        int | None, typer.Option("--batch-size", help="Batch size to ask about; twice the present one by default.")
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(help="sgd or adam: whose rules; adam if the log has Adam's metric.", show_default=False),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Present learning rate; the log's by default.")] = None,
    check: Annotated[
        str | None,
        typer.Option(
            help="Train branches too: MODULE:FUNCTION, a function without arguments that returns those of "
            "branched_check as a dict.",
            show_default=False,
        ),
    ] = None,
    multiples: Annotated[
        str | None,
        typer.Option(help="Batch sizes to train with, over the present one: 1,2,4,8.", show_default=False),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Samples to train each branch on.", show_default=False)
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="How much higher a loss may be, not to be worse.", show_default=False)
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Orders of the samples.", show_default=False)] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Keep finished branches in this directory, or go on there.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write what was found to this JSON file.", show_default=False)
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """What batch size? From the noise scale in a log, and, with --check, from training with larger ones."""
    from noisescape.report.tables import batch_size_table, branches_table, caveats_text
    from noisescape.training import BatchSizeAdvice, branched_check, read_log

    given: dict[str, Any] = {"samples": samples, "tolerance": tolerance, "seeds": seeds, "run": run}
    given["multiples"] = None if multiples is None else _numbers("multiples", multiples)
    given = {name: value for name, value in given.items() if value is not None}
    if given and check is None:
        raise InvalidValueError(f"--{', --'.join(given)} only with --check MODULE:FUNCTION")
    advice = BatchSizeAdvice.from_log(read_log(log), target=target, optimizer=optimizer, lr=lr)  # type: ignore[arg-type]
    arguments = {} if check is None else _branching(check, batch_size=advice.batch_size, given=given)
    found: dict[str, Any] = {"advice": advice.to_dict()}
    shown = not as_json and not quiet
    if shown:
        heading = f"batch size {advice.batch_size} → {advice.target}"
        console().print(batch_size_table(found["advice"]).to_rich(heading), caveats_text(found["advice"]), sep="\n")
    if check is not None:
        found["check"] = branched_check(**arguments, progress=not quiet).to_dict()
        if shown:
            console().print(branches_table(found["check"]).to_rich("\nbranches from the checkpoint"))
    deliver(found, out, as_json)


def _branching(target: str, *, batch_size: int, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a branched check: the log's batch size, what the user's own function returns, options."""
    from noisescape.training import branched_check

    made = call(target)
    if not isinstance(made, dict):
        raise InvalidTypeError(f"{target} returned {type(made).__name__}, not a dict of branched_check's arguments")
    options = {"out" if name == "run" else name: value for name, value in given.items()}
    arguments = {"batch_size": batch_size, **made, **options}
    try:
        inspect.signature(branched_check).bind(**arguments)
    except TypeError as error:
        raise InvalidTypeError(
            f"{target} and the options are to give branched_check's arguments, but: {error}"
        ) from None
    return arguments


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidValueError(f"{name} are whole numbers with commas between them, not {text!r}") from None
