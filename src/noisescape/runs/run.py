"""A run's directory: what was asked, what was measured, and whether it finished.

::

    run.json                  experiment, resolved configuration, seed, data, versions, start time
    tasks/*.safetensors       finished pieces and checkpoints of unfinished ones, until the run is complete
    metrics.parquet           one tidy table
    checkpoints/*.safetensors
    figures/*.png, *.svg
    report.html
    timing.json               what the run took: the one file that differs between two equal runs
    summary.json              written last: its presence marks the run complete
    .lock                     held by the process that works on the run, empty

Every file appears whole or not at all, so a run that was killed can always be read.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import threading
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from noisescape.errors import InvalidTypeError, InvalidValueError, MissingPathError, OccupiedPathError
from noisescape.runs.checksums import KEY, read_json, read_table, signed_json, write_json, write_table
from noisescape.runs.storage import atomic_path, read_bundle, sweep, write_bundle, write_text
from noisescape.runs.strict_json import strict_json as strict_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LOCK = ".lock"
_HALF_BEGUN = ".noisescape-run-*.json"
"""What a process that was killed while it wrote run.json leaves; only right in a directory that is no run yet."""
_MEND = "restore it, or run the experiment again"
_DESCRIPTION: dict[str, tuple[type, Any]] = {
    "experiment": (str, None),
    "config": (dict, None),
    "seed": (int, None),
    "versions": (dict, {}),
    "data": (dict, {}),
}
"""What ``run.json`` holds: of what kind, and what is taken where it is missing."""
_FILES = ("run.json", "metrics.parquet", "timing.json", "summary.json", "report.html")
_FOLDERS = ("tasks", "checkpoints", "figures")
_CREATING = threading.Lock()
"""The lock in a directory keeps other processes out, this one other threads."""


@dataclass(frozen=True)
class Run:
    """A run's directory. Make one with `create`, find one again with `open`."""

    path: Path

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        experiment: str,
        config: Mapping[str, Any],
        seed: int,
        data: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> Run:
        """A new run at ``path``, which must not exist yet or be empty; to ``resume`` is to go on with one there.

        It is this process's alone as long as the object lives; the system lets go of it when the process dies.
        ``data``: checksums of what is read from outside; None where all comes from the configuration.

        Raises:
            FileExistsError: something is there, or another process is working on the run.
            ValueError: the run there is another one; the message names what differs.
        """
        run = cls(Path(path))
        info = {
            "experiment": experiment,
            "config": config,
            "seed": seed,
            "data": data or {},
            "versions": _versions(),
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            **_accelerator(config),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        strict_json(info)  # before the directory is made: a bad configuration leaves nothing behind
        try:
            run._require(info, resume)  # before the lock: what is refused for what it is stays untouched
            if not run._hold():
                if resume and run.complete:
                    return run  # its report is being drawn there
                raise OccupiedPathError(f"{path}: another process is working on it; wait for its end, or end it")
            with _CREATING:
                run._require(info, resume)
                if run._begun:
                    run._tidy()
                else:
                    run._begin(info)
        except (OccupiedPathError, MissingPathError):
            raise
        except OSError as error:
            raise OSError(  # PermissionError, NotADirectoryError …: Python chooses by the number
                error.errno,
                f"cannot write a run to {path} ({error.strerror}): choose a directory that you can write to",
            ) from error
        return run

    def _require(self, info: Mapping[str, Any], resume: bool) -> None:
        """Refuse a place that is not vacant; where a run is to be resumed, another one than asked for."""
        if not (resume and self._begun):
            require_vacant(self.path)
            return
        there = type(self).open(self.path).info
        if self.complete:
            self.summary()
        if there["experiment"] != info["experiment"]:
            raise InvalidValueError(
                f"{self.path} is a run of '{there['experiment']}', not of '{info['experiment']}'"
            )
        constants = ({"seed": each["seed"], **each["config"]} for each in (there, info))
        if differing := _differences(*constants):
            raise InvalidValueError(f"{self.path} cannot be continued with other constants: {differing}")
        if info["data"] and "data" not in there:
            raise InvalidValueError(
                f"{self.path} cannot be continued: it was begun by a version that noted no checksum of its data. "
                "Begin again in another directory"
            )
        if differing := _differences(there.get("data", {}), info["data"]):
            raise InvalidValueError(
                f"{self.path} cannot be continued with other data: {differing}. Bring back that data (--data-dir), "
                "or begin again in another directory"
            )

    def _hold(self) -> bool:
        """Make the directory and lock it for this process, until the object is gone; whether that was possible."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.resolve() / LOCK, timeout=0, thread_local=False, is_singleton=True)
        try:
            lock.acquire()
        except Timeout:
            return False
        object.__setattr__(self, "_lock", lock)  # it lets go when it is collected
        return True

    def _begin(self, info: Mapping[str, Any]) -> None:
        """Write ``run.json``, with which a run is there."""
        for leftover in self.path.glob(_HALF_BEGUN):
            leftover.unlink()
        try:
            write_json(self.path / "run.json", info)
        except OSError:
            (self.path / LOCK).unlink()
            self.path.rmdir()
            raise

    def _tidy(self) -> None:
        """Remove what a process that was killed left behind, and warn of other versions."""
        if self.complete:
            shutil.rmtree(self.path / "tasks", ignore_errors=True)
        for directory in (self.path, *(self.path / name for name in _FOLDERS)):
            sweep(directory)
        changed = [f"{name} {was}" for name, was in self.info["versions"].items() if _versions().get(name) != was]
        if changed and not self.complete:
            warnings.warn(
                f"{self.path} was begun with {', '.join(changed)}; continued with other versions it need not end "
                "in the same numbers",
                stacklevel=3,
            )

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run at ``path``, complete or not."""
        run = cls(Path(path))
        if not run.path.is_dir():
            raise MissingPathError(f"no such directory: {path}")
        run._check_places()
        if not run._begun:
            raise MissingPathError(f"{path} is not a run's directory: it holds no run.json")
        _ = run.info
        return run

    def _check_places(self) -> None:
        """Refuse a folder, a pipe or the like where a file of the run's goes, and a file where a folder does."""
        for name in (*_FILES, *_FOLDERS):
            path, folder = self.path / name, name in _FOLDERS
            if path.exists() and not (path.is_dir() if folder else path.is_file()):
                kind = "folder" if folder else "file"
                raise OccupiedPathError(f"{path} is in the way of the run's {kind} of that name: move it elsewhere")

    @property
    def info(self) -> dict[str, Any]:
        """What ``run.json`` says: experiment, config, seed, data, versions, platform, threads, a GPU, started."""
        info = read_json(self.path / "run.json", _MEND)
        for name, (kind, otherwise) in _DESCRIPTION.items():
            if not isinstance(info.get(name, otherwise), kind):
                what = f"its {name} is no {kind.__name__}" if name in info else f"no {name}"
                raise InvalidValueError(f"{self.path / 'run.json'} is not a run's description ({what}): {_MEND}")
        return info

    @property
    def _begun(self) -> bool:
        return (self.path / "run.json").is_file()

    @property
    def signed(self) -> bool:
        """Whether its files hold checksums, which those of earlier versions do not."""
        return KEY in signed_json(self.path / "run.json", _MEND)

    @property
    def complete(self) -> bool:
        """Whether the run reached its end."""
        return (self.path / "summary.json").is_file()

    def facts(self) -> dict[str, str]:
        """What a reader needs to repeat the run, as text: for the end of a report."""
        info = self.info
        return {
            "experiment": str(info["experiment"]),
            "seed": str(info["seed"]),
            "configuration": json.dumps(info["config"], indent=2),
            "versions": ", ".join(f"{name} {version}" for name, version in info["versions"].items()),
            "platform": str(info["platform"]),
            **({"accelerator": str(info["accelerator"])} if "accelerator" in info else {}),
            "started": str(info["started"]),
        }

    def write_metrics(self, table: pa.Table) -> None:
        """Write the table of metrics, in place of an earlier one."""
        write_table(self.path / "metrics.parquet", table)

    def metrics(self) -> pa.Table:
        """The table of metrics."""
        path = self._existing("metrics.parquet", f"it stopped before it wrote any; {_MEND}")
        return read_table(path, _MEND, signed=self.signed)

    def write_timing(self, timing: Mapping[str, Any]) -> None:
        """Write what the run took; apart from the summary, which two equal runs share."""
        write_json(self.path / "timing.json", timing)

    def timing(self) -> dict[str, Any]:
        """What the run took; empty if nothing was noted."""
        path = self.path / "timing.json"
        return read_json(path, _MEND, signed=self.signed) if path.exists() else {}

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, which marks the run complete: call this last."""
        write_json(self.path / "summary.json", summary)

    def summary(self) -> dict[str, Any]:
        """The summary of a complete run; a number that was not finite is None."""
        path = self._existing("summary.json", "it did not finish; --resume goes on with it")
        return read_json(path, _MEND, signed=self.signed)

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> Path:
        """Write tensors to ``checkpoints/NAME.safetensors``."""
        path = self._file("checkpoints", name, "safetensors")
        write_bundle(path, tensors, {})
        return path

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a checkpoint, on the CPU."""
        return dict(read_bundle(self._checkpoint(name)).tensors)

    def save_figure(self, name: str, figure: Figure) -> Path:
        """Save a figure as ``figures/NAME.png`` and ``.svg``, close it, and return the SVG's path."""
        import matplotlib.pyplot as plt  # slow to import, and a run without figures has no use for it

        png, svg = self._file("figures", name, "png"), self._file("figures", name, "svg")
        try:
            # a fixed salt and no date: the same figure gives the same bytes
            with (
                plt.rc_context({"svg.hashsalt": name}),
                atomic_path(png) as temporary_png,
                atomic_path(svg) as temporary_svg,
            ):
                figure.savefig(temporary_png, dpi=150, bbox_inches="tight")
                figure.savefig(temporary_svg, bbox_inches="tight", metadata={"Date": None})
        finally:
            plt.close(figure)
        return svg

    def write_report(self, html: str) -> Path:
        """Write ``report.html``."""
        path = self.path / "report.html"
        write_text(path, html)
        return path

    def _file(self, folder: str, name: str, suffix: str) -> Path:
        if not name or name.startswith(".") or any(separator in name for separator in "/\\"):
            raise InvalidValueError(
                f"{name!r} cannot name a file: give a plain name, without directories or suffix"
            )
        directory = self.path / folder
        directory.mkdir(exist_ok=True)
        return directory / f"{name}.{suffix}"

    def _existing(self, name: str, otherwise: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise MissingPathError(f"the run {self.path} has no {name}: {otherwise}")
        return path

    def _checkpoint(self, name: str) -> Path:
        present = sorted(path.stem for path in (self.path / "checkpoints").glob("[!.]*.safetensors"))
        return self._existing(f"checkpoints/{name}.safetensors", f"there are {present}")


def require_vacant(path: Path) -> None:
    """Refuse a directory that holds something.

    Raises:
        FileExistsError: it is not empty, or is a file.
    """
    if path.is_file():
        raise OccupiedPathError(f"{path} is a file: choose another place for the run's directory")
    if path.is_dir() and any(not (entry.name == LOCK or entry.match(_HALF_BEGUN)) for entry in path.iterdir()):
        raise OccupiedPathError(
            f"{path} already exists and is not empty: choose another directory, or remove this one"
        )


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What two descriptions in JSON's own types do not share, in words; empty if nothing."""
    asked = json.loads(strict_json(now))
    names = sorted(name for name in there.keys() | asked.keys() if there.get(name) != asked.get(name))
    return ", ".join(f"{name} = {there.get(name)} there, {asked.get(name)} now" for name in names)


def tidy(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows with the same keys as a table: one column a key, of one type.

    Whole and decimal numbers share a column of decimals; None is a missing value, and a column of
    nothing else holds decimals. One-element tensors and NumPy scalars count as numbers.

    >>> tidy([{"name": "gd", "loss": 1}, {"name": "sgd", "loss": torch.tensor(0.5)}]).to_pydict()
    {'name': ['gd', 'sgd'], 'loss': [1.0, 0.5]}
    """
    columns: dict[str, list[Any]] = {}
    for index, row in enumerate(rows):
        if index == 0:
            columns = {key: [] for key in row}
        elif row.keys() != columns.keys():
            differing = sorted(map(str, row.keys() ^ columns.keys()))
            raise InvalidValueError(
                f"row {index} and row 0 differ in the keys {differing}: use None for what is missing"
            )
        for key, value in row.items():
            columns[key].append(_scalar(value))
    return pa.table({key: _column(key, values) for key, values in columns.items()})


_ARROW_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def _scalar(value: object) -> object:
    if isinstance(value, Tensor | np.ndarray | np.generic) and math.prod(value.shape) == 1:
        return value.item()
    return value


def _column(key: str, values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and kinds != {int}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    if len(kinds) == 1 and (arrow_type := _ARROW_TYPES.get(next(iter(kinds)))) is not None:
        return pa.array(values, arrow_type)
    names = sorted(kind.__name__ for kind in kinds)
    raise InvalidTypeError(f"column {key!r} holds {names}: a column holds numbers, or text, or true and false")


def _accelerator(config: Mapping[str, Any]) -> dict[str, str]:
    """The name of the GPU that a run is on."""
    device = torch.device(str(config.get("device", "cpu")))
    known = device.type == "cuda" and torch.cuda.is_available()
    return {"accelerator": torch.cuda.get_device_name(device)} if known else {}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("noisescape", "numpy", "scipy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # imported from a source tree, not installed
            versions[package] = "unknown"
    return versions | {"noisescape source": source_checksum()}


@functools.cache
def source_checksum() -> str:
    """A checksum of the package's code: between two releases the version says nothing of what made a run."""
    package = Path(__file__).parents[1]
    content = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return content.hexdigest()[:16]
