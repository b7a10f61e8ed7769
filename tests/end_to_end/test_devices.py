"""Where the tasks of an experiment run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from noisescape.experiments.digits import DIGITS, DigitsConfig
from noisescape.experiments.experiment import Experiment
from noisescape.experiments.one_hidden_layer import ONE_HIDDEN_LAYER, OneHiddenLayerConfig
from noisescape.experiments.protocols import session
from noisescape.experiments.toy_2d import TOY_2D
from noisescape.runs.tasks import Outcome
from run_files import TINY


@pytest.mark.parametrize(
    ("experiment", "config"),
    [(TOY_2D, TINY), (ONE_HIDDEN_LAYER, OneHiddenLayerConfig()), (DIGITS, DigitsConfig())],
    ids=["toy-2d", "one-hidden-layer", "digits"],
)
def test_experiments_say_which_device_their_tasks_run_on(
    experiment: Experiment, config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def note(*_: object, device: str, **__: object) -> list[Outcome]:
        raise LookupError(device)

    monkeypatch.setattr(session, "perform", note)
    with pytest.raises(LookupError, match="cpu:0"):
        experiment.run(replace(config, device="cpu:0"), tmp_path / "run", progress=False)
