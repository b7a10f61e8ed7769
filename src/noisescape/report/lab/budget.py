"""Figure and report of batch sharpness along training."""

from __future__ import annotations

from matplotlib.figure import Figure as MplFigure

from noisescape.report.lab.page import curves_of, law_page, shown
from noisescape.report.page import Section
from noisescape.report.style import CYCLE, legend_outside, new_figure
from noisescape.runs.run import Run

ABOUT = (
    "A step θ − ηg_B lowers its own batch's quadratic model if g_BᵀH_Bg_B/‖g_B‖² is below 2/η. Its mean "
    "over batches, batch sharpness, has been seen to settle there under SGD while λ₁ of the whole loss "
    "stays lower (arXiv 2412.20553, squared loss); with momentum β at 2(1−β)/η for small batches "
    "(2604.14108). A fully connected network trains on digits from its initialisation: on squared loss with "
    "momentum and without, η in proportion to 1−β so that all move as far, and on cross-entropy."
)
CAPTION = "Batch sharpness over its level, 2(1−β)/η, and λ₁ over its own, 2(1+β)/η; a line is a seed."


def report(run: Run) -> tuple[str, list[Section]]:
    """What the page says first, and its sections."""
    listed = ", ".join(f"{shown(run, case, 'settled', '.2f')} for {case}" for case in run.summary()["cases"])
    lead = f"Batch sharpness over its level, mean over the last quarter of the steps: {listed}."
    return law_page(run, lead, ABOUT, draw(run), CAPTION)


def draw(run: Run) -> MplFigure:
    """Both quotients along training."""
    curves, cases = curves_of(run), [*run.summary()["cases"]]
    figure = new_figure(9.6, 3.8)
    for axis, metric, label in zip(
        figure.subplots(1, 2), ("edge", "largest"), ("batch sharpness / level", "λ₁ / level"), strict=True
    ):
        for place, case in enumerate(cases):
            for seed, curve in enumerate(curves.of(case, metric)):
                style = {"color": CYCLE[place % len(CYCLE)], "linewidth": 0.9, "alpha": 0.7}
                axis.plot([*curve], [*curve.values()], label=None if seed else case, **style)
        axis.axhline(1, color="#444444", linewidth=0.8, linestyle=":")
        axis.set(xlabel="step", ylabel=label)
    legend_outside(figure, axis)
    return figure
