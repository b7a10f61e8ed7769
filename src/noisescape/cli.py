"""The command line: reads options, calls the library, prints. No logic of its own.

What works is imported where it is called, so that ``--help`` waits for nothing.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from noisescape import __version__
from noisescape.errors import InvalidTypeError, InvalidValueError, NoisescapeError, unknown
from noisescape.experiments.experiment import DATA_DIR, SEEDS, Experiment, Option
from noisescape.experiments.registry import EXPERIMENTS
from noisescape.experiments.suite import check_data, paper_suite

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from noisescape.risk import EmpiricalRisk
    from noisescape.runs.run import Run
    from noisescape.runs.tasks import Engine
    from noisescape.training.log import NoiseLog


class TheirError(Exception):
    """Around an exception that the user's own function raised, to part it from the system's."""


class Commands(TyperGroup):
    """The commands, with one place for what goes wrong in any of them.

    What a caller can mend is one red line and exit code 1; anything else is a bug, here or in a user's own
    function, and keeps its traceback.
    """

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # click's own type
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except TheirError as error:
            raise error.__cause__ or error from None
        except BrokenPipeError:  # the reader of a pipe had enough: click's to end
            raise
        except (NoisescapeError, OSError) as error:
            if ctx.params["debug"]:
                raise
            _console(stderr=True).print(
                f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
            )
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=Commands,
    help="The laboratory for gradient noise.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
reproduce = typer.Typer(help="Reproduce an experiment.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(reproduce, name="reproduce")

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
    "paper": "published size",
    "as-published": "with the faults of the published code",
    "poster": "as on the poster that it is compared with",
}
SUITE_PRESETS = ("quick", "paper", "as-published")
"""Those that every experiment of the paper has."""


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
) -> None:
    """The laboratory for gradient noise: measure it, shape it, and watch it escape sharp minima."""
    if version:
        typer.echo(f"noisescape {__version__}")
        raise typer.Exit


# ---------------------------------------------------------------------- reproduce


def one_experiment(
    experiment: Experiment,
    constants: dict[str, Any],
    preset: str,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = False,
    device: Device = "cpu",
    jobs: Jobs = None,
    engine: EngineName = "local",
    address: Address = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run one experiment at a preset; ``constants`` are those that its own options set."""
    config = experiment.configure(preset, **constants, seed=seed, device=device)
    _device(device)
    place = _place(experiment.name, out, resume)
    run, path = _perform(
        config, place, engine=_engine(engine, address, jobs), resume=resume, quiet=quiet, as_json=as_json
    )
    if as_json:
        _print_json({**_outcome(run), "claims": _findings([run]), "run": str(run.path), "report": str(path)})


def command(experiment: Experiment) -> Callable[..., None]:
    """The function behind an experiment's command, with a parameter for its preset and each of its options."""

    def run(**given: Any) -> None:
        constants = {
            option.constant: _constant(option, given.pop(option.constant)) for option in experiment.options
        }
        one_experiment(experiment, constants, **given)

    common = [*inspect.signature(one_experiment, eval_str=True).parameters.values()][3:]
    parameters = [
        _keyword("preset", "quick", _preset(experiment.presets)),
        *(_parameter(option, experiment) for option in experiment.options),
        *(_keyword(known.name, known.default, known.annotation) for known in common),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _preset(names: Iterable[str]) -> Any:
    """The type of an option that takes these presets."""
    return Annotated[str, typer.Option(help=", ".join(f"{name} ({PRESETS[name]})" for name in names) + ".")]


def _parameter(option: Option, experiment: Experiment) -> inspect.Parameter:
    kind: Any = str if option.kind is tuple else option.kind
    quick = getattr(experiment.presets["quick"], option.constant)
    shown = ",".join(quick) if option.kind is tuple else quick
    about = typer.Option(help=option.help, show_default=False if quick is None else f"{shown} at quick")
    return _keyword(option.constant, None, Annotated[kind | None, about])


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _constant(option: Option, given: Any) -> Any:
    """An option's value as the constant that it sets."""
    if option.kind is tuple and given is not None:
        return tuple(name.strip() for name in given.split(","))
    return _text(given) if option.kind is Path else given


for known in EXPERIMENTS.values():
    reproduce.command(known.name, help=known.help)(command(known))


@reproduce.command("all")
def everything(
    preset: _preset(SUITE_PRESETS) = "quick",  # type: ignore[valid-type]
    seeds: Seeds = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = False,
    device: Device = "cpu",
    jobs: Jobs = None,
    engine: EngineName = "local",
    address: Address = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Every experiment of the paper, one combined report, and the ledger of its claims."""
    suite = paper_suite(preset, seeds=seeds, data_dir=_text(data_dir), seed=seed, device=device)
    _device(device)
    where = _engine(engine, address, jobs)
    check_data(suite)
    from noisescape.report import write_combined_report
    from noisescape.runs.places import require_vacant

    root = _place("all", out, resume)
    if not resume:
        require_vacant(root)
    runs = []
    for name, config in suite.items():
        run, _ = _perform(config, root / name, engine=where, resume=resume, quiet=quiet, as_json=as_json)
        runs.append(run)
    path = write_combined_report(root, runs)
    if as_json:
        found = {run.info["experiment"]: _outcome(run) for run in runs}
        _print_json({**found, "claims": _findings(runs), "report": str(path)})
        return
    if not quiet:
        _print_ledger(runs)
    _console().print(f"report: {path}", soft_wrap=True)


# ---------------------------------------------------------------------- the other commands


@app.command()
def demo(
    seed: Seed = 0,
    out: Out = None,
    device: Device = "cpu",
    jobs: Jobs = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The main job: toy-2d and digits, a summary of each, and the paths of their reports."""
    _device(device)
    root = _place("demo", out, resume=False)
    runs = []
    for name in ("toy-2d", "digits"):
        config = EXPERIMENTS[name].configure(seed=seed, device=device)
        runs.append(
            _perform(config, root / name, engine=_engine("local", None, jobs), quiet=quiet, as_json=as_json)[0]
        )
    if as_json:
        _print_json({run.info["experiment"]: run.summary() for run in runs})


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

    found = open_runs(runs)
    _deliver({"findings": _findings(found)}, out, as_json)
    if not as_json:
        _print_ledger(found, verbose=verbose)


@app.command()
def measure(
    target: Annotated[
        str,
        typer.Argument(
            help="MODULE:FUNCTION, a function without arguments that returns an EmpiricalRisk, or (risk, theta)."
        ),
    ],
    batch_size: Annotated[int, typer.Option(help="B of the minibatch noise.")],
    without_replacement: Annotated[
        bool, typer.Option("--without-replacement", help="Batches drawn without replacement.")
    ] = False,
    k: Annotated[int, typer.Option(help="Leading eigenpairs.")] = 20,
    rtol: Annotated[float, typer.Option(help="Relative standard error of the stochastic estimates.")] = 0.01,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Also write what was measured to this JSON file.", show_default=False)
    ] = None,
    device: Annotated[str | None, typer.Option(help="Move the risk there first.", show_default=False)] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure Tr(HΣ) and its company on your own model: noisescape measure my_module:make_risk --batch-size 128."""
    from noisescape.measurement.indicator import measure as measure_risk

    risk, theta = _load(target)
    if device is not None:
        risk, theta = risk.to(_device(device)), theta.to(device)
    found = measure_risk(
        risk, theta, batch_size=batch_size, replacement=not without_replacement, k=k, rtol=rtol, seed=seed
    )
    _deliver(found.to_dict(), out, as_json)
    if not as_json and not quiet:
        _console().print(found.table())


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
        _console().print(
            batch_size_table(found["advice"]).to_rich(heading), caveats_text(found["advice"]), sep="\n"
        )
    if check is not None:
        found["check"] = branched_check(**arguments, progress=not quiet).to_dict()
        if shown:
            _console().print(branches_table(found["check"]).to_rich("\nbranches from the checkpoint"))
    _deliver(found, out, as_json)


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

    found = open_subject(subject, prefix=prefix)
    if not isinstance(found, Run):
        _report_log(found, out, quiet=quiet, as_json=as_json)
        return
    path = write_report(found)
    if out is not None:
        write_text(out, path.read_text(encoding="utf-8"))
        path = out
    if as_json:
        _print_json({"report": str(path), **found.summary()})
    else:
        _show(found, path, quiet)


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

    console = _console()
    if once or not console.is_terminal:
        print_log(read_log(log, prefix=prefix), console)
    else:
        watch_log(log, console, every=every, prefix=prefix)


# ---------------------------------------------------------------------- what they share


def _report_log(log: NoiseLog, out: Path | None, *, quiet: bool, as_json: bool) -> None:
    from noisescape.report import write_noise_report
    from noisescape.report.monitor_terminal import print_log

    path = write_noise_report(log, out)
    if as_json:
        _print_json({"report": str(path), "step": int(log.steps[-1]), "reports": len(log.steps), **log.latest()})
        return
    if not quiet:
        print_log(log, _console())
    _console().print(f"report: {path}", soft_wrap=True)


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidValueError(f"unknown device '{name}'; use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidValueError(f"device '{name}' asked for, but PyTorch sees no GPU here; use --device cpu")
    return device


def _place(name: str, out: Path | None, resume: bool) -> Path:
    from noisescape.runs.places import default_run_path, unfinished_run

    if out is not None:
        return out
    return (unfinished_run(name) if resume else None) or default_run_path(name)


def _load(target: str) -> tuple[EmpiricalRisk, torch.Tensor]:
    """The risk that the user's own function makes, and θ."""
    from noisescape.risk import EmpiricalRisk

    made = _call(target)
    risk, theta = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(risk, EmpiricalRisk):
        raise InvalidTypeError(
            f"{target} returned {type(risk).__name__}, not an EmpiricalRisk or (EmpiricalRisk, theta)"
        )
    return risk, risk.parameters() if theta is None else theta


def _call(target: str) -> Any:
    """What the user's own function makes."""
    module_name, colon, function_name = target.partition(":")
    if not (module_name and colon and function_name):
        raise InvalidValueError(f"'{target}' is not MODULE:FUNCTION, e.g. my_module:make_risk")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever their module raises
        raise InvalidValueError(f"cannot import {module_name}: {type(error).__name__}: {error}") from error
    if not hasattr(module, function_name):
        public = [name for name in vars(module) if callable(getattr(module, name)) and not name.startswith("_")]
        raise InvalidValueError(f"{module_name} has no function '{function_name}'; it has: {', '.join(public)}")
    function = getattr(module, function_name)
    if not callable(function):
        raise InvalidTypeError(f"{target} is of type {type(function).__name__}, not a function")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise InvalidTypeError(f"{target} is called without arguments, but: {error}") from None
    try:
        return function()
    except NoisescapeError:  # what noisescape says to the model or the data they gave it
        raise
    except Exception as error:
        raise TheirError from error


def _branching(target: str, *, batch_size: int, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a branched check: the log's batch size, what the user's own function returns, options."""
    from noisescape.training import branched_check

    made = _call(target)
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


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _perform(
    config: Any, place: Path, *, engine: Engine, quiet: bool, as_json: bool, resume: bool = False
) -> tuple[Run, Path]:
    """Run an experiment and draw its report; what is asked for is printed before, what was found after."""
    from noisescape.report import write_report

    if not quiet and not as_json:
        constants = ", ".join(
            f"{key} = {value}" for key, value in dataclasses.asdict(config).items() if value is not None
        )
        _console().print(f"{config.experiment}: {constants}", style="dim", highlight=False)
    experiment = EXPERIMENTS[config.experiment]
    run = experiment.run(config, place, engine=engine, resume=resume, progress=not quiet)
    path = write_report(run)
    if not as_json:
        _show(run, path, quiet)
    return run, path


def _engine(name: str, address: str | None, jobs: int | None) -> Engine:
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


def _outcome(run: Run) -> dict[str, Any]:
    return {**run.summary(), **run.timing()}


def _findings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    from noisescape.experiments.claims import ledger

    return [finding.to_dict() for finding in ledger(runs)]


def _deliver(found: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """To a file, where one is asked for, and to standard output as JSON, where that is."""
    from noisescape.runs.run import strict_json
    from noisescape.runs.storage import write_text

    if out is not None:
        write_text(out, strict_json(found))
    if as_json:
        typer.echo(strict_json(found))


def _print_json(found: dict[str, Any]) -> None:
    _deliver(found, None, as_json=True)


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _print_ledger(runs: Sequence[Run], *, verbose: bool = False) -> None:
    from noisescape.experiments.claims import ledger
    from noisescape.report.tables import ledger_text

    if findings := ledger(runs):
        _console().print(ledger_text(findings, verbose=verbose))


def _show(run: Run, report_path: Path, quiet: bool) -> None:
    console = _console()
    if not quiet:
        console.print(EXPERIMENTS[run.info["experiment"]].summary_table(run.summary()))
        _print_ledger([run])
        if seconds := run.timing().get("seconds"):
            console.print(f"{seconds / 60:.1f} minutes")
    console.print(f"report: {report_path}", soft_wrap=True)
