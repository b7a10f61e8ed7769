"""Measuring a user's own model by the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import noisescape as ns
from cli_calls import Result, only_json
from noisescape.runs.run import strict_json


def test_measure_prints_a_table(call: Callable[..., Result]) -> None:
    result = call("measure", "laboratory:make_risk", "--batch-size", 8)
    assert result.exit_code == 0
    assert "D = 3, N = 12, B = 8 with replacement" in result.stdout
    assert "Tr(HΣ)" in result.stdout
    assert call("measure", "laboratory:make_risk", "--batch-size", 8, "--quiet").stdout == ""


def test_measure_gives_the_librarys_figures_as_json(call: Callable[..., Result], tmp_path: Path) -> None:
    arguments = ("--batch-size", 8, "--without-replacement", "--k", 2, "--json", "--out", "found.json")
    found = only_json(call("measure", "laboratory:make_risk", *arguments))
    assert json.loads((tmp_path / "found.json").read_text()) == found
    import laboratory

    risk = laboratory.make_risk()
    expected = ns.measure(risk, risk.parameters(), batch_size=8, replacement=False, k=2)
    assert found["trace_h_sigma"]["value"] == expected.trace_h_sigma.value
    assert found["replacement"] is False
    assert found["k"] == 2


def test_a_first_look(call: Callable[..., Result]) -> None:
    arguments = ("measure", "laboratory:make_network", "--batch-size", 8, "--fast")
    found = only_json(call(*arguments, "--json", "--seed", 3))
    import laboratory

    risk = laboratory.make_network()
    assert found == strict(ns.measure_fast(risk, risk.parameters(), batch_size=8, seed=3).to_dict())
    assert "Tr(HΣ)" in call(*arguments).stdout
    for option in (("--k", 3), ("--rtol", 0.1)):
        result = call(*arguments, *option)
        assert result.exit_code == 1
        assert "--fast has an accuracy of its own" in result.stderr


def strict(found: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON."""
    return json.loads(strict_json(found))


def test_measure_is_at_the_returned_parameters(call: Callable[..., Result]) -> None:
    found = only_json(call("measure", "laboratory:make_both", "--batch-size", 8, "--json"))
    import laboratory

    risk, theta = laboratory.make_both()
    assert found["loss"]["value"] == float(risk.loss(theta))
    assert found["loss"]["value"] != float(risk.loss(risk.parameters()))


def test_measure_takes_a_network_and_a_device(call: Callable[..., Result]) -> None:
    arguments = ("--batch-size", 4, "--device", "cpu", "--json")
    assert only_json(call("measure", "laboratory:make_network", *arguments))["dimension"] == 8


def test_layers_and_parameters_from_a_file(call: Callable[..., Result], tmp_path: Path) -> None:
    call("measure", "laboratory:make_network", "--batch-size", 8, "--fast", "--quiet")
    import laboratory

    risk = laboratory.make_network()
    moved = risk.state_dict(risk.parameters() * 1.5)
    save_file(moved, tmp_path / "parameters.safetensors")
    arguments = ("measure", "laboratory:make_network", "--batch-size", 8, "--fast", "--layers")
    found = only_json(call(*arguments, "--json", "--state-dict", tmp_path / "parameters.safetensors"))
    theta = risk.parameters() * 1.5
    assert found["loss"]["value"] == pytest.approx(float(risk.loss(theta)), rel=1e-6)
    assert found["layers"] == strict(ns.layer_traces(risk, theta, batch_size=8).to_dict()["layers"])
    assert "parameters" in call(*arguments).stdout


def test_parameters_that_do_not_fit_are_named(call: Callable[..., Result], tmp_path: Path) -> None:
    call("measure", "laboratory:make_network", "--batch-size", 8, "--fast", "--quiet")
    import laboratory

    risk = laboratory.make_network()
    held = risk.state_dict(risk.parameters())
    first = next(iter(held))
    path = tmp_path / "parameters.safetensors"
    for changed, message in (
        ({name: value for name, value in held.items() if name != first}, f"lacks {first} of the model"),
        (held | {first: held[first][:1].clone()}, f"has {first} in another shape"),
        (held | {"running_mean": torch.zeros(3)}, "has running_mean, no trainable parameter"),
        (None, "is no safetensors file"),
    ):
        if changed is None:
            path.write_bytes(b"pickled, perhaps")
        else:
            save_file(changed, path)
        result = call("measure", "laboratory:make_network", "--batch-size", 8, "--state-dict", path)
        assert result.exit_code == 1
        assert message in " ".join(result.stderr.split())
    missing = call("measure", "laboratory:make_network", "--batch-size", 8, "--state-dict", tmp_path / "none")
    assert "there is no file" in missing.stderr
