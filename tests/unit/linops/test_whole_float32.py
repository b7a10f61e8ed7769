"""However PyTorch is told to round float32, it does not in here, and is told the same afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import backends

from noisescape.linops.precision import at_full_precision

SETTINGS: dict[str, Callable[[], None]] = {
    "as it comes": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "allow_tf32": lambda: setattr(backends.cuda.matmul, "allow_tf32", True),
    "products alone": lambda: setattr(backends.cuda.matmul, "fp32_precision", "tf32"),
    "everything": lambda: setattr(backends, "fp32_precision", "tf32"),
    "bfloat16 on the CPU": lambda: setattr(backends.mkldnn.matmul, "fp32_precision", "bf16"),
}


def told() -> list[str]:
    gpu, cpu = backends.cudnn, backends.mkldnn
    found = [each.fp32_precision for each in (backends.cuda.matmul, gpu.conv, gpu.rnn, cpu.matmul, cpu.conv)]
    try:
        return [*found, torch.get_float32_matmul_precision()]
    except RuntimeError:
        return [*found, "set for one operation"]


@pytest.fixture(autouse=True)
def back() -> Iterator[None]:
    yield
    backends.fp32_precision = "none"
    backends.cudnn.allow_tf32 = True
    for each in (backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv):
        each.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("setting", SETTINGS)
def test_float32_is_whole_inside_and_as_told_outside(setting: str) -> None:
    if not hasattr(backends.cudnn, "conv"):
        pytest.skip("PyTorch before 2.9 has two switches alone")
    SETTINGS[setting]()
    before = told()
    with at_full_precision():
        inside = told()
    assert not {"tf32", "bf16"} & {*inside}
    assert told() == before
