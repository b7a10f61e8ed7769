"""How a run's page begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from claim_runs import CLAIM
from noisescape.experiments.claims import Finding, Result
from noisescape.experiments.registry import EXPERIMENTS
from noisescape.report.page import Figure, Section, Table, render
from noisescape.report.story import story

TOY = EXPERIMENTS["toy-2d"]
SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>'
TABLE = Table(["a"], [["1"]], "A table.")


def finding(verdict: Any, claim: str = "toy-order") -> Finding:
    return Finding(CLAIM[claim], "toy-2d", "toy", "toy-2d", Result(verdict, 0.1, 0.0, 0.2, 10))


def figure(tmp_path: Path, name: str) -> Figure:
    path = tmp_path / f"{name}.svg"
    path.write_text(SVG)
    return Figure(path, f"Caption of {name}.")


def test_the_picture_that_stands_for_the_experiment_comes_first_and_only_there(tmp_path: Path) -> None:
    first, other = figure(tmp_path, "success"), figure(tmp_path, "indicator")
    sections = [Section("Who", "Words.", [first, TABLE]), Section("Why", "More.", [other])]
    begins, left = story(TOY, "An answer.", sections, [])
    assert begins.picture == first
    assert begins.about == "", "the text stays with what else the section shows"
    assert [(section.title, list(section.items)) for section in left] == [("Who", [TABLE]), ("Why", [other])]
    page = render("T", begins, left, {})
    assert page.count("Caption of success.") == 3, "label, text in place of the picture, and caption"
    assert (
        page.index(TOY.question) < page.index("An answer.") < page.index("Caption of success.") < page.index("<nav")
    )


def test_a_section_that_has_nothing_else_to_show_goes_along(tmp_path: Path) -> None:
    begins, left = story(TOY, "An answer.", [Section("Who", "Words.", [figure(tmp_path, "success")])], [])
    assert begins.about == "Words."
    assert left == []


def test_a_page_without_the_picture_has_a_story_all_the_same() -> None:
    sections = [Section("Who", "Words.", [TABLE])]
    begins, left = story(TOY, "An answer.", sections, [])
    assert begins.picture is None
    assert left == sections
    assert begins.answer.verdict == "not judged"
    assert "An answer." in render("T", begins, left, {})


@pytest.mark.parametrize(
    ("verdicts", "words", "tone"),
    [
        (["supported"], "1 supported", "good"),
        (["contradicted", "contradicted"], "2 contradicted", "bad"),
        (["undecided"], "1 undecided", "care"),
        (["undecided", "supported", "undecided"], "1 supported, 2 undecided", "plain"),
    ],
)
def test_the_verdicts_are_counted_and_coloured_where_they_agree(verdicts: list[str], words: str, tone: str) -> None:
    begins, _ = story(TOY, "", [], [finding(verdict) for verdict in verdicts])
    assert (begins.answer.verdict, begins.answer.tone) == (words, tone)


def test_controls_count_only_where_there_is_no_claim() -> None:
    control = finding("contradicted")
    control = replace(control, claim=replace(control.claim, control=True))
    assert story(TOY, "", [], [finding("supported"), control])[0].answer.verdict == "1 supported"
    assert story(TOY, "", [], [control])[0].answer.verdict == "1 contradicted"


def test_how_sure_says_which_error_is_held() -> None:
    primary, exploratory = finding("undecided", "leaves-the-basin"), finding("supported")
    said = {
        name: story(TOY, "", [], found)[0].answer.sure
        for name, found in {"one": [exploratory], "other": [primary], "both": [exploratory, primary]}.items()
    }
    assert ["Primary" in said[name] for name in ("one", "other", "both")] == [False, True, True]
    assert ["Exploratory" in said[name] for name in ("one", "other", "both")] == [True, False, True]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_asks_a_question_and_has_a_picture(name: str) -> None:
    experiment = EXPERIMENTS[name]
    assert experiment.question.endswith("?")
    assert len(experiment.question) <= 100
    assert experiment.figures
