"""Presets: what each changes, what it takes, and the suite made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest

from noisescape.experiments.cifar10 import CIFAR10
from noisescape.experiments.fashion_mnist import FASHION_MNIST
from noisescape.experiments.one_hidden_layer import ONE_HIDDEN_LAYER
from noisescape.experiments.registry import EXPERIMENTS
from noisescape.experiments.suite import paper_suite
from noisescape.experiments.svhn import SVHN
from noisescape.experiments.toy_2d import TOY_2D

VGG_PUBLISHED = {
    "rho": 1e-3,
    "steps": 200_001,
    "init": "fan-out",
    "replacement": False,
    "sharpness_at": (*range(3000, 10_000, 1000), *range(10_000, 16_000, 1000)),
}
PRESETS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "toy-2d": (TOY_2D.configure, {}),
    "one-hidden-layer": (
        ONE_HIDDEN_LAYER.configure,
        {
            "widths": (100,),
            "optimisers": ("adam",),
            "decay_from": 22,
            "init_bound": 1.0,
            "replacement": False,
        },
    ),
    "fashion-mnist": (
        FASHION_MNIST.configure,
        {
            "clean": 5800,
            "gd_arm_lr": 0.1,
            "rho": 1e-3,
            "rescale": False,
            "every_step": ("gld-dynamic", "gld-diagonal", "gld-top-eigenvector"),
        },
    ),
    "svhn": (SVHN.configure, {**VGG_PUBLISHED, "exchanged": True, "test": 70_000}),
    "cifar10": (CIFAR10.configure, VGG_PUBLISHED),
}
VGG_QUICK = {"seeds", "train", "test", "image_size", "width", "lr", "steps", "pixel_low", "batches"}
QUICK = {
    "toy-2d": {"replicas"},
    "one-hidden-layer": {"seeds"},
    "fashion-mnist": {
        "seeds",
        "clean",
        "corrupted",
        "test",
        "gd_steps",
        "landmarks",
        "steps",
        "curvature_refresh",
        "sharpness_draws",
        "rtol",
    },
    "svhn": VGG_QUICK,
    "cifar10": VGG_QUICK,
}
by_experiment = pytest.mark.parametrize("experiment", PRESETS)


def changed(one: Any, other: Any) -> dict[str, Any]:
    before = asdict(one)
    return {name: value for name, value in asdict(other).items() if before[name] != value}


@by_experiment
def test_the_published_preset_differs_in_what_it_says_only(experiment: str) -> None:
    make, deviations = PRESETS[experiment]
    assert changed(make("paper"), make("as-published")) == {"preset": "as-published", **deviations}


@by_experiment
def test_the_quick_preset_gives_up_what_the_decision_lists(experiment: str) -> None:
    make, _ = PRESETS[experiment]
    assert changed(make("paper"), make("quick")).keys() == {"preset"} | QUICK[experiment]


@pytest.mark.parametrize("experiment", ["svhn", "cifar10"])
def test_two_cores_take_what_is_measured_to_fit_and_compare_at_one_loss(experiment: str) -> None:
    make, _ = PRESETS[experiment]
    given = {"batches", "dynamics", "level", "preset", "pixel_low", "refresh"}
    sizes = {"seeds", "train", "image_size", "width", "lr", "steps"}
    differing = changed(make("paper"), make("two-cores"))
    assert differing.keys() == given | sizes
    assert differing["train"] >= 5000
    assert {*differing["dynamics"]} == {"gd", "sgd", "gld-dynamic", "gld-diagonal"}
    assert make("paper").level is make("as-published").level is make("quick").level is None


@pytest.mark.parametrize("experiment", ["svhn", "cifar10"])
def test_a_gpu_takes_the_full_width_and_compares_at_one_loss(experiment: str) -> None:
    make, _ = PRESETS[experiment]
    differing = changed(make("paper"), make("gpu"))
    sizes = {"seeds", "train", "lr", "steps", "sharpness_draws"}
    assert differing.keys() == {"preset", "pixel_low", "dynamics", "level", "training"} | sizes
    assert make("gpu").width == 1
    with pytest.raises(ValueError, match="unknown training 'bf16'; known: float32, tf32"):
        make("gpu", training="bf16")


def test_the_published_gradient_descent_has_a_rate_of_its_own() -> None:
    published, paper = (FASHION_MNIST.configure(preset) for preset in ("as-published", "paper"))
    assert [published.rate(name) for name in ("gd", "sgd", "gld-diagonal")] == [0.1, 0.07, 0.07]
    assert [paper.rate(name) for name in ("gd", "sgd")] == [0.07, 0.07]
    with pytest.raises(ValueError, match="gd_arm_lr must be positive"):
        FASHION_MNIST.configure("paper", gd_arm_lr=0.0)


def test_the_published_fashion_mnist_has_6000_images_and_the_described_way_to_its_minimum() -> None:
    config = FASHION_MNIST.configure("as-published")
    assert (config.clean, config.corrupted, config.gd_lr, config.gd_steps) == (5800, 200, 0.1, 3000)


@by_experiment
def test_presets_take_changes_and_leave_out_what_is_not_given(experiment: str) -> None:
    make, _ = PRESETS[experiment]
    repetitions = "replicas" if experiment == "toy-2d" else "seeds"
    assert make("paper", **{repetitions: None}, seed=7) == replace(make("paper"), seed=7)
    assert changed(make("quick"), make("quick", **{repetitions: 5})) == {repetitions: 5}
    assert make("paper").experiment == experiment
    with pytest.raises(ValueError, match=f"{repetitions} must be at least 1, not 0"):
        make("paper", **{repetitions: 0})


@by_experiment
@pytest.mark.parametrize(
    ("preset", "hint"),
    [("papr", "; did you mean paper?"), ("published", "; did you mean as-published?"), ("x", ";")],
)
def test_an_unknown_preset_gets_the_nearest_one(experiment: str, preset: str, hint: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the whole message is compared)
        PRESETS[experiment][0](preset)
    between = "two-cores, gpu, " if experiment in ("svhn", "cifar10") else ""
    assert str(caught.value) == f"unknown preset '{preset}'{hint} known: quick, {between}paper, as-published"


@pytest.mark.parametrize("preset", ["quick", "paper", "as-published"])
def test_the_suite_is_the_paper_in_its_order(preset: str) -> None:
    suite = paper_suite(preset, seeds=4, data_dir="somewhere", seed=9, device="cpu")
    assert [*suite] == [*PRESETS]
    assert suite.keys() <= EXPERIMENTS.keys()
    given = {"toy-2d": {}, "one-hidden-layer": {"seeds": 4}}
    for experiment, (make, _) in PRESETS.items():
        own = given.get(experiment, {"seeds": 4, "data_dir": "somewhere"})
        assert suite[experiment] == make(preset, seed=9, device="cpu", **own)
    with pytest.raises(
        ValueError, match="unknown preset 'large'; did you mean paper\\? known: quick, paper, as-published"
    ):
        paper_suite("large")
