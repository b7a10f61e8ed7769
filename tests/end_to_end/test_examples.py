"""Everything shown to a reader runs as written: the examples and the README's Python."""

import re
import runpy
import shlex
import socket
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import noisescape as ns
from cli_calls import the_error
from noisescape.errors import FailedError
from noisescape.experiments.experiment import Experiment
from slowness import quick

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    shlex.split(command, comments=True)[1:]
    for page in ("README.md", "docs/results/README.md", "docs/many-machines.md", "docs/lab.md")
    for block in (ROOT / page).read_text().split("```")[1::2]
    for command in re.findall(r"^noisescape .*", block, flags=re.MULTILINE)
]


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LONG = ("noise_knob_in_your_loop", "monitor_lightning", "monitor_transformers", "which_batch_size")


@pytest.mark.parametrize(
    "example", quick([path for path in EXAMPLES if path.stem not in LONG], EXAMPLES), ids=lambda path: path.stem
)
def test_example_runs_and_prints_its_answer(example, capsys):
    runpy.run_path(str(example), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) >= 4


def test_readme_code_runs_as_written(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    exec(compile("\n".join(blocks), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "Tr(HΣ)" in printed
    assert "E[ΔL]" in printed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # chains so short have doubts
def test_the_page_on_the_lab_runs_as_written_in_at_most_three_lines_a_law(capsys):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))
    data = torch.randn(200, 8), torch.randint(0, 4, (200,))
    risk = ns.EmpiricalRisk(model, nn.functional.cross_entropy, data)
    known = {"ns": ns, "risk": risk, "theta": risk.parameters()}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/lab.md").read_text(), re.DOTALL)
    assert len(blocks) == 8
    for block in blocks:
        assert len(block.strip().splitlines()) <= 3
        exec(compile(block, "lab.md", "exec"), known)
        assert capsys.readouterr().out.strip()


def test_the_page_on_many_machines_runs_as_written(tmp_path, monkeypatch):
    """In a group of one process, and on files in the folder that the page reads."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (20, 4, 4), dtype=np.uint8)
    columns = {"image": [Image.fromarray(each) for each in pixels], "label": [0, 1] * 10}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "images" / "0.parquet")
    shards, streams = re.findall(r"```python\n(.*?)```", (ROOT / "docs/many-machines.md").read_text(), re.DOTALL)
    held = {"model": nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), "loss": nn.functional.cross_entropy}
    data = torch.rand(20, 1, 4, 4), torch.arange(20) % 2
    try:
        exec(compile(shards, "many-machines.md", "exec"), {**held, "data": data})
    finally:
        torch.distributed.destroy_process_group()
    found = dict(held)
    exec(compile(streams, "many-machines.md", "exec"), found)
    assert found["risk"].sample_count == 20


def test_readme_has_two_set_up_commands_that_the_makefile_knows():
    block = re.search(r"```\n(make .*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL).group(1)
    commands = [line.split("#")[0].strip() for line in block.splitlines() if line.strip()]
    assert commands == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{command.split()[1]}:" in makefile for command in commands)


def test_the_readme_shows_every_command():
    assert {command[0] for command in COMMANDS} == {
        "measure",
        "batch-size",
        "reproduce",
        "lab",
        "claims",
        "report",
        "watch",
    }


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_shown_have_the_options_they_are_shown_with(command, call, monkeypatch):
    result = call(*command, "--help")
    assert result.exit_code == 0, result.output
    assert call(*command, "--no-such-option", "--help").exit_code == 2, "options are read before the help is shown"

    def reached(*_, **__):
        raise FailedError("reached")

    if command[0] in ("reproduce", "lab"):
        monkeypatch.setattr(Experiment, "run", reached)
        monkeypatch.setattr("noisescape.cli.experiments.check_data", lambda suite: None)
        monkeypatch.setattr(
            "noisescape.cli.experiments.device_named", lambda name: None
        )  # some are shown for a GPU
        assert the_error(call(*command, "--quiet")) == "error: reached"
