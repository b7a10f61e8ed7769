"""On a GPU: one step recorded as a CUDA graph and replayed, so that a small step need not wait for Python."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from noisescape.dynamics import Dynamics, NoiseState
from noisescape.risk import EmpiricalRisk
from noisescape.simulation.divergence import lost

WARM_UP = 3
"""Steps taken before one is recorded: libraries choose their kernels in the first ones. PyTorch's notes on CUDA
graphs ask for some."""


class DeviceStep:
    """θ ← θ − η_t(∇L(θ) + ε_t) of a memoryless dynamics, in place, without the host looking at a value.

    What it does to θ and the divergences is what a step of :func:`~noisescape.simulation.simulate` does.

    Args:
        risk: L.
        dynamics: one that is :attr:`~noisescape.dynamics.Dynamics.memoryless`.
        rates: η, or its value at every step.
        start: where diverged replicas idle, shaped as θ.

    Attributes:
        theta: θ, written over by each step.
        diverged_at: the step after which each replica diverged, −1 for none; written over as well.
    """

    def __init__(
        self, risk: EmpiricalRisk, dynamics: Dynamics, rates: float | Sequence[float], start: Tensor
    ) -> None:
        self._risk = risk
        self._dynamics = dynamics
        self._rates = (
            rates if isinstance(rates, float) else torch.tensor(rates, dtype=torch.float64).to(start.device)
        )
        self._start = start
        self._taken = torch.zeros((), dtype=torch.int64, device=start.device)
        self.theta = start.clone()
        self.diverged_at = torch.full(start.shape[:-1], -1, device=start.device)

    def take(self, generator: torch.Generator) -> None:
        """One step."""
        gradient, _ = self._dynamics.noisy_gradient(self._risk, self.theta, NoiseState(), generator)
        rate = self._rates if isinstance(self._rates, float) else self._rates[self._taken]
        theta = self.theta - rate * gradient
        self._taken += 1
        gone = lost(theta)
        self.diverged_at.copy_(torch.where(gone & (self.diverged_at < 0), self._taken, self.diverged_at))
        self.theta.copy_(torch.where(gone[..., None], self._start, theta))


class CapturedStep(DeviceStep):
    """A :class:`DeviceStep` whose :meth:`replay` launches all its kernels at once.

    A replay draws from ``generator`` what the step itself would draw, so that trajectories are the same to the bit.

    Raises:
        RuntimeError: the step looks at a value on the host, copies from it, or does not fit the device's memory
            twice.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        dynamics: Dynamics,
        rates: float | Sequence[float],
        start: Tensor,
        generator: torch.Generator,
    ) -> None:
        super().__init__(risk, dynamics, rates, start)
        self._try_out(DeviceStep(risk, dynamics, rates, start))
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(generator)
        with torch.cuda.graph(self._graph):
            self.take(generator)

    def replay(self, taken: int, theta: Tensor, diverged_at: Tensor) -> tuple[Tensor, Tensor]:
        """One step after so many: θ and the divergences, in tensors that the next one writes over."""
        if theta is not self.theta:
            self._taken.fill_(taken)
            self.theta.copy_(theta)
            self.diverged_at.copy_(diverged_at)
        self._graph.replay()
        return self.theta, self.diverged_at

    @staticmethod
    def _try_out(step: DeviceStep) -> None:
        """Take steps aside, the last ones refused if they wait for the device: a failed recording would not do."""
        device = step.theta.device
        generator = torch.Generator(device).manual_seed(0)
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            step.take(generator)
            with _waiting_refused():
                for _ in range(WARM_UP - 1):
                    step.take(generator)
        torch.cuda.current_stream(device).wait_stream(aside)


@contextlib.contextmanager
def _waiting_refused() -> Iterator[None]:
    """In here what waits for the device raises a RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode does not see everything
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def captured_step(
    risk: EmpiricalRisk,
    dynamics: Dynamics,
    rates: float | Sequence[float],
    start: Tensor,
    generator: torch.Generator,
    steps: int,
) -> CapturedStep | None:
    """The step as a graph; None where there is no GPU, or the step is not the same every time.

    Args:
        steps: that are still to be taken; fewer than those to warm up are not worth it.
    """
    if start.device.type != "cuda" or not dynamics.memoryless or risk.shard is not None or steps <= WARM_UP:
        return None
    try:
        return CapturedStep(risk, dynamics, rates, start, generator)
    except RuntimeError:  # taken one by one it may be fine; if not, that raises what is wrong
        torch.cuda.synchronize(start.device)
        return None
