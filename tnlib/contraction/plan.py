"""A planned contraction: which products in which order, what they cost, and how to run them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.common.type_aliases import ArrayT, Scalar
from tnlib.contraction import report
from tnlib.contraction.arithmetic import arrays_of, compiling, has_symbols, library
from tnlib.contraction.constants import Constants
from tnlib.contraction.planned_steps import PlannedSteps
from tnlib.contraction.prepared_call import prepared


@dataclass(frozen=True, eq=False, repr=False)
class Plan(PlannedSteps):
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

    # What folding leaves: the constants, and the plan that holds no arrays.
    _constants: Constants | None = None
    _bare: Plan | None = None

    @property
    def takes(self) -> tuple[int, ...]:
        """Operands that a call takes: all, or those that were not folded."""
        folded = () if self._constants is None else self.constants
        return tuple([k for k in range(len(self.network.terms)) if k not in folded])

    @overload
    def __call__(self, *arrays: ArrayT) -> ArrayT: ...
    @overload
    def __call__(self, *arrays: ArrayT | Scalar) -> ArrayT: ...
    def __call__(self, *arrays: Any) -> Any:
        """Contract `arrays`, in the order of the equation, without those that were folded.

        They may differ from the planned shapes in the size of an index; the order of the products
        stays.

        Parameters
        ----------
        *arrays : arrays
            NumPy arrays, or torch tensors of one dtype. Subclasses of ndarray are read as arrays,
            Python's numbers as arrays without axes.

        Returns
        -------
        array
            It shares no memory with an operand or with a constant. NumPy arrays are computed in
            their common dtype, half precision in float32. Tensors are computed in their own dtype,
            half precision included, or in that of autocast where it is on, as by
            ``torch.einsum``. A result of integers or booleans has their dtype in both libraries:
            integers wrap, and the sum of booleans is "or", their product "and".

        Raises
        ------
        TypeError
            If the arrays are not all of one library, are masked or not numeric, or are tensors of
            several dtypes outside of autocast.
        ValueError
            If they are not as many as the operands, or do not fit the equation.
        """
        if compiling():
            return self._traced(arrays)
        constants = self._constants
        known = () if constants is None else constants.about
        try:
            about = tuple([(type(array), array.dtype, array.shape) for array in arrays])
        except AttributeError:
            arrays = arrays_of(arrays, () if constants is None else [a for _, a in constants.first])
            library({type(array) for array in arrays})
            about = tuple([(type(array), array.dtype, array.shape) for array in arrays])
        try:
            call = prepared(self._bare or self, known, about)
        except TypeError:
            if has_symbols(about):
                return self._traced(arrays)
            raise
        return call(arrays, constants)

    def _traced(self, arrays: Sequence[Array]) -> Array:
        """The contraction inside a graph that is captured."""
        from tnlib.contraction import traced

        takes, network = self.takes, self.network
        if len(arrays) != len(takes):
            raise ValueError(f"the plan takes {len(takes)} arrays, got {len(arrays)}")
        order = tuple([(step.inputs, step.equation) for step in self.steps])
        operands = dict(zip(takes, arrays, strict=True))
        folded = {} if self._constants is None else dict(self._constants.first)
        return traced.run(
            network.terms,
            network.output,
            network.stretched,
            self.sliced,
            order,
            operands,
            folded,
        )

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
        if self._constants is not None:
            raise ValueError("constants are folded; resize the plan before")
        wanted = self._wanted(requires_grad)
        network = self._fitting(shapes)
        steps = self.steps_for(network)
        return replace(self, network=network, steps=steps, requires_grad=wanted, seconds=None)

    def folded(self, *constants: Array) -> Plan:
        """The plan that knows its constants: steps of constants alone are done once.

        A call gives what it would give with the constants as operands. So they are folded in the
        dtype in which the call computes: tensors now, NumPy arrays by the first call in a dtype.

        Parameters
        ----------
        *constants : arrays
            One for each of ``constants``, in that order. The plan keeps copies; gradients do not
            flow to them.

        Returns
        -------
        Plan
            To be called with the other operands.

        Raises
        ------
        TypeError
            If the constants cannot be contracted: see the call.
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
        if self._constants is not None:
            raise ValueError("the constants of this plan are folded already")
        if not self.constants or len(constants) != len(self.constants):
            raise ValueError(
                f"the plan has {len(self.constants)} constants, got {len(constants)} arrays"
            )
        constants = arrays_of(constants)
        backend.namespace(*constants)
        values = dict(zip(self.constants, constants, strict=True))
        shapes = [
            tuple(values[k].shape) if k in values else shape for k, shape in enumerate(self.shapes)
        ]
        network = self.network.resized(shapes)
        bare = replace(self, network=network, steps=self.steps_for(network))
        return replace(bare, _constants=Constants(network, bare.steps, values), _bare=bare)

    def __repr__(self) -> str:
        return (
            f"Plan({self.equation!r}, flops={report.number(self.flops, 3)}, "
            f"peak_bytes={report.number(self.peak_bytes, 3)}, steps={len(self.steps)})"
        )

    def __str__(self) -> str:
        return report.table(self)
