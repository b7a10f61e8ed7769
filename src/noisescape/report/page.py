"""A self-contained HTML page: tables, figures and interactive plots, with nothing fetched."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jinja2 import Environment, StrictUndefined

from noisescape.errors import InvalidValueError

if TYPE_CHECKING:
    import matplotlib.figure
    import rich.table

    from noisescape.runs.run import Run

Tone = Literal["good", "care", "bad", "open", "plain"]

# a sign, digits and what may follow them (error bars, powers of ten, ranges), then perhaps a short unit
_NUMBER = re.compile(
    r"[-−+±<>≤≥≈~]?\s?[(\[]?[-−+]?[.\d∞][\d\s.,eE^+\-−–±×·/()\[\]⁰¹²³⁴⁵⁶⁷⁸⁹⁻]*([a-zµ%]{1,3})?", re.ASCII
)
_NOTHING = {"", "–"}
_NO_NUMBER = {"", "-", "−", "–", "—", "nan", "inf", "-inf", "n/a", "diverged"}
# a link may lead elsewhere; nothing else may
_EXTERNAL = re.compile(r"""<(?!a\s)[^>]*\b(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """Cells as text; a column of numbers is set to the right.

    Attributes:
        columns: their titles.
        rows: a cell for each column.
        caption: what the table shows.
        wide: columns that a terminal has no room for.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    wide: Sequence[str] = ()

    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise InvalidValueError(
                    f"row {index} has {len(row)} cells for {len(self.columns)} columns: {row!r}"
                )

    def condensed(self) -> Table:
        """Without what repeats: no column that is empty, or the same in every row: the caption says that."""
        kept, same = [], []
        for index, column in enumerate(self.columns):
            cells = {row[index] for row in self.rows}
            if self.rows and cells <= _NOTHING:
                continue
            if len(self.rows) > 1 and len(cells) == 1 and not self.numeric[index]:
                same.append(f"{column} is {cells.pop()}")
            else:
                kept.append(index)
        if not kept:
            return self
        columns = [self.columns[index] for index in kept]
        rows = [[row[index] for index in kept] for row in self.rows]
        caption = f"{self.caption} In every row {'; '.join(same)}." if same else self.caption
        return replace(self, columns=columns, rows=rows, caption=caption)

    @property
    def groups(self) -> Sequence[int]:
        """For each row, how many from it on begin with the same cell; 0 where the row before has it too."""
        first = [row[0] for row in self.rows]
        spans = [0] * len(first)
        start = 0
        for index, cell in enumerate(first):
            if cell != first[start]:
                start = index
            spans[start] += 1
        return spans

    @property
    def numeric(self) -> tuple[bool, ...]:
        """For each column, whether its cells are numbers."""
        return tuple(_are_numbers([row[index] for row in self.rows]) for index in range(len(self.columns)))

    def labelled(self, labels: Mapping[str, str]) -> Table:
        """The table with labels in place of the names that have one."""
        rows = [[labels.get(cell, cell) for cell in row] for row in self.rows]
        return replace(self, rows=rows)

    def to_rich(self, heading: str) -> rich.table.Table:
        """For a terminal; rows that share their first cell stand together under it."""
        from rich import box, table

        said = self.condensed()
        shown = [index for index, column in enumerate(said.columns) if column not in said.wide]
        made = table.Table(
            title=heading,
            caption=said.caption,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            collapse_padding=True,
        )
        for index in shown:  # no wider than its cells, so that all fit beside each other
            numeric = said.numeric[index]
            width = max(10, *(len(row[index]) for row in said.rows))
            title = textwrap.fill(said.columns[index], width, break_long_words=False)
            made.add_column(title, justify="right" if numeric else "left", no_wrap=not numeric)
        groups = said.groups
        grouped = len(groups) > sum(map(bool, groups))
        for row, span, following in zip(said.rows, groups, [*groups[1:], 1], strict=True):
            cells = [row[index] if index or span else "" for index in shown]
            made.add_row(*cells, end_section=grouped and bool(following))
        return made


@dataclass(frozen=True)
class Figure:
    """A still picture: the text of an SVG, or the path of one."""

    svg: str | Path
    caption: str

    kind: ClassVar[str] = "figure"

    @classmethod
    def drawn(cls, run: Run, name: str, figure: matplotlib.figure.Figure, caption: str) -> Figure:
        """A figure of Matplotlib, saved among those of a run."""
        return cls(run.save_figure(name, figure), caption)

    @property
    def name(self) -> str:
        """What a picture from a file is called; empty where it is none."""
        return self.svg.stem if isinstance(self.svg, Path) else ""

    @property
    def data_uri(self) -> str:
        """The picture as an address that holds it.

        Inside an image element the ids of two SVGs cannot clash, and neither scripts nor
        references to other hosts are followed.
        """
        text = self.svg.read_text(encoding="utf-8") if isinstance(self.svg, Path) else self.svg
        if "<svg" not in text:
            raise InvalidValueError(f"not an SVG: {text[:60]!r}; give its text as str, or its path as pathlib.Path")
        return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode("ascii")


@dataclass(frozen=True)
class Interactive:
    """A plot as an HTML fragment that expects plotly.js in the page, and a script. Both are trusted."""

    html: str
    caption: str
    script: str = ""

    kind: ClassVar[str] = "interactive"

    def __post_init__(self) -> None:
        if _EXTERNAL.search(self.html):
            raise InvalidValueError("the fragment fetches from the network: render it with include_plotlyjs=False")

    @classmethod
    def from_plotly(cls, figure: Any, caption: str) -> Interactive:
        """The fragment of a ``plotly.graph_objects.Figure``."""
        fragment: str = figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            auto_play=False,
            config={"displayModeBar": False, "responsive": True},  # it has a button that sends the data away
        )
        return cls(fragment, caption)

    @classmethod
    def moving(cls, figure: Any, caption: str) -> Interactive:
        """The same of a figure with frames, with a button to play it and a slider over their names."""
        names = [frame.name for frame in figure.frames]
        player = (
            f'<div class="player" data-frames="{html.escape(json.dumps(names))}">'
            f"{cls.from_plotly(figure, caption).html}"
            '<p class="playing"><button type="button">▶ play</button> <label>step <input type="range" min="0" '
            f'max="{len(names) - 1}" value="0"> <output>{html.escape(names[0])}</output></label></p></div>'
        )
        return cls(player, caption, resources.files("noisescape.report").joinpath("player.js").read_text("utf-8"))


@dataclass(frozen=True)
class Answer:
    """A question, its answer in a sentence, and how sure that is.

    Attributes:
        question, answer, sure: sentences.
        verdict: the answer in a few words.
        tone: the colour of the verdict, which says nothing that its words do not; plain where it judges nothing.
    """

    question: str
    answer: str
    sure: str
    verdict: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Answers:
    """Several answers, one beside the other where there is room."""

    answers: Sequence[Answer]
    caption: str

    kind: ClassVar[str] = "answers"


@dataclass(frozen=True)
class Story:
    """What fits on the first screen: a question with its answer, and the picture that shows it.

    Attributes:
        answer: question, answer and how sure that is.
        about: what there is to say to the picture.
        picture: where there is one.
    """

    answer: Answer
    about: str = ""
    picture: Figure | None = None


@dataclass(frozen=True)
class Verdict:
    """One finding on a claim.

    Attributes:
        verdict: in words.
        tone: as :class:`Answer`'s, its colour.
        case: what it is of.
        effect: with its interval, as text.
        bar: where on a line 0, both ends and the effect lie, in per cent of it; None where an end is not finite.
        details: n, p, a note: what there is.
    """

    verdict: str
    tone: str
    case: str
    effect: str
    bar: tuple[float, float, float, float] | None
    details: Sequence[str]


@dataclass(frozen=True)
class Judged:
    """A claim and what was found of it."""

    statement: str
    standing: str
    verdicts: Sequence[Verdict]


@dataclass(frozen=True)
class Verdicts:
    """Claims, each with its findings: a badge, the effect, and its interval drawn."""

    claims: Sequence[Judged]
    caption: str

    kind: ClassVar[str] = "verdicts"


@dataclass(frozen=True)
class Control:
    """Something to set, as an HTML fragment with a script of its own. Both are trusted, not escaped."""

    html: str
    script: str
    caption: str

    kind: ClassVar[str] = "control"

    def __post_init__(self) -> None:
        if _EXTERNAL.search(self.html):
            raise InvalidValueError("the fragment fetches from the network")


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs (parted by blank lines), and what there is to look at.

    Attributes:
        title, text, items: those.
        side_by_side: items beside each other where there is room.
    """

    title: str
    text: str
    items: Sequence[Table | Figure | Interactive | Answers | Verdicts | Control] = ()
    side_by_side: bool = False


def render(title: str, opening: str | Story, sections: Sequence[Section], facts: Mapping[str, str]) -> str:
    """The page. ``facts`` say how it came about (experiment, seed, versions) and fold away at its end."""
    items = [item for section in sections for item in section.items]
    interactive = any(item.kind == "interactive" for item in items)
    acting = [item for item in items if isinstance(item, Control | Interactive) and item.script]
    scripts = list(dict.fromkeys(item.script for item in acting))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["paragraphs"] = _paragraphs
    source = resources.files("noisescape.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        title=title,
        lead=opening if isinstance(opening, str) else "",
        story=opening if isinstance(opening, Story) else None,
        sections=sections,
        facts=facts,
        plotlyjs=_plotlyjs() if interactive else None,
        scripts=scripts,
        allowed=_allowed(scripts, interactive),
    )


def _allowed(scripts: Sequence[str], interactive: bool) -> str:
    """The scripts that a browser is to run: just these, or any where plotly makes more of its own."""
    if interactive:
        return "'unsafe-inline' 'unsafe-eval'"
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in digests)


def _plotlyjs() -> str:
    """The basic part of plotly.js 4.1.1 (MIT licence), a quarter of the whole that comes with plotly."""
    packed = resources.files("noisescape.report").joinpath("plotly-basic.min.js.gz").read_bytes()
    return gzip.decompress(packed).decode("utf-8")


def _paragraphs(text: str) -> list[str]:
    return [paragraph.strip() for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def _are_numbers(cells: Sequence[str]) -> bool:
    given = [cell.strip() for cell in cells if cell.strip().lower() not in _NO_NUMBER]
    return bool(given) and all(_NUMBER.fullmatch(cell.removesuffix("± ?")) for cell in given)
