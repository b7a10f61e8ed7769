"""Figure and report of the alignment laws."""

from __future__ import annotations

from matplotlib.figure import Figure as MplFigure

from noisescape.experiments.protocols.lab.alignment import PLACES
from noisescape.report.lab.page import law_page, means, shown
from noisescape.report.page import Section
from noisescape.report.style import CYCLE, legend_outside, new_figure
from noisescape.runs.run import Run

ABOUT = (
    "Within a layer the variance of the noise has been seen to go as a power of the curvature, C_ii ∝ H_ii^γ with "
    "γ from 1 to 2 (arXiv 2602.05600); 1 is what a well-specified likelihood has. γ is the slope of the logarithms "
    "over random coordinates of a weight tensor, H_ii and C_ii exact, beside the slopes of pairs at random. μ = "
    "Tr(CG)/(2L‖G‖_F²), G the Gauss–Newton matrix, is the alignment factor of 2207.02628."
)
CAPTION = "γ of every weight tensor, mean over seeds ± standard error; grey: 95 % of the slopes of pairs at random."


def report(run: Run) -> tuple[str, list[Section]]:
    """What the page says first, and its sections."""
    listed = ", ".join(f"{shown(run, place, 'exponent', '.2f')} at {place}" for place in PLACES)
    factors = ", ".join(shown(run, place, "mu", ".2g") for place in PLACES)
    return law_page(run, f"γ, mean over weight tensors: {listed}; μ: {factors}.", ABOUT, draw(run), CAPTION)


def draw(run: Run) -> MplFigure:
    """γ of each tensor at each place, beside the null."""
    figure = new_figure(7.6, 3.8)
    axis = figure.subplots()
    tensors = sum(case.startswith(f"{PLACES[0]}, tensor") for case in run.summary()["cases"])
    for place, name in enumerate(PLACES):
        cases = [f"{name}, tensor {number + 1}" for number in range(tensors)]
        at = [number + 0.2 * (place - 1) for number in range(tensors)]
        low, high = means(run, cases, "null_low")[0], means(run, cases, "null_high")[0]
        axis.vlines(at, low, high, color="#bbbbbb", linewidth=5)
        values, errors = means(run, cases, "exponent")
        axis.errorbar(at, values, errors, fmt="o", color=CYCLE[place], label=name)
    for level in (1, 2):
        axis.axhline(level, color="#444444", linewidth=0.8, linestyle=":")
    axis.set_xticks(range(tensors), [f"tensor {number + 1}" for number in range(tensors)])
    axis.set(ylabel="γ")
    legend_outside(figure, axis)
    return figure
