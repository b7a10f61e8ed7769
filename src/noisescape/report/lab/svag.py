"""Figure and report of SGD beside its stochastic differential equation."""

from __future__ import annotations

from matplotlib.figure import Figure as MplFigure

from noisescape.experiments.protocols.lab.svag import case_of
from noisescape.report.lab.page import curves_of, law_page, shown
from noisescape.report.page import Section
from noisescape.report.style import CYCLE, legend_outside, new_figure
from noisescape.runs.run import Run

ABOUT = (
    "SVAG (Li, Malladi & Arora, arXiv 2102.12470) takes ℓ steps of η/ℓ in place of one of η, with the "
    "gradients of two batches weighted so that the covariance is ℓΣ_B. All ℓ have the stochastic "
    "differential equation that the paper models SGD by, and come nearer to it as ℓ grows. Where SGD, ℓ = "
    "1, parts from large ℓ the equation does not describe it. Runs begin in a settled minimum, at shares of "
    "the learning rate at which SGD becomes unstable."
)
CAPTION = "Training loss at the same times t = kη, mean over runs; a line is a seed."


def report(run: Run) -> tuple[str, list[Section]]:
    """What the page says first, and its sections."""
    shares = run.info["config"]["below"]
    listed = ", ".join(f"{shown(run, case_of(share, 1), 'gap', '+.2f')} at η = {share:g} η*" for share in shares)
    lead = f"Change of the loss under SGD beyond that of its equation, the largest ℓ, relative: {listed}."
    return law_page(run, lead, ABOUT, draw(run), CAPTION)


def draw(run: Run) -> MplFigure:
    """The curves of every ℓ, a panel a rate."""
    config, curves = run.info["config"], curves_of(run)
    figure = new_figure(9.6, 3.8)
    for axis, share in zip(
        figure.subplots(1, len(config["below"]), squeeze=False)[0], config["below"], strict=True
    ):
        for place, ell in enumerate(config["ells"]):
            for seed, curve in enumerate(curves.of(case_of(share, ell), "curve")):
                times = [(step + 1) / len(curve) for step in curve]
                style = {"color": CYCLE[place % len(CYCLE)], "linewidth": 0.9, "alpha": 0.7}
                axis.plot(times, [*curve.values()], label=None if seed else f"ℓ = {ell}", **style)
        axis.set(xlabel="time, share of the run", ylabel="training loss", yscale="log", title=f"η = {share:g} η*")
    legend_outside(figure, axis)
    return figure
