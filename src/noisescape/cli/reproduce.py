"""``noisescape reproduce``: a command for every experiment, and one for all of the paper's; ``noisescape demo``."""

from __future__ import annotations

import typer

from noisescape.cli.app import CommandList, app
from noisescape.cli.experiments import command, perform, suite_command
from noisescape.cli.options import (
    SUITE_PRESETS,
    Device,
    Jobs,
    Json,
    Out,
    Quiet,
    Seed,
    device_named,
    engine_named,
    place_of,
)
from noisescape.cli.output import print_json
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
    device: Device = "cpu",
    jobs: Jobs = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The main job: toy-2d and digits, a summary of each, and the paths of their reports."""
    device_named(device)
    root = place_of("demo", out, resume=False)
    runs = []
    for name in ("toy-2d", "digits"):
        config = EXPERIMENTS[name].configure(seed=seed, device=device)
        runs.append(
            perform(config, root / name, engine=engine_named("local", None, jobs), quiet=quiet, as_json=as_json)[0]
        )
    if as_json:
        print_json({run.info["experiment"]: run.summary() for run in runs})
