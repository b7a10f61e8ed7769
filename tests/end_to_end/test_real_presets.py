"""The presets on the real images."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest

from noisescape.dynamics import MatchedTrace
from noisescape.experiments.cifar10 import CIFAR10
from noisescape.experiments.constants import TrainingConfig
from noisescape.experiments.fashion_mnist import FASHION_MNIST, FashionMNISTConfig, fashion_mnist_problem
from noisescape.experiments.protocols.comparison import make_dynamics
from noisescape.experiments.registry import EXPERIMENTS
from noisescape.experiments.svhn import SVHN
from paper_runs import ON_IMAGES

REAL = os.environ.get("NOISESCAPE_DATA")
real = pytest.mark.skipif(not REAL, reason="NOISESCAPE_DATA names no directory with the real data sets")


@real
@pytest.mark.parametrize("experiment", ON_IMAGES)
def test_the_quick_presets_fit_the_real_images(experiment: str) -> None:
    config = EXPERIMENTS[experiment].configure("quick", data_dir=REAL)
    problem: Any = EXPERIMENTS[experiment].problem(config, 0)
    sizes = {
        "fashion-mnist": ((360, 1, 28, 28), (2000, 1, 28, 28)),
        "svhn": ((800, 3, 16, 16), (283, 3, 16, 16)),
        "cifar10": ((800, 3, 16, 16), (1000, 3, 16, 16)),
    }
    assert (tuple(problem.split.images.shape), tuple(problem.split.test_images.shape)) == sizes[experiment]
    assert -1 <= float(problem.split.images.min()) < -0.9
    assert 0.9 < float(problem.split.images.max()) <= 1
    start = problem.risk.parameters()
    # a network that knows nothing yet; Kaiming's outputs are of the order of 1
    tolerance = 0.01 if experiment == "fashion-mnist" else 1.5
    assert float(problem.risk.loss(start)) == pytest.approx(math.log(10), abs=tolerance)


@real
def test_the_published_constants_differ_from_the_quick_ones_on_the_real_images() -> None:
    paper = fashion_mnist_problem(FASHION_MNIST.configure("paper", test=100, data_dir=REAL), 0)
    assert paper.risk.sample_count == 1200
    assert int(paper.split.corrupted.sum()) == 200
    assert isinstance(make_dynamics(FASHION_MNIST.configure("paper"), "gld-constant", 1.0), MatchedTrace)
    assert FashionMNISTConfig() == FASHION_MNIST.configure("paper")
    assert TrainingConfig().train == SVHN.configure("paper").train == 25_000
    assert CIFAR10.configure("paper").train == 50_000
