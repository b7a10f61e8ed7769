"""How a run's page begins: the question, its answer, how sure that is, and the picture that shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from noisescape.experiments.claims import Finding
from noisescape.experiments.experiment import Experiment
from noisescape.report.ledger import TONES, judged_on
from noisescape.report.page import Answer, Figure, Section, Story, Tone


def story(
    experiment: Experiment, lead: str, sections: Sequence[Section], findings: Sequence[Finding]
) -> tuple[Story, list[Section]]:
    """The story, and what sections are left.

    The picture that stands for the experiment moves to the top; a section that had nothing else to show goes along,
    its text under the picture.
    """
    about, left = "", []
    picture: Figure | None = None
    name = experiment.figures[0][0] if experiment.figures else ""
    for section in sections:
        found = next((item for item in section.items if isinstance(item, Figure) and item.name == name), None)
        if found is None:
            left.append(section)
            continue
        picture = found
        if others := [item for item in section.items if item is not found]:
            left.append(replace(section, items=others))
        else:
            about = section.text
    return Story(judged_answer(experiment.question, lead, findings), about, picture), left


def judged_answer(question: str, answer: str, findings: Sequence[Finding]) -> Answer:
    """An answer with the verdicts counted; their colour where they all say one thing."""
    judged, on = judged_on(findings)
    if not judged:
        return Answer(question, answer, "No claim is judged by this run: read the intervals.", "not judged")
    counts: Counter[str] = Counter(finding.result.verdict for finding in judged)
    words = verdicts_counted(judged)
    tone: Tone = TONES[next(iter(counts))] if len(counts) == 1 else "plain"
    primary = [not finding.claim.exploratory for finding in judged]
    sure = {
        True: "Primary: their rules, numbers of seeds and error of 5 % for all of them are older than the run.",
        False: "Exploratory: intervals at 95 %, corrected neither for the other claims nor for looking again.",
    }
    said = " ".join(sure[kind] for kind in (True, False) if kind in primary)
    return Answer(question, answer, f"Findings on {on}, each with its interval below. {said}", words, tone)


def verdicts_counted(findings: Sequence[Finding]) -> str:
    """How often each verdict was given, in words."""
    counts: Counter[str] = Counter(finding.result.verdict for finding in findings)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in TONES if counts[verdict])
