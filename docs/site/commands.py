"""The reference of the command line, from the program's own help."""

from typing import Any

import typer
from typer.cli import get_docs_for_click

PLACE = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    if PLACE not in markdown:
        return markdown
    from noisescape.cli import app

    command = typer.main.get_command(app)
    context = command.make_context("noisescape", ["--version"], resilient_parsing=True)
    written = get_docs_for_click(obj=command, ctx=context, name="noisescape")
    return markdown.replace(PLACE, written.partition("\n")[2])
