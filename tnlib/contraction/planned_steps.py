"""What a plan says before it is called: its steps, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tnlib.contraction import slicing
from tnlib.contraction.arguments import positions, shape_of
from tnlib.contraction.cost import Cost, cost_of, folded_steps, gradient_counts
from tnlib.contraction.layout import ordered
from tnlib.contraction.network import Network, Shape
from tnlib.contraction.roofline import Roofline
from tnlib.contraction.tree import Path, Step, along, path_of


@dataclass(frozen=True, eq=False, repr=False)
class PlannedSteps:
    """The steps of a plan with their costs; see :class:`Plan`, which runs them."""

    network: Network
    steps: tuple[Step, ...]
    itemsize: int
    requires_grad: tuple[int, ...]
    constants: tuple[int, ...] = ()
    sliced: tuple[str, ...] = ()
    seconds: float | None = None
    _cost: Cost = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", ordered(self.network, self.steps))
        one = slicing.inner(self.network, self.sliced)
        cost = cost_of(one, self.steps, self.requires_grad, self.constants, self.itemsize)
        cost = slicing.repeated(cost, self.network, self.sliced, self.itemsize)
        object.__setattr__(self, "_cost", cost)

    @property
    def equation(self) -> str:
        """The einsum equation, explicit."""
        return self.network.equation

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Shapes for which it was planned."""
        return self.network.shapes

    @property
    def path(self) -> Path:
        """The order in the form of ``opt_einsum.contract_path``."""
        return path_of(len(self.network.terms), self.steps)

    @property
    def flops(self) -> int:
        """Operations of a call, counted as ``opt_cost`` of opt_einsum; constants are folded."""
        return self._cost.flops

    @property
    def backward_flops(self) -> int:
        """Operations of the backward pass: one product for each factor with a gradient."""
        return self._cost.backward_flops

    @property
    def folding_flops(self) -> int:
        """Operations that folding does once, on constants alone."""
        return self._cost.folding_flops

    @property
    def peak_bytes(self) -> int:
        """Bytes of intermediate arrays and the result that exist at one time of a call.

        Not counted are operands, what is kept for a backward pass, and the copy that a product
        may make of an array whose axes it must move.
        """
        return self._cost.peak_bytes

    @property
    def saved_bytes(self) -> int:
        """Bytes of intermediate arrays that are kept for the backward pass.

        Not counted are operands, and the copy that a product may make, and keep, of one whose
        axes it must move.
        """
        return self._cost.saved_bytes

    @property
    def n_slices(self) -> int:
        """How often the steps are repeated."""
        return slicing.count(self.network, self.sliced)

    def steps_for(self, network: Network) -> tuple[Step, ...]:
        """The steps for other sizes, of which an ellipsis may broadcast others."""
        if network.terms == self.network.terms:
            return self.steps
        return ordered(network, along(network, [step.inputs for step in self.steps]))

    def predicted(
        self,
        roofline: Roofline,
        *shapes: Sequence[int],
        requires_grad: Sequence[int] | None = None,
    ) -> float:
        """Seconds of a call and its backward pass on a machine with these rates.

        Parameters
        ----------
        roofline : Roofline
            The rates.
        *shapes : sequence of int
            Shapes of all operands; by default those of this plan.
        requires_grad : sequence of int, optional
            Operands that require a gradient; by default those of this plan.

        Raises
        ------
        TypeError
            If `roofline` is none, or a shape or a position is no collection of integers.
        ValueError
            If the shapes do not fit the equation, or there is no such operand.
        """
        if not isinstance(roofline, Roofline):
            raise TypeError(f"roofline must be a Roofline, got {type(roofline).__name__}")
        network = self._fitting(shapes) if shapes else self.network
        wanted = self._wanted(requires_grad)
        count = len(network.terms)
        gradients = gradient_counts(count, self.steps, wanted)
        fixed = folded_steps(count, self.steps, self.constants)
        pairs = zip(self.steps, gradients, fixed, strict=True)
        counted = [(step, extra) for step, extra, done in pairs if not done]
        one = slicing.inner(network, self.sliced)
        steps, extras = [step for step, _ in counted], [extra for _, extra in counted]
        return slicing.count(network, self.sliced) * roofline.seconds(one, steps, extras)

    def _fitting(self, shapes: Sequence[Sequence[int]]) -> Network:
        return self.network.resized([shape_of(k, shape) for k, shape in enumerate(shapes)])

    def _wanted(self, requires_grad: Sequence[int] | None) -> tuple[int, ...]:
        if requires_grad is None:
            return self.requires_grad
        return positions("requires_grad", requires_grad, len(self.network.terms))
