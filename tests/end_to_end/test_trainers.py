"""Real small trainings: a plain loop, Lightning and transformers give the same figures."""

import pytest

from slowness import quick
from trainer_cases import CASES, LIGHTNING_SAYS, by_lightning, by_transformers, plain

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_SAYS]


@pytest.mark.parametrize("name", quick(["language model, one"], CASES))
def test_three_loops_report_the_same(name, tmp_path):
    case = CASES[name]
    report = plain(case)
    assert report["noise/measured_steps"] == case.steps
    assert report["noise/batch_size"] == case.size * case.pieces
    assert report["noise/trace_covariance"] > 0
    assert ("noise/preconditioned/scale" in report) == ("conv" not in name)
    wanted = {
        key: pytest.approx(value, rel=1e-6 if "preconditioned" in key else 1e-9) for key, value in report.items()
    }
    assert by_lightning(case) == wanted
    assert by_transformers(case, tmp_path) == wanted
