"""A run has one owner at a time: one thread begins it, one process works on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from noisescape.errors import OccupiedPathError
from noisescape.runs.local_engine import Local
from noisescape.runs.places import default_run_path
from noisescape.runs.run import Run
from noisescape.runs.storage import atomic_path
from noisescape.runs.tasks import Outcome, Task, perform

# does what is asked on standard input, a line each: hold the run, work on it beside workers, let go of it
OWNER = """
import sys, time
from pathlib import Path
from noisescape.errors import OccupiedPathError
from noisescape.runs.local_engine import Local
from noisescape.runs.run import Run
from noisescape.runs.storage import atomic_path
from noisescape.runs.tasks import perform
from test_one_owner import TASKS

path = Path(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    try:
        if line == "hold\\n":
            run = Run.create(path, experiment="toy", config={}, seed=0, resume=True)
            print("held", flush=True)
        elif line == "work\\n":
            print(len(perform(run, TASKS, engine=Local(2), title="", progress=False)), flush=True)
        elif line == "end\\n":
            run.write_summary({})
            print("ended", flush=True)
        else:
            del run
            print("free", flush=True)
    except OccupiedPathError as error:
        print(f"refused: {error}", flush=True)
"""


def done(*, checkpoint: Path) -> Outcome:
    return Outcome([{"x": 1}])


TASKS = [Task(str(number), done, ()) for number in range(3)]


class Owner:
    """Another process."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, path],
            cwd=Path(__file__).parent,  # for it and its workers to find this module
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def asked(self, what: str) -> str:
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def owners(tmp_path: Path):
    both = [Owner(tmp_path / "run"), Owner(tmp_path / "run")]
    yield both
    for owner in both:
        owner.end()


def begun(path: Path, *, resume: bool = False) -> Run:
    return Run.create(path, experiment="toy", config={}, seed=0, resume=resume)


def test_of_two_threads_only_one_begins_a_run(tmp_path: Path) -> None:
    barrier = Barrier(2)

    def attempt(path: Path) -> Run | None:
        barrier.wait()
        try:
            return begun(path)
        except OccupiedPathError:
            return None

    with ThreadPoolExecutor(2) as pool:
        for number in range(200):
            found = list(pool.map(attempt, [tmp_path / str(number)] * 2))
            assert sum(run is not None for run in found) == 1, number


def test_runs_begun_in_the_same_second_get_places_of_their_own(tmp_path: Path) -> None:
    paths = [default_run_path("toy", tmp_path) for _ in range(3)]
    assert len(set(paths)) == 3
    assert len({path.name.rpartition("-")[0] for path in paths}) <= 2


@pytest.mark.slow
def test_of_two_processes_only_one_works_on_a_run(tmp_path: Path, owners: list[Owner]) -> None:
    one, other = owners
    assert one.asked("hold") == "held"
    wanted = f"refused: {tmp_path / 'run'}: another process is working on it; wait for its end, or end it"
    assert other.asked("hold") == wanted
    assert one.asked("hold") == "held", "its own process may go on with it"
    assert one.asked("work") == "3", "its workers are not others"
    assert one.asked("free") == "free"
    assert other.asked("hold") == "held"


def test_what_the_owner_writes_is_left_alone(tmp_path: Path, owners: list[Owner]) -> None:
    run = begun(tmp_path / "run")
    with atomic_path(run.path / "metrics.parquet") as temporary:
        temporary.write_text("half")
        assert owners[0].asked("hold").startswith("refused")
        assert temporary.read_text() == "half"


@pytest.mark.slow
def test_a_complete_run_may_be_asked_for_while_its_owner_draws_the_report(
    tmp_path: Path, owners: list[Owner]
) -> None:
    one, other = owners
    assert (one.asked("hold"), one.asked("end")) == ("held", "ended")
    with atomic_path(tmp_path / "run" / "report.html") as temporary:
        temporary.write_text("half")
        assert other.asked("hold") == "held"
        assert temporary.exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_owners_run_can_be_resumed_at_once(tmp_path: Path, owners: list[Owner]) -> None:
    one, other = owners
    assert (one.asked("hold"), one.asked("work")) == ("held", "3")
    os.kill(one.process.pid, signal.SIGKILL)
    one.process.wait()
    assert other.asked("hold") == "held"
    assert other.asked("work") == "3"
    with pytest.raises(OccupiedPathError, match="another process is working on it"):
        begun(tmp_path / "run", resume=True)


@pytest.mark.slow
def test_a_run_is_free_when_nothing_holds_it(tmp_path: Path, owners: list[Owner]) -> None:
    run = begun(tmp_path / "run")
    perform(run, TASKS[:1], engine=Local(1), title="", progress=False)
    del run
    assert owners[0].asked("hold") == "held"
