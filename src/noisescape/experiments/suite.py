"""The experiments of the paper as one suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from noisescape.errors import InvalidValueError, MissingPathError
from noisescape.experiments.digits import run_digits
from noisescape.experiments.fashion_mnist import fashion_mnist_config, fashion_mnist_problem, run_fashion_mnist
from noisescape.experiments.one_hidden_layer import one_hidden_layer_config, run_one_hidden_layer
from noisescape.experiments.toy_2d import Toy2DConfig, run_toy_2d
from noisescape.experiments.vgg import cifar10_config, run_vgg, svhn_config, vgg_problem
from noisescape.runs.run import Run

RUNNERS: Mapping[str, Callable[..., Run]] = {
    "toy-2d": run_toy_2d,
    "one-hidden-layer": run_one_hidden_layer,
    "fashion-mnist": run_fashion_mnist,
    "svhn": run_vgg,
    "cifar10": run_vgg,
    "digits": run_digits,
}
"""What runs each experiment: ``runner(config, out, jobs=..., resume=..., progress=...)``."""

TOY_REPLICAS = {"quick": 1000, "paper": 4000, "as-published": 4000}


def paper_suite(
    preset: str, *, seeds: int | None = None, data_dir: str | None = None, seed: int = 0, device: str = "cpu"
) -> dict[str, Any]:
    """The configuration of every experiment of the paper at one preset, in the paper's order.

    Raises:
        ValueError: unknown preset.
    """
    if preset not in TOY_REPLICAS:
        raise InvalidValueError(f"unknown preset '{preset}'; known: {', '.join(TOY_REPLICAS)}")
    toy = Toy2DConfig(
        preset="as-published" if preset == "as-published" else "corrected",
        replicas=TOY_REPLICAS[preset],
        seed=seed,
        device=device,
    )
    common: dict[str, Any] = {"seeds": seeds, "seed": seed, "device": device}
    return {
        "toy-2d": toy,
        "one-hidden-layer": one_hidden_layer_config(preset, **common),
        "fashion-mnist": fashion_mnist_config(preset, data_dir=data_dir, **common),
        "svhn": svhn_config(preset, data_dir=data_dir, **common),
        "cifar10": cifar10_config(preset, data_dir=data_dir, **common),
    }


def check_data(suite: Mapping[str, Any]) -> None:
    """Make the first repetition's problem of every experiment on images: what is missing is told at once.

    Raises:
        DataError: a data set is missing or broken.
    """
    problems: Mapping[str, Callable[..., Any]] = {
        "fashion-mnist": fashion_mnist_problem,
        "svhn": vgg_problem,
        "cifar10": vgg_problem,
    }
    for experiment in problems.keys() & suite.keys():
        problems[experiment](suite[experiment], 0)


def open_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs at these paths; a directory that is no run itself stands for the complete runs right inside it.

    Raises:
        FileNotFoundError: a path without any run, or a run that is not complete.
    """
    found: list[Run] = []
    for path in paths:
        if (path / "run.json").is_file() or not path.is_dir():
            run = Run.open(path)
            run.summary()
            found.append(run)
            continue
        inside = [Run.open(entry) for entry in sorted(path.iterdir()) if (entry / "run.json").is_file()]
        complete = [run for run in inside if run.complete]
        if not complete:
            raise MissingPathError(f"{path} holds no complete run")
        found += complete
    return found
