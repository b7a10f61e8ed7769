"""The command line: reads options, calls the library, prints. No logic of its own.

A file has a command, or a few that belong together. What works is imported where it is called, so that ``--help``
waits for nothing.
"""

# in the order of --help
# isort: off
from noisescape.cli import reproduce, lab, claims, measure, batch_size, report
from noisescape.cli.app import app

__all__ = ["app", "batch_size", "claims", "lab", "measure", "report", "reproduce"]
