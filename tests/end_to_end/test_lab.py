"""The theory lab: every law runs, reports, is judged, and goes on where it was stopped."""

from __future__ import annotations

import functools
import json
import warnings

import pytest

from lab_runs import TINY, tiny
from noisescape.experiments.claims import CLAIMS, ledger
from noisescape.experiments.claims.lab_catalogue import LAB_CLAIMS
from noisescape.experiments.lab.registry import LABS
from noisescape.report import write_report
from noisescape.report.lab.tables import COLUMNS
from slowness import quick

by_law = pytest.mark.parametrize("name", quick(["implicit-bias"], LABS))


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """A small run of a law."""
    root = tmp_path_factory.mktemp("lab")

    @functools.cache
    def made(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return LABS[name].run(tiny(name), root / name, jobs=1, progress=False)

    return made


def test_every_law_has_claims_a_table_and_small_constants():
    assert {name for claim in LAB_CLAIMS for name in claim.experiments} == set(LABS)
    assert set(COLUMNS) == set(LABS) == set(TINY)
    assert set(LAB_CLAIMS) < set(CLAIMS)
    assert not any(claim.control for claim in LAB_CLAIMS)


@by_law
def test_a_law_leaves_a_summary_a_table_and_a_report(name, run_of):
    run = run_of(name)
    summary = run.summary()
    assert summary["experiment"] == name
    assert summary["seeds"] == 2
    rows = run.metrics().to_pylist()
    assert {row["seed"] for row in rows} == {0, 1}
    table = LABS[name].summary_table(summary)
    assert table.row_count > 1
    shown = {column.metric for column in COLUMNS[name]}
    known = {metric for found in summary["cases"].values() for metric in found}
    assert len(shown & known) >= len(shown) - 5  # slopes of exits, say, are missing where too few left
    page = write_report(run).read_text(encoding="utf-8")
    assert LABS[name].title in page
    assert (run.path / "figures" / f"{name}.svg").is_file()


@by_law
def test_a_law_is_judged_in_every_case_by_two_seeds(name, run_of):
    findings = ledger([run_of(name)])
    claims = [claim for claim in LAB_CLAIMS if name in claim.experiments]
    assert {finding.claim for finding in findings} == set(claims)
    for finding in findings:
        assert finding.result.case
        assert finding.result.n <= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stability", "implicit-bias"])
def test_a_law_that_was_stopped_goes_on_to_the_same_numbers(name, run_of, tmp_path):
    whole = run_of(name)
    first = LABS[name].run(tiny(name), tmp_path / "again", jobs=1, progress=False)
    assert first.metrics().equals(whole.metrics())
    assert LABS[name].run(tiny(name), tmp_path / "again", jobs=1, resume=True, progress=False).complete


@pytest.mark.slow
def test_lab_all_is_one_command(tmp_path, monkeypatch, call):
    for name in LABS:
        monkeypatch.setitem(LABS[name].presets, "quick", tiny(name, seeds=1))
    out = tmp_path / "lab"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = call("lab", "all", "--out", str(out), "--jobs", "1", "--json", "--quiet")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(LABS) < set(found)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "The theory lab" in page
    assert "the later laws" in page
    assert "the paper's claims" not in page
