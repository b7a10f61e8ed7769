"""Where a run departs from the paper and its published code: each constant and method that differs, no other."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from noisescape.experiments.experiment import Experiment, Method
from noisescape.experiments.fashion_mnist import FASHION_MNIST
from noisescape.experiments.registry import EXPERIMENTS
from noisescape.experiments.svhn import SVHN
from noisescape.report.departures import CONSTANTS, OF_THE_CALL, WITHOUT, departures
from noisescape.runs.run import Run

RESULTS = Path(__file__).resolve().parents[3] / "docs" / "results"
OF_PAPER = {name: experiment for name, experiment in EXPERIMENTS.items() if experiment.of_paper}


def rows_of(experiment: Experiment, config: Any) -> dict[str, list[str]]:
    """By what they are about, of the configuration as a run stores it."""
    [table] = departures(experiment, json.loads(json.dumps(asdict(config)))).items
    rows = {row[0]: list(row[1:]) for row in table.rows}
    assert len(rows) == len(table.rows)
    assert table.columns == ["what", "this run", "the paper", "the published code"]
    return rows


def test_a_run_as_published_departs_from_the_paper_alone_where_it_is_true_to_the_code() -> None:
    rows = rows_of(FASHION_MNIST, FASHION_MNIST.configure("as-published"))
    assert rows["training images with their own label"] == ["5,800", "1,000", "5,800"]
    assert "training images with a random label" not in rows, "200 in all three"
    assert "steps to the minimum" not in rows
    assert rows["leading noise is injected"] == ["on refresh steps only", "on every step", "on refresh steps only"]
    every_step = "dynamic, diagonal, 1st eigenvector"
    assert rows["dynamics whose covariance is computed on every step"] == [every_step, "none", every_step]
    assert rows["standard deviation of constant noise"] == ["0.001", "of trace TrΣ", "0.001"]
    apart = {what for what, (here, _, code) in rows.items() if here != code}
    assert "independent repetitions" in apart, "the code runs once"
    assert not apart & {CONSTANTS[name] for name in ("clean", "rho", "rescale", "every_step")}


def test_a_quick_run_says_all_that_it_gives_up() -> None:
    rows = rows_of(SVHN, SVHN.configure("quick", steps=123))
    assert rows["steps of every dynamics"] == ["123", "10,000", "200,001"]
    assert rows["width of the network, of the published"] == ["0.0625", "1", "1"]
    assert rows["batches that a covariance is estimated from"] == ["none: exact", "100", "100"]
    assert rows["trained on the test split, tested on the training split"] == ["no", "no", "yes"]
    assert rows["steps where sharpness is measured beside the last"] == ["none", "none", "13, from 3,000 to 15,000"]
    assert "batch size B" not in rows, "100 in all three"


@pytest.mark.parametrize("experiment", OF_PAPER.values(), ids=OF_PAPER)
@pytest.mark.parametrize("preset", ["quick", "paper", "as-published"])
def test_every_constant_that_differs_is_listed_in_words(experiment: Experiment, preset: str) -> None:
    config, paper, code = (experiment.presets[name] for name in (preset, "paper", "as-published"))
    rows = rows_of(experiment, config)
    published = asdict(code) | experiment.in_code
    differing = {
        field.name
        for field in fields(config)
        if not getattr(config, field.name) == getattr(paper, field.name) == published[field.name]
    } - {*OF_THE_CALL}
    assert differing
    assert rows.keys() - {method.what for method in experiment.methods} == {CONSTANTS[name] for name in differing}
    empty = {field.name for field in fields(config) if getattr(config, field.name) is None}
    assert empty & differing <= WITHOUT.keys()


def test_a_constant_that_is_changed_is_listed_and_one_of_the_call_is_not() -> None:
    paper = SVHN.configure("paper")
    before = rows_of(SVHN, paper)
    assert rows_of(SVHN, replace(paper, seed=5, data_dir="elsewhere")) == before
    after = rows_of(SVHN, replace(paper, batch_size=7))
    assert after == {**before, "batch size B": ["7", "100", "100"]}


def test_a_method_is_the_papers_at_every_preset_but_as_published() -> None:
    method = Method("signs", "plus", "minus")
    assert [method.at(preset) for preset in ("quick", "paper", "as-published")] == ["plus", "plus", "minus"]
    own = Method("signs", "plus", "minus", "none")
    assert {own.at(preset) for preset in ("quick", "paper", "as-published")} == {"none"}


def test_an_earlier_run_did_what_a_later_constant_is_by_default() -> None:
    config = asdict(SVHN.configure("quick"))
    whole = departures(SVHN, config)
    for later in ("init", "replacement", "sharpness_at", "exchanged"):
        del config[later]
    assert departures(SVHN, config) == whole


@pytest.mark.parametrize("name", OF_PAPER)
def test_a_committed_run_says_where_it_departs(name: str) -> None:
    """Some are older than constants that the presets have now, and one than the names of the presets."""
    [table] = departures(OF_PAPER[name], Run.open(RESULTS / name).info["config"]).items
    assert len(table.rows) > 3
