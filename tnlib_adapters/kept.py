"""What an update computes once for many calls without gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tnlib_adapters.base import state_of
from tnlib_adapters.factored import factored_linear

Maps = tuple[Sequence[Tensor], ...]


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
    """

    maps: Maps
    fused: Tensor | None
    state: tuple[int, int] | None

    def joined(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """The base layer and the update at once; None where they do not fit each other."""
        if self.fused is not None:
            same = torch.compiler.is_compiling() or self.state == state_of(weight)
            return functional.linear(x, self.fused, bias) if same else None
        (matrices,) = self.maps
        same = matrices[0].dtype == x.dtype
        return factored_linear(x, weight, bias, matrices) if same else None
