"""What a computation will take in memory, found by running it on tensors that have shapes but no storage."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from noisescape.errors import InvalidTypeError, InvalidValueError
from noisescape.risk import EmpiricalRisk, rehearse
from noisescape.risk.arguments import check_risk


def forecast_memory(risk: EmpiricalRisk, computation: Callable[[EmpiricalRisk, Tensor], Any]) -> int:
    """Bytes that ``computation(risk, θ)`` allocates at its peak, beyond what is held before; nothing is computed.

    Every operation runs on tensors without storage. Only what the computation must know of the model is found out
    on real ones, once for a risk, and may take more memory than the computation does: up to 12 vectors of the size
    of θ, and 25 where double precision decides, which is to 33 million parameters in float32. The computation is
    begun anew after each such finding.
    Where the computation reads a number to decide how to go on, it reads 1, and what it compares is equal. Not
    counted: what the kernels of the operations take inside themselves, and what an allocator holds on to.

    Args:
        risk: any risk of a model.
        computation: what is to be done, of the risk and a θ, (D,). What else it uses, it makes itself.

    Returns:
        Bytes.

    Raises:
        ValueError: the computation needs values, not only shapes.

    >>> model = torch.nn.Linear(300, 10)
    >>> data = (torch.randn(400, 300), torch.randint(0, 10, (400,)))
    >>> risk = EmpiricalRisk(model, torch.nn.functional.cross_entropy, data)
    >>> held = forecast_memory(risk, lambda risk, theta: risk.per_sample_gradients(theta))
    >>> held >= 400 * 3010 * 4
    True
    """
    check_risk(risk)
    if not callable(computation):
        raise InvalidTypeError(
            f"computation must be a function (risk, theta), not {type(computation).__name__}: "
            "lambda risk, theta: risk.gradient(theta)"
        )

    def without_storage(rehearsed: EmpiricalRisk) -> int:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        tracker = AllocationTracker(without_storage=True)
        with mode:
            theta = mode.from_tensor(risk.parameters())
            try:
                with tracker:
                    computation(rehearsed, theta)
            except (RuntimeError, NotImplementedError) as error:
                raise InvalidValueError(
                    "the memory of this computation cannot be forecast, for it needs values, not only shapes: "
                    f"{error}"
                ) from error
        return tracker.peak

    return rehearse(risk, without_storage)


class AllocationTracker(TorchDispatchMode):
    """While it is entered: bytes of the storages that operations have made and that are still alive.

    Args:
        without_storage: whether tensors have shapes only: a number that is read is 1, what is compared is equal.

    Attributes:
        peak: the most there were at once.
    """

    def __init__(self, *, without_storage: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._without_storage = without_storage
        self.peak = 0
        self._alive: dict[int, int] = {}

    @property
    def alive(self) -> int:
        """How many bytes there are now."""
        return sum(self._alive.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self._without_storage and func is torch.ops.aten._local_scalar_dense.default:  # noqa: SLF001
            return 1.0 if args[0].is_floating_point() else 1
        if self._without_storage and func is torch.ops.aten.equal.default:
            return True
        found = func(*args, **(kwargs or {}))
        if not func.is_view:  # which may be of something that was there before
            for leaf in tree_leaves(found):
                if isinstance(leaf, Tensor):
                    self._enter(leaf.untyped_storage())
        return found

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata  # noqa: SLF001
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            weakref.finalize(storage, self._alive.pop, key, None)
            self.peak = max(self.peak, self.alive)
