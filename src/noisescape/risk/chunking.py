"""How many samples, and how many directions, are worked on together."""

from __future__ import annotations

from dataclasses import dataclass

import torch

AMPLE = 2**30
"""Bytes beyond which an evaluation on a CPU is hardly faster."""
GPU_SHARE = 8
"""The same on a GPU: one such part of its memory. A GiB leaves a large one idle. Measured: decision 26."""
FILLS_GPU = 2**28
"""Bytes of all samples' activations from which a GPU does not wait for Python. Measured: decision 26."""
HESSIAN_PASSES = 4
"""Memory of a twice differentiable forward and backward pass, in units of the forward pass. A curvature product of
another kind, forward and back again, is given as much."""
CACHED_BYTES = 2**25
"""Bytes of activations beyond which a chunk is slower on a CPU, not faster: it leaves the caches, and the C library
maps and clears such allocations anew every time. Measured: docs/decisions/0011-chunks-and-factors.md."""
CACHED_COLUMNS = 8
"""Directions differentiated along together that a chunk on a CPU leaves room for. Measured: decision 11."""
PARAMETER_SHARE = 16
"""A chunk's activations may always be so many times as large as the parameters, which each chunk reads again.
Measured: decision 11."""
DOMINANT = 4
"""Parameters dominate where they are so many times as large as a sample's activations. Measured: decision 2."""
BUSY_BYTES = 2**20
"""A sample's activations from which a CPU does not wait for Python. Measured: decision 28."""


def ample_budget(device: torch.device | str) -> int:
    """Bytes with which evaluations on this device are as fast as they get, or nearly: a GPU's default."""
    if torch.device(device).type != "cuda":
        return AMPLE
    return int(torch.cuda.get_device_properties(device).total_memory) // GPU_SHARE


def modest_budget(count: int, sample_bytes: int, parameter_bytes: int) -> int:
    """Bytes of two training steps, for a model on a CPU unless something else is asked for. Measured: decision 30.

    A step is on as many of the N samples as the caches hold: their activations, and the gradient. At least what the
    caches hold, at most an ample budget.
    """
    chunk = min(count, max(1, _cached_activations(parameter_bytes) // sample_bytes))
    steps = 2 * (chunk * sample_bytes + parameter_bytes)
    return min(max(steps, CACHED_BYTES), AMPLE)


def _cached_activations(parameter_bytes: int, columns: int = 1) -> int:
    """Bytes of a chunk's activations that a CPU's caches hold with so many columns, or worth reading θ for."""
    return max(CACHED_BYTES // min(columns, CACHED_COLUMNS), PARAMETER_SHARE * parameter_bytes)


@dataclass(frozen=True)
class Chunking:
    """Sizes of chunks, from a memory budget and, on a CPU, from what its caches hold.

    Results do not depend on them beyond rounding.

    Attributes:
        count: N.
        sample_bytes: what one sample's forward pass keeps for the backward pass.
        parameters: D.
        itemsize: bytes of a number.
        budget: bytes for the temporaries of one evaluation.
        fixed: samples in a chunk whatever the budget; None: the budget decides.
        cached: whether chunks are kept within a CPU's caches, as for a model on a CPU.
        gpu: whether they are evaluated on a GPU.

    >>> network = Chunking(
    ...     1000, sample_bytes=2**20, parameters=100, itemsize=4, budget=2**30, fixed=None, cached=True
    ... )
    >>> network.samples(passes=2), network.samples(passes=2, columns=8)
    (32, 4)
    """

    count: int
    sample_bytes: int
    parameters: int
    itemsize: int
    budget: int
    fixed: int | None
    cached: bool
    gpu: bool = False

    @property
    def parameter_bytes(self) -> int:
        """Bytes of θ."""
        return self.parameters * self.itemsize

    def samples(self, *, passes: int, columns: int = 1) -> int:
        """How many samples are evaluated together.

        Args:
            passes: how many times the forward pass's memory one sample takes.
            columns: directions of a block, some of which are differentiated along together.
        """
        if self.fixed is not None:
            return self.fixed
        most = self.budget // (passes * self.sample_bytes)
        if self.cached:
            most = min(most, _cached_activations(self.parameter_bytes, columns) // self.sample_bytes)
        return min(self.count, max(1, most))

    def rows(self, *, copies: int, width: int) -> int:
        """How many per-sample gradients of ``width`` numbers, of so many replicas, are evaluated together."""
        if self.fixed is not None:
            return self.fixed
        held = width * self.itemsize
        most = self.budget // (copies * (3 * held + 2 * self.sample_bytes))
        if self.cached:
            of_parameters = PARAMETER_SHARE * self.parameter_bytes // self.sample_bytes
            beside_them = min(CACHED_BYTES // max(held, 1), of_parameters)
            most = min(most, max(CACHED_BYTES // (held + self.sample_bytes), beside_them))
        return min(self.count, max(1, most))

    def columns(self, samples: int) -> int:
        """How many directions a chunk of so many samples is differentiated along together."""
        activations = samples * self.sample_bytes
        most = self.budget // (4 * (activations + self.parameter_bytes))
        if self.cached:
            most = min(most, max(CACHED_COLUMNS, CACHED_BYTES // activations))
        return max(1, most)

    @property
    def holds_graphs(self) -> bool:
        """Whether the graphs of the gradient of all samples fit the budget together."""
        return self.count * HESSIAN_PASSES * self.sample_bytes <= self.budget

    def holds_rows(self, *, copies: int, width: int) -> bool:
        """Whether all per-sample gradients of ``width`` numbers fit the budget together."""
        return self.count * copies * width * self.itemsize <= self.budget

    @property
    def fills_gpu(self) -> bool:
        """Whether this is on a GPU, and an evaluation of all samples keeps it busy."""
        return self.gpu and self.count * self.sample_bytes >= FILLS_GPU

    @property
    def keeps_busy_alone(self) -> bool:
        """Whether a single sample keeps a CPU busy, so that an evaluation of it costs about its share of all."""
        return self.cached and self.sample_bytes >= BUSY_BYTES and not self.parameters_dominate

    @property
    def parameters_dominate(self) -> bool:
        """Whether the parameters take much more memory than a sample's activations."""
        return self.parameter_bytes > DOMINANT * self.sample_bytes
