"""What users get wrong in calling what is public: one line that names it, and nothing else happens."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType

import pytest

import bad_calls
import bad_runs
import noisescape as ns
from noisescape.errors import NoisescapeError

MATRIX = bad_calls.MATRIX | bad_runs.MATRIX
CASES = [(name, what) for name, cases in MATRIX.items() for what in cases]
FEWEST = 250
PACKAGES = {"theory", "distributed", "experiments", "runs", "recorders", "landscapes"}
"""Of which the matrix tries several functions each."""
FOUND = {
    *("BranchedCheck", "Comparison", "Eigenpairs", "FastMeasurement", "LayerTraces", "LossAlong", "LossBudget"),
    *("Measurement", "RelativeAlignment", "Sharpness", "SpectralDensity", "Trajectory"),
}
"""What the package returns and nobody makes: its figures are what a call has found."""
NO_INPUT = {"DYNAMICS", "Dynamics", "GD"}
"""A table of names, the class that others are derived from, and the one dynamics without a constant."""


@pytest.mark.parametrize(("name", "what"), CASES, ids=[f"{name}: {what}" for name, what in CASES])
def test_a_bad_input_gets_one_line_and_nothing_else_happens(
    name: str,
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = MATRIX[name][what]
    with pytest.raises(NoisescapeError) as refused:  # a warning would be an error of another kind
        bad.call()
    message = str(refused.value)
    assert bad.names in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [len(CASES)], ids=[f"{len(CASES)} bad inputs"])
def test_there_are_many_and_every_public_name_is_called_with_some(count: int) -> None:
    assert count >= FEWEST
    public = {name for name in ns.__all__ if not isinstance(getattr(ns, name), ModuleType)}
    errors = {
        name for name in public if inspect.isclass(found := getattr(ns, name)) and issubclass(found, Exception)
    }
    assert public - errors - FOUND - NO_INPUT == MATRIX.keys() - PACKAGES


@pytest.mark.parametrize("name", sorted(MATRIX.keys() - PACKAGES))
def test_what_is_filed_under_a_name_calls_it(name: str) -> None:
    assert any(name in bad.call.__code__.co_names for bad in MATRIX[name].values())
