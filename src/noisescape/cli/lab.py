"""``noisescape lab``: a command for every later law, and one for all."""

from __future__ import annotations

import typer

from noisescape.cli.app import CommandList, app
from noisescape.cli.experiments import command, suite_command
from noisescape.experiments.lab.registry import LABS
from noisescape.experiments.suite import lab_suite

lab = typer.Typer(
    cls=CommandList, help="Try a law that came after the paper.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(lab, name="lab")

for known in LABS.values():
    lab.command(known.name, help=known.help)(command(known))

lab.command("all", help="Every law of the theory lab, one combined report, and the ledger of what holds.")(
    suite_command(lab_suite, "lab", "The theory lab: what came after the paper")
)
