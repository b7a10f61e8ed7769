"""One hidden layer as a run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from noisescape.experiments.claims import ledger
from noisescape.experiments.one_hidden_layer import ONE_HIDDEN_LAYER
from noisescape.runs.run import Run
from paper_runs import FIGURES, HIDDEN
from run_files import check_report, files


@pytest.mark.filterwarnings("ignore:Data has no positive values")
def test_a_network_that_never_has_a_gradient_gets_a_report_too(tmp_path: Path) -> None:
    """Every output is clipped at every epoch: Tr(HΣ) and its reference are 0."""
    config = replace(HIDDEN, widths=(4,), points=5, epochs=2, decay_from=2, init_std=1e6, optimisers=("gd",))
    run = ONE_HIDDEN_LAYER.run(config, tmp_path / "run", jobs=1, progress=False)
    assert run.summary()["anisotropy"]["gd/4"]["log_anisotropy"]["value"] is None
    check_report(run, FIGURES["one-hidden-layer"])


def test_a_run_of_one_hidden_layer_is_whole(small_hidden: Run) -> None:
    assert small_hidden.complete
    assert files(small_hidden.path) >= {"run.json", "metrics.parquet", "summary.json", "timing.json"}
    rows = small_hidden.metrics().to_pylist()
    metrics = {
        "loss",
        "trace_h",
        "trace_sigma",
        "trace_h_sigma",
        "isotropic_reference",
        "anisotropy",
        "active_share",
        "largest_eigenvalue",
        "top_noise",
        "projection_coefficient",
    }
    keys = [(row["width"], row["optimiser"], row["seed"], row["step"], row["metric"]) for row in rows]
    assert len(set(keys)) == len(keys) == 2 * 2 * 2 * 3 * len(metrics)
    assert {row["metric"] for row in rows} == metrics
    summary = small_hidden.summary()
    assert [*summary["anisotropy"]] == ["adam/4", "adam/16", "gd/4", "gd/16"]
    for case, found in summary["anisotropy"].items():
        optimiser, width = case.split("/")
        ratios = [
            [
                row["value"]
                for row in rows
                if (row["optimiser"], row["width"], row["seed"], row["metric"])
                == (optimiser, int(width), seed, "anisotropy")
            ]
            for seed in range(2)
        ]
        assert found["least"] == min(map(min, ratios))
        assert found["greatest"] == max(map(max, ratios))
        expected = np.mean([np.mean(np.log(own)) for own in ratios])
        assert found["log_anisotropy"]["value"] == pytest.approx(expected)
        projections = [
            row["value"]
            for row in rows
            if (row["optimiser"], row["width"], row["metric"]) == (optimiser, int(width), "projection_coefficient")
        ]
        assert found["projection_coefficient"]["value"] == pytest.approx(np.mean(projections))
    findings = ledger([small_hidden])
    assert [finding.result.case for finding in findings] == [
        "adam, width 4",
        "adam, width 16",
        "gd, width 4",
        "gd, width 16",
    ]
    for finding, found in zip(findings, summary["anisotropy"].values(), strict=True):
        assert math.log(finding.result.effect) == pytest.approx(found["log_anisotropy"]["value"])
