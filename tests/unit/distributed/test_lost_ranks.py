"""A rank that dies, hangs or fails ends the run with a line that names it; the run goes on on other ranks."""

import time

import pytest
import torch

import noisescape as ns
from cases import WIDER
from torchrun import at_once, started


@pytest.fixture(scope="module")
def undisturbed():
    walk = ns.simulate(
        WIDER.risk(), ns.GLDLeading(5, k=3, refresh=7), WIDER.theta, lr=0.05, steps=60, progress=False
    )
    return walk.theta


@pytest.mark.slow
@pytest.mark.parametrize("end", ["killed", "hanging", "failing"])
def test_the_others_say_who_is_missing_and_the_run_goes_on_elsewhere(end, undisturbed, tmp_path):
    began = time.monotonic()
    first, _ = at_once("shard_walk.py", 2, str(tmp_path), end)
    assert time.monotonic() - began < 60
    assert first.returncode == 1
    line = first.stderr.strip().splitlines()[-1]
    assert line.removeprefix("[rank0]: ").startswith("noisescape.errors.LostRankError: rank 0 of 2 lost rank 1, ")
    assert (tmp_path / "walk.safetensors").exists()
    assert not (tmp_path / "0.pt").exists()

    done = started("shard_walk.py", 3, str(tmp_path), "never")
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / "walk.safetensors").exists()
    for rank in range(3):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), undisturbed, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_one_process_goes_on_where_ranks_left_off(undisturbed, tmp_path):
    at_once("shard_walk.py", 2, str(tmp_path), "killed")
    steps = []
    found = ns.simulate(
        WIDER.risk(),
        ns.GLDLeading(5, k=3, refresh=7),
        WIDER.theta,
        lr=0.05,
        steps=60,
        progress=False,
        checkpoint=tmp_path / "walk.safetensors",
        on_step=steps.append,
    )
    assert steps[0] > 35
    torch.testing.assert_close(found.theta, undisturbed, rtol=1e-8, atol=1e-10)
