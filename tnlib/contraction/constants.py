"""Constant operands of a plan, and what the steps that concern them alone make of them.

Folding must give what not folding gives. So it is done in the arithmetic of the call: constants of
few bits beside wider operands are widened first, as the operands of a call are. What was made is
kept, for every dtype in which calls compute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tnlib.arrays import backend
from tnlib.arrays.arithmetic import own_arithmetic
from tnlib.arrays.backend import Array
from tnlib.contraction.arithmetic import Arithmetic
from tnlib.contraction.network import Network
from tnlib.contraction.program import compiled_step, copied
from tnlib.contraction.tree import Step

Folded = tuple[tuple[int, Array], ...]


class Constants:
    """Copies of the constants, by the number of the operand, and what was folded of them.

    Attributes
    ----------
    about : tuple of (type, dtype)
        Of the constants.
    first : tuple of (int, Tensor)
        What was folded at once, of tensors.
    """

    def __init__(
        self, network: Network, steps: Sequence[Step], arrays: Mapping[int, Array]
    ) -> None:
        arrays = {n: backend.base(array) for n, array in arrays.items()}
        arithmetic = Arithmetic.of([(type(array), array.dtype) for array in arrays.values()])
        if arithmetic.mixed:
            raise TypeError(f"constants must be of one dtype, got {arithmetic.mixed}; cast them")
        with _data_alone(arithmetic.torch):
            self._arrays = {n: copied(backend.detached(a)) for n, a in arrays.items()}
        self.about = tuple((type(array), array.dtype) for array in self._arrays.values())
        # Tensors are folded in their own dtype, also for a call under autocast.
        self._own = arithmetic if arithmetic.tensors else None
        self._made: dict[tuple[str, tuple[str, ...]], Folded] = {}
        self.first: Folded = ()
        if self._own is not None:
            # Nothing else is ever made of them, but where an ellipsis may broadcast them otherwise.
            self.first = self.folded(network, steps, arithmetic)
            if "..." not in network.written:
                self._arrays = {}

    def folded(self, network: Network, steps: Sequence[Step], arithmetic: Arithmetic) -> Folded:
        """The arrays that the other steps need, by their numbers."""
        arithmetic = self._own or arithmetic
        key = (backend.dtype_name(arithmetic.dtype), network.terms)
        if key not in self._made:
            self._made[key] = fold(network, steps, self._arrays, arithmetic)
        return self._made[key]


def fold(
    network: Network, steps: Sequence[Step], constants: Mapping[int, Array], arithmetic: Arithmetic
) -> Folded:
    """The constants that the other steps need, those of constants alone being done."""
    count = len(network.terms)
    values = dict(constants)
    if not arithmetic.tensors:
        values = dict(zip(values, arithmetic.brought(tuple(values.values())), strict=True))
    with _data_alone(arithmetic.torch):
        for k, step in enumerate(steps):
            if all(n in values for n in step.inputs):
                taken = [values.pop(n) for n in step.inputs]
                values[count + k] = compiled_step(network, step, arithmetic)(*taken)
    return tuple(values.items())


@contextlib.contextmanager
def _data_alone(torch: Any) -> Iterator[None]:
    """Outside of autocast, of autograd and of inference mode, whose tensors training refuses."""
    with own_arithmetic(), contextlib.ExitStack() as stack:
        if torch is not None:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        yield
