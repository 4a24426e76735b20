"""The products of a tensor with CP factors, for a batch of tensors of one shape.

The matricised tensor times Khatri-Rao product (MTTKRP) of every mode is found from two passes over
the data: the modes are split into a left and a right group, the tensor is contracted with the
Khatri-Rao product of one group, and all modes of the other follow from that partial product
(Phan, Tichavsky and Cichocki, IEEE Trans. Signal Process. 61, 2013). Factors are kept as
(batch, R, n_k), so that each step is one matrix product a rank or a batch item.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from tnlib import _array
from tnlib._array import Array
from tnlib._basis import Vector


@dataclass(frozen=True)
class Data:
    """A batch of tensors as matrices (batch, N_left, N_right).

    `energies` are those that errors are relative to; `lost` is what a compression before has
    already taken off the one tensor of a batch of one.
    """

    matrix: Array
    modes: tuple[int, ...]
    split: int
    energies: tuple[float, ...]
    lost: float = 0.0

    @classmethod
    def of(cls, batch: Array, energies: Sequence[float], lost: float = 0.0) -> Data:
        """Split the modes of (batch, n_1, ..., n_d) where the two groups are smallest."""
        modes = tuple(int(size) for size in batch.shape[1:])
        sizes = [math.prod(modes[:k]) + math.prod(modes[k:]) for k in range(1, len(modes))]
        split = 1 + sizes.index(min(sizes))
        matrix = batch.reshape(batch.shape[0], math.prod(modes[:split]), -1)
        return cls(matrix, modes, split, tuple(energies), lost)

    def side(self, left: bool) -> range:
        """The modes of one group."""
        return range(self.split) if left else range(self.split, len(self.modes))

    def partial(self, factors: Sequence[Array], left: bool) -> Array:
        """Contract all modes of the other group: (batch, R, modes of this group)."""
        others = [_array.astype(factors[k], self.matrix.dtype) for k in self.side(not left)]
        product = khatri_rao(others) @ (self.matrix.mT if left else self.matrix)
        sizes = [self.modes[k] for k in self.side(left)]
        return product.reshape(*product.shape[:2], *sizes)

    def mttkrp(self, partial: Array, factors: Sequence[Array], mode: int) -> Array:
        """MTTKRP of one mode, (batch, R, n), in double, from the partial product of its group."""
        group = list(self.side(mode < self.split))
        batch, rank = partial.shape[:2]
        narrow = [_array.astype(factors[k], partial.dtype) for k in group]
        position = group.index(mode)
        for k in range(len(group) - 1, position, -1):
            folded = partial.reshape(batch, rank, -1, self.modes[group[k]])
            partial = (folded @ narrow[k][..., None])[..., 0]
        for k in range(position):
            folded = partial.reshape(batch, rank, self.modes[group[k]], -1)
            partial = (narrow[k][..., None, :] @ folded)[..., 0, :]
        xp = array_namespace(partial)
        return _array.astype(partial.reshape(batch, rank, -1), _array.double(xp, partial.dtype))

    def residual(self, factors: Sequence[Array]) -> Array:
        """The data minus the sum of the terms, as matrices."""
        left, right = self._halves(factors)
        return self.matrix - left.mT @ right

    def errors(self, factors: Sequence[Array]) -> Vector:
        """Relative errors of the terms, from residuals formed a tile at a time."""
        left, right = self._halves(factors)
        triples = zip(self.matrix, left, right, strict=True)
        squared = [_array.residual_energy(item, a.mT, b) + self.lost for item, a, b in triples]
        relative: Vector = np.asarray(squared) / np.asarray(self.energies)
        return np.sqrt(relative)

    def _halves(self, factors: Sequence[Array]) -> tuple[Array, Array]:
        narrow = [_array.astype(factor, self.matrix.dtype) for factor in factors]
        return khatri_rao(narrow[: self.split]), khatri_rao(narrow[self.split :])


def khatri_rao(factors: Sequence[Array]) -> Array:
    """Row-wise Kronecker product of (..., R, n_k), the last mode running fastest."""
    product = factors[0]
    for factor in factors[1:]:
        outer = product[..., :, None] * factor[..., None, :]
        product = outer.reshape(*factor.shape[:-1], -1)
    return product


def gram(factor: Array) -> Array:
    """Inner products of the rows, (..., R, R)."""
    return factor @ factor.mT


def hadamard(grams: Sequence[Array], leave_out: Sequence[int] = ()) -> Array:
    """Elementwise product of Gram matrices but for some modes."""
    kept = [matrix for k, matrix in enumerate(grams) if k not in leave_out]
    return functools.reduce(operator.mul, kept) if kept else 0 * grams[0] + 1
