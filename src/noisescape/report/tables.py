"""Summaries of the experiments as tables, for the page and the terminal alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.text import Text

from noisescape.experiments.gd_sharpness import POSTER
from noisescape.report.page import Table

AT_THE_END = "At the last step; mean ± standard error over seeds."


def number(value: float | None, form: str, scale: float = 1.0) -> str:
    """A number, or a dash where it was not finite."""
    return "–" if value is None else format(value * scale, form)


def estimate(found: Mapping[str, Any], form: str, scale: float = 1.0, *, missing: str = "diverged") -> str:
    """A value ± its standard error."""
    if found["value"] is None:
        return missing
    spread = "?" if found["stderr"] is None else number(found["stderr"], form.lstrip("+"), scale)
    return f"{number(found['value'], form, scale)} ± {spread}"


def toy_2d_table(summary: Mapping[str, Any]) -> Table:
    """Success rates and the indicator, a row for each dynamics and geometry."""
    rows = [
        [
            geometry,
            name,
            f"{rate['rate']:.1%}",
            f"{rate['low']:.1%} – {rate['high']:.1%}",
            str(rate["n"]),
            f"{found['trace_h_sigma'][name]['value']:,.0f}",
        ]
        for geometry, found in {"published": summary, **summary["controls"]}.items()
        for name, rate in found["success"].items()
    ]
    columns = ["geometry", "dynamics", "success", "95 % interval", "replicas", "Tr(HΣ) at the start"]
    return Table(columns, rows, "Success rates and the indicator of the injected gradient noise.")


def escape_table(summary: Mapping[str, Any]) -> Table:
    """What each dynamics did from the minimum."""
    rows = []
    for name, found in summary["final"].items():
        change = summary["sharpness_change"][name]
        ends = ", ".join(number(change[end], ".1f", 1000) for end in ("low", "high"))
        rows.append(
            [
                name,
                estimate(found["loss"], ".3f"),
                estimate(found["test_accuracy"], ".1f", 100),
                estimate(found["sharpness/signed"], ".1f", 1000),
                estimate(found["sharpness/absolute"], ".1f", 1000),
                f"{number(change['value'], '+.1f', 1000)} [{ends}]",
            ]
        )
    ratios = ", ".join(number(found["anisotropy"]["value"], ".0f") for found in summary["minimum"])
    absolute = "E|ΔL| × 10³"
    columns = ["dynamics", "training loss", "test acc., %", "E[ΔL] × 10³", absolute, "change [95 % interval]"]
    return Table(columns, rows, f"{AT_THE_END} Tr(HΣ)/Tr(HΣ̄) at the minima: {ratios}.", wide=[absolute])


def one_hidden_layer_table(summary: Mapping[str, Any]) -> Table:
    """Tr(HΣ) over its isotropic reference, a row for each optimiser and width."""
    rows = []
    for case, found in summary["anisotropy"].items():
        logs = found["log_anisotropy"]
        mean, low, high = (
            number(None if logs[key] is None or logs[key] > 300 else math.exp(logs[key]), ".1f")
            for key in ("value", "low", "high")
        )
        extremes = [number(found[key], ".1f") for key in ("least", "greatest")]
        projection = found.get("projection_coefficient", {"value": None})  # earlier runs have none
        a = number(projection["value"], ".2f")
        rows.append([*case.split("/"), mean, f"{low} – {high}", *extremes, a])
    columns = ["optimiser", "width", "Tr(HΣ)/Tr(HΣ̄)", "95 % interval", "least", "greatest", "a"]
    return Table(
        columns,
        rows,
        "Geometric mean over epochs, interval over seeds; extremes over epochs and seeds; a of condition (2), mean "
        "over both.",
    )


def training_table(summary: Mapping[str, Any]) -> Table:
    """Where each dynamics ended, or came down to the loss at which all are compared."""
    if summary.get("level") is not None:
        return _at_one_loss(summary)
    rows = [
        [
            name,
            estimate(found["loss"], ".3f"),
            estimate(found["train_accuracy"], ".1f", 100),
            estimate(found["test_accuracy"], ".1f", 100),
            estimate(found["sharpness/signed"], ".2e"),
            estimate(found["sharpness/absolute"], ".2e"),
        ]
        for name, found in summary["final"].items()
    ]
    columns = ["dynamics", "training loss", "training acc., %", "test acc., %", "E[ΔL]", "E|ΔL|"]
    return Table(columns, rows, AT_THE_END, wide=["E|ΔL|"])


def _at_one_loss(summary: Mapping[str, Any]) -> Table:
    """Every dynamics at the same training loss."""
    rows = [
        [
            name,
            estimate(found["loss"], ".3f", missing="–"),
            estimate(found["train_accuracy"], ".1f", 100, missing="–"),
            estimate(found["test_accuracy"], ".1f", 100, missing="–"),
            estimate(found["sharpness"], ".2e", missing="–"),
            estimate(found["largest_eigenvalue"], ".1f", missing="–"),
            estimate(found["taken"], ",.0f"),
            f"{summary['censored'][name]} / {summary['seeds']}",
        ]
        for name, found in summary["final"].items()
    ]
    columns = [
        "dynamics",
        "training loss",
        "training acc., %",
        "test acc., %",
        "E[ΔL]",
        "λ₁",
        "steps",
        "not reached",
    ]
    about = "Within a seed all at exactly one training loss; mean ± standard error over the seeds that reached it."
    return Table(columns, rows, about, wide=["training acc., %", "λ₁"])


def noise_knob_table(summary: Mapping[str, Any]) -> Table:
    """Where each arm ended."""
    rows = []
    for name, found in summary["final"].items():
        injected, target = (summary[key][name]["value"] for key in ("injected_trace", "target_trace"))
        rows.append(
            [
                name,
                estimate(found["loss"], ".3f"),
                estimate(found["test_accuracy"], ".1f", 100),
                estimate(found["test_loss"], ".3f"),
                estimate(found["largest_eigenvalue"], ".1f"),
                estimate(found["sharpness/signed"], ".1f", 1000),
                f"{injected / target:.2f}" if injected and target else "–",
            ]
        )
    sharpness = "E[ΔL] × 10³"
    columns = ["arm", "training loss", "test acc., %", "test loss", "λ₁", sharpness, "trace / target"]
    return Table(columns, rows, AT_THE_END, wide=[sharpness])


def with_poster(summary: Mapping[str, Any]) -> bool:
    """Whether the sharpness of gradient descent was measured where the poster's figures are from."""
    return bool(summary["preset"] == "poster")


def gd_sharpness_table(summary: Mapping[str, Any]) -> Table:
    """The sharpness at which gradient descent ended, a row for each learning rate, beside the poster's."""
    beside = with_poster(summary)
    rows = []
    for rate, found in summary["final"].items():
        theirs, error = POSTER.get(float(rate), (None, None)) if beside else (None, None)
        printed = "–" if theirs is None else f"{theirs:g}" if error is None else f"{theirs:g} ± {error:g}"
        rows.append(
            [
                rate,
                f"{2 / float(rate):.4g}",
                estimate(found["largest_eigenvalue"], ".2f"),
                *([printed] if beside else []),
                estimate(found["stability"], ".3f"),
                estimate(found["loss"], ".1e"),
                estimate(found["train_accuracy"], ".1f", 100),
                estimate(found["test_accuracy"], ".1f", 100),
            ]
        )
    columns = ["η", "2/η", "λ₁", *(["λ₁, poster"] if beside else []), "λ₁·η/2", "training loss"]
    accuracies = ["training acc., %", "test acc., %"]
    return Table([*columns, *accuracies], rows, AT_THE_END, wide=accuracies)


def matched_loss_table(summary: Mapping[str, Any]) -> Table:
    """What each arm differs from gradient descent in at the same training loss."""
    rows = []
    for name, found in summary["compared"].items():
        arm, _, level = name.partition("@")
        ratio = found["log_sharpness_ratio"]
        rows.append(
            [
                arm,
                f"{level or '1'} L₀",
                estimate(found["loss"], ".2g", missing="–"),
                _ratio(ratio),
                _ratio(found["log_eigenvalue_ratio"]),
                _ratio(found.get("log_relative_sharpness_ratio", NOT_MEASURED)),
                _ratio(found.get("log_norm_ratio", NOT_MEASURED)),
                estimate(found["accuracy_gain"], "+.1f", 100, missing="–"),
                estimate(found["barrier"], ".2f", missing="–"),
                estimate(found.get("quench_steps", NOT_MEASURED), ".0f", missing="–"),
                f"{found['censored']} / {found['runs']}",
            ]
        )
    wide = ["loss", "λ₁ ratio", "sharpness ratio, layers' scale", "‖θ‖ ratio", "quench steps"]
    columns = ["arm", "level", wide[0], "sharpness ratio", *wide[1:4], "accuracy, points", "barrier"]
    about = (
        "Beside gradient descent at the same loss; 95 % intervals over seeds, ± standard errors. On the layers' "
        "scale perturbations are in proportion to the weights of each. Quench steps are the last, without noise. "
        "Censored: did not come down to the loss, nor gradient descent to it, or began in no settled minimum."
    )
    return Table([*columns, wide[4], "censored"], rows, about, wide=wide)


NOT_MEASURED: dict[str, Any] = {"value": None, "stderr": None, "low": None, "high": None}
"""In the summaries of earlier runs."""


def _ratio(found: Mapping[str, Any]) -> str:
    """A ratio from its logarithm, with its interval."""
    if found["value"] is None:
        return "–"
    shown = ratio_text(found["value"])
    if found["low"] is None or found["high"] is None:
        return shown
    return f"{shown} [{ratio_text(found['low'])}, {ratio_text(found['high'])}]"


def ratio_text(logarithm: float) -> str:
    """A ratio to two digits, near 1 to two decimals: whether it is over or under is what counts there.

    >>> [ratio_text(math.log(ratio)) for ratio in (0.0651, 0.9843, 1.004, 12.3)]
    ['0.065', '0.98', '1.00', '12']
    """
    ratio = math.exp(logarithm)
    return f"{ratio:.2f}" if 0.1 <= ratio < 10 else f"{ratio:.2g}"


def minima_table(summary: Mapping[str, Any]) -> Table:
    """The minima that all arms begin in, a row for each seed."""
    columns = [
        "seed",
        "loss",
        "‖ḡ‖",
        "λ₁",
        "λ₁ of a batch",
        "E[ΔL] × 10³",
        "training acc., %",
        "test acc., %",
        "steps to settle",
        "settled",
    ]
    rows = [
        [
            str(seed),
            f"{found['loss']:.2g}",
            f"{found['gradient_norm']:.2g}",
            f"{found['largest_eigenvalue']:.1f}",
            f"{found['batch_eigenvalue']:.0f}" if "batch_eigenvalue" in found else "–",
            f"{1000 * found['sharpness']:.1f}",
            f"{100 * found['train_accuracy']:.1f}",
            f"{100 * found['test_accuracy']:.1f}",
            f"{found['settle_steps']:,.0f}",
            "yes" if found["settled"] else "no",
        ]
        for seed, found in enumerate(summary["minimum"])
    ]
    return Table(columns, rows, "Settled: ‖ḡ‖ and λ₁ below the bounds. λ₁ of a batch: median over random batches.")


def trace_table(summary: Mapping[str, Any], form: str) -> Table:
    """The trace that each noise had beside the one it should have had."""
    rows = []
    for name, injected in summary["injected_trace"].items():
        target = summary["target_trace"][name]
        if injected["value"] and target["value"]:
            ratio = f"{injected['value'] / target['value']:.2f}"
            rows.append([name, estimate(injected, form), estimate(target, form), ratio])
    return Table(
        ["dynamics", "injected ‖ε‖²", "target", "ratio"],
        rows,
        "What was injected, measured, beside its target: the trace of minibatch noise at the same parameters, for "
        "constant noise that at the start. Means along the trajectories ± standard error over seeds.",
    )


REGIMES = {
    "noise": "Steps are limited by noise: a larger batch, up to about the noise scale, needs clearly fewer.",
    "curvature": "Steps are limited by curvature: a larger batch costs samples and saves few of them.",
    "undecided": "The noise scale is near the batch size, or not told from it by its interval.",
}


def batch_size_table(found: Mapping[str, Any]) -> Table:
    """What a noise scale says of another batch size: steps, samples, and rules of thumb for the learning rate."""
    # a terminal of 80 columns has room for 27 characters of meaning beside the numbers
    scale = "Tr C/‖ḡ‖²" if found["metric"] == "gradient" else "Tr(DC)/ḡᵀDḡ"
    rows = [
        ["B_noise", *_with_ends(found["noise_scale"]), f"samples; {scale}"],
        ["B_noise/B", *_with_ends(found["relative_gradient_variance"]), "gradient variance, relative"],
    ]
    for symbol, key, meaning in (
        ("Tr C/B", "gradient_variance", "gradient variance"),
        ("‖ḡ‖²", "squared_gradient_norm", "unbiased: may be negative"),
    ):
        if found[key] is not None:
            rows.append([symbol, number(found[key], ".4g"), "", meaning])
    rows += [
        ["steps", *_with_ends(found["steps"]), "times those of now"],
        ["samples", *_with_ends(found["samples"]), "times those of now"],
    ]
    for rule in found["rules"]:
        what, shown = ("lr ×", rule["factor"]) if rule["lr"] is None else ("lr", rule["lr"])
        rows.append([f"{what}, {rule['name']}", *_with_ends(shown), rule["source"]])
    return Table(["figure", "value", "95 % interval", "meaning"], rows, REGIMES[found["regime"]])


def caveats_text(found: Mapping[str, Any]) -> Text:
    """What the figures of such a table do not say, a line each."""
    return Text("\n".join(f"* {caveat}" for caveat in found["caveats"]), style="dim")


def branches_table(found: Mapping[str, Any]) -> Table:
    """What branches of one checkpoint came to, a row for each batch size."""
    rows = []
    for branch in found["branches"]:
        difference = branch["difference"]
        loss, spread, change, ends = "diverged", "–", "–", "–"
        if not branch["diverged"]:
            loss, spread = f"{branch['loss']['value']:.4g}", f"{branch['loss']['stderr']:.1g}"
        if not branch["diverged"] and branch["verdict"] != "base":
            change, ends = f"{difference['value']:+.2g}", f"{difference['low']:.3g} – {difference['high']:.3g}"
        settings = [str(branch["batch_size"]), f"{branch['lr']:.3g}", str(branch["steps"])]
        rows.append([*settings, loss, spread, change, ends, branch["verdict"]])
    low, high = found["at_least"], found["below"]
    answer = {
        "at least": f"at least {low}",
        "between": f"between {low} and {high}",
        "below": f"below {high}",
        "undecided": "undecided; more seeds, or another tolerance, may decide it",
    }[found["bracket"]]
    caption = (
        f"Measured critical batch size: {answer}. Not worse: the 95 % interval of the difference is at most "
        f"{found['tolerance']:g}. Means over {len(found['seeds'])} orders of the same samples; the loss was "
        f"{found['start']:.4g} before."
    )
    error = "standard error"
    columns = ["batch", "lr", "steps", "loss", error, "more", "95 % interval", "verdict"]
    return Table(columns, rows, caption, wide=[error])


def _with_ends(found: Mapping[str, Any]) -> list[str]:
    """A value and the ends of its interval, for two cells; ends unknown, or no others, leave theirs empty."""
    value, low, high = (None if found[key] is None else float(found[key]) for key in ("value", "low", "high"))
    shown = "–" if value is None or math.isnan(value) else _or_infinite(value)
    if low is None or math.isnan(low) or low == high:
        return [shown, ""]
    return [shown, f"{_or_infinite(low)} – {_or_infinite(high)}"]


def _or_infinite(value: float | None) -> str:
    """A number, infinite where JSON had none for it."""
    return "∞" if value is None or math.isinf(value) else f"{value:.4g}"


def quantities_table(summary: Mapping[str, Any]) -> Table:
    """What differs between batch sizes beyond the factor c(B)."""
    rows = []
    for size, found in summary["batch_size"].items():
        alignment = summary["alignment"][size]
        rows.append(
            [
                size,
                estimate(found["loss"], ".3f"),
                estimate(found["balance"], ".2f"),
                estimate(found["trace_hc"], ".3g"),
                estimate(found["trace_c"], ".3g"),
                estimate(found["largest_eigenvalue"], ".1f"),
                estimate(found["projection_coefficient"], ".2f", missing="–"),
                estimate(alignment["noise"], ".2f", missing="–"),
                estimate(alignment["shuffled"], ".2f", missing="–"),
            ]
        )
    columns = ["B", "loss", "balance", "Tr(HC)", "Tr C", "λ₁", "a", "A", "A, shuffled"]
    caption = (
        "Loss, balance (noise over what descent takes) and Tr(HC): second half of the runs; the rest at their end. "
        "Σ = C/B: Tr(HΣ) and Tr Σ are these over B. Mean ± standard error over seeds."
    )
    return Table(columns, rows, caption, wide=["Tr C", "λ₁"])
