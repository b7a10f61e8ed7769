"""Runs whose files hold no checksum: those of earlier versions, and what others wrote or changed by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from noisescape.errors import CorruptFileError, NoisescapeError
from noisescape.runs.run import Run


@contextmanager
def understood(*runs: Run) -> Iterator[None]:
    """Around what makes sense of runs: where it stumbles over one without checksums, that run is named.

    A run with all its checksums is as this package wrote it, so what goes wrong with it is a fault here and comes
    through as it is.

    Raises:
        CorruptFileError: an entry is missing, or of another kind than it should be.
    """
    try:
        yield
    except NoisescapeError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        doubtful = next((run for run in runs if not run.signed), None)
        if doubtful is None:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CorruptFileError(
            f"{doubtful.path} is no run that can be understood ({reason}), and no checksum says that its files are "
            "as they were written: restore them, or run the experiment again"
        ) from error
