"""Independent pieces of an experiment, side by side on the machine's cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from joblib import Parallel, delayed

from noisescape.progress import steps_bar

Outcome = TypeVar("Outcome")


def default_jobs(device: str) -> int:
    """One process a core; one in all on an accelerator."""
    return os.cpu_count() or 1 if torch.device(device).type == "cpu" else 1


def run_all(
    function: Callable[..., Outcome],
    tasks: Sequence[tuple[Any, ...]],
    *,
    jobs: int,
    title: str,
    progress: bool,
) -> list[Outcome]:
    """``function(*task)`` for every task, in the order of the tasks.

    On the CPU every task runs on one thread whatever ``jobs`` is, so that results do not depend on it.
    """
    calls = (delayed(_on_one_thread)(function, position, task) for position, task in enumerate(tasks))
    outcomes: dict[int, Outcome] = {}
    with steps_bar(title, len(tasks), shown=progress) as advance:
        finished: Iterable[tuple[int, Outcome]] = Parallel(n_jobs=jobs, return_as="generator_unordered")(calls)
        for position, outcome in finished:
            outcomes[position] = outcome
            advance(1)
    return [outcomes[position] for position in range(len(tasks))]


def _on_one_thread(function: Callable[..., Outcome], position: int, task: tuple[Any, ...]) -> tuple[int, Outcome]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return position, function(*task)
    finally:
        torch.set_num_threads(before)
