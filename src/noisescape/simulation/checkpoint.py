"""The checkpoint of a simulation: an unfinished run in a file, and whether it is of the run that goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisescape.distributed.shard import Shard, failing_together, is_first
from noisescape.dynamics import NoiseState
from noisescape.errors import CorruptFileError, InvalidTypeError, InvalidValueError
from noisescape.linops import DeviationsOperator, DiagonalOperator, LowRankOperator, SymmetricOperator
from noisescape.linops.structured import HeldOperator
from noisescape.runs.storage import read_bundle, write_bundle
from noisescape.simulation.identity import differences, differing_losses
from noisescape.simulation.records import Book, Record

KINDS: dict[str, type[DeviationsOperator | DiagonalOperator | LowRankOperator]] = {
    "deviations": DeviationsOperator,
    "diagonal": DiagonalOperator,
    "low-rank": LowRankOperator,
}
"""The covariances that a checkpoint can hold: each is given by one tensor."""


@dataclass(frozen=True)
class Checkpoint:
    """The file that holds one unfinished simulation and no other; of several ranks, rank 0 writes and reads it.

    Attributes:
        path: of the file.
        identity: what must be equal, by name.
        losses: at the start and nearby, equal up to rounding.
        shard: of the risk; the number of ranks need not be what it was.
    """

    path: Path
    identity: Mapping[str, str]
    losses: Tensor
    shard: Shard | None = None

    def check_room(self) -> None:
        """Refuse a folder that cannot hold the file, before any work.

        Raises:
            ValueError: there is no such folder, or nothing may be written there.
        """
        with failing_together(self.shard, "keep a checkpoint"):
            folder = self.path.parent
            if is_first(self.shard) and self.path.is_dir():
                raise InvalidValueError(f"{self.path}, the checkpoint, is a directory: give the name of a file")
            if is_first(self.shard) and not (folder.is_dir() and os.access(folder, os.W_OK)):
                raise InvalidValueError(
                    f"the checkpoint {self.path} cannot be kept: {folder} is no folder that may be written to"
                )

    def exists(self) -> bool:
        """Whether there is an unfinished run."""
        found = self.path.exists()
        return found if self.shard is None else bool(self.shard.objects("whether a checkpoint is there", found)[0])

    def remove(self) -> None:
        """The run is finished."""
        if is_first(self.shard):
            self.path.unlink(missing_ok=True)

    def save(
        self,
        step: int,
        theta: Tensor,
        state: NoiseState,
        generator: torch.Generator,
        diverged_at: Tensor,
        book: Book,
    ) -> None:
        """Write the unfinished run.

        Raises:
            TypeError: the noise goes on with a covariance of a kind that cannot be kept.
        """
        if not is_first(self.shard):
            return
        tensors = {
            "theta": theta,
            "diverged_at": diverged_at,
            "generator": generator.get_state(),
            "losses": self.losses,
        }
        notes: dict[str, Any] = {"identity": dict(self.identity), "step": step, "noise_step": state.step}
        notes["covariance"] = kept_kind(state.covariance)
        if isinstance(state.covariance, HeldOperator):
            tensors["covariance"] = state.covariance.tensor
        if state.order is not None:
            tensors["order"] = state.order
        records = book.records()
        for name, record in records.items():
            tensors |= {f"steps/{name}": record.steps, f"values/{name}": record.values}
        write_bundle(self.path, tensors, notes | {"records": list(records)})

    def restore(
        self, generator: torch.Generator, book: Book, device: torch.device
    ) -> tuple[int, Tensor, NoiseState, Tensor]:
        """Step, θ, noise state and divergences; sets the generator and the book.

        Raises:
            CorruptFileError: the file is damaged, or no checkpoint of this version's.
            ValueError: it is of another run.
        """
        tensors, notes = self._read()
        if "identity" not in notes:
            raise CorruptFileError(f"{self.path} is no checkpoint of a simulation: remove it to start afresh")
        differing = differences(notes["identity"], self.identity)
        if not differing:
            differing = differing_losses(tensors["losses"], self.losses)
        if differing:
            raise InvalidValueError(
                f"the checkpoint {self.path} is of another run ({'; '.join(differing)}): "
                "remove it to start afresh, or go on with what it was begun with"
            )
        if "covariance" not in notes:
            raise CorruptFileError(f"{self.path} is a checkpoint of an earlier version: remove it to start afresh")
        generator.set_state(tensors["generator"])
        book.restore(
            {name: Record(tensors[f"steps/{name}"], tensors[f"values/{name}"]) for name in notes["records"]}
        )
        covariance = None
        if notes["covariance"] is not None:
            kind = KINDS[notes["covariance"]["kind"]]
            covariance = kind(tensors["covariance"].to(device), name=notes["covariance"]["name"])
        order = tensors["order"].to(device) if "order" in tensors else None
        state = NoiseState(notes["noise_step"], covariance, order)
        return notes["step"], tensors["theta"].to(device), state, tensors["diverged_at"].to(device)

    def _read(self) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """Tensors and notes of the file, which only rank 0 need see."""
        found: tuple[Mapping[str, Tensor], Mapping[str, Any]] = ({}, {})
        with failing_together(self.shard, "read its checkpoint"):
            if is_first(self.shard):
                bundle = read_bundle(self.path)
                found = dict(bundle.tensors), dict(bundle.notes)
        return found if self.shard is None else self.shard.objects("the checkpoint", found)[0]


def kept_kind(covariance: SymmetricOperator | None) -> dict[str, str] | None:
    """Kind and name of a covariance as a checkpoint notes them; None for none.

    Raises:
        TypeError: no checkpoint can hold one of its kind.
    """
    if covariance is None:
        return None
    for kind, operator in KINDS.items():
        if type(covariance) is operator:
            return {"kind": kind, "name": covariance.name}
    *others, last = (f"a {operator.__name__}" for operator in KINDS.values())
    raise InvalidTypeError(
        f"{covariance.name} is a {type(covariance).__name__}, which no checkpoint can hold: run without one, or "
        f"give the noise {', '.join(others)} or {last}"
    )
