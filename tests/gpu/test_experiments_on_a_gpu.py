"""Every experiment and every law of the lab, small, with ``device`` a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import lab_runs
from noisescape.experiments.lab.registry import LABS
from noisescape.experiments.registry import EXPERIMENTS
from paper_runs import ON_IMAGES, data_directory, tiny
from resumed_experiments import EXPERIMENTS as SMALL


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_directory(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("name", ON_IMAGES)
def test_on_images(name: str, device: str, images: Path, tmp_path: Path) -> None:
    config = replace(tiny(name, str(images)), device=device)
    run = EXPERIMENTS[name].run(config, tmp_path / "run", progress=False)
    assert run.complete


@pytest.mark.parametrize("name", SMALL)
def test_experiments(name: str, device: str, tmp_path: Path) -> None:
    run_it, config, _ = SMALL[name]
    assert run_it(replace(config, device=device), tmp_path / "run", progress=False).complete


@pytest.mark.parametrize("name", LABS)
def test_laws(name: str, device: str, tmp_path: Path) -> None:
    config = replace(lab_runs.tiny(name), device=device)
    run = LABS[name].run(config, tmp_path / "run", progress=False)
    assert run.complete


def test_a_run_names_its_gpu(device: str, tmp_path: Path) -> None:
    run_it, config, _ = SMALL["one-hidden-layer"]
    run = run_it(replace(config, device=device), tmp_path / "run", progress=False)
    assert ("accelerator" in run.info) == (device == "cuda")
