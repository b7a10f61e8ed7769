"""Figure and report of the exit laws."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure as MplFigure

from noisescape.report.lab.page import curves_of, law_page, shown
from noisescape.report.page import Section
from noisescape.report.style import CYCLE, new_figure
from noisescape.runs.run import Run

CASES = ("well, additive", "well, multiplicative", "network, fixed noise", "network, SGD")
ABOUT = (
    "Noise that does not depend on θ leaves a basin after a time exponential in the barrier (Kramers; arXiv "
    "2002.03495). Noise whose variance goes with the loss leaves after a power of it (2105.09557). Both "
    "laws, of two parameters each, are fitted by maximum likelihood to the same times, runs that did not "
    "leave counted as cut off. In double wells the answer is known. On the network times are those of the "
    "first passage of the training loss over several rises, from a settled minimum and below the threshold "
    "of stability: under SGD, and under noise of the covariance that SGD has at the minimum, kept fixed."
)
CAPTION = "Mean time of passage, exits over exposure, against the rise of the loss; a line is a seed."


def report(run: Run) -> tuple[str, list[Section]]:
    """What the page says first, and its sections."""
    cases = [case for case in CASES if "difference" in run.summary()["cases"].get(case, {})]
    listed = ", ".join(f"{shown(run, case, 'difference', '+.1f')} ({case})" for case in cases)
    lead = f"Log-likelihood of the exponential law less that of the power law: {listed}."
    return law_page(run, lead, ABOUT, draw(run), CAPTION)


def draw(run: Run) -> MplFigure:
    """Times against rises, in the wells and on the network."""
    curves = curves_of(run)
    figure = new_figure(9.6, 3.8)
    axes = figure.subplots(1, 2)
    for place, case in enumerate(CASES):
        axis = axes[0] if case.startswith("well") else axes[1]
        both = zip(curves.of(case, "rise"), curves.of(case, "time"), strict=True)
        for seed, (rises, times) in enumerate(both):
            steps = [step for step in rises if step in times]
            style = {"color": CYCLE[place % len(CYCLE)], "marker": "o", "markersize": 3, "alpha": 0.7}
            label = None if seed else case.split(", ")[1]
            axis.plot([rises[step] for step in steps], [times[step] for step in steps], label=label, **style)
    for axis, title in zip(np.ravel(axes), ("double wells", "network"), strict=True):
        axis.set(xlabel="rise of the loss", ylabel="mean time, steps", yscale="log", title=title)
        axis.legend(frameon=False, fontsize=8)
    return figure
