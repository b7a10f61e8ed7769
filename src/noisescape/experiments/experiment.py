"""An experiment's one description: its command, its constants, its work and its report all come from it."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescape.errors import InvalidValueError, unknown

if TYPE_CHECKING:
    from rich.table import Table

    from noisescape.experiments.problem import MakeProblem
    from noisescape.runs.run import Run
    from noisescape.runs.tasks import Engine


@dataclass(frozen=True)
class Option:
    """A constant that can be set on the command line.

    Attributes:
        constant: which.
        help: a line on it.
        kind: of what type; a tuple of names is given as text, separated by commas.
    """

    constant: str
    help: str
    kind: type = int


SEEDS = Option("seeds", "Independent repetitions, in place of the preset's.")
DATA_DIR = Option(
    "data_dir", "Directory with NAME/SPLIT.parquet; else $NOISESCAPE_DATA, else the Hugging Face hub.", Path
)


@dataclass(frozen=True)
class Method:
    """Something that is no constant, and that the paper, its published code and a run may each do otherwise.

    Attributes:
        what: it is about, in a few words.
        paper: what the paper describes; done by every preset but ``as-published``.
        code: what the published code does; done by ``as-published``.
        here: what is done at every preset instead, where that is neither.
    """

    what: str
    paper: str
    code: str
    here: str = ""

    def at(self, preset: str) -> str:
        """What a run at this preset does."""
        return self.here or (self.code if preset == "as-published" else self.paper)


@dataclass(frozen=True)
class Experiment:
    """All that makes an experiment itself.

    What works or draws is given as ``"module:function"`` and imported when it is used, since ``--help`` reads every
    description and must not wait for torch or matplotlib.

    Attributes:
        config: the class of its constants; its ``experiment`` is the experiment's name.
        title: of its report.
        question: what its report answers, a sentence.
        help: of its command, a line.
        presets: constants by name: ``quick``, which is taken where none is chosen, ``paper``, what the paper
            describes, and ``as-published``, what its published code does. The name is the constant ``preset`` of
            each.
        options: constants that its command has an option for.
        runner: ``(config[, problem], out, *, engine, resume, progress)`` ↦ the complete run.
        table: summary ↦ its `noisescape.report.Table`.
        report: run ↦ what its page says first, and the page's sections; saves the figures.
        problem: (config, repetition) ↦ what a repetition trains on, for the protocols that take any.
        figures: (name, caption) of those that stand for it in a report on several experiments; its own begins with
            the first.
        of_paper: whether it is part of ``reproduce all``; then it has all three presets.
        methods: where paper, published code and this package differ other than by a constant.
        in_code: constants of the published code that no preset takes.
    """

    config: type[Any]
    title: str
    question: str
    help: str
    presets: dict[str, Any]
    options: tuple[Option, ...]
    runner: str
    table: str
    report: str
    problem: MakeProblem | None = None
    figures: tuple[tuple[str, str], ...] = ()
    of_paper: bool = True
    methods: tuple[Method, ...] = ()
    in_code: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As on the command line and in ``run.json``."""
        return str(self.config.experiment)

    def configure(self, preset: str = "quick", /, **changes: Any) -> Any:
        """A preset's constants, some of them changed; changes that are None are none.

        Raises:
            ValueError: no such preset, or a constant out of range.
        """
        if preset not in self.presets:
            raise unknown("preset", preset, self.presets)
        known = [field.name for field in dataclasses.fields(self.config)]
        for name in changes:
            if name not in known:
                raise unknown("constant", name, known)
        given = {key: value for key, value in changes.items() if value is not None}
        return dataclasses.replace(self.presets[preset], **given)

    def run(
        self,
        config: Any,
        out: Path,
        *,
        jobs: int | None = None,
        engine: Engine | None = None,
        resume: bool = False,
        progress: bool = True,
    ) -> Run:
        """Do the work and write the run directory; or go on with the run that was begun there.

        Args:
            config: the constants.
            out: the run's directory.
            jobs: processes of this machine; None: one a core, on an accelerator one.
            engine: where tasks are done, in place of this machine: :class:`~noisescape.runs.ray_engine.Ray`.
            resume: whether to go on with what is there.
            progress: whether a terminal shows a bar.

        Returns:
            The run, complete.

        Raises:
            ValueError: both ``jobs`` and an engine, which has its own.
        """
        if jobs is not None and engine is not None:
            raise InvalidValueError("jobs are of this machine, and an engine has its own: give one or the other")
        asked = (config,) if self.problem is None else (config, self.problem)
        from noisescape.runs.local_engine import Local

        place = engine or Local(jobs)
        run: Run = _named(self.runner)(*asked, out, engine=place, resume=resume, progress=progress)
        return run

    def report_parts(self, run: Run) -> tuple[str, list[Any]]:
        """What a complete run's page says first, and the page's sections, its figures drawn."""
        parts: tuple[str, list[Any]] = _named(self.report)(run)
        return parts

    def summary_table(self, summary: Mapping[str, Any]) -> Table:
        """A run's summary for a terminal."""
        seeds = f", {seeds_text(summary['seeds'])}" if "seeds" in summary else ""
        table: Table = _named(self.table)(summary).to_rich(f"{self.name} ({summary['preset']}){seeds}")
        return table


def seeds_text(count: int) -> str:
    """So many seeds, in words.

    >>> seeds_text(1), seeds_text(3)
    ('1 seed', '3 seeds')
    """
    return f"{count} seed{'s' * (count != 1)}"


def _named(reference: str) -> Callable[..., Any]:
    module, _, name = reference.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
