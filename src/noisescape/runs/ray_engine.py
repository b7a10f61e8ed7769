"""Tasks on a Ray cluster, whose nodes may come and go while they are done.

Source: Moritz et al. (2018), "Ray: a distributed framework for emerging AI applications"; docs.ray.io.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisescape.errors import FailedError, MissingPackageError
from noisescape.runs.run import source_checksum
from noisescape.runs.storage import atomic_path
from noisescape.runs.tasks import Task, file_of, on_cpu, perform_one

AHEAD = 2
"""Tasks handed to the cluster for each of its cores: enough for none to wait, few enough to hold."""
REACH_SECONDS = 10.0
"""How long the head of a cluster may take to answer."""
ROOM_SECONDS = 2.0
"""How long to wait for a task before looking whether the cluster has grown."""


@dataclass(frozen=True)
class Ray:
    """A Ray cluster: the one at ``address``, or one of this machine alone, begun and ended with the work.

    A task takes one core, on an accelerator one GPU. One whose worker or node is lost is done again elsewhere, from
    its last checkpoint where the run's directory is on a disk that all nodes share. Where it is not, outcomes come
    back to this program, which keeps them: a finished task is never lost.

    Attributes:
        address: as for ``ray.init``: ``"auto"``, ``"ray-head:6379"``, ``"ray://…:10001"``; None: start one here.
        jobs: the most tasks at once; None: as many as the cluster has room for.
        retries: how often a task whose worker was lost is done again.
    """

    address: str | None = None
    jobs: int | None = None
    retries: int = 5

    def check(self, device: str) -> None:
        """See :class:`~noisescape.runs.tasks.Engine`.

        Raises:
            RuntimeError: nothing answers at the address; no node has a GPU where the device is one.
            ImportError: Ray is not installed.
        """
        ray = _ray()
        if not ray.is_initialized():
            if self.address is None:
                return
            _reach(self.address)
        with _cluster(ray, self.address):
            if not on_cpu(device) and not ray.cluster_resources().get("GPU"):
                raise FailedError(
                    "no node of the Ray cluster has a GPU, and the tasks need one each: add nodes that "
                    "have, or take --device cpu"
                )

    def perform(self, folder: Path, tasks: Sequence[Task], device: str) -> Iterator[None]:
        """See :class:`~noisescape.runs.tasks.Engine`.

        Raises:
            RuntimeError: no cluster there; another noisescape on a node; a task's workers were lost too often.
            ImportError: Ray is not installed.
        """
        if not tasks:
            return
        ray = _ray()
        folder = folder.resolve()  # nodes may have been started anywhere
        mark = folder / f".shared-{uuid.uuid4().hex}"
        cores, gpus = (1, 0) if on_cpu(device) else (1, 1)
        with _cluster(ray, self.address), _file(mark):
            do = ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=self.retries)(_perform_on_node)
            waiting, running = deque(tasks), dict[Any, Task]()
            while waiting or running:
                while waiting and len(running) < self._room(ray):
                    task = waiting.popleft()
                    running[do.remote(str(folder), mark.name, task, device, source_checksum())] = task
                done, _ = ray.wait(list(running), timeout=ROOM_SECONDS)
                for reference in done:
                    task = running.pop(reference)
                    found = _result(ray, reference, task)
                    if found is not None:
                        with atomic_path(file_of(folder, task)) as temporary:
                            temporary.write_bytes(found)
                    yield

    def _room(self, ray: Any) -> int:
        """How many tasks may be with the cluster; it may have grown or shrunk."""
        return self.jobs or AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))


def _perform_on_node(folder: str, mark: str, task: Task, device: str, expected: str) -> bytes | None:
    """Do a task; its file is left where the run's program sees it, or comes back if this node does not share it."""
    if source_checksum() != expected:
        raise FailedError(
            f"node {os.uname().nodename} has another noisescape than the program that began the run; install the "
            "same version on every node"
        )
    shared = Path(folder)
    if (shared / mark).exists():
        if not file_of(shared, task).exists():  # a retry of what was finished when its node was lost
            perform_one(shared, task, device)
        return None
    with tempfile.TemporaryDirectory() as own:
        perform_one(Path(own), task, device)
        return file_of(Path(own), task).read_bytes()


def _result(ray: Any, reference: Any, task: Task) -> bytes | None:
    try:
        found: bytes | None = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    except ray.exceptions.RayError as error:
        raise FailedError(
            f"the workers of task {task.key} were lost again and again ({str(error).splitlines()[0][:200]}); what "
            "was finished is kept: give the nodes more memory, and continue with --resume"
        ) from error
    return found


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError(
            "the Ray engine needs Ray: pip install 'noisescape[ray]', or take --engine local"
        ) from error
    return ray


def _reach(address: str) -> None:
    """Refuse a HOST:PORT that nothing listens at: Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():  # "auto", which Ray answers at once
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> FailedError:
    reason = str(error).splitlines()[0][:200]
    return FailedError(
        f"no Ray cluster at {address} ({reason}): start one with `ray start --head`, and give the address that it "
        "prints"
    )


@contextlib.contextmanager
def _cluster(ray: Any, address: str | None) -> Iterator[None]:
    """The cluster that the program has joined, or joins for the time of the work."""
    if ray.is_initialized():
        yield
        return
    places = {name: os.environ[name] for name in ("NOISESCAPE_DATA",) if name in os.environ}
    passed_on = {name: str(Path(place).resolve()) for name, place in places.items()}
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            include_dashboard=False if address is None else None,
            logging_level="ERROR",
            runtime_env={"env_vars": passed_on},
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(address, error) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _file(path: Path) -> Iterator[None]:
    """A file there, empty, for as long as the block runs."""
    path.touch()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
