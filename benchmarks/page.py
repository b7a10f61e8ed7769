"""docs/performance.md and its figures, from the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from rich.table import Table

from benchmarks.harness import RESULTS, Row

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
FIGURES = ROOT / "docs" / "images"
TITLES = {
    "indicator": "1 · Tr(HΣ) to 1 %",
    "indicator_transformer": "1b · Tr(HΣ) to 1 % of a transformer",
    "steps": "2 · A step of each dynamics",
    "toy": "3 · The two-dimensional toy",
    "products": "4 · Products and first-order quantities, against other libraries",
    "growth": "5 · Growth with D and N, and memory",
    "blocks": "6 · Blocks and replicas",
    "construction": "7 · Trying a model before it is relied on",
    "monitor": "8 · Watching a training",
    "scaling": "9 · Samples on several processes",
    "measure": "10 · A whole measurement, and a first look",
    "gpu": "11 · On a GPU",
    "long_sums": "12 · Sums of 10⁸ numbers",
    "pair_limits": "13 · When pairs of samples are not used",
}
NOTES = Path(__file__).parent / "notes"


def table(rows: list[Row]) -> Table:
    """For the terminal."""
    found = Table("work", "against", "ratio", "quartiles", "target", "", "note")
    for row in rows:
        found.add_row(
            row.work, _bare(row.against), _number(row.ratio), _spread(row), _target(row), _met(row.met), row.note
        )
    return found


def write() -> Path:
    """Render every result there is."""
    parts = [(NOTES / "head.md").read_text().rstrip()]
    for name, title in TITLES.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        parts.append(f"## {title}\n\n{(NOTES / f'{name}.md').read_text().rstrip()}")
        parts.append(markdown([_row(row) for row in found["rows"]]))
        if name in FIGURE_OF:
            image = FIGURES / f"performance-{name}.png"
            figure = FIGURE_OF[name](found)
            figure.savefig(image, dpi=110, bbox_inches="tight")
            plt.close(figure)
            parts.append(f"![{title}](images/{image.name})")
        parts.append(_made(found))
    PAGE.write_text("\n\n".join(parts) + "\n")
    return PAGE


def markdown(rows: list[Row]) -> str:
    """A table for the page."""
    lines = [
        "| work | against | ratio | quartiles | target | | note |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = (
            row.work,
            _bare(row.against),
            _number(row.ratio),
            _spread(row),
            _target(row),
            _met(row.met),
            row.note,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _row(stored: dict[str, Any]) -> Row:
    return Row(**{key: value for key, value in stored.items() if key != "met"})


def _bare(label: str) -> str:
    return label.rpartition(": ")[2] if ", D = " in label else label


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _spread(row: Row) -> str:
    return "" if row.low is None or row.high is None else f"{_number(row.low)} to {_number(row.high)}"


def _target(row: Row) -> str:
    return "" if row.target is None else f"{'≤' if row.better == 'lower' else '≥'} {row.target:g}"


def _met(met: bool | None) -> str:
    return {True: "✓", False: "✗", None: ""}[met]


def _made(found: dict[str, Any]) -> str:
    machine = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    where = (
        machine["device"] if machine["device"] != "cpu" else f"{machine['processor']}, {machine['threads']} threads"
    )
    return (
        f"*{found['made']}, {where}; Python {machine['python']}; {versions}; took {found['took_seconds']:.0f} s.*"
    )


def _indicator(found: dict[str, Any]) -> plt.Figure:
    """Cost, from the time that each side's run at its budget took, against accuracy."""
    figures, seconds = found["figures"], found["median_seconds"]
    figure, axes = plt.subplots(figsize=(6.5, 3.8))
    for side, curve in figures["rivals"]["error against products"].items():
        product = seconds[side] / figures["rivals"]["budgets"][side] / seconds["gradient"]
        axes.loglog([count * product for count, _ in curve], [100 * error for _, error in curve], "o-", label=side)
    ours = seconds[found["rows"][0]["side"]] / seconds["gradient"]
    rmse = 100 * figures["noisescape"]["relative_rmse"]
    axes.loglog(ours, rmse, "*", markersize=14, color="black", label="noisescape")
    axes.axhline(100 * figures["rtol"], color="grey", linewidth=0.8)
    axes.set_xlabel("cost, in gradients")
    axes.set_ylabel("relative RMSE, %")
    axes.set_title(f"one gradient: {1000 * seconds['gradient']:.0f} ms", fontsize=9)
    axes.legend(fontsize=8)
    return figure


def _growth(found: dict[str, Any]) -> plt.Figure:
    """Cost in gradients and memory in training steps, against D and N."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axes, (what, label) in zip(panels, (("with D", "parameters D"), ("with N", "samples N")), strict=True):
        points = found["figures"][what]
        sizes = [point["size"] for point in points]
        axes.loglog(sizes, [point["gradients"] for point in points], "o-", label="Tr(HΣ), in gradients")
        axes.loglog(sizes, [point["memory"] for point in points], "s--", label="peak memory, in training steps")
        asked = [point["memory_where_asked"] for point in points]
        axes.loglog(sizes, asked, "s:", label="…, a GiB asked for")
        axes.set_xlabel(label)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


FIGURE_OF = {"indicator": _indicator, "growth": _growth}
