"""The demo: two experiments and one page on both, gone on with where it was cut short."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from cli_calls import Result, only_json
from noisescape.experiments.digits import DIGITS
from noisescape.experiments.toy_2d import TOY_2D
from noisescape.runs.run import Run
from resumed_experiments import VARYING, contents
from run_files import SMALL, TINY, headings


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOY_2D.presets, "quick", TINY)
    monkeypatch.setitem(DIGITS.presets, "quick", SMALL)


@pytest.mark.slow
def test_the_demo_is_resumed_where_the_disk_was_full(
    small: None, call: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def full(*_: object) -> NoReturn:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr("noisescape.report.escape.draw_sharpness", full)
        cut_short = call("demo", "--jobs", "1", "--quiet")
    assert cut_short.exit_code == 1
    [root] = (tmp_path / "runs").iterdir()
    assert Run.open(root / "toy-2d").complete
    drawn_anew = (*VARYING, "report.html")
    before = contents(root / "toy-2d", without=drawn_anew)
    found = only_json(call("demo", "--jobs", "1", "--json", "--resume"))
    assert {*found} == {"toy-2d", "digits", "claims", "report"}
    assert contents(root / "toy-2d", without=drawn_anew) == before, "what was done is not done again"
    assert (tmp_path / found["report"]).samefile(root / "report.html")
    sections = headings((root / "report.html").read_text(encoding="utf-8"))
    assert sections[0] == "What holds and what does not"
    assert {"toy-2d", "digits"} <= {*sections}
