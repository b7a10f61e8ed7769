"""The matrix of operators, to which every oracle is applied, leaves none out."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import noisescape
from noisescape.linops import SymmetricOperator
from noisescape.risk.hessian import DifferenceHessian
from operator_matrix import MATRIX

APPROXIMATE = {DifferenceHessian}
"""Equal to no matrix up to rounding; its error is tested where it is stated."""


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def test_every_operator_of_the_package_is_in_the_matrix() -> None:
    for module in pkgutil.walk_packages(noisescape.__path__, "noisescape."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    known = {kind for kind in subclasses(SymmetricOperator) if kind.__module__.startswith("noisescape.")}
    tried = {type(entry.build()) for entry in MATRIX.values()}
    missing = {
        kind
        for kind in known - APPROXIMATE
        if not inspect.isabstract(kind) and not any(issubclass(other, kind) for other in tried)
    }
    assert not missing
