"""What a model's operations allow: which ways to derivatives give what plain reverse mode gives."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from noisescape.errors import InvalidValueError
from noisescape.risk.agreement import (
    KINKED,
    Push,
    agrees,
    gives_derivatives,
    has_delayed_errors,
    maps_cotangents,
    pushes_through_gradient,
    second_derivative_error,
    two_directions,
)
from noisescape.risk.closed_form import ClosedForm
from noisescape.risk.contract import all_in_float64, fits_in_float64, in_float64, shaken
from noisescape.risk.differentiation import (
    gradient_of,
    gradient_of_sum,
    pull_back,
    push_forward,
    push_forward_by_reverse,
)
from noisescape.risk.layer_gradients import RuledLayer, without_partners_lost
from noisescape.risk.model_loss import ModelLoss, mapping
from noisescape.risk.sample_gradients import usable_layers
from noisescape.risk.samples import Batch, StreamedSamples, TensorSamples
from noisescape.risk.sharded_samples import Samples
from noisescape.risk.trial import TRIAL

SECOND_DERIVATIVE_ERROR = 1e-2
"""Hessian-vector products further from differences of the gradient, in float64, are refused."""
ROUNDED = 1e-4
"""Relative difference that rounding can make where a float64 model computes partly in float32."""


def where_tried(function: ModelLoss | ClosedForm, parameters: Callable[[], Tensor]) -> Tensor:
    """The present parameters; of such as several ranks share, who need not all ask, as last known.

    No method of a risk, which would hold itself through what was found out of its model: a risk with gigabytes, or
    a loader with workers, is let go when its last user does.
    """
    if not isinstance(function, ModelLoss) or function.gathered is None:
        return parameters()
    return function.known_parameters().to(function.device, function.dtype)


Holds = Callable[[ModelLoss | ClosedForm, Tensor, Batch, float], bool]
"""Of a function at θ on a batch, to a relative tolerance."""


@dataclass
class Capabilities:
    """The table of what holds of a model, each entry found out when it is first asked for.

    On a few unlike samples, near the module's own parameters and, where the model can be evaluated there, in
    float64 as well: two ways that differ then cannot pass for rounding. Of a closed form less is in question.

    Attributes:
        function: the losses.
        samples: whose.
        tried: batches of a few unlike samples.
        parameters: the module's present parameters, (D,).
    """

    function: ModelLoss | ClosedForm
    samples: Samples
    tried: Sequence[Batch]
    parameters: Callable[[], Tensor]

    def decide(self) -> None:
        """Find out all of it now."""
        for name, entry in vars(type(self)).items():
            if isinstance(entry, functools.cached_property):
                getattr(self, name)

    # ------------------------------------------------------------------ first derivatives

    @functools.cached_property
    def forward_mode(self) -> bool:
        """Whether the losses have forward-mode derivatives that agree with the gradients of single samples."""
        return self._gives_derivatives(push_forward)

    @functools.cached_property
    def double_reverse(self) -> bool:
        """Whether two reverse passes give directional derivatives; a backward pass may hide what it depends on."""
        return self._gives_derivatives(push_forward_by_reverse)

    @functools.cached_property
    def batched_reverse(self) -> bool:
        """Whether several reverse passes can be mapped together, and give what they give one by one."""
        if not isinstance(self.function, ModelLoss):
            return True

        def holds(function: ModelLoss | ClosedForm, theta: Tensor, batch: Batch, tolerance: float) -> bool:
            def values(point: Tensor) -> Tensor:
                return function.losses(point, batch)

            with mapping(), function.held(theta):
                return maps_cotangents(lambda point: values(point).sum(), values, theta, tolerance)

        return self._holds_on_all(holds)

    @functools.cached_property
    def replicas(self) -> bool:
        """Whether the model can be mapped over parameter vectors, and gives each what it gives alone."""
        if not isinstance(self.function, ModelLoss):
            return True
        if self.function.needs_graph:
            return False

        def holds(function: ModelLoss | ClosedForm, theta: Tensor, batch: Batch, tolerance: float) -> bool:
            def gradients(points: Tensor) -> tuple[Tensor, Tensor]:
                with torch.enable_grad():
                    leaf = points.detach().requires_grad_()
                    losses = function.losses(leaf, batch)
                    return losses.detach(), gradient_of(function, losses.sum(), leaf)

            both = torch.stack([theta, self._opposite(theta)])
            try:
                found = gradients(both)
            except Exception:  # an operation unknown to vmap says so in many ways
                return False
            return all(
                agrees(together[row], alone, function.tolerance)
                for row, point in enumerate(both)
                for together, alone in zip(found, gradients(point), strict=True)
            )

        return self._holds_on_all(holds)

    @functools.cached_property
    def replicas_with_batches(self) -> bool:
        """As :attr:`replicas`, where each parameter vector has samples of its own."""
        if not isinstance(self.samples, TensorSamples):
            return False
        if not isinstance(self.function, ModelLoss):
            return True

        def holds(function: ModelLoss | ClosedForm, theta: Tensor, batch: Batch, tolerance: float) -> bool:
            held, half = TensorSamples(batch.inputs, batch.targets), max(1, batch.size // 2)
            rows = torch.stack([torch.arange(half), torch.arange(batch.size - half, batch.size)])
            both = torch.stack([theta, self._opposite(theta)])

            def gradient(points: Tensor, chosen: Tensor) -> Tensor:
                taken = Batch(*held.take(chosen), 0, half)
                with torch.enable_grad():
                    leaf = points.detach().requires_grad_()
                    losses = function.losses(leaf, taken, data_per_replica=chosen.ndim == 2)
                    return torch.autograd.grad(losses.sum(), leaf, materialize_grads=True)[0]

            try:
                found = gradient(both, rows)
            except Exception:  # control flow that depends on the data, say
                return False
            return all(agrees(found[row], gradient(both[row], rows[row]), tolerance) for row in range(2))

        return self.replicas and self._holds_on_all(holds)

    @functools.cached_property
    def ruled_layers(self) -> list[RuledLayer] | None:
        """The layers whose rules give the gradients of single samples; None where gradients go one by one.

        Of a closed form: none.
        """
        if not isinstance(self.function, ModelLoss):
            return []
        own = self.samples.own
        forms = len(own.candidates) if isinstance(own, StreamedSamples) else 1
        # of more forms than are tried, some may call a layer otherwise
        allowed = forms <= len(self.tried)
        found = usable_layers(self.function, self._point(), list(self.tried), rules_allowed=allowed)
        if not self.samples.on_every_rank(found is not None):
            return None
        assert found is not None
        everywhere = self.samples.in_common([layer.key for layer in found])
        return without_partners_lost(found, [layer for layer in found if layer.key in everywhere])

    @property
    def gradient_width(self) -> int:
        """Numbers that a sample's gradient takes, where those of layers that get one vector are kept as factors."""
        single = [layer for layer in self.ruled_layers or [] if layer.single]
        factored = sum(self.function.sizes[position] for layer in single for position in layer.parameters)
        return self.function.dimension - factored + sum(layer.factor_width for layer in single)

    # ------------------------------------------------------------------ second derivatives

    @functools.cached_property
    def forward_over_reverse(self) -> bool:
        """Whether forward mode goes through the gradient, and agrees with two reverse passes.

        Closed forms do without.
        """
        if not isinstance(self.function, ModelLoss):
            return False

        def holds(function: ModelLoss | ClosedForm, theta: Tensor, batch: Batch, tolerance: float) -> bool:
            def total(point: Tensor) -> Tensor:
                return function.losses(point, batch).sum()

            def values(point: Tensor) -> Tensor:
                return function.losses(point, batch)

            with mapping(), function.held(theta):
                return pushes_through_gradient(total, grad(total), values, theta, tolerance)

        return self._holds_on_all(holds)

    @functools.cached_property
    def second_derivative_error(self) -> float:
        """How far Hessian-vector products are from differences of the gradient, relative; 0 where nobody can tell.

        On the samples tried, in float64, where differences are precise. Infinite where an operation is marked as
        differentiable once.
        """
        return self.samples.largest(self._second_derivative_error())

    def _second_derivative_error(self) -> float:
        if isinstance(self.function, ModelLoss) and self._meets_delayed_errors(self.function):
            return math.inf
        if not isinstance(self.function, ModelLoss) or not fits_in_float64(self.parameters()):
            return 0.0
        theta = self._point().double()
        found = 0.0
        for batch in self._decided_on:
            precise, wide = in_float64(self.function, batch)
            try:
                error = _second_derivative_error(precise, wide, theta)
            except (RuntimeError, TypeError, ValueError):  # written for its own precision, or once differentiable
                return 0.0
            found = max(found, error if math.isfinite(error) else 0.0)
        return found

    def check_second_derivative(self) -> None:
        """Refuse Hessian-vector products that are not derivatives of the gradient.

        Raises:
            InvalidValueError: :attr:`second_derivative_error` is over 1 %.
        """
        if self.second_derivative_error > SECOND_DERIVATIVE_ERROR:
            found = f"they differ by {self.second_derivative_error:.2g} (relative) on samples tried"
            if math.isinf(self.second_derivative_error):
                found = "an operation is marked as differentiable once"
            raise InvalidValueError(
                f"second derivatives of this model are not the derivatives of its gradient: {found}. An "
                "operation's backward pass lacks part of its own derivative (detached or computed outside "
                "autograd), or the gradient jumps (rounding, straight-through). Mend the operation, or take "
                "products by finite differences of the gradient, with a stated error: "
                "noisescape.DifferenceHessian(risk, theta)"
            )

    # ------------------------------------------------------------------ outputs

    @functools.cached_property
    def gauss_newton_forms(self) -> bool:
        """Whether there is a Gauss–Newton matrix, and forward mode for its quadratic forms."""
        if not isinstance(self.function, ModelLoss) or not self.forward_mode or self.loss_reads_parameters:
            return False
        return isinstance(self.function.output_values(self.parameters(), self.tried[0].inputs), Tensor)

    @functools.cached_property
    def loss_reads_parameters(self) -> bool:
        """Whether the loss depends on θ other than through the outputs."""
        if not isinstance(self.function, ModelLoss):
            return False
        apart = not self.function.loss_reads_parameters(self.parameters(), self.tried[0])
        return not self.samples.on_every_rank(apart)

    # ------------------------------------------------------------------ how it is tried

    @functools.cached_property
    def movable(self) -> bool:
        """Whether the losses are finite where the parameters have moved a little, off what may be zero."""
        moved = shaken(self.function, self.parameters())
        return all(bool(torch.isfinite(self.function.values(moved, batch)).all()) for batch in self.tried)

    @property
    def _decided_on(self) -> list[Batch]:
        """The most unlike of the samples tried; of a closed form, which comes whole, all."""
        if not isinstance(self.function, ModelLoss):
            return list(self.tried)
        return [batch.head(TRIAL.compared) for batch in self.tried]

    def _point(self) -> Tensor:
        """Near the module's own parameters, but where none is zero."""
        theta = self.parameters()
        return shaken(self.function, theta) if self.movable else theta

    def _opposite(self, theta: Tensor) -> Tensor:
        """As far from the module's own parameters as θ, on the other side."""
        return 2 * theta - self.parameters().to(theta)

    def _holds_on_all(self, holds: Holds) -> bool:
        """Whether something holds on all batches tried, in float64 too if the model can be evaluated there."""
        return self.samples.on_every_rank(self._holds_on_own(holds))

    def _holds_on_own(self, holds: Holds) -> bool:
        theta, batches = self._point(), self._decided_on
        precise = all_in_float64(self.function, theta, batches) if isinstance(self.function, ModelLoss) else None
        tolerance = max(self.function.tolerance, KINKED) if precise else self.function.tolerance
        if not all(holds(self.function, theta, batch, tolerance) for batch in batches):
            return False
        if precise is None:
            return True
        function, point, wide = precise
        return all(holds(function, point, batch, function.tolerance) for batch in wide)

    def _gives_derivatives(self, push: Push) -> bool:
        if isinstance(self.function, ClosedForm) and not self.function.probes_single:
            return push is push_forward_by_reverse

        def holds(function: ModelLoss | ClosedForm, theta: Tensor, batch: Batch, tolerance: float) -> bool:
            if push is not push_forward:
                # what is refused otherwise must be wrong, not only rounded, as where a model is partly in float32
                tolerance = max(tolerance, ROUNDED)

            def values(point: Tensor) -> Tensor:
                return function.losses(point, batch)

            with function.held(theta):
                directions = two_directions(values, theta)
            rows = function.single_gradients(theta, batch)
            with mapping(), function.held(theta):
                return gives_derivatives(push, values, rows, directions, theta, tolerance)

        return self._holds_on_all(holds)

    def _meets_delayed_errors(self, function: ModelLoss) -> bool:
        leaf = self.parameters().requires_grad_()
        with torch.enable_grad():
            total = function.losses(leaf, self.tried[0].head(2)).sum()
            return has_delayed_errors(gradient_of(function, total, leaf, create_graph=True))


def _second_derivative_error(function: ModelLoss, batch: Batch, theta: Tensor) -> float:
    def product(point: Tensor, v: Tensor) -> Tensor:
        leaf = point.detach().requires_grad_()
        with torch.enable_grad():
            graph = gradient_of(function, function.losses(leaf, batch).sum(), leaf, create_graph=True)
        with function.held(leaf):
            return pull_back(graph, leaf, v)

    def gradient(point: Tensor) -> Tensor:
        return gradient_of_sum(function, point, batch)

    return second_derivative_error(gradient, product, theta, SECOND_DERIVATIVE_ERROR / 10)
