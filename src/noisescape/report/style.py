"""One look for every figure: names, colours and axes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure


class _Labels(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return name


class _Colours(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return self.setdefault(name, CYCLE[len(self) % len(CYCLE)])


CYCLE = ("#1b7837", "#762a83", "#b35806", "#2166ac", "#c51b7d", "#01665e")
"""Colours of dynamics that have none of their own."""

LABELS = _Labels(
    {
        "gd": "GD",
        "sgd": "SGD",
        "gld-constant": "constant",
        "gld-dynamic": "dynamic",
        "gld-diagonal": "diagonal",
        "gld-leading": "leading",
        "gld-hessian": "Hessian",
        "gld-top-eigenvector": "1st eigenvector",
        "gld-leading-1": "leading, k = 1",
        "gld-full": "full covariance",
        "gld-shuffled": "shuffled directions",
        "gld-shuffled-within-layers": "shuffled within layers",
        "gd-gradient-penalty": "gradient penalty",
        "gd-after-sgd": "GD after 50 steps of SGD",
        "sgd-from-initialisation": "SGD from initialisation",
        "sgd-small-rate": "SGD at a small rate",
        "large-batch": "large batch",
        "as-if-small": "large as if small",
        "small-batch": "small batch",
        "isotropic": "isotropic noise",
        "gradient-penalty": "micro-gradient penalty",
    }
)
"""Short names of the dynamics and arms, for legends and tables; another's is its own."""

COLOURS = _Colours(
    {
        "gd": "#444444",
        "sgd": "#d62728",
        "gld-constant": "#7aa6d8",
        "gld-dynamic": "#3b6fb6",
        "gld-diagonal": "#17a2a2",
        "gld-leading": "#e58606",
        "gld-hessian": "#8f5fbf",
        "gld-top-eigenvector": "#c2448f",
        "gld-leading-1": "#a65628",
        "gld-full": "#5a9a3c",
        "gld-shuffled": "#8c6d46",
        "gld-shuffled-within-layers": "#5f7f8c",
        "gd-gradient-penalty": "#999999",
        "gd-after-sgd": "#b08a8a",
        "sgd-from-initialisation": "#f08a62",
        "sgd-small-rate": "#9c1f2f",
        "large-batch": "#444444",
        "as-if-small": "#e58606",
        "small-batch": "#d62728",
        "isotropic": "#3b6fb6",
        "gradient-penalty": "#5a9a3c",
    }
)
"""Cool colours for noise without the landscape's directions, warm ones for noise with them."""


def in_order(names: Iterable[str]) -> list[str]:
    """These dynamics in the order of the labels, those without one last."""
    known = list(LABELS)
    return sorted(names, key=lambda name: known.index(name) if name in known else len(known))


ANISOTROPIC = (
    *("sgd", "gld-leading", "gld-hessian", "gld-top-eigenvector", "gld-leading-1", "gld-full"),
    *("sgd-from-initialisation", "sgd-small-rate", "large-batch", "as-if-small", "small-batch"),
)
"""Dynamics whose noise knows the directions of the landscape; drawn with solid lines."""


def line_style(name: str) -> str:
    """Solid for anisotropic noise, dashed for the rest: readable without colour."""
    return "-" if name in ANISOTROPIC else "--"


@contextmanager
def figure_style() -> Iterator[None]:
    """Matplotlib settings shared by all figures."""
    settings: dict[Any, Any] = {
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
    }
    with mpl.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure that belongs to no window system."""
    return Figure(figsize=(width, height), layout="constrained")


def legend_outside(figure: Figure, axis: Axes) -> None:
    """The legend of one panel beside all of them."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center")
