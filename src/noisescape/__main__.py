"""``python -m noisescape``: the command line."""

from noisescape.cli import app

app(prog_name="noisescape")
