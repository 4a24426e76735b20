"""What a search makes small: operations, memory or time, of the forward and backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from tnlib.contraction.cost import gradient_flops, product_flops
from tnlib.contraction.network import Network

if TYPE_CHECKING:
    from tnlib.contraction.roofline import Roofline

Minimize: TypeAlias = Literal["flops", "memory", "time"]
OBJECTIVES: tuple[str, ...] = get_args(Minimize)


@dataclass(frozen=True)
class Objective:
    """How orders of contraction are compared. Sets of operands are written as bits.

    Attributes
    ----------
    minimize : {"flops", "memory", "time"}
        What is compared first: operations, the sum of peak and saved values, or seconds.
    requires_grad, constants : int
        Operands with gradients and constant ones.
    backward : bool
        Whether the cost of the backward pass is added to that of the forward one.
    limit : int or None
        Largest peak, in values.
    roofline : Roofline or None
        Model of the machine, for "time".
    """

    minimize: Minimize
    requires_grad: int
    constants: int
    backward: bool
    limit: int | None = None
    roofline: Roofline | None = None

    @property
    def trades(self) -> bool:
        """Whether a way with a worse score can be the better one for its memory."""
        return self.minimize == "memory" or self.limit is not None

    def key(self, score: float, saved: int, peak: int) -> tuple[float, ...]:
        """What is compared, lexicographically; a peak above the limit comes last."""
        excess = 0 if self.limit is None or peak <= self.limit else peak
        if self.minimize == "memory":
            return (excess, peak + saved, score)
        return (excess, score, saved, peak)

    def product(
        self, network: Network, left: int, right: int, result: int, grads: tuple[bool, bool]
    ) -> float:
        """Cost of one product of two arrays with the given indices."""
        if self.roofline is not None:
            seconds = self.roofline.product(network, left, right, result)
            return seconds * (1 + (sum(grads) if self.backward else 0))
        flops = product_flops(network, left, right, result)
        if self.backward:
            if grads[0]:
                flops += gradient_flops(network, result, right, left)
            if grads[1]:
                flops += gradient_flops(network, result, left, right)
        return flops

    def single(self, network: Network, mask: int, result: int) -> float:
        """Cost of a sum over indices of one array."""
        if self.roofline is not None:
            return self.roofline.single(network, mask, result)
        return product_flops(network, mask, mask, result)
