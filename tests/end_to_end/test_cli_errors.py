"""Which errors the command line tells in a line, and which are bugs that keep their traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli_calls import SMALLEST, Result, the_error
from noisescape.errors import FailedError, InvalidValueError
from noisescape.experiments.experiment import Experiment


def raising(error: Exception) -> Callable[..., Any]:
    def run(*_: Any, **__: Any) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FailedError("no minimum to leave"), "error: no minimum to leave"),
        (PermissionError(13, "Permission denied", "/root"), "error: [Errno 13] Permission denied: '/root'"),
    ],
)
def test_what_can_be_mended_is_a_line(
    error: Exception, line: str, call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Experiment, "run", raising(error))
    assert the_error(call(*SMALLEST, "--quiet")) == line


@pytest.mark.parametrize("error", [FailedError("no minimum"), PermissionError(13, "Permission denied")])
def test_debug_shows_where_it_came_from(
    error: Exception, call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Experiment, "run", raising(error))
    result = call("--debug", *SMALLEST, "--quiet")
    assert result.exit_code == 1
    assert result.exception is error
    assert result.stderr == ""


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, KeyError, TypeError])
def test_a_bug_keeps_its_traceback(
    kind: type[Exception], call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = kind("a bug")
    monkeypatch.setattr(Experiment, "run", raising(error))
    result = call(*SMALLEST, "--quiet")
    assert result.exception is error
    assert result.stderr == ""


# ---------------------------------------------------------------------- in a module of the user's own


def measured(call: Callable[..., Result], source: str) -> Result:
    Path("theirs.py").write_text(source)
    return call("measure", "theirs:make", "--batch-size", 8)


@pytest.fixture(autouse=True)
def forgotten(call: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module is imported anew by every test."""
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    monkeypatch.setattr("sys.dont_write_bytecode", True)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def make(:", "SyntaxError: invalid syntax"),
        ("open('absent.csv')", "FileNotFoundError: "),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_in_a_line(
    source: str, reason: str, call: Callable[..., Result]
) -> None:
    message = the_error(measured(call, source))
    assert message.startswith(f"error: cannot import theirs: {reason}")


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("{}['absent']", KeyError),
        ("raise ValueError('in their words')", ValueError),
        ("open('absent.csv')", FileNotFoundError),
        ("import no_such_module", ModuleNotFoundError),
    ],
)
def test_an_exception_inside_their_function_keeps_its_traceback(
    line: str, kind: type[Exception], call: Callable[..., Result]
) -> None:
    result = measured(call, f"def make():\n    {line}\n")
    assert type(result.exception) is kind
    assert result.stderr == ""
    frames = []
    trace = result.exception.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    assert frames[-1].endswith("theirs.py"), "where it was raised"


def test_what_noisescape_says_to_their_function_is_a_line(call: Callable[..., Result]) -> None:
    source = "import noisescape as ns\ndef make():\n    return ns.dynamics_by_name('sdg', batch_size=8)\n"
    assert "error: unknown dynamics 'sdg'; did you mean sgd" in the_error(measured(call, source))
    debugged = call("--debug", "measure", "theirs:make", "--batch-size", 8)
    assert isinstance(debugged.exception, InvalidValueError)


def test_a_function_that_wants_arguments_is_not_taken_for_one_that_fails(call: Callable[..., Result]) -> None:
    message = the_error(measured(call, "def make(path):\n    pass\n"))
    assert message == "error: theirs:make is called without arguments, but: missing a required argument: 'path'"
