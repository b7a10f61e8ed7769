"""The claims, in the paper's order, then the controls beside them."""

from __future__ import annotations

from noisescape.experiments.claims.claim import Claim
from noisescape.experiments.claims.evidence import SAME_TRACE
from noisescape.experiments.claims.judges import gd_sharpness, matched_loss, networks, noise_knob, toy, training
from noisescape.experiments.claims.lab_catalogue import LAB_CLAIMS
from noisescape.experiments.claims.rules import (
    ALIGNED,
    BARRIER,
    CENSORED,
    CLOSE_ACCURACY,
    EDGE,
    LEAST_BARRIER,
    SAME_ACCURACY,
    SAME_NOISE,
    SAME_RATE,
    SHARPNESS_FACTOR,
    STILL,
)
from noisescape.experiments.matched_loss import BRIEF
from noisescape.measurement.sharpness import RELATIVE_DELTA

MATCHED = ("matched-loss",)
ESCAPES = ("fashion-mnist", "digits")
TRAININGS = ("svhn", "cifar10")
KNOB = ("noise-knob",)
_SHOWN = (
    "unless the injected trace was measured wherever its target was, and its intervals, over seeds and over the "
    f"measured steps, lie within {SAME_TRACE[0]:g} to {SAME_TRACE[1]:g} of the target, with no single seed outside."
)
_TRACE = f"Undecided {_SHOWN}"
_GIVEN = f"Noise that is given the trace of SGD's is undecided {_SHOWN}"
_PRIMARY = (
    "The two-sided p of the t test over the first {} is compared with the nominal p of alpha spending (Lan–DeMets, "
    "O'Brien–Fleming type) at the claim's level in Holm's procedure, which gives the three primary claims one "
    "error of 5 %. Later seeds change nothing that a look decided."
)
_IS_CENSORED = (
    "A run is censored if it, or gradient descent beside it, did not come down to the loss within its steps, or if "
    "it began in a minimum that did not settle"
)
_CENSORED = (
    f"{_IS_CENSORED}; it counts as {{}}. Undecided if more than {CENSORED:.0%} of an arm's runs are censored in "
    "the seeds judged."
)
_WHERE = "at the last step, or, in a run that has a level of the training loss, at exactly one training loss"
_MISSED = (
    "At a level, a dynamics that diverged or did not come down to it counts as a {} of 0 in its seed; undecided if "
    f"that is so in more than {CENSORED:.0%} of a dynamics' seeds."
)
_NONE_MISSED = "At a level undecided if any of the two diverged or did not come down to it in any seed."
_AS_DESCENT = _CENSORED.format("a difference of 0")
_NO_RUN_MISSED = f"{_IS_CENSORED}: undecided if any is."
_AS_MEASURED = _CENSORED.format("measured where it ended")
_RATIO = (
    "log(expected sharpness / that of gradient descent), both where they come down to the same training loss, mean "
    "over the runs of a seed; interval over seeds."
)
_PLAN = ((100, 3), (101, 3), (102, 6), (103, 8), (104, 10), (105, 10))
"""The runs that decide the primary claims, in the order of their seeds: decision 18."""
_GAP = "Undecided unless the small batch is shown to generalise better than the large one, by 'batch-gap'."

_OF_THE_PAPER: tuple[Claim, ...] = (
    Claim(
        "flatter-at-matched-loss",
        "At the same training loss SGD ends at flatter ground than gradient descent from the same minimum.",
        "FashionMNIST experiment",
        _RATIO,
        f"Supported if below 0, contradicted if above. {_PRIMARY.format('12 seeds')} {_AS_DESCENT}",
        MATCHED,
        matched_loss.flatter("sgd"),
        "{:+.2f}",
        family="primary",
        looks=(12,),
        compares=("sgd", "gd"),
        plan=_PLAN,
    ),
    Claim(
        "leaves-the-basin",
        f"SGD ends beyond a barrier of more than {BARRIER:g} in training loss from the minimum it started at.",
        "FashionMNIST experiment; escaping from sharp minima",
        f"log10(max(barrier, {LEAST_BARRIER:g})/{BARRIER:g}), the barrier being the height in training loss of the "
        "straight segment from the minimum to the end above the higher of the two, mean over the runs of a seed; "
        "interval over seeds.",
        f"Supported if above 0, contradicted if below. {_PRIMARY.format('12 seeds')} {_AS_MEASURED}",
        MATCHED,
        matched_loss.leaves("sgd"),
        "{:+.2f}",
        family="primary",
        looks=(12,),
        compares=("sgd", "gd"),
        plan=_PLAN,
    ),
    Claim(
        "generalises-at-matched-loss",
        "At the same training loss SGD has the higher test accuracy than gradient descent from the same minimum.",
        "FashionMNIST experiment",
        "Test accuracy of SGD minus that of gradient descent where they come down to the same training loss, mean "
        "over the runs of a seed; interval over seeds.",
        f"Supported if above 0, contradicted if below. {_PRIMARY.format('12, 20, 30 and 40 seeds')} {_AS_DESCENT}",
        MATCHED,
        matched_loss.generalises("sgd"),
        "{:+.1%}",
        family="primary",
        looks=(12, 20, 30, 40),
        compares=("sgd", "gd"),
        plan=_PLAN,
    ),
    Claim(
        "only-aligned-noise-flattens",
        "At the same training loss SGD ends at flatter ground than isotropic, diagonal or shuffled noise of its "
        "trace.",
        "FashionMNIST experiment",
        "Log ratio of expected sharpness to gradient descent's, as for 'flatter-at-matched-loss', of SGD minus "
        "that of the noise, within seeds; interval over seeds.",
        f"Supported if the interval lies below 0, contradicted if above. {_AS_DESCENT} {_GIVEN}",
        MATCHED,
        matched_loss.flatter_than(*matched_loss.UNALIGNED),
        "{:+.2f}",
    ),
    Claim(
        "toy-order",
        "Escape rates on the 2-D toy are ordered as Tr(HΣ) predicts.",
        "2-D toy example",
        "Difference of escape rates of every two dynamics whose Tr(HΣ) at the start differs by over 5 %; Newcombe "
        "intervals, Bonferroni-corrected.",
        "Supported if every difference is clear of 0 in the predicted direction, contradicted if one is in the "
        "other.",
        ("toy-2d",),
        toy.order,
        "{:+.1%}",
    ),
    Claim(
        "indicator-one-hidden-layer",
        "Tr(HΣ) exceeds its isotropic reference along training of one-hidden-layer networks.",
        "one-hidden-layer experiment",
        "Geometric mean over epochs of Tr(HΣ)/Tr(HΣ̄); interval over seeds.",
        "Supported if the interval lies above 1, contradicted if below.",
        ("one-hidden-layer",),
        networks.indicator_of_one_hidden_layer,
        "{:.4g}",
    ),
    Claim(
        "indicator-along",
        "Tr(HΣ) exceeds its isotropic reference along training of the network.",
        "FashionMNIST experiment",
        "Geometric mean of Tr(HΣ)/Tr(HΣ̄) over the measured steps and the minimum; interval over seeds.",
        "Supported if the interval lies above 1, contradicted if below.",
        ESCAPES,
        networks.indicator_along,
        "{:.4g}",
    ),
    Claim(
        "ill-conditioned",
        "H is ill-conditioned at the minimum: λ_{k+1} < λ₁·D^{−d} with d > ½ for some k ≪ D.",
        "condition (1)",
        "d at the minimum, for the k of the run and for the best of the k whose eigenvalues were measured; "
        "interval over seeds.",
        "For that k supported if the interval lies above ½, contradicted if below; d does not fall with k, so that "
        "it is contradicted for every smaller k as well.",
        ESCAPES,
        networks.ill_conditioned,
    ),
    Claim(
        "aligned",
        "The noise is aligned with the curvature: the projection coefficient a is bounded away from 0.",
        "condition (2)",
        "Geometric mean of a at the minimum; interval over seeds, by logarithms.",
        f"Supported if the interval lies above {ALIGNED:g}, contradicted if below. Undecided if a is not positive "
        "in a seed.",
        ESCAPES,
        networks.aligned,
    ),
    Claim(
        "accuracy-order",
        "SGD generalises better than diagonal noise, and that better than isotropic noise.",
        "SVHN and CIFAR-10 experiments",
        f"Differences of test accuracy within seeds, {_WHERE}.",
        f"Supported if the interval lies above 0, contradicted if below. {_MISSED.format('difference')} {_TRACE}",
        TRAININGS,
        training.accuracy_order,
        "{:+.1%}",
    ),
    Claim(
        "isotropic-as-gd",
        "Constant and dynamic noise generalise about as gradient descent does.",
        "SVHN and CIFAR-10 experiments",
        f"Differences of test accuracy within seeds, {_WHERE}.",
        f"Supported if the interval lies within ±{SAME_ACCURACY:.0%}, contradicted if outside. {_NONE_MISSED} "
        f"{_TRACE}",
        TRAININGS,
        training.accuracy_same(("gld-constant", "gd"), ("gld-dynamic", "gd")),
        "{:+.1%}",
    ),
    Claim(
        "flatter-generalises",
        "Flatter end points generalise better.",
        "SVHN and CIFAR-10 experiments",
        f"Spearman's correlation of expected sharpness and test accuracy over the dynamics within seeds, {_WHERE}; "
        "interval over seeds, by Fisher's z.",
        "Supported if the interval over seeds lies below 0, contradicted if above. "
        f"{_MISSED.format('correlation')}",
        TRAININGS,
        training.flatter_generalises,
        "{:+.2f}",
    ),
    Claim(
        "flatter-from-initialisation",
        "Trained from initialisation to the same training loss, SGD ends at flatter ground than gradient descent.",
        "SVHN and CIFAR-10 experiments",
        "log(expected sharpness of SGD / of gradient descent) at exactly one training loss, within seeds; interval "
        "over seeds. Runs that compare at the last step say nothing of it.",
        f"Supported if the interval lies below 0, contradicted if above. {_MISSED.format('difference')} {_TRACE}",
        TRAININGS,
        training.flatter("sgd"),
        "{:+.2f}",
    ),
    Claim(
        "turned-basin",
        "Tr(HΣ) decides alone: in a basin turned by 90° the same Tr(HΣ) escapes as often.",
        "in the published geometry the steep direction also points at the exit",
        "Escape rate in the published minus that in the turned basin; Newcombe intervals, Bonferroni-corrected.",
        f"Supported if the interval lies within ±{SAME_RATE:.0%}, contradicted if outside.",
        ("toy-2d",),
        toy.turned_basin,
        "{:+.1%}",
        control=True,
    ),
    Claim(
        "isotropic-basin",
        "Tr(HΣ) decides alone: in an isotropic basin every noise escapes as often as constant noise.",
        "there every shape of noise has the same Tr(HΣ)",
        "Escape rate minus that of constant noise; Newcombe intervals, Bonferroni-corrected.",
        f"Supported if the interval lies within ±{SAME_RATE:.0%}, contradicted if outside.",
        ("toy-2d",),
        toy.isotropic_basin,
        "{:+.1%}",
        control=True,
    ),
    Claim(
        "arm-flatter-at-matched-loss",
        "At the same training loss this arm, too, ends at flatter ground than gradient descent.",
        "what else than SGD flattens: isotropic, diagonal, shuffled or leading noise, a Gaussian with SGD's "
        "covariance, a penalty without noise",
        _RATIO,
        f"Supported if the interval lies below 0, contradicted if above. {_AS_DESCENT} {_GIVEN}",
        MATCHED,
        matched_loss.flatter(*matched_loss.OTHER_ARMS),
        "{:+.2f}",
        control=True,
    ),
    Claim(
        "arm-leaves-the-basin",
        f"This arm, too, ends beyond a barrier of more than {BARRIER:g} in training loss from the minimum.",
        "what else than SGD leaves the minimum",
        "As for 'leaves-the-basin'.",
        f"Supported if the interval lies above 0, contradicted if below. {_AS_MEASURED} {_GIVEN}",
        MATCHED,
        matched_loss.leaves(*matched_loss.OTHER_ARMS),
        "{:+.2f}",
        control=True,
    ),
    Claim(
        "arm-generalises-at-matched-loss",
        "At the same training loss this arm, too, has the higher test accuracy than gradient descent.",
        "what else than SGD generalises better",
        "As for 'generalises-at-matched-loss'.",
        f"Supported if the interval lies above 0, contradicted if below. {_AS_DESCENT} {_GIVEN}",
        MATCHED,
        matched_loss.generalises(*matched_loss.OTHER_ARMS),
        "{:+.1%}",
        control=True,
    ),
    Claim(
        "gaussian-as-flat-as-sgd",
        "At the same training loss Gaussian noise with the full covariance of SGD ends at as flat ground as SGD.",
        "separates the covariance from the rest of SGD's law",
        "As for 'only-aligned-noise-flattens'.",
        f"Supported if the interval lies within ±log {SHARPNESS_FACTOR:g}, contradicted if outside. "
        f"{_NO_RUN_MISSED} {_TRACE}",
        MATCHED,
        matched_loss.as_flat_as_sgd("gld-full"),
        "{:+.2f}",
        control=True,
    ),
    Claim(
        "noise-on-the-way-flattens",
        "At the same training loss SGD ends at flatter ground than gradient descent that goes on from SGD's "
        f"{BRIEF}th step.",
        "separates what noise does on the way down from where its first steps throw the iterate",
        "As for 'only-aligned-noise-flattens'.",
        f"Supported if the interval lies below 0, contradicted if above. {_AS_DESCENT}",
        MATCHED,
        matched_loss.flatter_than("gd-after-sgd"),
        "{:+.2f}",
        control=True,
    ),
    Claim(
        "start-makes-no-difference",
        "At the same training loss SGD from the minimum ends at as flat ground as SGD from the initialisation.",
        "separates escaping from training with noise",
        "As for 'only-aligned-noise-flattens'.",
        f"Supported if the interval lies within ±log {SHARPNESS_FACTOR:g}, contradicted if outside. "
        f"{_NO_RUN_MISSED}",
        MATCHED,
        matched_loss.as_flat_as_sgd("sgd-from-initialisation"),
        "{:+.2f}",
        control=True,
    ),
    Claim(
        "flatter-on-the-layers-scale",
        "At the same training loss this arm ends at flatter ground than gradient descent, perturbations being in "
        "proportion to the weights of each layer.",
        "separates flatness from growth of the weights, which need not change the function",
        "As for 'flatter-at-matched-loss', the standard deviation of the perturbations being "
        f"{RELATIVE_DELTA:g} of the root mean square of each parameter tensor.",
        f"Supported if the interval lies below 0, contradicted if above. {_AS_DESCENT} {_GIVEN}",
        MATCHED,
        matched_loss.flatter_on_the_layers_scale("sgd", *matched_loss.OTHER_ARMS),
        "{:+.2f}",
        control=True,
    ),
    Claim(
        "gaussian-generalises-as-sgd",
        "Training with the full-covariance Gaussian generalises as SGD does.",
        "separates the covariance from the rest of SGD's law",
        f"Difference of test accuracy within seeds, {_WHERE}.",
        f"Supported if the interval lies within ±{SAME_ACCURACY:.0%}, contradicted if outside. {_NONE_MISSED}",
        TRAININGS,
        training.accuracy_same(("gld-full", "sgd")),
        "{:+.1%}",
        control=True,
    ),
    Claim(
        "knob-trace",
        "The gradient of a large batch re-weighted as if small has noise of the small batch's trace.",
        "the construction of the noise knob, measured in training",
        "‖ε‖² injected under the re-weighted large batch over Tr C/b, exact at the same parameters, summed along "
        "the trajectory, less 1; interval over seeds.",
        f"Supported if the interval lies within ±{SAME_NOISE:.0%}, contradicted if outside.",
        KNOB,
        noise_knob.knob_trace,
        "{:+.1%}",
        control=True,
    ),
    Claim(
        "batch-gap",
        "After equally many steps at equal learning rates the small batch generalises better than the large one.",
        "the premise of the noise knob: without a gap there is nothing to recover",
        "Test accuracy at the last step of the small batch minus that of the large one, within seeds.",
        "Supported if the interval lies above 0, contradicted if below.",
        KNOB,
        noise_knob.gap,
        "{:+.1%}",
        control=True,
    ),
    Claim(
        "knob-over-large",
        "A large batch re-weighted as if small generalises better than the plain large batch.",
        "1906.07405, 1902.08234 and 2006.15081: the noise of SGD can be had in large batches",
        "Difference of test accuracy at the last step, within seeds.",
        f"Supported if the interval lies above 0, contradicted if below. {_TRACE}",
        KNOB,
        noise_knob.knob_over_large,
        "{:+.1%}",
        control=True,
    ),
    Claim(
        "knob-as-small",
        "A large batch re-weighted as if small generalises as the small batch does.",
        "1906.07405: mean and covariance of the noise are all that counts",
        "Difference of test accuracy at the last step, within seeds.",
        f"Supported if the interval lies within ±{CLOSE_ACCURACY:.0%}, contradicted if outside. {_TRACE} {_GAP}",
        KNOB,
        noise_knob.knob_as_small,
        "{:+.1%}",
        control=True,
    ),
    Claim(
        "isotropic-does-not-recover",
        "Isotropic noise of the small batch's trace does not recover its advantage.",
        "separates the directions of the noise from its size",
        "Test accuracy at the last step minus the mean of the large and the small batch's, within seeds.",
        "Supported if the interval lies below 0 (less than half of the gap is recovered), contradicted if above. "
        f"{_TRACE} {_GAP}",
        KNOB,
        noise_knob.does_not_recover("isotropic"),
        "{:+.1%}",
        control=True,
    ),
    Claim(
        "penalty-recovers",
        "Without added noise, a penalty on the norms of micro-gradients recovers the small batch's advantage.",
        "2109.14119, against the noise knob: regularisation does what noise does",
        "As for 'isotropic-does-not-recover'.",
        "Supported if the interval lies above 0 (more than half of the gap is recovered), contradicted if below. "
        f"{_GAP}",
        KNOB,
        noise_knob.recovers("gradient-penalty"),
        "{:+.1%}",
        control=True,
    ),
    Claim(
        "gd-settles-at-edge",
        "Gradient descent settles where the sharpness is as large as its learning rate lets it be: λ₁ = 2/η.",
        "Wu, Ma and E 2018, and 2103.00065: figures that others found, which this package's must agree with",
        "λ₁·η/2 at the last step, for each learning rate that is expected to get there: the constant edge_from, "
        "fixed before the run; interval over seeds.",
        f"Supported if the interval lies within {EDGE[0]:g} to {EDGE[1]:g}, contradicted if outside. Undecided "
        f"where λ₁ rose by more than {STILL:.0%} over the last quarter of the steps.",
        ("gd-sharpness",),
        gd_sharpness.settles_at_edge,
        "{:.3f}",
        control=True,
    ),
)
"""In the paper's order; then the controls."""
CLAIMS: tuple[Claim, ...] = tuple(sorted((*_OF_THE_PAPER, *LAB_CLAIMS), key=lambda claim: claim.control))
"""The ledger's claims: the paper's in its order, the theory lab's, then the controls."""
