"""Options of a monitor that a Trainer decides."""

from __future__ import annotations

from collections.abc import Iterable

from noisescape.errors import InvalidTypeError


def check_left_to_the_trainer(options: Iterable[str]) -> None:
    """Refuse those that a callback looks up.

    Raises:
        TypeError: one of them is given.
    """
    if fixed := sorted({"accumulation", "scaler", "outputs", "announced"}.intersection(options)):
        raise InvalidTypeError(f"{fixed[0]} is what the Trainer does, which the callback looks up: leave it out")
