"""``python -m noisescape``: the command line."""

from noisescape.cli import app

if __name__ == "__main__":
    app(prog_name="noisescape")
