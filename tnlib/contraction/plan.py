"""A planned contraction: which products in which order, what they cost, and how to run them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from tnlib import _array
from tnlib._array import Array
from tnlib.contraction import report, slicing
from tnlib.contraction.arguments import positions, shape_of
from tnlib.contraction.cost import Cost, cost_of, folded_steps, gradient_counts
from tnlib.contraction.layout import ordered
from tnlib.contraction.network import Network, Shape
from tnlib.contraction.program import Program, fold, library, one_kind, program, run
from tnlib.contraction.roofline import Roofline
from tnlib.contraction.tree import Path, Step, path_of


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """A fixed order of pairwise contractions; call it with the operands.

    It is immutable and runs on NumPy arrays and torch tensors alike, on torch differentiably. No
    step takes more than two arrays. Printing it shows a table of the steps.

    Attributes
    ----------
    network : parsed equation and shapes
        The operands' indices and shapes.
    steps : tuple of Step
        What is done, in order; ``step.inputs`` numbers the operands first, then the results of
        the steps.
    itemsize : int
        Bytes of one number.
    requires_grad, constants : tuple of int
        Operands that require a gradient, and constant ones.
    sliced : tuple of str
        Indices over whose values the steps are repeated.
    seconds : float or None
        Predicted time of a call with its backward pass, where a roofline was given.

    Examples
    --------
    >>> import numpy as np
    >>> from tnlib import plan_contraction
    >>> plan = plan_contraction("bi,ij,jk->bk", (4, 30), (30, 2), (2, 5))
    >>> plan.path, plan.flops
    (((0, 1), (0, 1)), 560)
    >>> plan(np.ones((4, 30)), np.ones((30, 2)), np.ones((2, 5))).shape
    (4, 5)
    """

    network: Network
    steps: tuple[Step, ...]
    itemsize: int
    requires_grad: tuple[int, ...]
    constants: tuple[int, ...] = ()
    sliced: tuple[str, ...] = ()
    seconds: float | None = None
    _cost: Cost = field(init=False)
    # What folding leaves: numbers and arrays, and the plan that holds no arrays.
    _known: tuple[tuple[int, Array], ...] = ()
    _bare: Plan | None = None

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

    @property
    def takes(self) -> tuple[int, ...]:
        """Operands that a call takes: all, or those that were not folded."""
        folded = self.constants if self._known else ()
        return tuple(k for k in range(len(self.network.terms)) if k not in folded)

    def __call__(self, *arrays: Array) -> Array:
        """Contract `arrays`, in the order of the equation, without those that were folded.

        They may differ from the planned shapes in the size of an index; the order of the products
        stays.

        Raises
        ------
        TypeError
            If the arrays are not all of one library, or are tensors of several dtypes. NumPy arrays
        are cast to their common dtype.
        ValueError
            If they are not as many as the operands, or do not fit the equation.
        """
        try:
            about = tuple([(type(array), array.dtype, array.shape) for array in arrays])
        except AttributeError:
            library({type(array) for array in arrays})
            raise
        known = tuple([(type(array), array.dtype) for _, array in self._known])
        network, sliced, dtype, ready = _prepared(self._bare or self, known, about)
        if dtype is not None:
            arrays = tuple(array.astype(dtype, copy=False) for array in arrays)
        if sliced:
            return slicing.run(network, sliced, lambda some: self._run(ready, some), arrays)
        result = self._run(ready, arrays)
        return result if ready else _array.owned(result)

    def _run(self, ready: Program, arrays: Sequence[Array]) -> Array:
        values: list[Array] = [*arrays, *(None for _ in self.steps)]
        if self._known:
            values = [None] * (len(self.network.terms) + len(self.steps))
            for number, array in (*self._known, *zip(self.takes, arrays, strict=True)):
                values[number] = array
        return run(ready, values)

    def resized(self, *shapes: Sequence[int], requires_grad: Sequence[int] | None = None) -> Plan:
        """The same order for operands of other shapes, with its costs.

        Parameters
        ----------
        *shapes : sequence of int
            Shapes of all operands.
        requires_grad : sequence of int, optional
            Operands that require a gradient; by default those of this plan.

        Raises
        ------
        ValueError
            If the shapes do not fit the equation, or constants are folded already.

        Examples
        --------
        >>> from tnlib import plan_contraction
        >>> plan = plan_contraction("bi,ij,jk->bk", (4, 30), (30, 2), (2, 5))
        >>> larger = plan.resized((400, 30), (30, 2), (2, 5))
        >>> larger.path == plan.path, larger.flops
        (True, 56000)
        """
        if self._known:
            raise ValueError("constants are folded; resize the plan before")
        wanted = self._wanted(requires_grad)
        return replace(self, network=self._fitting(shapes), requires_grad=wanted, seconds=None)

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

    def folded(self, *constants: Array) -> Plan:
        """The plan that knows its constants: steps of constants alone are done once, now.

        Parameters
        ----------
        *constants : arrays
            One for each of ``constants``, in that order; gradients do not flow to them.

        Returns
        -------
        Plan
            To be called with the other operands.

        Raises
        ------
        ValueError
            If the constants are folded already, or are not as many as the plan has.

        Examples
        --------
        >>> import numpy as np
        >>> from tnlib import plan_contraction
        >>> shapes = (100, 8), (8, 9), (9, 7)
        >>> plan = plan_contraction("bi,ij,jk->bk", *shapes, constants=(1, 2))
        >>> known = plan.folded(np.ones((8, 9)), np.ones((9, 7)))
        >>> plan.folding_flops, known(np.ones((100, 8))).shape
        (1008, (100, 7))
        """
        if self._known:
            raise ValueError("the constants of this plan are folded already")
        if not self.constants or len(constants) != len(self.constants):
            raise ValueError(
                f"the plan has {len(self.constants)} constants, got {len(constants)} arrays"
            )
        _array.namespace(*constants)
        values = dict(zip(self.constants, constants, strict=True))
        shapes = [
            tuple(values[k].shape) if k in values else shape for k, shape in enumerate(self.shapes)
        ]
        bare = replace(self, network=self.network.resized(shapes))
        known = fold(bare.network, bare.steps, values)
        return replace(bare, _known=tuple(known.items()), _bare=bare)

    def __repr__(self) -> str:
        return (
            f"Plan({self.equation!r}, flops={self.flops:.3g}, peak_bytes={self.peak_bytes:.3g}, "
            f"steps={len(self.steps)})"
        )

    def __str__(self) -> str:
        return report.table(self)


@lru_cache(maxsize=4096)
def _prepared(
    plan: Plan,
    known: tuple[tuple[type, Any], ...],
    about: tuple[tuple[type, Any, Shape], ...],
) -> tuple[Network, tuple[str, ...], Any, Program]:
    """What a plan needs for arrays of these types, dtypes and shapes.

    The network, the indices to slice, the dtype to which NumPy arrays are cast if they differ, and
    the ready steps. `known` are types and dtypes of what was folded. Plans with arrays never come
    here, since what does is kept.
    """
    folded = plan.constants if known else ()
    takes = [k for k in range(len(plan.network.terms)) if k not in folded]
    if len(about) != len(takes):
        raise ValueError(f"the plan takes {len(takes)} arrays, got {len(about)}")
    pairs = [*known, *((kind, dtype) for kind, dtype, _ in about)]
    torch, dtype = one_kind(pairs)
    shapes = list(plan.shapes)
    for number, (_, _, shape) in zip(takes, about, strict=True):
        shapes[number] = shape
    network = plan.network.resized(shapes)
    sliced = tuple(index for index in plan.sliced if network.sizes[index])
    one = slicing.inner(network, sliced)
    done = folded_steps(len(network.terms), plan.steps, folded)
    return network, sliced, dtype, program(one, plan.steps, done, torch)
