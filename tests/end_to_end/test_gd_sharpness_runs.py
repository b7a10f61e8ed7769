"""The sharpness of gradient descent at a tiny size: what a run leaves behind, and whether its numbers are right."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from noisescape.experiments.claims import ledger
from noisescape.experiments.gd_sharpness import GD_SHARPNESS, POSTER, GDSharpnessConfig, gd_sharpness_problem
from noisescape.report.tables import gd_sharpness_table
from noisescape.runs.run import Run
from run_files import check_report, recorded

SMALL = GDSharpnessConfig(
    preset="quick",
    seeds=2,
    rates=(0.5, 2.0),
    edge_from=2.0,
    steps=30,
    measure_every=10,
    data="digits",
    clean=20,
    corrupted=5,
    widths=(3,),
    seed=2,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return GD_SHARPNESS.run(SMALL, tmp_path_factory.mktemp("sharpness") / "run", jobs=1, progress=False)


def of(run: Run, seed: int, rate: float, metric: str) -> dict[int, float]:
    return recorded(run, seed=seed, rate=rate, metric=metric, phase="training", dynamics="gd")


def in_plain_torch(seed: int, rate: float) -> tuple[nn.Module, Callable[..., torch.Tensor], torch.Tensor]:
    """The network as PyTorch's own optimiser and loss leave it in float64, that loss, and the one-hot labels."""
    made = gd_sharpness_problem(SMALL, seed)
    model, criterion = made.model.double(), nn.MSELoss()
    images, targets = made.split.images.double(), torch.eye(10, dtype=torch.float64)[made.split.labels]
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(SMALL.steps):
        optimizer.zero_grad()
        criterion(model(images), targets).backward()
        optimizer.step()

    def loss(flat: torch.Tensor) -> torch.Tensor:
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        parts = flat.split([shape.numel() for shape in shapes.values()])
        given = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return criterion(torch.func.functional_call(model, given, (images,)), targets)

    return model, loss, targets


@pytest.mark.parametrize("rate", SMALL.rates)
def test_a_run_ends_where_pytorchs_own_loop_does_with_the_largest_eigenvalue_there(run: Run, rate: float) -> None:
    for seed in range(2):
        model, loss, targets = in_plain_torch(seed, rate)
        theta = nn.utils.parameters_to_vector(model.parameters()).detach()
        found = run.tensors("final")[f"rate-{rate:g}/seed-{seed}"]
        torch.testing.assert_close(found.double(), theta, rtol=1e-3, atol=1e-4)
        dense = torch.func.hessian(loss)(theta)
        assert of(run, seed, rate, "largest_eigenvalue")[30] == pytest.approx(
            float(torch.linalg.eigvalsh(dense)[-1]), rel=3e-3
        )
        assert of(run, seed, rate, "loss")[30] == pytest.approx(float(loss(theta)), rel=1e-3)
        split = gd_sharpness_problem(SMALL, seed).split
        right = model(split.images.double()).argmax(-1) == targets.argmax(-1)
        assert of(run, seed, rate, "train_accuracy")[30] == pytest.approx(float(right.double().mean()), abs=1e-6)
        right = model(split.test_images.double()).argmax(-1) == split.test_labels
        assert of(run, seed, rate, "test_accuracy")[30] == pytest.approx(float(right.double().mean()), abs=1e-3)


def test_everything_is_measured_where_it_is_due(run: Run) -> None:
    assert run.info["config"] == json.loads(json.dumps(asdict(SMALL)))
    for metric in ("loss", "largest_eigenvalue", "train_accuracy", "test_accuracy"):
        assert [*of(run, 1, 0.5, metric)] == [0, 10, 20, 30]
        starts = {of(run, 1, rate, metric)[0] for rate in SMALL.rates}
        assert len(starts) == 1, "the same network at every rate"


def test_the_summary_is_of_what_was_recorded(run: Run) -> None:
    ends = [of(run, seed, 2.0, "largest_eigenvalue")[30] for seed in range(2)]
    found = run.summary()["final"]["2"]
    assert found["largest_eigenvalue"]["value"] == pytest.approx(np.mean(ends))
    assert found["stability"]["value"] == pytest.approx(np.mean(ends))
    assert run.summary()["final"]["0.5"]["stability"]["value"] == pytest.approx(
        np.mean([of(run, seed, 0.5, "largest_eigenvalue")[30] for seed in range(2)]) / 4
    )


def test_a_report_is_self_contained_and_judges_the_rates_that_are_to_get_there(run: Run) -> None:
    page = check_report(run, {"settled", "sharpening"})
    assert "poster" not in page
    assert "20 images of digits and 5 more with random labels" in page
    assert [(found.claim.name, found.result.case) for found in ledger([run])] == [("gd-settles-at-edge", "η = 2")]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(GD_SHARPNESS.summary_table(run.summary()))
    assert "λ₁·η/2" in capture.get()


def test_the_posters_figures_stand_beside_those_of_its_preset(run: Run) -> None:
    ends = {"value": 39.0, "stderr": 0.25}
    metrics = ("largest_eigenvalue", "stability", "loss", "train_accuracy", "test_accuracy")
    final = {f"{rate:g}": dict.fromkeys(metrics, ends) for rate in (*POSTER, 0.2)}
    table = gd_sharpness_table({"preset": "poster", "final": final})
    shown = {row[0]: (row[1], row[2], row[3]) for row in table.rows}
    assert shown == {
        "0.01": ("200", "39.00 ± 0.25", "53.5 ± 4.3"),
        "0.05": ("40", "39.00 ± 0.25", "39.3 ± 0.5"),
        "0.1": ("20", "39.00 ± 0.25", "19.6 ± 0.15"),
        "0.5": ("4", "39.00 ± 0.25", "3.9"),
        "0.2": ("10", "39.00 ± 0.25", "–"),
    }
    assert "λ₁, poster" not in gd_sharpness_table(run.summary()).columns


def test_the_poster_is_run_as_its_repository_does() -> None:
    config = GD_SHARPNESS.configure("poster")
    assert (config.data, config.clean, config.corrupted) == ("fashion_mnist", 1000, 0)
    assert config.widths == (500, 500, 500)
    assert (config.rates, config.steps) == (tuple(POSTER), 10_000)
    assert [rate for rate in config.rates if rate >= config.edge_from] == [0.05, 0.1, 0.5]


def test_images_come_from_a_directory_where_one_is_given(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not hold fashion_mnist"):
        gd_sharpness_problem(replace(SMALL, data="fashion_mnist", data_dir=str(tmp_path)), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": ()}, "rates are learning rates, positive and unlike"),
        ({"rates": (0.1, 0.1)}, "rates are learning rates, positive and unlike"),
        ({"rates": (0.0,)}, "rates are learning rates, positive and unlike"),
        ({"widths": ()}, "widths are those of the hidden layers"),
        ({"widths": (5, 0)}, "widths are those of the hidden layers"),
        ({"data": "digit"}, "unknown data set 'digit'; did you mean digits"),
        ({"edge_from": 0.0}, "edge_from must be positive"),
        ({"measure_every": 0}, "measure_every must be at least 1, not 0"),
    ],
)
def test_constants_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_more_images_than_there_are_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the digits hold 1797"):
        GD_SHARPNESS.run(replace(SMALL, clean=2000), tmp_path / "run", jobs=1, progress=False)
    assert not (tmp_path / "run").exists()
