"""``noisescape reproduce``: a command for every experiment, and one for all of the paper's; ``noisescape demo``."""

from __future__ import annotations

import typer

from noisescape.cli.app import CommandList, app
from noisescape.cli.experiments import command, suite_command, whole_suite
from noisescape.cli.options import (
    SUITE_PRESETS,
    Device,
    Jobs,
    Json,
    Out,
    Quiet,
    Resume,
    Seed,
    device_named,
    engine_named,
    place_of,
)
from noisescape.experiments.lab.registry import LABS
from noisescape.experiments.registry import EXPERIMENTS
from noisescape.experiments.suite import paper_suite

reproduce = typer.Typer(
    cls=CommandList, help="Reproduce an experiment.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(reproduce, name="reproduce")

for known in EXPERIMENTS.values():
    if known.name not in LABS:
        reproduce.command(known.name, help=known.help)(command(known))


reproduce.command("all", help="Every experiment of the paper, one combined report, and the ledger of its claims.")(
    suite_command(paper_suite, "all", "The anisotropic noise of SGD, reproduced", SUITE_PRESETS)
)


@app.command()
def demo(
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = False,
    device: Device = "cpu",
    jobs: Jobs = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The main job: toy-2d and digits, a summary of each, and the paths of their reports."""
    device_named(device)
    suite = {name: EXPERIMENTS[name].configure(seed=seed, device=device) for name in ("toy-2d", "digits")}
    title = "Escape from sharp minima: a toy, and a small network"
    root, engine = place_of("demo", out, resume), engine_named("local", None, jobs)
    whole_suite(suite, title, root, engine=engine, resume=resume, quiet=quiet, as_json=as_json)
