"""``python -m benchmarks.check FOLDER``: have ratios got worse than the committed ones? Ratios, never seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.harness import RESULTS

SLACK = 1.25
"""How much worse a ratio may be: what two runs of the same code differ by on a machine with neighbours."""


def worse(before: dict[str, object], after: dict[str, object], slack: float = SLACK) -> bool:
    """Whether a row's ratio is worse by more than ``slack``, whichever way is better."""
    old, new = float(str(before["ratio"])), float(str(after["ratio"]))
    return new > slack * old if before["better"] == "lower" else new < old / slack


def regressions(committed: Path, fresh: Path, slack: float = SLACK) -> list[str]:
    """One line for each row that got worse or is gone."""
    lines = []
    for path in sorted(fresh.glob("*.json")):
        if not (committed / path.name).exists():
            continue
        old, new = (
            {(row["work"], row["against"]): row for row in json.loads((folder / path.name).read_text())["rows"]}
            for folder in (committed, fresh)
        )
        by_work = {work: row for (work, _), row in new.items()}
        for (work, against), row in old.items():
            # the best rival may be another one today
            found = new.get((work, against), by_work.get(work))
            if found is None:
                lines.append(f"{path.stem}: {work} against {against} is gone")
            elif worse(row, found, slack):
                lines.append(
                    f"{path.stem}: {work} against {against} was {row['ratio']:.3g}, is {found['ratio']:.3g}"
                )
    return lines


def main(
    fresh: Annotated[Path, typer.Argument(help="Folder with new results.", exists=True, file_okay=False)],
    slack: Annotated[float, typer.Option(help="How many times worse a ratio may be.")] = SLACK,
) -> None:
    """Compare new ratios with the committed ones; fail if any is worse."""
    lines = regressions(RESULTS, fresh, slack)
    for line in lines:
        Console().print(line)
    raise typer.Exit(1 if lines else 0)


if __name__ == "__main__":
    typer.run(main)
