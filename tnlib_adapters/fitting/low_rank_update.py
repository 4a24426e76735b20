"""An update as a product of two factors, and its singular value decomposition."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRankUpdate:
    """An update ``left @ right`` in float64, its scale in `left`.

    Attributes
    ----------
    left : Tensor, shape (out_features, r)
    right : Tensor, shape (r, in_features)
    """

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Output and input width."""
        return self.left.shape[0], self.right.shape[1]

    def dense(self) -> Tensor:
        """The update, of shape (out_features, in_features)."""
        return self.left @ self.right

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (out, R), singular values and V (in, R), from those of a small matrix."""
        outer, first = torch.linalg.qr(self.left)
        inner, second = torch.linalg.qr(self.right.mT)
        u, values, vh = torch.linalg.svd(first @ second.mT, full_matrices=False)
        return outer @ u, values, inner @ vh.mT
