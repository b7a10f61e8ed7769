"""Runs that others made: their text is shown and never run, and nothing outside their directory is touched."""

from __future__ import annotations

import html
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from noisescape.cli import app
from noisescape.errors import NoisescapeError
from noisescape.experiments.experiment import Experiment
from noisescape.runs.checksums import read_json, read_table, write_json, write_table
from noisescape.runs.run import Run
from resumed_experiments import contents, perform
from slowness import quick

TEXTS = {
    "script": "<script>alert(1)</script>",
    "event": "<img src=x onerror=alert(1)>",
    "quote": "\"'><svg/onload=alert(1)>",
    "comment": "--></style></head><!--<body onload=alert(1)>",
    "markdown": "[here](javascript:alert(1)) ![x](http://a.example/x.png) `b` **c**",
    "rich": "[red]a[/red] [link=file:///etc/passwd]b[/link] [/]",
    "escape": "a\x1b[2J\x1b]0;title\x07\x1b]8;;http://a.example\x1b\\b\x9b31m",
    "lines": "a\r\nerror: b\n\n\x0b\x0cc\x08\x08",
    "mathtext": r"$\frac{1$ $x_ $ \input{/etc/passwd}",
    "template": "{{ 7 * 7 }} {% include '/etc/passwd' %} ${7*7} %(x)s {0}",
    "odd": "\u202e\u2028\ufeff\U0001f600" + "w" * 5000,
}


class Running(HTMLParser):
    """What of a page a browser would run or fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.found: list[tuple[str, str]] = []
        self._in_script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_script = tag == "script"
        for name, value in attrs:
            fetched = name in ("src", "href", "data", "action") and not (value or "").startswith(("data:", "#"))
            if name.startswith("on") or fetched:
                self.found.append((tag, f"{name}={value}"))
        if tag in ("iframe", "object", "embed", "form", "base", "link"):
            self.found.append((tag, ""))

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)
            self._in_script = False


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    perform("gd-sharpness", root / "run", rates=(0.5,), steps=2)
    return root / "run"


@pytest.fixture
def run(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sound, "run")
    return Path("run")


def with_text(value: Any, text: str, *, but: tuple[str, ...] = ()) -> Any:
    """Every text in a value, with another behind it; keys and entries of the names given stay."""
    if isinstance(value, dict):
        return {key: item if key in but else with_text(item, text, but=but) for key, item in value.items()}
    if isinstance(value, list):
        return [with_text(item, text, but=but) for item in value]
    return f"{value} {text}" if isinstance(value, str) else value


def change(path: Path, made: Callable[[dict[str, Any]], Any], *, signed: bool = True) -> None:
    found = made(read_json(path, ""))
    if signed:
        write_json(path, found)
    else:
        path.write_text(json.dumps(found))


def called(*arguments: object, code: int | None = None) -> str:
    """Standard output, or the one line of error; no traceback, and nothing that moves a cursor."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    if result.exit_code:
        [line] = result.stderr.splitlines()
        assert line.startswith("error: ")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", result.output), "a raw control character"
    assert code is None or result.exit_code == code, result.output
    return result.stdout or result.stderr


def described(run: Path, text: str) -> None:
    change(run / "run.json", lambda info: with_text(info, text, but=("config", "experiment")))


def configured(run: Path, text: str) -> None:
    change(run / "run.json", lambda info: {**info, "config": {**with_text(info["config"], text), text: text}})


def summed_up(run: Path, text: str) -> None:
    change(run / "summary.json", lambda found: with_text(found, text))


def recorded(run: Path, text: str) -> None:
    rows = read_table(run / "metrics.parquet", "").to_pylist()
    write_table(run / "metrics.parquet", pa.Table.from_pylist([with_text(row, text) for row in rows]))


PLACES = [described, configured, summed_up, recorded]
CELLS = [pytest.param(place, text, id=f"{place.__name__}-{text}") for place in PLACES for text in TEXTS]


@pytest.mark.parametrize("count", [len(CELLS)], ids=[f"{len(CELLS)} cells"])
def test_the_matrix_of_texts_is_whole(count: int) -> None:
    assert count == 44


@pytest.mark.parametrize(("place", "text"), quick(CELLS[::5], CELLS))
def test_text_is_shown_and_never_run(
    place: Callable[[Path, str], None], text: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Experiment, "report_parts", lambda self, run: ("drawn", []))  # figures are pictures
    called("report", run, code=0)
    plain = Running((run / "report.html").read_text(encoding="utf-8"))
    place(run, TEXTS[text])
    shown = called("report", run, code=0)
    called("claims", run, "--verbose", code=0)
    page = (run / "report.html").read_text(encoding="utf-8")
    found = Running(page)
    assert (found.found, found.scripts) == (plain.found, plain.scripts)
    if place is described:
        assert html.escape(TEXTS[text], quote=False).splitlines()[0][:10] in page.replace("&#39;", "'").replace(
            "&#34;", '"'
        )
    if place is summed_up and text == "rich":
        assert "[red]a[/red]" in shown


@pytest.mark.parametrize("text", quick(["mathtext"], ["script", "lines"]))
def test_figures_hold_such_text_too(text: str, run: Path) -> None:
    recorded(run, TEXTS[text])
    configured(run, TEXTS[text])
    called("report", run, code=0)
    assert Running((run / "report.html").read_text(encoding="utf-8")).found == []


# ------------------------------------------------------------------------------------ entries of other kinds

OTHERS = quick([None, 10**400], [{}, [], True, -1, 1.5, "x", ["a", {"b": []}]])
ENTRIES = ("experiment", "config", "seed", "data", "versions", "platform", "started")


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: f"{type(other).__name__} {str(other)[:4]}")
@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_of_another_kind_is_told_in_a_line_or_shown(
    entry: str, other: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand, so without a checksum."""
    monkeypatch.setattr(Experiment, "report_parts", lambda self, run: ("drawn", []))
    change(run / "run.json", lambda info: {**info, entry: other}, signed=False)
    for command in ("report", "claims"):
        called(command, run)


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: f"{type(other).__name__} {str(other)[:4]}")
@pytest.mark.parametrize("signed", [True, False])
def test_a_summary_of_other_kinds_is_told_in_a_line_or_shown(
    signed: bool, other: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Experiment, "report_parts", lambda self, run: ("drawn", []))
    change(run / "run.json", lambda info: info, signed=signed)
    change(run / "summary.json", lambda found: dict.fromkeys(found, other), signed=False)
    for command in ("report", "claims"):
        called(command, run)


# ------------------------------------------------------------------------------------------- what lies outside


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    place = tmp_path / "outside"
    place.mkdir()
    (place / "precious.json").write_text('{"precious": 1}')
    return place


def linked(run: Path, name: str, target: Path) -> None:
    file = run / name
    if file.is_dir():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)
    file.symlink_to(target)


REPLACED = [
    *itertools.product(
        ["link out", "link to nothing", "link to itself", "pipe"],
        ["run.json", "summary.json", "timing.json", "metrics.parquet", "report.html", ".lock"],
    )
]


@pytest.mark.parametrize(("kind", "name"), quick(REPLACED[::5], REPLACED))
def test_links_and_pipes_are_never_written_through_nor_waited_for(
    kind: str, name: str, run: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Experiment, "report_parts", lambda self, run: ("drawn", []))
    before = contents(outside, without=())
    if kind == "pipe":
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    else:
        target = {"link out": outside / "precious.json", "link to nothing": outside / "new", "link to itself": name}
        linked(run, name, Path(target[kind]))
    for command in (("report", run), ("claims", run), ("reproduce", "gd-sharpness", "--out", run, "--resume")):
        called(*command)
    assert contents(outside, without=()) == before


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/b", "..", ".hidden", "a\\b", ""])
def test_no_name_leads_out_of_the_directory(name: str, run: Path) -> None:
    found = Run.open(run)
    with pytest.raises(NoisescapeError, match="cannot name a file"):
        found.write_tensors(name, {})
    with pytest.raises(NoisescapeError):
        found.tensors(name)


def test_a_directory_of_thousands_of_files_is_read_all_the_same(run: Path) -> None:
    expected = called("claims", run, "--json", code=0)
    for number in range(3000):
        (run / f"{number}.json").touch()
    assert called("claims", run, "--json", code=0) == expected


def test_a_directory_whose_name_breaks_lines_is_told_in_one(run: Path) -> None:
    strange = run.rename("a\nb\x1b[2Jc")
    called("claims", strange, code=0)
    (strange / "summary.json").unlink()
    assert r"a\nb\x1b[2Jc has no summary.json" in called("claims", strange, code=1)
