"""A real Ray cluster whose workers are killed and whose nodes come and go: the same outcomes as on this machine."""

import contextlib
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from noisescape.errors import DataError, FailedError, MissingPackageError
from noisescape.experiments.toy_2d import TOY_2D
from noisescape.runs import ray_engine
from noisescape.runs.local_engine import Local
from noisescape.runs.ray_engine import Ray
from noisescape.runs.run import Run
from noisescape.runs.tasks import Task, perform
from run_files import TINY, assert_same_results
from sample_tasks import folder_of, killed, killed_once, refused, slow_square, square
from torchrun import TESTS

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of its own and of its dependencies


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        yield from clusters(patch)


def clusters(patch):
    from ray.cluster_utils import Cluster

    patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *sys.path]))  # of the nodes, for the tasks' own module
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=found.address, log_to_driver=False, logging_level="ERROR")
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", experiment="squares", config={}, seed=0)


def done(run, tasks, engine=None):
    return perform(run, tasks, engine=engine or Ray(), title="", progress=False)


def values(outcomes):
    return [outcome.rows[0]["value"] for outcome in outcomes]


def test_outcomes_come_in_the_order_of_the_tasks_on_one_thread_each(cluster, run):
    found = done(run, [Task(str(value), square, (value,)) for value in range(6)])
    assert values(found) == [0, 1, 4, 9, 16, 25]
    assert {outcome.rows[0]["threads"] for outcome in found} == {1}
    assert not [*(run.path / "tasks").glob(".shared-*")]


def test_what_is_done_is_not_done_again(cluster, run):
    done(run, [Task("a", square, (3,))], Local(1))
    assert values(done(run, [Task("a", killed, ()), Task("b", square, (2,))])) == [9, 4]


def test_where_disks_are_not_shared_outcomes_come_back(cluster, run, monkeypatch):
    """No mark is laid, so no node finds one beside the run."""
    monkeypatch.setattr(ray_engine, "_file", lambda path: contextlib.nullcontext())
    shared = Run.create(run.path.parent / "here", experiment="squares", config={}, seed=0)
    tasks = [Task(str(value), square, (value,)) for value in range(3)]
    assert values(done(run, tasks)) == values(done(shared, tasks, Local(1))) == [0, 1, 4]
    assert sorted(path.name for path in (run.path / "tasks").iterdir()) == [
        f"{n}.done.safetensors" for n in range(3)
    ]


@pytest.mark.slow
def test_a_task_whose_worker_is_killed_is_done_again(cluster, run, tmp_path):
    tasks = [Task(str(value), killed_once, (value, str(tmp_path / f"seen-{value}"))) for value in range(3)]
    assert values(done(run, tasks)) == [0, 1, 4]


@pytest.mark.slow
def test_a_task_whose_workers_are_always_killed_ends_the_run_with_a_line(cluster, run):
    with pytest.raises(FailedError, match=r"task bad were lost again and again .* --resume") as caught:
        done(run, [Task("good", square, (2,)), Task("bad", killed, ())], Ray(retries=1, jobs=1))
    assert "\n" not in str(caught.value)
    assert values(done(run, [Task("good", killed, ())])) == [4]


@pytest.mark.slow
def test_a_tasks_own_error_is_raised_as_it_is(cluster, run):
    with pytest.raises(DataError, match=r"^no such images; give --data-dir$"):
        done(run, [Task("bad", refused, ())])


@pytest.mark.slow
def test_nodes_come_and_go(cluster, run):
    node = cluster.add_node(num_cpus=1)
    with ThreadPoolExecutor(1) as aside:  # nodes can be begun from the main thread only
        found = aside.submit(done, run, [Task(str(value), slow_square, (value,)) for value in range(8)])
        time.sleep(2.5)
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        assert not found.done()
        assert values(found.result()) == [value**2 for value in range(8)]


def test_another_noisescape_on_a_node_is_refused(cluster, run, monkeypatch):
    monkeypatch.setattr(ray_engine, "source_checksum", lambda: "another")
    with pytest.raises(FailedError, match=r"node .* has another noisescape .* same version on every node"):
        done(run, [Task("a", square, (1,))])


@pytest.mark.slow
def test_an_experiments_tables_are_the_same(cluster, tmp_path):
    here = TOY_2D.run(TINY, tmp_path / "here", jobs=1, progress=False)
    there = TOY_2D.run(TINY, tmp_path / "there", engine=Ray(), progress=False)
    assert_same_results(there, here, ())


def test_without_ray_the_error_says_how_to_get_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'noisescape\[ray\]'"):
        done(run, [Task("a", square, (1,))])


def test_jobs_beside_an_engine_are_refused(tmp_path):
    with pytest.raises(ValueError, match="jobs are of this machine, and an engine has its own"):
        TOY_2D.run(TINY, tmp_path / "both", jobs=2, engine=Ray(), progress=False)
    assert not (tmp_path / "both").exists()


def test_an_address_that_nothing_listens_at_is_refused_before_a_run_is_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(FailedError, match=r"no Ray cluster at 127\.0\.0\.1:9 \(.*ray start --head"):
        TOY_2D.run(TINY, tmp_path / "run", engine=Ray("127.0.0.1:9"), progress=False)
    assert not (tmp_path / "run").exists()


def test_tasks_for_gpus_are_refused_by_a_cluster_without(cluster):
    Ray().check("cpu")
    with pytest.raises(FailedError, match=r"no node of the Ray cluster has a GPU, .* --device cpu"):
        Ray().check("cuda")


def test_a_relative_folder_is_shared_with_nodes_that_were_begun_elsewhere(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Run.create(Path("run"), experiment="squares", config={}, seed=0)
    assert values(done(found, [Task("a", folder_of, ())])) == [str(tmp_path / "run" / "tasks")]
