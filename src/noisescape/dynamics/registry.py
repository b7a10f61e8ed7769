"""Dynamics by name, for command lines and configuration files."""

from __future__ import annotations

import dataclasses
from typing import Any

from noisescape.dynamics.base import Dynamics
from noisescape.dynamics.gd import GD
from noisescape.dynamics.gd_gradient_penalty import GDGradientPenalty
from noisescape.dynamics.gld_constant import GLDConstant
from noisescape.dynamics.gld_diagonal import GLDDiagonal
from noisescape.dynamics.gld_dynamic import GLDDynamic
from noisescape.dynamics.gld_full import GLDFull
from noisescape.dynamics.gld_hessian import GLDHessian
from noisescape.dynamics.gld_leading import GLDLeading
from noisescape.dynamics.gld_shuffled import GLDShuffled
from noisescape.dynamics.gld_shuffled_within_layers import GLDShuffledWithinLayers
from noisescape.dynamics.gld_top_eigenvector import GLDTopEigenvector
from noisescape.dynamics.sgd import SGD
from noisescape.errors import InvalidTypeError, InvalidValueError, unknown

DYNAMICS: dict[str, type[Dynamics]] = {
    kind.name: kind
    for kind in (
        GD,
        SGD,
        GLDConstant,
        GLDDynamic,
        GLDDiagonal,
        GLDLeading,
        GLDHessian,
        GLDTopEigenvector,
        GLDFull,
        GLDShuffled,
        GLDShuffledWithinLayers,
        GDGradientPenalty,
    )
}
"""Every dynamics of the comparison, by name."""

CONTROLS = (GLDShuffled.name, GLDShuffledWithinLayers.name, GDGradientPenalty.name)
"""Those that stand beside the comparison: noise of the same spectrum without its directions, and no noise."""


def dynamics_by_name(name: str, **constants: Any) -> Dynamics:
    """The dynamics called ``name``, with those of the ``constants`` that it takes.

    One set of constants can thus serve a whole comparison: GD ignores ``batch_size``, say.

    Raises:
        ValueError: unknown name (the message has the nearest ones), or a constant it needs is missing.

    >>> dynamics_by_name("sgd", batch_size=20, k=20)
    SGD(batch_size=20, replacement=True, sampling='independent')
    """
    if not isinstance(name, str):
        raise InvalidTypeError(f"a dynamics' name is text, such as 'sgd', not {type(name).__name__}")
    if name not in DYNAMICS:
        raise unknown("dynamics", name, DYNAMICS)
    kind = DYNAMICS[name]
    fields = [field for field in dataclasses.fields(kind) if field.init]
    missing = [
        field.name for field in fields if field.default is dataclasses.MISSING and field.name not in constants
    ]
    if missing:
        raise InvalidValueError(f"dynamics '{name}' needs {', '.join(missing)}")
    taken = {field.name: constants[field.name] for field in fields if field.name in constants}
    return kind(**taken)
