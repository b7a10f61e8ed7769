"""Copy what a reader needs of complete runs beside this file: python docs/results/collect.py RUN[=NAME]…

A run goes into the directory NAME, by default that of its experiment.

For every run: configuration, versions and machine (run.json), summary, timing, the ledger, the table of metrics and
the figures as PNG. Reports, with their embedded figures, and checkpoints stay where they are.

Beside this file, ledger.json: all runs kept here judged together, those with the same constants pooled; and in
matched-loss, the figures of the runs at matched loss that are so pooled. Both are made anew each time, also without
a run to copy.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from noisescape.experiments.claims import ledger
from noisescape.experiments.claims.pool import Pool, pooled
from noisescape.report.matched_loss import pooled_figures
from noisescape.report.style import figure_style
from noisescape.runs.places import open_runs
from noisescape.runs.run import Run, strict_json
from noisescape.runs.storage import write_text

HERE = Path(__file__).parent


def main(arguments: list[str]) -> None:
    """Copy them."""
    for argument in arguments:
        path, _, name = argument.partition("=")
        for run in open_runs([Path(path)]):
            collect(run, HERE / (name or run.info["experiment"]))
    runs = [Run.open(path.parent) for path in sorted(HERE.glob("*/run.json"))]
    write_ledger(HERE, runs)
    for pool in pooled([run for run in runs if run.info["experiment"] == "matched-loss"]):
        if len(pool.runs) > 1:
            draw_together(HERE / "matched-loss", pool)


def collect(run: Run, target: Path) -> None:
    """Copy one of them."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in ("run.json", "summary.json", "timing.json", "metrics.parquet"):
        shutil.copyfile(run.path / name, target / name)
    for picture in sorted((run.path / "figures").glob("*.png")):
        shutil.copyfile(picture, target / picture.name)
    write_ledger(target, [run])


def write_ledger(target: Path, runs: Sequence[Run]) -> None:
    """Write what these runs found together."""
    findings = [finding.to_dict() for finding in ledger(runs)]
    write_text(target / "ledger.json", strict_json({"findings": findings}))


def draw_together(target: Path, pool: Pool) -> None:
    """Draw what pooled runs at matched loss show together."""
    target.mkdir(exist_ok=True)
    with figure_style():
        for name, figure in pooled_figures(pool.runs).items():
            figure.savefig(target / f"{name}.png", dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main(sys.argv[1:])
