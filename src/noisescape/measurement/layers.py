"""Where in a network the noise is, and where the curvature: traces by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from torch import Tensor

from noisescape.errors import InvalidValueError
from noisescape.linops import Estimate, mean_of_draws
from noisescape.linops.probing import rademacher
from noisescape.measurement.figures import as_html, as_text
from noisescape.risk import EmpiricalRisk, in_operator_precision
from noisescape.risk.gradient_covariance import covariance_factor, gradient_moments
from noisescape.scalars import check_seed, check_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LayerTraces:
    """The blocks of H and Σ_B that belong to each layer: their traces. Σ is gradient noise at batch size B.

    A layer is a module with trainable parameters of its own.

    Attributes:
        names: of the layers, in the order of θ.
        sizes: their numbers of parameters, summing to D.
        trace_sigma: TrΣ of each block, exact; their sum is TrΣ.
        trace_h: TrH of each block, estimated.
        batch_size: B.
        replacement: the sampling law.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    trace_sigma: tuple[float, ...]
    trace_h: tuple[Estimate, ...]
    batch_size: int
    replacement: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON: of each layer its size, TrΣ and TrH."""
        layers = {
            name: {"size": size, "trace_sigma": noise, "trace_h": curvature.to_dict()}
            for name, size, noise, curvature in self._rows()
        }
        return {"layers": layers, "batch_size": self.batch_size, "replacement": self.replacement}

    def table(self) -> Table:
        """A rich table: layer, parameters, TrΣ and its share, TrH with its standard error."""
        law = "with" if self.replacement else "without"
        table = Table(title=f"B = {self.batch_size} {law} replacement", title_justify="left")
        table.add_column("layer")
        for heading in ("parameters", "Tr Σ", "share", "Tr H"):
            table.add_column(heading, justify="right")
        whole = sum(self.trace_sigma)
        for name, size, noise, curvature in self._rows():
            share = f"{100 * noise / whole:.1f} %" if whole else "–"
            table.add_row(name, f"{size:,}", f"{noise:.4g}", share, str(curvature))
        return table

    def plot(self) -> Figure:
        """TrΣ and TrH of every layer, with 95 % intervals."""
        from noisescape.pictures import Picture  # matplotlib is slow to import

        figure = Picture(8, 1.2 + 0.3 * len(self.names))
        left, right = figure.subplots(1, 2, sharey=True)
        places = range(len(self.names))
        left.barh(places, self.trace_sigma, color="#762a83")
        values = [found.value for found in self.trace_h]
        errors = [found.interval()[1] - found.value for found in self.trace_h]
        right.barh(places, values, xerr=errors, color="#1b7837", ecolor="#444444")
        left.set_yticks(places, self.names)
        left.invert_yaxis()
        left.set_xlabel(f"Tr Σ, B = {self.batch_size}")
        right.set_xlabel("Tr H")
        return figure

    def _rows(self) -> zip[tuple[str, int, float, Estimate]]:
        return zip(self.names, self.sizes, self.trace_sigma, self.trace_h, strict=True)

    def __str__(self) -> str:
        return as_text(self.table())

    def _repr_html_(self) -> str:
        return as_html(self.table())


def layer_traces(
    risk: EmpiricalRisk,
    theta: Tensor,
    *,
    batch_size: int,
    replacement: bool = True,
    probes: int = 32,
    seed: int = 0,
) -> LayerTraces:
    """TrΣ_B and TrH of every layer at θ.

    TrΣ is exact, by one pass over the per-sample gradients. TrH of a layer is the mean of Σ z_i(Hz)_i over its
    parameters i and over probes z of signs, which serve all layers at once: one Hessian-vector product each.

    Args:
        risk: L, of a model.
        theta: where, (D,).
        batch_size: B of the noise.
        replacement: its sampling law.
        probes: for TrH, at least 2. The standard error falls as one over their root.
        seed: of the probes.

    Raises:
        ValueError: B out of range, fewer than 2 probes, or a closed form, which has no layers.
        FailedError: the model has no second derivative.

    Source: Hutchinson (1989), block by block.

    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    >>> data = torch.randn(80, 3), torch.randint(0, 2, (80,))
    >>> risk = EmpiricalRisk(model, torch.nn.functional.cross_entropy, data)
    >>> found = layer_traces(risk, risk.parameters(), batch_size=20)
    >>> found.names, found.sizes
    (('0', '2'), (16, 10))
    """
    risk, theta = in_operator_precision(risk, theta)
    check_whole("probes", probes)
    check_seed(seed)
    if probes < 2:
        raise InvalidValueError(f"probes = {probes}, but a standard error needs at least 2")
    factor = covariance_factor(batch_size, risk.sample_count, replacement=replacement)
    spans = _spans(risk.state_dict(theta))
    variances = gradient_moments(risk, theta)[1].double()
    hessian = risk.hessian(theta)
    generator = torch.Generator(theta.device).manual_seed(seed)
    found: dict[str, list[Tensor]] = {name: [] for name in spans}
    at_once = max(1, hessian.columns_that_fit(probes))
    for start in range(0, probes, at_once):
        signs = rademacher(len(theta), min(at_once, probes - start), theta, generator)
        products = signs * (hessian @ signs)
        for name, parts in spans.items():
            found[name].append(sum((products[part].double().sum(0) for part in parts), torch.zeros(())).cpu())
    return LayerTraces(
        tuple(spans),
        tuple(sum(part.stop - part.start for part in parts) for parts in spans.values()),
        tuple(factor * float(sum(variances[part].sum() for part in parts)) for parts in spans.values()),
        tuple(mean_of_draws(torch.cat(values), probes) for values in found.values()),
        batch_size,
        replacement,
    )


def _spans(named: dict[str, Tensor]) -> dict[str, list[slice]]:
    """By layer, the parts of θ that are its parameters; one without a module is a layer of its own."""
    spans: dict[str, list[slice]] = {}
    start = 0
    for name, tensor in named.items():
        layer = name.rpartition(".")[0] or name
        spans.setdefault(layer, []).append(slice(start, start + tensor.numel()))
        start += tensor.numel()
    return spans
