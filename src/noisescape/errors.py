"""What can go wrong and a caller can mend: every such error is a :class:`NoisescapeError`.

Each is also the built-in error of its kind, so ``except ValueError`` catches what it always did. Anything else that
is raised is a fault of noisescape's, or of code it was given.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection


class NoisescapeError(Exception):
    """Something that the caller can mend; the message names it and the mend."""


class InvalidValueError(NoisescapeError, ValueError):
    """An argument, a constant or a combination of them that makes no sense."""


class InvalidTypeError(NoisescapeError, TypeError):
    """An argument of a kind that cannot be used."""


class InvalidIndexError(NoisescapeError, IndexError):
    """An index out of range."""


class FailedError(NoisescapeError, RuntimeError):
    """A computation that could not be done as asked: no convergence, a divergence, a missing derivative."""


class LostRankError(FailedError):
    """Another process of a group ended, or did not answer in time."""


class MissingPackageError(NoisescapeError, ImportError):
    """Something that an optional package does, which is not installed."""


class OccupiedPathError(NoisescapeError, FileExistsError):
    """Something is already where a run would be written."""


class MissingPathError(NoisescapeError, FileNotFoundError):
    """There is no such run, or no such file of it."""


class StorageError(NoisescapeError, OSError):
    """A file cannot be written: no room, no permission."""


class NonFiniteLossError(NoisescapeError, ArithmeticError):
    """A loss is NaN or infinite, so no derivative of it means anything."""


class BatchCouplingError(InvalidValueError):
    """A sample's loss depends on the other samples of its batch, or on chance: no per-sample loss exists."""


class CorruptFileError(InvalidValueError):
    """A file of a run is damaged."""


class DataError(InvalidValueError):
    """A data set cannot be used as it is: unknown, absent, unreadable, or not what its name promises."""


class NoFiguresError(DataError):
    """A log can be read, but holds no figures of a monitor, or none yet."""


class MissingSplitError(DataError):
    """A data set is there, but not this split of it."""


class DataChangedError(DataError):
    """A later pass over the data brought other samples than the first."""


def kind_of(value: object) -> str:
    """What kind of thing was given in place of another.

    >>> kind_of(3), kind_of(int)
    ('int', 'the class int')
    """
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def unknown(
    kind: str, name: object, known: Collection[str], error: type[InvalidValueError] = InvalidValueError
) -> InvalidValueError:
    """The error for a name that is none of the known ones; it has the nearest of them, and all.

    >>> print(unknown("preset", "papr", ["quick", "paper"]))
    unknown preset 'papr'; did you mean paper? known: quick, paper
    """
    if not isinstance(name, str):
        return error(f"a {kind} goes by its name, not by {kind_of(name)}; known: {', '.join(known)}")
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.4)
    hint = f" did you mean {' or '.join(near)}?" if near else ""
    return error(f"unknown {kind} '{name}';{hint} known: {', '.join(known)}")
