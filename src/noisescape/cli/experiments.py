"""What the commands of experiments have in common: a command each, and one for a whole suite."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisescape.cli.interruptions import resumable
from noisescape.cli.options import (
    PRESETS,
    Address,
    DataDir,
    Device,
    EngineName,
    Jobs,
    Json,
    Out,
    Quiet,
    Resume,
    Seed,
    Seeds,
    device_named,
    engine_named,
    place_of,
    text_of,
)
from noisescape.cli.output import console, findings_of, outcome, print_json, print_ledger, show_run
from noisescape.experiments.experiment import Experiment, Option
from noisescape.experiments.registry import EXPERIMENTS
from noisescape.experiments.suite import check_data

if TYPE_CHECKING:
    from noisescape.runs.run import Run
    from noisescape.runs.tasks import Engine


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
    device_named(device)
    place = place_of(experiment.name, out, resume)
    where = engine_named(engine, address, jobs)
    with resumable():
        run, path = perform(config, place, engine=where, resume=resume, quiet=quiet, as_json=as_json)
    if as_json:
        print_json({**outcome(run), "claims": findings_of([run]), "run": str(run.path), "report": str(path)})


def command(experiment: Experiment) -> Callable[..., None]:
    """The function behind an experiment's command, with a parameter for its preset and each of its options."""

    def run(**given: Any) -> None:
        constants = {
            option.constant: _constant(option, given.pop(option.constant)) for option in experiment.options
        }
        one_experiment(experiment, constants, **given)

    options = [_parameter(option, experiment) for option in experiment.options]
    return _with_options(run, [_keyword("preset", "quick", preset_option(experiment.presets)), *options])


def suite_command(
    make: Callable[..., Mapping[str, Any]], name: str, title: str, presets: Iterable[str] = ()
) -> Callable[..., None]:
    """The function behind the command of a whole suite.

    Args:
        make: the suite's constants from those that are set.
        name: what its directory is called.
        title: of its report.
        presets: to choose from, where there are several.
    """

    def run(
        out: Path | None,
        resume: bool,
        jobs: int | None,
        engine: str,
        address: str | None,
        quiet: bool,
        as_json: bool,
        **given: Any,
    ) -> None:
        suite = make(**{**given, "data_dir": text_of(given["data_dir"])})
        device_named(given["device"])
        where = engine_named(engine, address, jobs)
        root = place_of(name, out, resume)
        whole_suite(suite, title, root, engine=where, resume=resume, quiet=quiet, as_json=as_json)

    choice = [_keyword("preset", "quick", preset_option(presets))] if presets else []
    return _with_options(run, [*choice, _keyword("seeds", None, Seeds), _keyword("data_dir", None, DataDir)])


def _with_options(run: Callable[..., None], own: Iterable[inspect.Parameter]) -> Callable[..., None]:
    """A function whose signature has these options, and those that every experiment's command has."""
    common = [*inspect.signature(one_experiment, eval_str=True).parameters.values()][3:]
    parameters = [*own, *(_keyword(known.name, known.default, known.annotation) for known in common)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def preset_option(names: Iterable[str]) -> Any:
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
    return text_of(given) if option.kind is Path else given


def whole_suite(
    suite: Mapping[str, Any], title: str, root: Path, *, engine: Engine, resume: bool, quiet: bool, as_json: bool
) -> None:
    """Run every experiment of a suite below one directory, with a combined report and the ledger."""
    check_data(suite)
    from noisescape.report import write_combined_report
    from noisescape.runs.places import require_vacant

    if not resume:
        require_vacant(root)
    runs = []
    with resumable():
        for name, config in suite.items():
            run, _ = perform(config, root / name, engine=engine, resume=resume, quiet=quiet, as_json=as_json)
            runs.append(run)
        path = write_combined_report(root, runs, title)
    if as_json:
        found = {run.info["experiment"]: outcome(run) for run in runs}
        print_json({**found, "claims": findings_of(runs), "report": str(path)})
        return
    if not quiet:
        print_ledger(runs)
    console().print(f"report: {path}", soft_wrap=True)


def perform(
    config: Any, place: Path, *, engine: Engine, quiet: bool, as_json: bool, resume: bool = False
) -> tuple[Run, Path]:
    """Run an experiment and draw its report; what is asked for is printed before, what was found after."""
    from noisescape.report import write_report

    if not quiet and not as_json:
        constants = ", ".join(
            f"{key} = {value}" for key, value in dataclasses.asdict(config).items() if value is not None
        )
        console().print(f"{config.experiment}: {constants}", style="dim", highlight=False)
    experiment = EXPERIMENTS[config.experiment]
    run = experiment.run(config, place, engine=engine, resume=resume, progress=not quiet)
    path = write_report(run)
    if not as_json:
        show_run(run, path, quiet)
    return run, path
