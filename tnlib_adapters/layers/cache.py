"""What an update computes once for many calls without gradients."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tnlib_adapters.execution.factored_linear import factored_linear
from tnlib_adapters.execution.recomputed_linear import Fixed
from tnlib_adapters.layers.base_layer import state_of
from tnlib_adapters.networks.core import Maps


@dataclass(frozen=True)
class Kept:
    """Folded factors, or a fused weight.

    Attributes
    ----------
    maps : tuple of sequence of Tensor
        Chains of matrices: of the update, or of the maps of a :class:`Series`.
    fused : Tensor or None
        Base weight plus update.
    state : (int, int) or None
        Of the base weight at that time.
    cores : tuple of Tensor
        What it was made of.
    states : tuple of (int, int)
        Of the cores at that time.
    """

    maps: Maps
    fused: Tensor | None
    state: tuple[int, int] | None
    cores: tuple[Tensor, ...]
    states: tuple[tuple[int, int], ...]

    @property
    def holds(self) -> bool:
        """Whether the cores have the values that it was made of."""
        if torch.compiler.is_compiling():
            return True
        return all(map(operator.eq, map(state_of, self.cores), self.states))

    def joined(self, x: Tensor, weight: Tensor | Fixed, bias: Tensor | None) -> Tensor | None:
        """The base layer and the update at once; None where they do not fit each other."""
        if not isinstance(weight, Tensor):
            return None
        if self.fused is not None:
            same = torch.compiler.is_compiling() or self.state == state_of(weight)
            return functional.linear(x, self.fused, bias) if same else None
        (matrices,) = self.maps
        same = matrices[0].dtype == x.dtype
        return factored_linear(x, weight, bias, matrices) if same else None
