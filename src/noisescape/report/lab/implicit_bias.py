"""Figure and report of the implicit bias of noises."""

from __future__ import annotations

from matplotlib.figure import Figure as MplFigure

from noisescape.report.lab.page import curves_of, law_page, shown
from noisescape.report.page import Section
from noisescape.report.style import CYCLE, new_figure
from noisescape.runs.run import Run

ABOUT = (
    "With f_v(x) = ⟨v⊙v, x⟩ and fewer samples than dimensions all samples can be fitted in many ways. Noise "
    "in the labels, whose covariance depends on v, drives v to the sparse one that they came from; "
    "spherical noise does not (HaoChen, Wei, Lee & Ma, arXiv 2006.08680). Label noise stands for a penalty "
    "on the trace of the Hessian (2106.06530), which gradient descent can have without any noise "
    "(2109.14119). All arms begin at v = 1; the learning rate falls to 0 over the last two fifths. The "
    "error is ‖v⊙v − v*⊙v*‖/‖v*⊙v*‖, median of an arm's runs."
)
CAPTION = "Relative error of what each arm comes to; a point is a seed."


def report(run: Run) -> tuple[str, list[Section]]:
    """What the page says first, and its sections."""
    arms = ("gradient descent", "label noise", "spherical, the best", "penalty, no noise")
    listed = ", ".join(f"{shown(run, arm, 'error', '.2g')} ({arm})" for arm in arms)
    return law_page(run, f"Relative error, mean over problems: {listed}.", ABOUT, draw(run), CAPTION)


def draw(run: Run) -> MplFigure:
    """The errors of every arm."""
    curves = curves_of(run)
    arms = [arm for arm in run.summary()["cases"] if arm != "spherical, the best"]
    figure = new_figure(7.2, 3.6)
    axis = figure.subplots()
    for place, arm in enumerate(arms):
        errors = [max(curve.values()) for curve in curves.of(arm, "error") if curve]
        axis.plot(errors, [place] * len(errors), "o", color=CYCLE[place % len(CYCLE)], alpha=0.6)
    axis.set_yticks(range(len(arms)), arms)
    axis.invert_yaxis()
    axis.set(xlabel="relative error", xscale="log")
    return figure
