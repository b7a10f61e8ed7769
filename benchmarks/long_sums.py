"""Row 12: sums of 10⁸ numbers in single precision, in parts and in one go: how far off, and how long."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.harness import Outcome, interleaved
from noisescape.linops import tall

SIZE = 10**8
COLUMNS = 3
REPEATS = 5
PARTS = (2**12, 2**14, 2**16, 2**18, 2**20)


def run() -> Outcome:
    """Products, lengths and bases of random vectors: the library's against PyTorch's own."""
    block = torch.randn(SIZE, COLUMNS, generator=torch.Generator().manual_seed(0))
    rows = block.mT.contiguous()
    vector = rows[0]
    gram = gram_of(block)
    square = gram[0, 0]
    sides: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
        "product of 3 rows and 3 columns": (lambda: tall.inner_products(rows, block), gram),
        "product of 3 rows and 3 columns, in one go": (lambda: rows @ block, gram),
        "product of 3 rows and a column": (lambda: tall.inner_products(rows, vector[:, None]), gram[:, :1]),
        "product of 3 rows and a column, in one go": (lambda: rows @ vector[:, None], gram[:, :1]),
        "product of a row and a column": (lambda: tall.inner_products(rows[:1], vector[:, None]), gram[:1, :1]),
        "product of a row and a column, in one go": (lambda: rows[:1] @ vector[:, None], gram[:1, :1]),
        "product of two vectors": (lambda: tall.inner_product(vector, vector), square),
        "product of two vectors, in one go": (lambda: torch.dot(vector, vector), square),
        "length": (lambda: tall.lengths(vector), square.sqrt()),
        "length, in one go": (lambda: torch.linalg.vector_norm(vector), square.sqrt()),
    }
    outcome = Outcome()
    outcome.seconds |= interleaved({name: call for name, (call, _) in sides.items()}, REPEATS)
    errors = {name: far_off(call(), exact) for name, (call, exact) in sides.items()}
    errors["orthonormal basis"] = orthonormality(tall.orthonormal(block))
    errors["orthonormal basis, in one go"] = orthonormality(torch.linalg.qr(block).Q)
    for name in sides:
        if not name.endswith("in one go"):
            note = f"error {errors[name]:.1e}, in one go {errors[f'{name}, in one go']:.1e}"
            outcome.compare(name, name, f"{name}, in one go", note=note)
    outcome.figures["largest error, relative"] = errors
    outcome.figures["parts"] = {str(size): of_parts(size, rows, block, gram) for size in PARTS}
    return outcome


def of_parts(size: int, rows: Tensor, block: Tensor, gram: Tensor) -> dict[str, float]:
    """A product of matrices with parts of another size."""
    usual, tall.LONGEST = tall.LONGEST, size
    try:
        seconds = interleaved({"product": lambda: tall.inner_products(rows, block)}, REPEATS)["product"]
        return {"seconds": sorted(seconds)[REPEATS // 2], "error": far_off(tall.inner_products(rows, block), gram)}
    finally:
        tall.LONGEST = usual


def far_off(found: Tensor, exact: Tensor) -> float:
    """The largest error as a share of the largest entry."""
    return float((found.double() - exact).abs().amax() / exact.abs().amax())


def orthonormality(basis: Tensor) -> float:
    """The largest entry of QᵀQ − I."""
    gram = gram_of(basis)
    return float((gram - torch.eye(len(gram), dtype=gram.dtype)).abs().amax())


def gram_of(columns: Tensor) -> Tensor:
    """XᵀX in double precision."""
    return torch.stack([some.double().mT @ some.double() for some in columns.split(2**20)]).sum(0)
