"""Finished branches in a directory: each a small file of its own, so that a check which was ended goes on.

::

    check.json               what all branches share: the checkpoint, the data, the plan
    branch-xK-seedS.json     what the branch with K times the batch size and seed S came to

No run of :mod:`noisescape.runs.run`, which is complete at some time: here more seeds may be asked for later.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisescape.errors import CorruptFileError, InvalidValueError
from noisescape.runs.checksums import read_json, write_json
from noisescape.runs.run import require_vacant
from noisescape.runs.storage import sweep
from noisescape.runs.strict_json import strict_json

_MEND = "remove it, and that part is done again"
SAME_LOSS = 1e-5
"""Relative difference of two evaluations that are the same: another number of threads changes the last digits."""


@dataclass(frozen=True)
class BranchFiles:
    """The directory of one check. Make it with :meth:`open`."""

    path: Path

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, Any], start: float) -> BranchFiles:
        """The directory at ``path``, new or of the same check.

        Args:
            path: of the directory.
            identity: what must be equal, in JSON's own types.
            start: the evaluation at the checkpoint, equal up to rounding.

        Raises:
            FileExistsError: something else is there.
            ValueError: the check there is another one; the message names what differs.
        """
        description = path / "check.json"
        if not description.is_file():
            require_vacant(path)
            path.mkdir(parents=True, exist_ok=True)
            write_json(description, {**identity, "start": start})
            return cls(path)
        there = read_json(description, _MEND)
        differing = [
            f"{name} {there.get(name)} there, {value} now"
            for name, value in json.loads(strict_json(identity)).items()
            if there.get(name) != value
        ]
        if not differing and not _same(there.get("start"), start):
            differing = [f"loss at the checkpoint {there.get('start')} there, {start} now"]
        if differing:
            raise InvalidValueError(
                f"{path} holds branches of another check ({'; '.join(differing)}): give another directory, or "
                "go on with what it was begun with"
            )
        sweep(path)
        return cls(path)

    def read(self, multiple: int, seed: int) -> list[float] | None:
        """Evaluations of a branch, infinite where it had diverged; None if it is not finished."""
        path = self._file(multiple, seed)
        if not path.exists():
            return None
        losses = read_json(path, _MEND).get("losses")
        if not isinstance(losses, list) or not all(isinstance(each, float | None) for each in losses):
            raise CorruptFileError(f"{path} holds no losses: remove it, and that branch is trained again")
        return [math.inf if each is None else each for each in losses]

    def write(self, multiple: int, seed: int, losses: list[float]) -> None:
        """Keep the evaluations of a finished branch."""
        write_json(self._file(multiple, seed), {"losses": [float(each) for each in losses]})

    def _file(self, multiple: int, seed: int) -> Path:
        return self.path / f"branch-x{multiple}-seed{seed}.json"


def _same(one: Any, other: float) -> bool:
    return isinstance(one, float | int) and math.isclose(one, other, rel_tol=SAME_LOSS, abs_tol=1e-12)
