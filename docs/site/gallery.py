"""The gallery's pictures of a small network on digits: ``python docs/site/gallery.py``, or with the names of some.

They are written into ``docs/images``. Pictures of experiments come from the experiments' own runs.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

import noisescape as ns
from noisescape.report.monitor_curves import drawing, panels
from noisescape.report.style import figure_style

IMAGES = Path(__file__).resolve().parents[1] / "images"
BATCH_SIZE, LR, STEPS = 32, 0.1, 500
LOSS = nn.functional.cross_entropy
SHOWN = {"gallery-noise-scale": "Noise scale", "gallery-indicator": "Tr(HΣ) of the minibatch noise"}
"""Of the monitor's figures, by title."""


@cache
def digits() -> tuple[Tensor, Tensor]:
    """1,200 images and their labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images[:1200], dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels[:1200])


@cache
def trained(seed: int) -> tuple[ns.EmpiricalRisk, Tensor, list[dict[str, float]]]:
    """The risk of a network that SGD trained, where it ended, and what a monitor said meanwhile."""
    torch.manual_seed(seed)
    layers = OrderedDict(
        first=nn.Conv2d(1, 8, 3, padding=1),
        relu=nn.ReLU(),
        second=nn.Conv2d(8, 8, 3, stride=2, padding=1),
        tanh=nn.Tanh(),
        flat=nn.Flatten(),
        hidden=nn.Linear(128, 16),
        bend=nn.Tanh(),
        output=nn.Linear(16, 10),
    )
    model = nn.Sequential(layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    images, labels = digits()
    often = {"every": 50, "measure_every": 1, "window": 100}
    probed = {"loss": LOSS, "probe": (images[:200], labels[:200]), "overhead": None}
    reports = []
    with ns.Monitor(model, optimizer, **often, **probed) as monitor:
        for _ in range(STEPS):
            batch = torch.randint(len(images), (BATCH_SIZE,))
            optimizer.zero_grad()
            LOSS(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            if report := monitor.step():
                reports.append(report)
    risk = ns.EmpiricalRisk(model, LOSS, digits())
    return risk, risk.parameters(), reports


def layers() -> Figure:
    """Noise and curvature of each layer."""
    risk, theta, _ = trained(0)
    return ns.layer_traces(risk, theta, batch_size=BATCH_SIZE).plot()


def density() -> Figure:
    """The spectrum of H."""
    risk, theta, _ = trained(0)
    return ns.spectral_density(risk.hessian(theta), steps=60).plot()


def through() -> Figure:
    """Through where it ended, along the first eigenvector of H."""
    risk, theta, _ = trained(0)
    steepest = ns.eigenpairs(risk.hessian(theta), 1).vectors[:, 0]
    steepest = steepest * steepest[steepest.abs().argmax()].sign()  # an eigenvector has no sign of its own
    return ns.loss_along(risk, torch.stack([theta - steepest, theta, theta + steepest]), about=1).plot()


def between() -> Figure:
    """From one training's end to another's."""
    risk, theta, _ = trained(0)
    return ns.loss_along(risk, torch.stack([theta, trained(1)[1]]), about=0).plot()


def monitored(title: str) -> Figure:
    """A figure of the monitor's page."""
    with tempfile.TemporaryDirectory() as folder, figure_style():
        log = Path(folder) / "log.jsonl"
        log.write_text("".join(json.dumps(report) + "\n" for report in trained(0)[2]))
        (panel,) = (panel for panel in panels(ns.training.read_log(log)) if panel.title == title)
        return drawing(panel)


PICTURES: dict[str, Callable[[], Figure]] = {
    "gallery-layers": layers,
    "gallery-density": density,
    "gallery-through": through,
    "gallery-between": between,
    **{name: (lambda title=title: monitored(title)) for name, title in SHOWN.items()},
}


def draw(name: str, folder: Path = IMAGES) -> Path:
    """One picture."""
    path = folder / f"{name}.png"
    PICTURES[name]().savefig(path, dpi=100, metadata={"Software": None})
    return path


if __name__ == "__main__":
    for chosen in sys.argv[1:] or PICTURES:
        print(draw(chosen))
