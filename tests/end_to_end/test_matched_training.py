"""VGG-11 trained from initialisation to one training loss, at a tiny size."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import vector_to_parameters

from noisescape.experiments.cifar10 import CIFAR10
from noisescape.experiments.claims import Evidence, ledger
from noisescape.experiments.protocols import comparison
from noisescape.experiments.protocols.comparison import LOOK_EVERY
from noisescape.runs.run import Run
from noisescape.simulation.loop import simulate
from noisescape.simulation.records import Trajectory
from paper_runs import FIGURES, tiny
from resuming import Stop
from run_files import check_report, headings, recorded

ARMS = ("gd", "sgd", "gld-dynamic", "gld-diagonal")
LEVEL = 2.2


def config_of(data: Path, **changes: Any) -> Any:
    given = {
        "dynamics": ARMS,
        "level": LEVEL,
        "steps": 100,
        "quench_steps": 200,
        "batch_size": 12,
        "lr": 0.05,
        "batches": None,
    }
    return tiny("cifar10", data, **(given | changes))


def run_of(config: Any, out: Path, *, resume: bool = False) -> Run:
    return CIFAR10.run(config, out, jobs=1, progress=False, resume=resume)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_of(config_of(data), tmp_path_factory.mktemp("matched") / "run")


def found_at_level(run: Run, name: str, seed: int, metric: str) -> float:
    [(step, value)] = recorded(run, phase="matched", dynamics=name, seed=seed, metric=metric).items()
    assert step == run.info["config"]["steps"]
    return value


@pytest.mark.slow
def test_within_a_seed_all_are_compared_at_one_loss_which_the_network_has(run: Run, data: Path) -> None:
    """By the network itself in float64, not by the risk."""
    for seed in range(2):
        made = CIFAR10.problem(config_of(data), seed)
        losses = [found_at_level(run, name, seed, "loss") for name in ARMS]
        assert max(losses) == pytest.approx(min(losses), rel=3e-4)
        assert 0.5 * LEVEL < min(losses) < LEVEL * (1 + 1e-4)
        for name in ARMS:
            model = made.model.double()
            vector_to_parameters(run.tensors("matched")[f"{name}/seed-{seed}"].double(), model.parameters())
            with torch.no_grad():
                loss = cross_entropy(model(made.split.images.double()), made.split.labels)
                outputs = model(made.split.test_images.double())
            assert found_at_level(run, name, seed, "loss") == pytest.approx(float(loss), rel=1e-5)
            right = float((outputs.argmax(1) == made.split.test_labels).double().mean())
            assert found_at_level(run, name, seed, "test_accuracy") == pytest.approx(right)
            assert found_at_level(run, name, seed, "test_loss") == pytest.approx(
                float(cross_entropy(outputs, made.split.test_labels)), rel=1e-4
            )


@pytest.mark.slow
def test_sharpness_is_that_of_the_same_perturbations_at_the_iterate(run: Run, data: Path) -> None:
    config = config_of(data)
    made = CIFAR10.problem(config, 1)
    theta = run.tensors("matched")["sgd/seed-1"]
    top = float(torch.linalg.eigvalsh(made.risk.hessian(theta).dense().double())[-1])
    assert found_at_level(run, "sgd", 1, "largest_eigenvalue") == pytest.approx(top, rel=0.02)
    for name in ARMS:
        assert found_at_level(run, name, 1, "sharpness_stderr") > 0


@pytest.mark.slow
def test_training_ends_at_the_first_look_that_is_at_or_below_the_level(run: Run) -> None:
    steps = run.info["config"]["steps"]
    for name in ARMS:
        for seed in range(2):
            curve = recorded(run, phase="training", dynamics=name, seed=seed, metric="loss")
            *before, (last, loss) = curve.items()
            assert found_at_level(run, name, seed, "taken") == last
            assert found_at_level(run, name, seed, "reached") == 1
            assert [step for step, _ in before] == [*range(0, last, LOOK_EVERY)]
            assert all(value > LEVEL for _, value in before)
            assert last == steps or (last % LOOK_EVERY == 0 and loss <= LEVEL)
            assert min(loss, LEVEL) * (1 + 1e-4) >= found_at_level(run, name, seed, "loss")
    taken = [found_at_level(run, name, seed, "taken") for name in ARMS for seed in range(2)]
    assert min(taken) < steps, "one of them came down by itself"


@pytest.mark.slow
def test_the_noise_of_a_run_that_ended_early_is_measured_beside_its_target(run: Run) -> None:
    for name in ARMS[1:]:
        ratios = Evidence.of(run).trace_ratio("training", name)
        assert all(0 < ratio.value < 20 for ratio in ratios), "both of the same steps"
    assert run.summary()["injected_trace"]["sgd"]["value"] > 0


@pytest.mark.slow
def test_every_claim_on_the_arms_finds_its_figures(run: Run) -> None:
    found = {(finding.claim.name, finding.result.case): finding.result for finding in ledger([run])}
    assert found.keys() == {
        ("accuracy-order", "sgd over gld-diagonal"),
        ("accuracy-order", "gld-diagonal over gld-dynamic"),
        ("isotropic-as-gd", "gld-dynamic and gd"),
        ("flatter-from-initialisation", "sgd and gd"),
        ("flatter-generalises", ""),
    }
    gains = [
        found_at_level(run, "sgd", seed, "test_accuracy")
        - found_at_level(run, "gld-diagonal", seed, "test_accuracy")
        for seed in range(2)
    ]
    assert found["accuracy-order", "sgd over gld-diagonal"].effect == pytest.approx(sum(gains) / 2)


@pytest.mark.slow
def test_the_page_says_what_was_compared_and_what_only_a_gpu_decides(run: Run) -> None:
    page = check_report(run, FIGURES["cifar10"])
    assert "At the same training loss" in headings(page)
    assert "What this size cannot decide" in headings(page)
    assert (
        "noisescape reproduce cifar10 --preset two-cores --width 1 --image-size 32 --train 25000 --device cuda"
        in page
    )
    assert "is at or below 2.2" in page
    table = CIFAR10.summary_table(run.summary())
    assert str(table.columns[-1].header).split() == ["not", "reached"]


def test_what_its_steps_end_above_the_level_is_quenched_to_it(data: Path, tmp_path: Path) -> None:
    made = run_of(config_of(data, steps=2, seeds=1), tmp_path / "run")
    for name in ARMS:
        assert recorded(made, phase="training", dynamics=name, seed=0, metric="loss")[2] > LEVEL
        assert found_at_level(made, name, 0, "quench_steps") > 0
        assert found_at_level(made, name, 0, "loss") == pytest.approx(LEVEL, rel=2e-4)
    assert made.summary()["censored"] == dict.fromkeys(ARMS, 0)


@pytest.mark.slow
def test_what_does_not_come_down_is_censored_and_not_measured(data: Path, tmp_path: Path) -> None:
    made = run_of(config_of(data, steps=2, quench_steps=1, level=1e-4), tmp_path / "run")
    assert made.summary()["censored"] == dict.fromkeys(ARMS, 2)
    rows = [row for row in made.metrics().to_pylist() if row["phase"] == "matched"]
    assert {row["metric"] for row in rows} == {"reached", "taken", "quench_steps"}
    assert made.tensors("matched") == {}
    for finding in ledger([made]):
        assert finding.result.verdict == "undecided"
        assert "did not come down to the training loss in 2 of 2 seeds" in str(finding.result.veto)
    page = check_report(made, FIGURES["cifar10"])
    assert "No dynamics came down to the training loss" in page


@pytest.mark.slow
def test_one_that_diverges_is_censored_and_the_others_are_compared(data: Path, tmp_path: Path) -> None:
    config = config_of(data, dynamics=("gd", "sgd", "gld-constant"), rho=1e12, seeds=1)
    made = run_of(config, tmp_path / "run")
    assert made.summary()["censored"] == {"gd": 0, "sgd": 0, "gld-constant": 1}
    assert found_at_level(made, "gld-constant", 0, "taken") == 1
    assert found_at_level(made, "gd", 0, "loss") == pytest.approx(found_at_level(made, "sgd", 0, "loss"), rel=3e-4)
    check_report(made, FIGURES["cifar10"])


@pytest.mark.slow
@pytest.mark.parametrize("task", [1, 4])
def test_a_run_stopped_in_training_or_at_the_match_goes_on_to_the_same_bytes(
    task: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Task 4 is the match: the four trainings before it are kept."""
    config = config_of(data, seeds=1, steps=60)
    whole = run_of(config, tmp_path / "whole")
    count = itertools.count()

    def stopped(*arguments: Any, **options: Any) -> Trajectory:
        def watch(done: int) -> None:
            if done == 20:
                raise Stop

        own = {"checkpoint_seconds": 0, "on_step": watch} if next(count) == task else {}
        return simulate(*arguments, **options, **own)

    def at_the_match(*_: Any, **__: Any) -> Any:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "simulate", stopped)
        patch.setattr("noisescape.experiments.protocols.matched_training.at_matched_loss", at_the_match)
        with pytest.raises(Stop):
            run_of(config, tmp_path / "run")
    assert not Run.open(tmp_path / "run").complete
    assert len([*(tmp_path / "run" / "tasks").glob("[!.]*.done.*")]) == task
    resumed = run_of(config, tmp_path / "run", resume=True)
    for name in ("metrics.parquet", "summary.json", "checkpoints/matched.safetensors"):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": 0.0}, "level must be positive, not 0.0"),
        ({"level": -1.0}, "level must be positive"),
        ({"level": float("nan")}, "level must be positive, not nan"),
        ({"quench_steps": 0}, "quench_steps must be at least 1, not 0"),
    ],
)
def test_a_level_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CIFAR10.configure("two-cores", **changes)
