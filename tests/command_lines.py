"""Command lines drawn at random from the tree of commands: what a value of its type may be, and what it may not."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin

import typer

from noisescape.cli import app
from noisescape.dynamics import DYNAMICS

LONG = "x" * 5000
HOSTILE: dict[type, tuple[str, ...]] = {
    int: ("0", "-1", "1.5", "nan", "", "ten", "1e3", "٣", "9" * 23, "-" + "9" * 23, " 2"),
    float: ("0", "-1", "nan", "inf", "-inf", "1e400", "", "a", "1,5", "1e-320"),
    str: ("", " ", "é漢🙂", LONG, "-1", "..", "no:such", "nan", "a\nb", "0"),
    Path: ("absent", "file.txt", "occupied", "", ".", "/", "x" * 300, "é漢/🙂", "absent/inner", "file.txt/inner"),
    bool: (),
}
"""By type; some of them are only hostile to some options."""
VALID: dict[type, tuple[str, ...]] = {int: ("1", "2", "3", "8"), float: ("0.1", "0.5", "1"), bool: ()}
BY_NAME: dict[str, tuple[str, ...]] = {
    "preset": ("quick", "paper", "as-published"),
    "device": ("cpu",),
    "engine": ("local",),
    "address": ("auto",),
    "target": ("laboratory:make_risk", "laboratory:make_both", "laboratory:make_network"),
    "check": ("laboratory:make_checked",),
    "multiples": ("1,2", "1,2,4"),
    "optimizer": ("sgd", "adam"),
    "dynamics": ("sgd", "gd,sgd", ",".join(DYNAMICS)),
    "prefix": ("noise/",),
    "log": ("log.jsonl",),
    "subject": ("log.jsonl",),
    "runs": ("complete",),
    "out": ("new",),
    "run": ("new",),
    "data_dir": ("occupied",),
    "state_dict": ("occupied",),
    "samples": ("64",),
}
"""Values that a command can do with, by the name of its parameter."""
WRONG_BY_NAME: dict[str, tuple[str, ...]] = {
    "preset": ("Quick", "quick ", "papr"),
    "device": ("cuda", "cuda:99", "cpu:7", "meta", "mps", "xpu:0", "gpu", "cuda:-1"),
    "engine": ("slurm", "LOCAL"),
    "target": (
        *("laboratory", "laboratory:", ":make_risk", "laboratory:number", "laboratory:make_model", "os:getcwd"),
        *("laboratory:make_short", "laboratory:make_three", "laboratory:make_infinite", "laboratory:needs_path"),
        *("a.b:c", "..:c", "laboratory:absent", "laboratory:start"),
    ),
    "check": ("laboratory:make_risk", "laboratory:number", "laboratory:make_model", "os:getcwd"),
    "multiples": ("1;2", "0,1", "1,1", "1,", "2,4", "1,9999", "1," + "9" * 30),
    "optimizer": ("Adam", "lion"),
    "dynamics": ("sgd,,gd", "sgd;gd", ",", "sgd,sgd", "SGD"),
    "prefix": ("loss/", "noise"),
    "log": ("complete", "laboratory.py", "complete/metrics.parquet"),
    "subject": ("complete/run.json", "occupied", "laboratory.py"),
    "runs": ("log.jsonl", "complete/run.json"),
    "out": ("laboratory.py", "log.jsonl", "complete", "new/inner/inmost"),
    "state_dict": ("file.txt", "complete/run.json", "laboratory.py"),
    "seed": ("9223372036854775807", "9223372036854775808", "18446744073709551615"),
}
"""What they cannot, or must be careful with."""


@dataclass(frozen=True)
class Parameter:
    """An argument or an option of a command."""

    name: str
    kind: type
    option: str | None
    required: bool

    def drawn(self, draw: random.Random) -> str:
        """A value: seven times in eight one that makes sense."""
        hostile = HOSTILE[self.kind] + 2 * WRONG_BY_NAME.get(self.name, ())
        sensible = BY_NAME.get(self.name) or VALID.get(self.kind) or hostile
        return draw.choice(sensible if draw.random() < 0.875 else hostile)


Command = tuple[tuple[str, ...], list[Parameter]]
"""The words that it is called by, and its parameters."""


def commands(of: typer.Typer = app, path: tuple[str, ...] = ()) -> Iterator[Command]:
    """Every command of the tree, with its parameters."""
    for command in of.registered_commands:
        callback = command.callback
        assert callback is not None
        name = command.name or callback.__name__.replace("_", "-")
        yield (*path, name), [*_parameters(callback)]
    for group in of.registered_groups:
        yield from commands(group.typer_instance, (*path, str(group.name)))


@functools.cache
def _known() -> list[Command]:
    return [*commands()]


def _parameters(callback: Callable[..., Any]) -> Iterator[Parameter]:
    for parameter in inspect.signature(callback, eval_str=True).parameters.values():
        assert get_origin(parameter.annotation) is Annotated
        kind, about = get_args(parameter.annotation)
        kinds = [each for each in get_args(kind) if each is not type(None)]
        is_option = isinstance(about, typer.models.OptionInfo)
        named = [each for each in about.param_decls or () if each.startswith("--")]
        option = (named or [f"--{parameter.name.replace('_', '-')}"])[0] if is_option else None
        bare = kinds[0] if isinstance(kind, UnionType) or get_origin(kind) is list else kind
        yield Parameter(parameter.name, bare, option, parameter.default is inspect.Parameter.empty)


def drawn(seed: int) -> list[str]:
    """A command line: a command, its arguments mostly, some of its options, now and then what is no option."""
    draw = random.Random(seed)
    known = _known()
    first = draw.choice([*dict.fromkeys(path[0] for path, _ in known)])  # as many of each, however many it has
    path, parameters = draw.choice([each for each in known if each[0][0] == first])
    line = ["--debug"] * (draw.random() < 0.02) + [*path]
    optional = [each for each in parameters if each.option and not each.required]
    chosen = draw.sample(optional, min(len(optional), draw.choice((0, 1, 1, 2, 3, 5))))
    for parameter in parameters:
        if (parameter.required and draw.random() < 0.95) or parameter in chosen:
            line += _written(parameter, draw)
    if draw.random() < 0.05:
        line.insert(draw.randrange(len(line) + 1), draw.choice(("--no-such-option", "-Z", "--", LONG, "--help")))
    return line


def _written(parameter: Parameter, draw: random.Random) -> list[str]:
    if parameter.option is None:
        return [
            parameter.drawn(draw) for _ in range(draw.choice((1, 1, 1, 1, 2) if parameter.name == "runs" else (1,)))
        ]
    if parameter.kind is bool:
        return [parameter.option]
    once = [parameter.option, parameter.drawn(draw)]
    chance = draw.random()
    if chance < 0.03:
        return [parameter.option]  # its value is missing
    return [*once, parameter.option, parameter.drawn(draw)] if chance > 0.95 else once
