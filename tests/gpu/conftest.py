"""What is computed on a GPU, against the CPU. ``NOISESCAPE_TEST_DEVICE=cpu`` tries the tests themselves."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    """Where the tested side computes."""
    name = os.environ.get("NOISESCAPE_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return name
