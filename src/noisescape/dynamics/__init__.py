"""The compared dynamics: each a rule for the noise of θ_{t+1} = θ_t − η(∇L(θ_t) + ε_t)."""

from noisescape.dynamics.additive import Additive
from noisescape.dynamics.base import Dynamics, NoiseState
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
from noisescape.dynamics.label_noise import LabelNoise
from noisescape.dynamics.matched import MatchedTrace
from noisescape.dynamics.registry import CONTROLS, DYNAMICS, dynamics_by_name
from noisescape.dynamics.sgd import SGD
from noisescape.dynamics.svag import SVAG
from noisescape.dynamics.yoked import Yoked

__all__ = [
    "CONTROLS",
    "DYNAMICS",
    "GD",
    "SGD",
    "SVAG",
    "Additive",
    "Dynamics",
    "GDGradientPenalty",
    "GLDConstant",
    "GLDDiagonal",
    "GLDDynamic",
    "GLDFull",
    "GLDHessian",
    "GLDLeading",
    "GLDShuffled",
    "GLDShuffledWithinLayers",
    "GLDTopEigenvector",
    "LabelNoise",
    "MatchedTrace",
    "NoiseState",
    "Yoked",
    "dynamics_by_name",
]
