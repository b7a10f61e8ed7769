"""Twenty kills at random moments, of ranks, of workers and of nodes: nothing that was finished is lost."""

import os
import random
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch

import noisescape as ns
from cases import WIDER
from noisescape.runs.ray_engine import Ray
from noisescape.runs.run import Run
from noisescape.runs.tasks import Task, perform
from sample_tasks import slow_square
from torchrun import TESTS, launched

RANKS, WORKERS, NODES = 8, 7, 5
assert RANKS + WORKERS + NODES == 20


@pytest.mark.slow
def test_killed_ranks_lose_no_more_than_the_steps_since_the_checkpoint(tmp_path):
    chance = random.Random(0)
    undisturbed = ns.simulate(
        WIDER.risk(), ns.GLDLeading(5, k=3, refresh=7), WIDER.theta, lr=0.05, steps=60, progress=False
    )
    kills = 0
    while True:
        ranks = chance.choice([1, 2, 3])
        running = launched("shard_walk.py", ranks, str(tmp_path), "slow")
        if kills < RANKS:
            wait_for(tmp_path / "walk.safetensors", running)
            time.sleep(chance.uniform(0.0, 0.4))
            chance.choice(running).send_signal(signal.SIGKILL)
            kills += 1
        for process in running:
            process.communicate(timeout=60)
        if all(process.returncode == 0 for process in running):
            break
    assert kills == RANKS
    assert not (tmp_path / "walk.safetensors").exists()
    torch.testing.assert_close(torch.load(tmp_path / "0.pt"), undisturbed.theta, rtol=1e-8, atol=1e-10)


def wait_for(path, running):
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until
        assert all(process.poll() is None for process in running)
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_killed_workers_and_nodes_lose_no_task(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *sys.path]))  # of the nodes
    from ray.cluster_utils import Cluster

    chance = random.Random(1)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    run = Run.create(tmp_path / "run", experiment="squares", config={}, seed=0)
    tasks = [Task(str(value), slow_square, (value,)) for value in range(30)]
    done = {"workers": 0, "nodes": 0}

    try:
        node = cluster.add_node(num_cpus=1)
        with ThreadPoolExecutor(1) as aside:  # nodes can be begun from the main thread only
            found = aside.submit(perform, run, tasks, engine=Ray(retries=20), title="", progress=False)
            while not found.done() and (done["workers"] < WORKERS or done["nodes"] < NODES):
                time.sleep(chance.uniform(0.3, 1.0))
                if done["nodes"] < NODES and chance.random() < 0.5:
                    cluster.remove_node(node, allow_graceful=False)
                    node = cluster.add_node(num_cpus=1)
                    done["nodes"] += 1
                elif done["workers"] < WORKERS and (workers := at_work()):
                    chance.choice(workers).kill()
                    done["workers"] += 1
            outcomes = found.result()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert done == {"workers": WORKERS, "nodes": NODES}
    assert [outcome.rows[0]["value"] for outcome in outcomes] == [value**2 for value in range(30)]
    assert not [*(run.path / "tasks").glob("*.partial.*")]


def at_work():
    """The worker processes that have a task."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        if "ray::_perform_on_node" in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found
