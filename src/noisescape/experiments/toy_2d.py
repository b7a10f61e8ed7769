"""The two-dimensional toy: which noise carries a point from a sharp basin to a flat one?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from noisescape.errors import unknown
from noisescape.experiments.constants import require_at_least, require_positive
from noisescape.experiments.experiment import Experiment, Method, Option
from noisescape.scalars import check_real


@dataclass(frozen=True)
class Toy2DConfig:
    """Constants of the run; the defaults are the published ones, but for the number of replicas.

    Attributes:
        preset: its name. ``as-published`` takes covariances of running sums of gradients, as the published code
            computes them by not clearing gradients between samples.
        replicas: independent data sets and noises for each dynamics.
        control_replicas: the same for each of the two controls; 0 leaves them out.
        points: N, data points of a replica.
        lr: η.
        steps: how many.
        update_trace: η²TrΣ, the trace of the noise added to the weights at each step.
        escaped_below: success is both coordinates below this at the end.
        seed: of everything.
        device: where.
    """

    preset: str = "quick"
    replicas: int = 1000
    control_replicas: int = 500
    points: int = 100
    lr: float = 0.005
    steps: int = 500
    update_trace: float = 0.01
    escaped_below: float = -0.5
    seed: int = 0
    device: str = "cpu"

    experiment: ClassVar[str] = "toy-2d"

    def __post_init__(self) -> None:
        if self.preset not in (known := ("quick", "paper", "as-published")):
            raise unknown("preset", self.preset, known)
        require_at_least(self, replicas=1, control_replicas=0, points=2, steps=1, seed=0)
        require_positive(self, "lr")
        check_real("update_trace", self.update_trace, 0)

    @property
    def gradient_trace(self) -> float:
        """TrΣ of the gradient noise: update_trace/η²."""
        return self.update_trace / self.lr**2


_QUICK = Toy2DConfig()

TOY_2D = Experiment(
    config=Toy2DConfig,
    title="Escape from a sharp minimum: the 2-D toy",
    question="Which noise escapes from a sharp minimum?",
    help="The paper's 2-D toy: which noise escapes the sharp basin, at equal trace.",
    presets={
        "quick": _QUICK,
        "paper": replace(_QUICK, preset="paper", replicas=4000),
        "as-published": replace(_QUICK, preset="as-published", replicas=4000),
    },
    options=(
        Option("replicas", "Replicas of each dynamics."),
        Option("control_replicas", "Replicas in each control geometry; 0 for none."),
        Option("steps", "Steps of each replica."),
    ),
    runner="noisescape.experiments.protocols.toy_2d:run_toy_2d",
    table="noisescape.report.tables:toy_2d_table",
    report="noisescape.report.toy_2d:toy_2d_report",
    figures=(("success", "Escape rates of each dynamics, by geometry."),),
    methods=(
        Method(
            "the covariance that noise is shaped by",
            "that of single gradients",
            "that of running sums of gradients: none are cleared between samples",
        ),
        Method(
            "compared beside the published dynamics",
            "nothing",
            "nothing",
            "leading noise of rank 1, and all of them in two control geometries",
        ),
    ),
    in_code={"replicas": 100, "control_replicas": 0},
)
