"""An experiment as tasks: side by side, on one thread each, each kept as soon as it is done."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from noisescape.errors import CorruptFileError
from noisescape.linops import largest_eigh
from noisescape.runs.local_engine import Local
from noisescape.runs.run import Run
from noisescape.runs.tasks import Outcome, Task, perform


def outcome_of(value: float, *, checkpoint: Path) -> Outcome:
    assert checkpoint.parent.name == "tasks"
    assert checkpoint.name.endswith(".partial.safetensors")
    return Outcome(
        [{"value": value, "threads": torch.get_num_threads()}], {"b": torch.tensor([value])}, {"a": None}
    )


def refuse(*_: object, checkpoint: Path) -> Outcome:
    raise AssertionError("done again")


@pytest.fixture
def unfinished(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", experiment="powers", config={}, seed=0)


@pytest.mark.parametrize("jobs", [1, 2])
def test_outcomes_come_in_the_order_of_the_tasks(jobs: int, unfinished: Run) -> None:
    before = torch.get_num_threads()
    tasks = [Task(f"of-{value}", outcome_of, (value,)) for value in (5.0, math.nan, -1e-300)]
    found = perform(unfinished, tasks, engine=Local(jobs), title="powers", progress=False)
    assert [outcome.rows[0]["value"] for outcome in found] == pytest.approx([5.0, math.nan, -1e-300], nan_ok=True)
    assert [float(outcome.tensors["b"]) for outcome in found] == pytest.approx([5.0, math.nan, 0.0], nan_ok=True)
    assert [outcome.notes for outcome in found] == [{"a": None}] * 3
    assert torch.get_num_threads() == before


def test_every_task_runs_on_one_thread(unfinished: Run) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tasks = [Task(str(value), outcome_of, (value,)) for value in (1.0, 2.0)]
        found = perform(unfinished, tasks, engine=Local(1), title="threads", progress=False)
        assert [outcome.rows[0]["threads"] for outcome in found] == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def threads_of(*_: object, checkpoint: Path) -> Outcome:
    """Of this process: PyTorch's, and those of the BLAS that NumPy and SciPy call."""
    blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    return Outcome([{"torch": torch.get_num_threads(), "blas": max(blas, default=1)}])


@pytest.mark.parametrize("accelerator", [False, True], ids=["without", "with"])
def test_on_the_cpu_a_task_has_one_thread_whether_or_not_there_is_an_accelerator(
    accelerator: bool, unfinished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerator)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threadpool_limits(2):
            [on_cpu] = perform(
                unfinished, [Task("a", threads_of, ())], engine=Local(1), title="", progress=False, device="cpu"
            )
            [elsewhere] = perform(
                unfinished, [Task("b", threads_of, ())], engine=Local(1), title="", progress=False, device="cuda:0"
            )
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert on_cpu.rows == [{"torch": 1, "blas": 1}]
    assert elsewhere.rows[0]["torch"] == 2, "nothing is taken from what feeds an accelerator"


def too_large(*_: object, checkpoint: Path) -> Outcome:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 626.00 MiB")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_accelerator_is_told_with_the_mend(jobs: int, unfinished: Run) -> None:
    tasks = [Task(key, too_large, ()) for key in ("a", "b")]
    with pytest.raises(RuntimeError, match=rf"memory of cuda:0 does not hold what {jobs} tasks.*fewer --jobs"):
        perform(unfinished, tasks, engine=Local(jobs), title="", progress=False, device="cuda:0")


def eigenvectors(*_: object, checkpoint: Path) -> Outcome:
    """By SciPy, large enough for its BLAS to share the work out."""
    rows = torch.randn(700, 800, generator=torch.Generator().manual_seed(0))
    values, vectors = largest_eigh(rows @ rows.mT, 20)
    return Outcome(tensors={"values": values, "vectors": vectors.contiguous()})


@pytest.mark.slow
def test_eigenvectors_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    found = []
    for jobs in (1, 2):
        run = Run.create(tmp_path / str(jobs), experiment="eigenvectors", config={}, seed=0)
        tasks = [Task(key, eigenvectors, ()) for key in "ab"]
        found += perform(run, tasks, engine=Local(jobs), title="", progress=False)
    for other in found[1:]:
        assert torch.equal(found[0].tensors["values"], other.tensors["values"])
        assert torch.equal(found[0].tensors["vectors"], other.tensors["vectors"])


def test_a_finished_task_is_not_done_again_and_a_damaged_one_is_named(unfinished: Run) -> None:
    first = perform(unfinished, [Task("a", outcome_of, (1.0,))], engine=Local(1), title="", progress=False)
    tasks = [Task("a", refuse, ()), Task("b", outcome_of, (2.0,))]
    again = perform(unfinished, tasks, engine=Local(1), title="", progress=False)
    assert again[0].rows == first[0].rows
    assert again[1].rows[0]["value"] == 2.0
    kept = unfinished.path / "tasks" / "a.done.safetensors"
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    with pytest.raises(
        CorruptFileError, match=r"tasks/a\.done\.safetensors .*Remove it, and --resume does that part"
    ):
        perform(unfinished, tasks, engine=Local(1), title="", progress=False)
