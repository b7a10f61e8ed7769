"""Figure and report of the local learning coefficient."""

from __future__ import annotations

from matplotlib.figure import Figure as MplFigure

from noisescape.experiments.protocols.lab.llc import KNOWN
from noisescape.report.lab.page import curves_of, law_page, shown
from noisescape.report.page import Section
from noisescape.report.style import CYCLE, new_figure
from noisescape.runs.run import Run

ABOUT = (
    "λ̂ = Nβ(E L − L(θ)) over SGLD chains around a minimum measures how fast the volume of nearly as good "
    "parameters shrinks: D/2 for a regular model, less for a singular one (Lau et al., arXiv 2308.12108). "
    "Where the expectation is known by quadrature the chains must find it. On the network its minimum by "
    "gradient descent stands beside the end of SGD. R̂ and the effective sample size say how far the chains "
    "can be trusted; the network's are short, and its λ̂ is that of the neighbourhood that γ holds them in."
)
CAPTION = "Left: estimates beside their expectation, a point a seed. Right: λ̂ of the network."


def report(run: Run) -> tuple[str, list[Section]]:
    """What the page says first, and its sections."""
    known = ", ".join(
        f"{shown(run, case, 'estimate', '.3f')} for {shown(run, case, 'expected', '.3f')}" for case in KNOWN
    )
    places = ("network, GD minimum", "network, SGD")
    network = ", ".join(f"{shown(run, case, 'estimate', '.1f')} at {case.split(', ')[1]}" for case in places)
    lead = f"λ̂ where it is known: {known}; of the network: {network}."
    return law_page(run, lead, ABOUT, draw(run), CAPTION)


def draw(run: Run) -> MplFigure:
    """Estimates against expectations, and those of the network."""
    curves = curves_of(run)
    figure = new_figure(8.6, 3.4)
    left, right = figure.subplots(1, 2)
    for place, case in enumerate(KNOWN):
        both = zip(curves.of(case, "expected"), curves.of(case, "estimate"), strict=True)
        pairs = [(wanted[0], found[0]) for wanted, found in both if wanted and found]
        left.plot(*zip(*pairs, strict=True), "o", color=CYCLE[place], alpha=0.6, label=case)
    ends = left.get_xlim()
    left.plot(ends, ends, color="#444444", linewidth=0.8, linestyle=":")
    left.set(xlabel="expected", ylabel="estimate")
    left.legend(frameon=False, fontsize=8)
    places = ("network, GD minimum", "network, SGD")
    for place, case in enumerate(places):
        found = [curve[0] for curve in curves.of(case, "estimate") if curve]
        right.plot([place] * len(found), found, "o", color=CYCLE[place + 3], alpha=0.6)
    right.set_xticks(range(len(places)), [case.split(", ")[1] for case in places])
    right.set(xlim=(-0.6, 1.6), ylabel="λ̂")
    return figure
