"""A function of the user's own, named MODULE:FUNCTION on the command line."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from noisescape.cli.app import TheirError
from noisescape.errors import InvalidTypeError, InvalidValueError, NoisescapeError


def call(target: str) -> Any:
    """What the user's own function makes."""
    module_name, colon, function_name = target.partition(":")
    if not (module_name and colon and function_name):
        raise InvalidValueError(f"'{target}' is not MODULE:FUNCTION, e.g. my_module:make_risk")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever their module raises
        raise InvalidValueError(f"cannot import {module_name}: {type(error).__name__}: {error}") from error
    if not hasattr(module, function_name):
        public = [name for name in vars(module) if callable(getattr(module, name)) and not name.startswith("_")]
        raise InvalidValueError(f"{module_name} has no function '{function_name}'; it has: {', '.join(public)}")
    function = getattr(module, function_name)
    if not callable(function):
        raise InvalidTypeError(f"{target} is of type {type(function).__name__}, not a function")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise InvalidTypeError(f"{target} is called without arguments, but: {error}") from None
    try:
        return function()
    except NoisescapeError:  # what noisescape says to the model or the data they gave it
        raise
    except Exception as error:
        raise TheirError from error
