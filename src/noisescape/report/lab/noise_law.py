"""Figure and report of the noise's tails and of epochs."""

from __future__ import annotations

from matplotlib.figure import Figure as MplFigure

from noisescape.report.lab.page import curves_of, law_page, means, shown
from noisescape.report.page import Section
from noisescape.report.style import CYCLE, new_figure
from noisescape.runs.run import Run

ABOUT = (
    "Minibatch noise has been called heavy-tailed, α-stable with α below 2 (arXiv 1901.06053), and the "
    "finding an artefact of taking all coordinates for one sample (1910.09626; Xie et al. 2023). Here both "
    "axes stand apart, each beside Gaussian noise of the same covariance: over iterations, the law of a "
    "coordinate from batch to batch; over coordinates, the spread of one noise vector. α is the stable "
    "index by sums of groups, 2 for a Gaussian.\n\n"
    "Batches dealt out by epochs lean against each other, E ε_sε_tᵀ = −Σ/(M−1) within an epoch of M, so "
    "that flat directions keep less variance than with independent batches (2306.05300); the closed form is "
    "for a quadratic."
)
CAPTION = (
    "Left: α over iterations and over coordinates, filled, beside that of the Gaussian null, open. Right: the "
)
CAPTION += "variance along eigenvectors of H with epochs over that without, and what the closed form says."


def report(run: Run) -> tuple[str, list[Section]]:
    """What the page says first, and its sections."""
    cases = _tested(run)
    indices = {
        case: [shown(run, case, f"index_over_iterations{of}", ".2f") for of in ("", "/null")] for case in cases
    }
    listed = "; ".join(f"{value} ({null}) at {case}" for case, (value, null) in indices.items())
    lead = f"Stable index of the noise over iterations, that of its Gaussian null in brackets: {listed}."
    return law_page(run, lead, ABOUT, draw(run), CAPTION)


def draw(run: Run) -> MplFigure:
    """Indices beside their nulls; variances beside the closed form."""
    cases = _tested(run)
    figure = new_figure(10.4, 4.2)
    left, right = figure.subplots(1, 2)
    for place, axis_name in enumerate(("iterations", "coordinates")):
        places = [number + 0.3 * place for number in range(len(cases))]
        colour = CYCLE[place]
        for metric, fill in ((f"index_over_{axis_name}", colour), (f"index_over_{axis_name}/null", "white")):
            values, errors = means(run, cases, metric)
            label = f"over {axis_name}" if fill == colour else None
            left.errorbar(values, places, xerr=errors, fmt="o", color=colour, mfc=fill, label=label)
    left.set_yticks([number + 0.15 for number in range(len(cases))], cases)
    left.set(xlabel="stable index α")
    left.legend(frameon=False, fontsize=8)
    curves = curves_of(run)
    both = (curves.of("epochs", name) for name in ("curvature", "ratio", "predicted"))
    for seed, (curvature, ratio, predicted) in enumerate(zip(*both, strict=True)):
        order = sorted(curvature, key=lambda step: curvature[step])
        along = [curvature[step] for step in order]
        right.plot(along, [ratio[step] for step in order], "o", color=CYCLE[2], alpha=0.5, markersize=4,
                   label=None if seed else "measured")  # fmt: skip
        right.plot(along, [predicted[step] for step in order], "-", color="#444444", linewidth=0.8,
                   label=None if seed else "closed form")  # fmt: skip
    right.set(xlabel="curvature λ", ylabel="variance, epochs / independent", xscale="log", yscale="log")
    right.legend(frameon=False, fontsize=8)
    return figure


def _tested(run: Run) -> list[str]:
    return [case for case, found in run.summary()["cases"].items() if "index_over_iterations" in found]
