"""`noisescape measure` under torchrun measures all ranks' samples, and one rank speaks."""

import json
import os
import subprocess
import sys

import pytest

from torchrun import TESTS

MEASURE = ["-m", "noisescape", "measure", "sharded_risk:make_risk", "--batch-size", "4", "--k", "3", "--json"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def measured(command):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_two_ranks_measure_what_one_process_does():
    one, two = measured(MEASURE), measured([*TORCHRUN, *MEASURE])
    assert two.keys() == one.keys()
    assert one["trace_h_sigma"]["value"] > 0
    for name, figure in one.items():
        value = figure["value"] if isinstance(figure, dict) and "value" in figure else figure
        found = two[name]["value"] if isinstance(figure, dict) and "value" in figure else two[name]
        assert found == pytest.approx(value, rel=1e-4), name
