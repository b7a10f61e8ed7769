"""``noisescape lab``: a command for every later law, and one for all."""

from __future__ import annotations

import typer

from noisescape.cli.app import app
from noisescape.cli.experiments import command, whole_suite
from noisescape.cli.options import (
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
from noisescape.experiments.lab.registry import LABS
from noisescape.experiments.suite import lab_suite

lab = typer.Typer(help="Try a law that came after the paper.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(lab, name="lab")

for known in LABS.values():
    lab.command(known.name, help=known.help)(command(known))


@lab.command("all")
def everything(
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
    """Every law of the theory lab, one combined report, and the ledger of what holds."""
    suite = lab_suite(seeds=seeds, data_dir=text_of(data_dir), seed=seed, device=device)
    device_named(device)
    where = engine_named(engine, address, jobs)
    root = place_of("lab", out, resume)
    title = "The theory lab: what came after the paper"
    whole_suite(suite, title, root, engine=where, resume=resume, quiet=quiet, as_json=as_json)
