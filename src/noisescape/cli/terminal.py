"""The terminal: what stands in files is shown there as it is, and never acts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment
from typing_extensions import override

from noisescape.printable import printable


class Terminal(Console):
    """A console for text that others wrote: control characters are spelt out, square brackets are no markup."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, markup=False)

    @override
    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment("\n".join(map(printable, text.split("\n"))), style)
