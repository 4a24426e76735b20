"""What an update computes once for many calls without gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tnlib_adapters.execution.base_weight import BaseWeight, DenseWeight
from tnlib_adapters.execution.factored_linear import factored_linear
from tnlib_adapters.layers.base_layer import versions_of
from tnlib_adapters.networks.core import Maps

Versions = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class CachedUpdate:
    """Low-rank factors, or a fused weight.

    Attributes
    ----------
    maps : tuple of sequence of Tensor
        Chains of matrices: of the update, or of the maps of a :class:`BottleneckAdapter`.
    fused : Tensor or None
        Base weight plus update.
    base_versions : tuple of (int, int)
        Those of the base weight at that time.
    cores : tuple of Tensor
        What it was made of.
    versions : tuple of (int, int)
        Those of the cores at that time.
    """

    maps: Maps
    fused: Tensor | None
    base_versions: Versions
    cores: tuple[Tensor, ...]
    versions: Versions

    @property
    def holds(self) -> bool:
        """Whether the cores have the values that it was made of."""
        return torch.compiler.is_compiling() or versions_of(self.cores) == self.versions

    def forward_with_base(self, x: Tensor, base: BaseWeight, bias: Tensor | None) -> Tensor | None:
        """The base layer and the update in one go; None where they do not fit each other."""
        if not isinstance(base, DenseWeight):
            return None
        if self.fused is not None:
            same = torch.compiler.is_compiling() or self.base_versions == versions_of(base.watched)
            return functional.linear(x, self.fused, bias) if same else None
        (matrices,) = self.maps
        same = matrices[0].dtype == x.dtype
        return factored_linear(x, base.weight, bias, matrices) if same else None
