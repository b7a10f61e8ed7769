"""``noisescape measure``: the indicators of a model of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noisescape.cli.app import app
from noisescape.cli.options import Json, Quiet, Seed, device_named
from noisescape.cli.output import check_place, console, deliver
from noisescape.cli.parameters_file import parameters_from
from noisescape.cli.user_function import call
from noisescape.errors import InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    import torch

    from noisescape.risk import EmpiricalRisk


@app.command()
def measure(
    target: Annotated[
        str,
        typer.Argument(
            help="MODULE:FUNCTION, a function without arguments that returns an EmpiricalRisk, or (risk, theta)."
        ),
    ],
    batch_size: Annotated[int, typer.Option(help="B of the minibatch noise.")],
    without_replacement: Annotated[
        bool, typer.Option("--without-replacement", help="Batches drawn without replacement.")
    ] = False,
    fast: Annotated[
        bool, typer.Option("--fast", help="A first look for tens of gradients, with wide intervals.")
    ] = False,
    k: Annotated[int | None, typer.Option(help="Leading eigenpairs; 20 by default.", show_default=False)] = None,
    rtol: Annotated[
        float | None,
        typer.Option(
            help="Relative standard error of the stochastic estimates; 0.01 by default.", show_default=False
        ),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also the traces of Σ and H of every layer.")] = False,
    state_dict: Annotated[
        Path | None,
        typer.Option(help="A safetensors file of the parameters to measure at.", show_default=False),
    ] = None,
    max_products: Annotated[
        int | None,
        typer.Option(help="Most products an estimate may take; 1000 by default.", show_default=False),
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Also write what was measured to this JSON file.", show_default=False)
    ] = None,
    device: Annotated[str | None, typer.Option(help="Move the risk there first.", show_default=False)] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure Tr(HΣ) and its company on your own model: noisescape measure my_module:make_risk --batch-size 128.

    Of a risk of shards, under torchrun -m noisescape measure ..., one rank speaks for all.
    """
    from noisescape.distributed.shard import end_together, is_first
    from noisescape.measurement.fast import measure_fast
    from noisescape.measurement.indicator import measure as measure_risk
    from noisescape.measurement.layers import layer_traces

    if fast and (k, rtol, max_products) != (None, None, None):
        raise InvalidValueError(
            "--fast has an accuracy of its own and no eigenpairs: leave --k, --rtol and --max-products out"
        )
    check_place(out)
    risk, theta = _load(target)
    if state_dict is not None:
        theta = parameters_from(state_dict, risk)
    if device is not None:
        there = device_named(device)
        risk, theta = risk.to(there), theta.to(there)
    replacement = not without_replacement
    found = (
        measure_fast(risk, theta, batch_size=batch_size, replacement=replacement, seed=seed)
        if fast
        else measure_risk(
            risk,
            theta,
            batch_size=batch_size,
            replacement=replacement,
            seed=seed,
            k=20 if k is None else k,
            rtol=0.01 if rtol is None else rtol,
            max_products=1000 if max_products is None else max_products,
            progress=not (quiet or as_json),
        )
    )
    by_layer = (
        layer_traces(risk, theta, batch_size=batch_size, replacement=replacement, seed=seed) if layers else None
    )
    if is_first(risk.shard):
        deliver(found.to_dict() | ({"layers": by_layer.to_dict()["layers"]} if by_layer else {}), out, as_json)
        if not as_json and not quiet:
            console().print(found.table())
            if by_layer:
                console().print(by_layer.table())
    if risk.shard is not None:
        end_together(risk.shard)


def _load(target: str) -> tuple[EmpiricalRisk, torch.Tensor]:
    """The risk that the user's own function makes, and θ."""
    from noisescape.risk import EmpiricalRisk

    made = call(target)
    risk, theta = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(risk, EmpiricalRisk):
        raise InvalidTypeError(
            f"{target} returned {type(risk).__name__}, not an EmpiricalRisk or (EmpiricalRisk, theta)"
        )
    return risk, risk.parameters() if theta is None else theta
