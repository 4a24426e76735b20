"""The frozen weight of a base layer, to which an update is added before the product.

It is dense, or in a form from which it has to be made dense for every product. The sum with an
update is formed in new memory; of a weight that is made dense for it, in that same memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

# What a strategy depends on: whether an update may be added to the base weight, and to which.
BaseKind = Literal["none", "dense", "packed"]


class BaseWeight:
    """A weight (out_features, in_features) that gets no gradient."""

    kind: ClassVar[BaseKind]

    def plus(self, update: Tensor) -> Tensor:
        """The sum with a dense update; differentiable in the update."""
        raise NotImplementedError

    def dense_and_out(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The dense weight, and where its sum with an update of `dtype` goes; maybe the same."""
        raise NotImplementedError

    @property
    def watched(self) -> tuple[Tensor, ...]:
        """Tensors that must not change between the forward and the backward pass."""
        return ()

    def with_watched(self, watched: Sequence[Tensor]) -> BaseWeight:
        """The same weight, with the watched tensors as the backward pass finds them."""
        return self

    def without_anchor(self) -> BaseWeight | None:
        """The weight less an adapter's value at its initial cores, where it is stored so."""
        return None


@dataclass(frozen=True, eq=False)
class DenseWeight(BaseWeight):
    """A weight that is a tensor.

    Attributes
    ----------
    weight : Tensor, shape (out_features, in_features)
        Its values.
    """

    weight: Tensor
    kind = "dense"

    def plus(self, update: Tensor) -> Tensor:
        """The sum with a dense update; differentiable in the update."""
        return update + self.weight

    def dense_and_out(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The weight itself, and new memory of the wider of both dtypes."""
        dtype = torch.promote_types(self.weight.dtype, dtype)
        return self.weight, torch.empty(self.weight.shape, dtype=dtype, device=self.weight.device)

    @property
    def watched(self) -> tuple[Tensor, ...]:
        """The weight."""
        return (self.weight,)

    @classmethod
    def with_watched(cls, watched: Sequence[Tensor]) -> DenseWeight:
        """The same weight, with the watched tensors as the backward pass finds them."""
        return cls(*watched)


class PackedBase(BaseWeight):
    """A weight that is not kept dense: each product dequantises it."""

    kind = "packed"

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight, in memory that is the caller's own."""
        raise NotImplementedError

    def plus(self, update: Tensor) -> Tensor:
        """The sum with a dense update; differentiable in the update."""
        return update + self.dequantize(update.dtype)

    def dense_and_out(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The dense weight, which the sum may overwrite."""
        dense = self.dequantize(dtype)
        return dense, dense
