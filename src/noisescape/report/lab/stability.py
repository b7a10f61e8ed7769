"""Figure and report of the stability law."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure as MplFigure

from noisescape.experiments.protocols.lab.stability import case_of
from noisescape.report.lab.page import law_page, means
from noisescape.report.page import Section
from noisescape.report.style import CYCLE, legend_outside, new_figure
from noisescape.runs.run import Run

ABOUT = (
    "Linearised at a minimum, SGD is δ ← (I − ηH_b)δ with H_b the mean curvature of a batch. Its mean square dies "
    "out for η below a threshold η*(B), at most 2/λ₁, that of gradient descent, and far below it for small batches "
    "(arXiv 2306.07850; Wu, Ma & E 2018). From a settled minimum runs are made at multiples of η*: of SGD, and of "
    "noise with the covariance that SGD has at the minimum, kept fixed. A run has left when its training loss is "
    "over {left:g}. What leaves by diffusion leaves under either noise; what leaves under SGD alone was unstable."
)
CAPTION = "Share of runs that left the minimum against η over its threshold: means over seeds ± standard errors."


def report(run: Run) -> tuple[str, list[Section]]:
    """What the page says first, and its sections."""
    config, cases = run.info["config"], run.summary()["cases"]
    listed = ", ".join(
        f"{cases[f'B = {size}']['share']['value']:.2f} at B = {size}" for size in config["batch_sizes"]
    )
    lead = f"SGD's threshold of mean-square stability over gradient descent's, η*λ₁/2: {listed}."
    return law_page(run, lead, ABOUT.format(left=config["left"]), draw(run), CAPTION)


def draw(run: Run) -> MplFigure:
    """The share that left against η/η*, under either noise, for every batch size."""
    config = run.info["config"]
    figure = new_figure(7.2, 3.8)
    axis = figure.subplots()
    for place, size in enumerate(config["batch_sizes"]):
        cases = [case_of(size, multiple) for multiple in config["multiples"]]
        for name, style, label in (("sgd", "-o", "SGD"), ("additive", "--s", "fixed noise")):
            shares, errors = means(run, cases, f"left/{name}")
            look: dict[str, Any] = {"fmt": style, "color": CYCLE[place % len(CYCLE)], "alpha": 0.8, "markersize": 5}
            axis.errorbar(config["multiples"], shares, errors, label=f"{label}, B = {size}", **look)
    axis.axvline(1, color="#444444", linewidth=0.8, linestyle=":")
    axis.set(xlabel="learning rate η/η*", ylabel="share of runs that left", ylim=(-0.05, 1.05))
    legend_outside(figure, axis)
    return figure
