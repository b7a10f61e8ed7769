"""The command line: reads options, calls the library, prints. No logic of its own."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from noisescape import __version__
from noisescape.errors import InvalidTypeError, InvalidValueError
from noisescape.experiments.claims import ledger
from noisescape.experiments.digits import DigitsConfig, run_digits
from noisescape.experiments.fashion_mnist import fashion_mnist_config, run_fashion_mnist
from noisescape.experiments.one_hidden_layer import one_hidden_layer_config, run_one_hidden_layer
from noisescape.experiments.suite import RUNNERS, check_data, open_runs, paper_suite
from noisescape.experiments.toy_2d import Toy2DConfig, run_toy_2d
from noisescape.experiments.vgg import cifar10_config, run_vgg, svhn_config
from noisescape.measurement.indicator import measure as measure_risk
from noisescape.report.tables import TABLES, ledger_text
from noisescape.risk import EmpiricalRisk
from noisescape.runs.run import Run, default_run_path, require_vacant, strict_json, unfinished_run
from noisescape.runs.storage import write_text

app = typer.Typer(
    help="The laboratory for gradient noise.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
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
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Continue the run in --out, or else the latest unfinished one in runs/."),
]
Preset = Annotated[
    str,
    typer.Option(
        help="quick (two cores, minutes), paper (published size), or as-published (its code's deviations)."
    ),
]
Seeds = Annotated[
    int | None, typer.Option(min=1, help="Independent repetitions, in place of the preset's.", show_default=False)
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Directory with NAME/SPLIT.parquet; else $NOISESCAPE_DATA, else the Hugging Face hub.",
        show_default=False,
    ),
]
TOY, DIGITS = Toy2DConfig(), DigitsConfig()


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """The laboratory for gradient noise: measure it, shape it, and watch it escape sharp minima."""
    if version:
        typer.echo(f"noisescape {__version__}")
        raise typer.Exit


@reproduce.command("toy-2d")
def toy_2d(
    preset: Annotated[str, typer.Option(help="corrected, or as-published.")] = TOY.preset,
    replicas: Annotated[int, typer.Option(help="Replicas of each dynamics.")] = TOY.replicas,
    control_replicas: Annotated[
        int, typer.Option(help="Replicas in each control geometry; 0 for none.")
    ] = TOY.control_replicas,
    steps: Annotated[int, typer.Option(help="Steps of each replica.")] = TOY.steps,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = False,
    device: Device = "cpu",
    jobs: Jobs = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The paper's 2-D toy: which noise escapes the sharp basin, at equal trace."""

    def configure() -> Toy2DConfig:
        return Toy2DConfig(
            preset=preset,  # type: ignore[arg-type]  # checked there
            replicas=replicas,
            control_replicas=control_replicas,
            steps=steps,
            seed=seed,
            device=device,
        )

    _experiment("toy-2d", configure, run_toy_2d, out, resume, device, jobs, quiet, as_json)


@reproduce.command("one-hidden-layer")
def one_hidden_layer(
    preset: Preset = "quick",
    seeds: Seeds = None,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = False,
    device: Device = "cpu",
    jobs: Jobs = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Tr(HΣ) against its isotropic reference while one-hidden-layer networks train."""

    def configure() -> Any:
        return one_hidden_layer_config(preset, seeds=seeds, seed=seed, device=device)

    _experiment("one-hidden-layer", configure, run_one_hidden_layer, out, resume, device, jobs, quiet, as_json)


@reproduce.command("fashion-mnist")
def fashion_mnist(
    preset: Preset = "quick",
    seeds: Seeds = None,
    gd_steps: Annotated[
        int | None, typer.Option(min=1, help="Gradient-descent steps to the minimum.", show_default=False)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each dynamics from there.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = False,
    device: Device = "cpu",
    jobs: Jobs = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """To a sharp minimum of a LeNet and out of it again, under every noise."""

    def configure() -> Any:
        return fashion_mnist_config(
            preset, seeds=seeds, gd_steps=gd_steps, steps=steps, data_dir=_text(data_dir), seed=seed, device=device
        )

    _experiment("fashion-mnist", configure, run_fashion_mnist, out, resume, device, jobs, quiet, as_json)


@reproduce.command("svhn")
def svhn(
    preset: Preset = "quick",
    seeds: Seeds = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.", show_default=False)] = None,
    train: Annotated[int | None, typer.Option(min=1, help="Training images.", show_default=False)] = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = False,
    device: Device = "cpu",
    jobs: Jobs = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """VGG-11 on SVHN under every noise: test accuracy, and sharpness against it."""

    def configure() -> Any:
        return svhn_config(
            preset, seeds=seeds, steps=steps, train=train, data_dir=_text(data_dir), seed=seed, device=device
        )

    _experiment("svhn", configure, run_vgg, out, resume, device, jobs, quiet, as_json)


@reproduce.command("cifar10")
def cifar10(
    preset: Preset = "quick",
    seeds: Seeds = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.", show_default=False)] = None,
    train: Annotated[int | None, typer.Option(min=1, help="Training images.", show_default=False)] = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = False,
    device: Device = "cpu",
    jobs: Jobs = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """VGG-11 on CIFAR-10 under every noise: test accuracy, and sharpness against it."""

    def configure() -> Any:
        return cifar10_config(
            preset, seeds=seeds, steps=steps, train=train, data_dir=_text(data_dir), seed=seed, device=device
        )

    _experiment("cifar10", configure, run_vgg, out, resume, device, jobs, quiet, as_json)


@reproduce.command("digits")
def digits(
    seeds: Annotated[int, typer.Option(help="Independent repetitions.")] = DIGITS.seeds,
    gd_steps: Annotated[int, typer.Option(help="Gradient-descent steps to the minimum.")] = DIGITS.gd_steps,
    steps: Annotated[int, typer.Option(help="Steps of each dynamics from there.")] = DIGITS.steps,
    batch_size: Annotated[int, typer.Option(help="B of the minibatch noise.")] = DIGITS.batch_size,
    dynamics: Annotated[str, typer.Option(help="Names of the compared dynamics, separated by commas.")] = ",".join(
        DIGITS.dynamics
    ),
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = False,
    device: Device = "cpu",
    jobs: Jobs = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Escape from a sharp minimum of a small network on real images that need no download."""

    def configure() -> DigitsConfig:
        return DigitsConfig(
            seeds=seeds,
            gd_steps=gd_steps,
            steps=steps,
            batch_size=batch_size,
            dynamics=tuple(name.strip() for name in dynamics.split(",")),
            seed=seed,
            device=device,
        )

    _experiment("digits", configure, run_digits, out, resume, device, jobs, quiet, as_json)


@reproduce.command("all")
def everything(
    preset: Annotated[str, typer.Option(help="quick or paper, for every experiment.")] = "quick",
    seeds: Seeds = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = False,
    device: Device = "cpu",
    jobs: Jobs = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Every experiment of the paper, one combined report, and the ledger of its claims."""
    with _plain_errors():
        _device(device)
        suite = paper_suite(preset, seeds=seeds, data_dir=_text(data_dir), seed=seed, device=device)
        check_data(suite)
        root = _place("all", out, resume)
        if not resume:
            require_vacant(root)
        runs = []
        for experiment, config in suite.items():
            if not quiet and not as_json:
                _print_constants(experiment, config)
            run = RUNNERS[experiment](config, root / experiment, jobs=jobs, resume=resume, progress=not quiet)
            _write_report(run)
            runs.append(run)
            if not quiet and not as_json:
                _show(run, run.path / "report.html", quiet)
        _finish_many(root, runs, quiet, as_json)


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
    with _plain_errors():
        _device(device)
        root = out or default_run_path("demo")
        runs = [
            run_toy_2d(Toy2DConfig(seed=seed, device=device), root / "toy-2d", jobs=jobs, progress=not quiet),
            run_digits(DigitsConfig(seed=seed, device=device), root / "digits", jobs=jobs, progress=not quiet),
        ]
        reports = [_write_report(run) for run in runs]
        if as_json:
            typer.echo(strict_json({run.info["experiment"]: run.summary() for run in runs}))
            return
        for run, path in zip(runs, reports, strict=True):
            _show(run, path, quiet)


@app.command()
def claims(
    runs: Annotated[list[Path], typer.Argument(help="Directories of complete runs, or of several such.")],
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also print each claim's statistic and rule.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Also write the ledger to this JSON file.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """The ledger: what the paper claims, and what these runs found."""
    with _plain_errors():
        findings = ledger(open_runs(runs))
        text = strict_json({"findings": [finding.to_dict() for finding in findings]})
        if out is not None:
            write_text(out, text)
        if as_json:
            typer.echo(text)
        else:
            Console().print(ledger_text(findings, verbose=verbose))


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
    rtol: Annotated[float, typer.Option(help="Relative standard error of the stochastic figures.")] = 0.01,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Also write the figures to this JSON file.", show_default=False)
    ] = None,
    device: Annotated[str | None, typer.Option(help="Move the risk there first.", show_default=False)] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure Tr(HΣ) and its company on your own model: noisescape measure my_module:make_risk --batch-size 128."""
    with _plain_errors():
        risk, theta = _load(target)
        if device is not None:
            risk, theta = risk.to(_device(device)), theta.to(device)
        found = measure_risk(
            risk, theta, batch_size=batch_size, replacement=not without_replacement, k=k, rtol=rtol, seed=seed
        )
        if out is not None:
            write_text(out, strict_json(found.to_dict()))
        if as_json:
            typer.echo(strict_json(found.to_dict()))
        elif not quiet:
            Console().print(found.table())


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Directory of a complete run.")],
    out: Annotated[Path | None, typer.Option(help="Also write the page to this file.", show_default=False)] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Draw a run's figures and its report.html anew."""
    with _plain_errors():
        found = Run.open(run)
        path = _write_report(found)
        if out is not None:
            write_text(out, path.read_text(encoding="utf-8"))
            path = out
        if as_json:
            typer.echo(strict_json({"report": str(path), **found.summary()}))
        else:
            _show(found, path, quiet)


def _experiment(
    name: str,
    configure: Callable[[], Any],
    work: Callable[..., Run],
    out: Path | None,
    resume: bool,
    device: str,
    jobs: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    with _plain_errors():
        _device(device)
        config = configure()
        if not quiet and not as_json:
            _print_constants(name, config)
        run = work(config, _place(name, out, resume), jobs=jobs, resume=resume, progress=not quiet)
        path = _write_report(run)
        if as_json:
            found = {
                **run.summary(),
                **run.timing(),
                "claims": [finding.to_dict() for finding in ledger([run])],
                "run": str(run.path),
                "report": str(path),
            }
            typer.echo(strict_json(found))
        else:
            _show(run, path, quiet)


def _place(name: str, out: Path | None, resume: bool) -> Path:
    if out is not None:
        return out
    return (unfinished_run(name) if resume else None) or default_run_path(name)


def _finish_many(root: Path, runs: list[Run], quiet: bool, as_json: bool) -> None:
    from noisescape.report import write_combined_report

    findings = ledger(runs)
    path = write_combined_report(root, runs)
    if as_json:
        typer.echo(
            strict_json(
                {
                    **{run.info["experiment"]: {**run.summary(), **run.timing()} for run in runs},
                    "claims": [finding.to_dict() for finding in findings],
                    "report": str(path),
                }
            )
        )
        return
    if not quiet:
        Console().print(ledger_text(findings))
    Console().print(f"report: {path}", soft_wrap=True)


def _print_constants(name: str, config: Any) -> None:
    constants = ", ".join(
        f"{key} = {value}" for key, value in dataclasses.asdict(config).items() if value is not None
    )
    Console().print(f"{name}: {constants}", style="dim", highlight=False)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _write_report(run: Run) -> Path:
    from noisescape.report import write_report  # brings matplotlib and plotly, which --help can do without

    return write_report(run)


def _show(run: Run, report_path: Path, quiet: bool) -> None:
    console = Console()
    if not quiet:
        console.print(TABLES[run.info["experiment"]](run.summary()))
        findings = ledger([run])
        if findings:
            console.print(ledger_text(findings))
        if seconds := run.timing().get("seconds"):
            console.print(f"{seconds / 60:.1f} minutes")
    console.print(f"report: {report_path}", soft_wrap=True)


def _load(target: str) -> tuple[EmpiricalRisk, torch.Tensor]:
    module_name, colon, function_name = target.partition(":")
    if not (module_name and colon and function_name):
        raise InvalidValueError(f"'{target}' is not MODULE:FUNCTION, e.g. my_module:make_risk")
    sys.path.insert(0, str(Path.cwd()))
    module = importlib.import_module(module_name)
    if not hasattr(module, function_name):
        public = [name for name in vars(module) if callable(getattr(module, name)) and not name.startswith("_")]
        raise InvalidValueError(f"{module_name} has no function '{function_name}'; it has: {', '.join(public)}")
    function = getattr(module, function_name)
    if not callable(function):
        raise InvalidTypeError(f"{target} is of type {type(function).__name__}, not a function")
    made = function()
    risk, theta = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(risk, EmpiricalRisk):
        raise InvalidTypeError(
            f"{target} returned {type(risk).__name__}, not an EmpiricalRisk or (EmpiricalRisk, theta)"
        )
    return risk, risk.parameters() if theta is None else theta


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidValueError(f"unknown device '{name}'; use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidValueError(f"device '{name}' asked for, but PyTorch sees no GPU here; use --device cpu")
    return device


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Mistakes are told in one line, without a traceback."""
    try:
        yield
    except (ValueError, TypeError, ArithmeticError, RuntimeError, OSError, ImportError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
