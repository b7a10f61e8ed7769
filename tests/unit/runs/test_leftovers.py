"""Leftovers of killed writers are removed; files of anybody else are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundles import files, fill
from noisescape.errors import CorruptFileError
from noisescape.runs.run import Run, tidy
from noisescape.runs.storage import atomic_path


def leftover(target: Path) -> Path:
    """The temporary file of a writer that was killed before it could tidy up."""
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        name = temporary
    name.write_text("half")
    target.unlink()
    return name


@pytest.fixture
def begun(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", experiment="toy", config={"lr": 0.1}, seed=3)


PLACES = [
    "run.json",
    "metrics.parquet",
    "summary.json",
    "timing.json",
    "report.html",
    "tasks/escape-gld-top-eigenvector-3.done.safetensors",
    "tasks/published-gd-0.partial.safetensors",
    "checkpoints/minima.safetensors",
    "figures/loss.png",
    "figures/loss.svg",
]


def test_resuming_removes_every_leftover_of_a_killed_writer(begun: Run) -> None:
    left = []
    for place in PLACES[1:]:
        (begun.path / place).parent.mkdir(exist_ok=True)
        left.append(leftover(begun.path / place))
    kept = fill(begun.path / "tasks" / "descent-0.done.safetensors")
    Run.create(begun.path, experiment="toy", config={"lr": 0.1}, seed=3, resume=True)
    assert [path for path in left if path.exists()] == []
    assert files(begun.path) == {"run.json", "tasks/descent-0.done.safetensors"}
    assert (begun.path / "tasks" / "descent-0.done.safetensors").read_bytes() == kept


def test_a_run_killed_before_its_first_file_can_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    leftover(tmp_path / "run" / "run.json")
    run = Run.create(tmp_path / "run", experiment="toy", config={"lr": 0.1}, seed=3, resume=True)
    assert files(run.path) == {"run.json"}
    assert run.info["config"] == {"lr": 0.1}


OWN = [
    ".gitignore",
    ".DS_Store",
    ".~lock.notes-of-mine.odt#",
    ".config-of-settings.json",
    ".run-config-settings.json",
    ".notes-of-20240101.txt",
    ".a-b-12345678.d/inside",
    ".git/hooks/.pre-commit-original.sample",
    "my-notes-20240101.txt",
    "tasks/.nfs000000000000000000000001",
    "tasks/.backup-of-partials.safetensors",
    "mine/deep/.draft-1-deadbeef.txt",
    "mine/.draft-of-thoughts.md",
]


@pytest.mark.parametrize("name", OWN)
def test_files_that_are_not_the_programs_are_left_alone(begun: Run, name: str) -> None:
    own = begun.path / name
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("precious")
    Run.create(begun.path, experiment="toy", config={"lr": 0.1}, seed=3, resume=True)
    assert own.read_text() == "precious"


@pytest.mark.parametrize("name", OWN)
def test_a_directory_that_is_no_run_is_refused_and_untouched(tmp_path: Path, name: str) -> None:
    own = tmp_path / "home" / name
    own.parent.mkdir(parents=True)
    own.write_text("precious")
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="already exists and is not empty"):
        Run.create(tmp_path / "home", experiment="toy", config={"lr": 0.1}, seed=3, resume=True)
    assert own.read_text() == "precious"


def test_another_run_is_refused_and_untouched(begun: Run) -> None:
    """It may be at work."""
    (begun.path / "tasks").mkdir()
    temporary = leftover(begun.path / "tasks" / "descent-0.done.safetensors")
    with pytest.raises(ValueError, match=r"lr = 0\.1 there, 0\.2 now"):
        Run.create(begun.path, experiment="toy", config={"lr": 0.2}, seed=3, resume=True)
    assert temporary.exists()


def test_a_file_in_the_runs_place_is_refused_and_untouched(tmp_path: Path) -> None:
    place = tmp_path / ".draft-1-deadbeef.txt"
    place.write_text("precious")
    with pytest.raises(FileExistsError, match="is a file"):
        Run.create(place, experiment="toy", config={}, seed=0, resume=True)
    assert place.read_text() == "precious"


def test_a_damaged_table_is_never_read_as_a_shorter_one(begun: Run) -> None:
    begun.write_metrics(tidy([{"step": step, "value": 0.5 * step} for step in range(100)]))
    path = begun.path / "metrics.parquet"
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFileError, match=r"metrics\.parquet is damaged"):
            begun.metrics()
