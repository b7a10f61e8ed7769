"""The view of a training's log in the terminal."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from noise_logs import as_json_lines, probed, reports
from noisescape.errors import CorruptFileError, DataError, InvalidValueError
from noisescape.report.monitor_figures import NOISE_SCALE, Series
from noisescape.report.monitor_terminal import log_view, sparkline, watch_log
from noisescape.training import read_log


def shown(path: Path, *, width: int = 80, now: float | None = None) -> str:
    log = read_log(path)
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(log_view(log, log.written + 90 if now is None else now))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def of(values: list[float]) -> Series:
    array = np.array(values)
    return Series(NOISE_SCALE, np.arange(len(values)), array, array, array)


def test_everything_fits_into_eighty_columns(tmp_path: Path) -> None:
    rows = [probed(report) for report in reports(range(1000, 100000, 999), scale=12345.0, groups=True)]
    for row in rows:
        row |= {f"noise/group/{'long name ' * 9}{index}/scale": 1.25e-7 for index in range(12)}
    text = shown(as_json_lines(rows, tmp_path / f"{'long' * 30}.jsonl"))
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "noise scale   " in text
    assert "and 6 more parameter groups" in text
    assert "1.25e−7" in text


def test_it_has_figures_intervals_curves_verdicts_and_age(tmp_path: Path) -> None:
    rows = reports(range(100, 1100, 100))
    rows[-1] = {key: value for key, value in probed(rows[-1]).items() if "preconditioned" not in key}
    text = shown(as_json_lines(rows, tmp_path / "log.jsonl"))
    assert "step 1000 · 10 reports · last written 1 min ago" in text
    row = next(line for line in text.splitlines() if line.startswith("noise scale"))
    assert row.split() == ["noise", "scale", "2500", "2000", "to", "3130", "▁▃▄▅▆▆▇▇██"]
    assert "B = 64 is below the noise scale." in text
    assert "λ₁ is below the edge." in text


def test_names_from_the_log_neither_steer_the_terminal_nor_style_it(tmp_path: Path) -> None:
    report = reports()[1] | {"noise/group/\x1b[2J[red]x[/red]/scale": 4.0}
    text = shown(as_json_lines([report], tmp_path / "[bold]\x07.jsonl"))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\\x1b[2J[red]x[/red]" in text
    assert "[bold]\\x07.jsonl" in text


def test_a_curve_is_as_wide_as_asked_and_rises_where_values_do() -> None:
    assert sparkline(of([10.0**power for power in range(8)]), width=8) == "▁▂▃▄▅▆▇█"
    assert len(sparkline(of([float(value) for value in range(100)]), width=18)) == 18
    assert sparkline(of([-1.0, 0.0, 1.0])) == "▁▅█"
    assert sparkline(of([3.0, 3.0, 3.0])) == "▄▄▄"
    assert sparkline(of([math.nan, math.inf])) == ""


# ---------------------------------------------------------------------- waiting


class Clock:
    """A minute a look; what is to happen meanwhile happens between looks, and then the keyboard interrupts."""

    def __init__(self, *happenings: object) -> None:
        self.happenings: Iterator[object] = iter(happenings)
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 60.0
        if int(self.now / 60) % 3 == 0:  # after a look and a view
            happening = next(self.happenings, None)
            if happening is None:
                raise KeyboardInterrupt
            happening()  # type: ignore[operator]
        return self.now


def watched(path: Path, *happenings: object) -> str:
    console = Console(width=80, height=60, file=io.StringIO(), force_terminal=True, color_system=None)
    watch_log(path, console, every=30.0, clock=Clock(*happenings))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_a_log_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    text = watched(path, lambda: path.write_text('{"loss": 1.0}\n'), lambda: as_json_lines(reports(), path))
    order = ["which is not there yet; Ctrl-C to stop", "which has none yet; Ctrl-C to stop", "step 300 · 3 reports"]
    places = [" ".join(text.split()).index(part) for part in order]
    assert places == sorted(places)


def test_of_a_log_that_breaks_the_last_figures_stay(tmp_path: Path) -> None:
    path = as_json_lines(reports(), tmp_path / "log.jsonl")
    text = watched(path, lambda: path.write_text('{"a\n{"b\n{"c": 1}\n'))
    end = text[text.index("cannot be read at the moment") - 3000 :]
    assert "step 300" in end
    with pytest.raises(CorruptFileError):
        watched(path)


def test_what_will_never_be_a_log_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("x\n")
    with pytest.raises(DataError, match="2 logs"):
        watched(tmp_path)
    with pytest.raises(InvalidValueError, match="--every must be a positive number of seconds, not 0"):
        watch_log(tmp_path, Console(file=io.StringIO()), every=0.0)
