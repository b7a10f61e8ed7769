"""What is said of a training's log follows from its figures and their intervals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from noise_logs import probed, reports
from noisescape.report.monitor_answers import answers
from noisescape.report.monitor_curves import curves, panels
from noisescape.report.page import Answer
from noisescape.training import NoiseLog


def log_of(*rows: dict[str, float]) -> NoiseLog:
    keys = dict.fromkeys(key for row in rows for key in row)
    steps = np.array([int(row["noise/step"]) for row in rows])
    columns = {key: np.array([row.get(key, math.nan) for row in rows]) for key in keys}
    return NoiseLog(Path("metrics.csv"), steps, columns)


def said(question: str, **changes: float) -> Answer:
    """The answer to a question for one report with changed figures."""
    report = probed(reports()[1])
    report = {key: value for key, value in report.items() if "preconditioned" not in key}
    report |= {f"noise/{key.replace('__', '/')}": value for key, value in changes.items()}
    [found] = [answer for answer in answers(log_of(report)) if answer.question == question]
    return found


@pytest.mark.parametrize(
    ("size", "verdict", "tone"),
    [
        (64.0, "B = 64 is below the noise scale", "good"),
        (500.0, "B = 500 is near the noise scale", "open"),
        (4096.0, "B = 4096 is above the noise scale", "care"),
    ],
)
def test_the_batch_is_judged_by_the_interval(size: float, verdict: str, tone: str) -> None:
    found = said("Is the batch large for this noise?", batch_size=size)
    assert (found.verdict, found.tone) == (verdict, tone)
    noise = reports()[1]["noise/scale"]
    assert f"{(2 * size + noise) / (size + noise) / 2:.3g} times the steps" in found.answer
    assert "only training branches measures the critical batch size" in found.sure


@pytest.mark.parametrize(
    ("ratio", "verdict", "tone"),
    [(0.5, "below", "good"), (0.92, "at", "care"), (1.08, "at", "care"), (1.3, "beyond", "bad")],
)
def test_the_top_eigenvalue_is_judged_against_the_edge(ratio: float, verdict: str, tone: str) -> None:
    found = said("Are the steps stable?", probe__top_eigenvalue_over_edge=ratio)
    assert (found.verdict, found.tone) == (f"λ₁ is {verdict} the edge", tone)
    assert f"{ratio:g} times the edge" in found.answer


@pytest.mark.parametrize(
    ("value", "verdict", "tone"),
    [(10.0, "below the edge", "good"), (21.0, "not told from the edge", "open"), (30.0, "beyond the edge", "care")],
)
def test_batch_sharpness_is_judged_by_its_interval(value: float, verdict: str, tone: str) -> None:
    found = said("How sharp is it along the steps' own gradients?", probe__batch_sharpness=value)
    assert (found.verdict, found.tone) == (f"Batch sharpness is {verdict}", tone)
    assert f"{value - 1.96 * 1.5:.3g} to {value + 1.96 * 1.5:.3g}" in found.sure


def test_under_adam_the_edge_is_that_of_its_own_metric() -> None:
    report = probed(reports()[1], top_eigenvalue=90.0) | {
        "noise/probe/preconditioned_top_eigenvalue": 19.0,
        "noise/probe/preconditioned_edge": 38.0,
    }
    found = {answer.question: answer for answer in answers(log_of(report))}
    stable = found["Are the steps stable?"]
    assert stable.verdict == "λ₁ is below the edge"
    assert "preconditioned Hessian is 0.5 times the edge for Adam" in stable.answer
    assert found["How sharp is it along the steps' own gradients?"].tone == "plain"
    assert "in Adam's metric 90 to 190 against B = 64" in found["Is the batch large for this noise?"].sure
    assert found["And as Adam sees it?"].verdict == "124 samples"


def test_a_scale_that_is_not_told_from_infinity_is_said_to_be() -> None:
    question = "How noisy is the gradient?"
    assert said(question).verdict == "500 samples"
    assert said(question, scale_high=math.inf).verdict == "500: not told from infinity"
    lost = said(question, scale=math.nan, scale_low=90.0, scale_high=math.inf, squared_gradient_norm=-1.0)
    assert lost.tone == "care"
    assert "cannot be told yet" in lost.answer
    assert "90 to ∞" in lost.sure


def test_discarded_steps_are_told_only_where_there_are_some() -> None:
    assert said("Was anything left out?", skipped_steps=7.0).verdict == "7 steps skipped"
    assert not [answer for answer in answers(log_of(*reports())) if answer.question == "Was anything left out?"]


def test_nothing_is_said_of_what_was_not_reported() -> None:
    assert answers(log_of({"noise/step": 1.0, "noise/lr": 0.1})) == []


# ---------------------------------------------------------------------- curves


def test_every_figure_that_is_there_has_a_curve() -> None:
    rows = [probed(report) for report in reports(groups=True)]
    titles = [panel.title for panel in panels(log_of(*rows))]
    assert titles == [
        "Noise scale",
        "Noise scale in Adam's metric",
        "Noise scale of each parameter group",
        "Tr C of one sample",
        "Squared gradient norm",
        "Top eigenvalue over the edge",
        "Batch sharpness",
    ]
    drawn = curves(log_of(*rows))
    assert len(drawn) == len(titles)
    assert drawn[0].caption == (
        "Noise scale. From 250 at step 100 to 750 at step 300, 95\N{NO-BREAK SPACE}% interval 600 to 938. Shaded: "
        "95\N{NO-BREAK SPACE}% intervals. Dashed: batch size B, 64 at the end."
    )


@pytest.mark.parametrize("count", [1, 2, 5000])
def test_few_and_many_reports_make_a_small_picture(count: int) -> None:
    rows = [report | {"noise/scale": math.nan} for report in reports(range(1, 2 * count + 1, 2))]
    rows[0]["noise/scale_low"] = 0.0
    found = curves(log_of(*rows))
    assert len(found) == 3
    assert all(1_000 < len(str(figure.svg)) < 120_000 for figure in found)
    assert ("Not every report is drawn." in found[0].caption) == (count > 600)


def test_a_name_that_looks_like_a_formula_is_a_name() -> None:
    report = reports()[1]
    for name in ("$\\frac", "_hidden", "重み", "a\x00b"):
        report |= {f"noise/group/{name}/scale": 3.0, f"noise/group/{name}/scale_high": math.inf}
    [_, groups, *_] = curves(log_of(report))
    assert "\x00" not in str(groups.svg)
    assert "a\\x00b: 3 at step 200." in groups.caption
