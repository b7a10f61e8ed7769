"""A dial for the batch size: what the latest noise scale expects of another B, worked out in the page itself.

The page's script has the closed forms of :mod:`noisescape.training.batch_size`; a test holds what it shows against
them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined

from noisescape.report.monitor_answers import advice
from noisescape.report.monitor_figures import short
from noisescape.report.page import Control
from noisescape.training.batch_size import BatchSizeAdvice, Interval
from noisescape.training.log import NoiseLog

OCTAVES = 7
"""The dial goes so many doublings up from the present B; down to 1, or as many halvings."""
STOPS = 4
"""Stops in an octave."""
CAPTION = (
    "Expected at the dialled batch size relative to the present one, each with the 95 % interval that the noise "
    "scale's gives it. Gradient variance is that of the minibatch gradient, not of the update."
)


@dataclass(frozen=True)
class Row:
    """A line of the dial.

    Attributes:
        name: of the figure, for the script.
        label: what it is called.
        note: the rule it follows.
        figure: its value and interval at the start.
        factor: whether it multiplies what is now.
        lr: the learning rate that a factor comes to, where the present one is known.
    """

    name: str
    label: str
    note: str
    figure: Interval
    factor: bool = True
    lr: float | None = None

    @property
    def text(self) -> str:
        """Value and interval, as the script writes them too."""
        return written(self.figure)


def batch_dial(log: NoiseLog) -> Control:
    """The dial, set to twice the present batch size.

    Raises:
        InvalidValueError: the log has no noise scale, or no batch size to compare with.
    """
    found, by_sgd, by_adam = advice(log), advice(log, optimizer="sgd"), advice(log, optimizer="adam")
    given = {
        "size": found.batch_size,
        "stops": STOPS,
        "scale": _ends(found.noise_scale),
        "sgd": _ends(by_sgd.noise_scale),
        "trace": found.gradient_variance and found.gradient_variance * found.batch_size,
        "lr": found.lr,
    }
    source = resources.files("noisescape.report").joinpath("batch_dial.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = environment.from_string(source).render(
        given=json.dumps(given, allow_nan=False),
        size=found.batch_size,
        target=found.target,
        metric="in Adam's metric " if found.metric == "preconditioned" else "",
        scale=written(found.noise_scale),
        least=-STOPS * min(OCTAVES, int(math.log2(found.batch_size))),
        most=STOPS * OCTAVES,
        start=STOPS,
        rows=_rows(found, by_sgd, by_adam),
        lr=None if found.lr is None else short(found.lr),
        short=short,
        caveats=found.caveats,
    )
    script = resources.files("noisescape.report").joinpath("batch_dial.js").read_text(encoding="utf-8")
    return Control(html, script, CAPTION)


def dialled(size: int, stop: int) -> int:
    """The batch size at a stop of the dial."""
    return max(1, math.floor(size * 2 ** (stop / STOPS) + 0.5))


def written(figure: Interval) -> str:
    """A figure with its interval, as the script writes them too."""
    value = short(figure.value, missing="undetermined")
    return f"{value} [{short(figure.low)} to {short(figure.high)}]" if figure.known else value


def _rows(found: BatchSizeAdvice, by_sgd: BatchSizeAdvice, by_adam: BatchSizeAdvice) -> list[Row]:
    rows = [
        Row("steps", "Steps to the same loss", "S(B) = S_min (1 + B_noise/B)", found.steps),
        Row("samples", "Samples to the same loss", "S(B)·B", found.samples),
    ]
    if found.gradient_variance is not None:
        variance = found.gradient_variance * found.batch_size / found.target
        rows.append(
            Row(
                "variance",
                "Gradient variance",
                "Tr C/B, of the minibatch gradient",
                Interval(variance),
                factor=False,
            )
        )
    ratio = found.noise_scale.mapped(lambda noise: noise / found.target)
    note = "B_noise/B, in Adam's metric" if found.metric == "preconditioned" else "B_noise/B"
    rows.append(Row("relative", "Gradient variance over the squared mean", note, ratio, factor=False))
    [sgd, *_], [root, surge] = by_sgd.rules, by_adam.rules
    return [
        *rows,
        Row("sgd", "Learning rate for SGD", "η ∝ 1/(1 + B_noise/B)", sgd.factor, lr=found.lr),
        Row("adam", "Learning rate for Adam", "η ∝ √B", Interval(root.factor.value), lr=found.lr),
        Row("surge", "or, by the surge rule", "η ∝ 1/(√(B_noise/B) + √(B/B_noise))", surge.factor, lr=found.lr),
    ]


def _ends(figure: Interval) -> list[float | str | None]:
    """For the script: JSON has neither NaN nor infinity."""

    def plain(value: float) -> float | str | None:
        return None if math.isnan(value) else "Infinity" if math.isinf(value) else value

    return [plain(value) for value in (figure.value, figure.low, figure.high)]
