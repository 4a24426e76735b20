"""The products of a tensor with CP factors, for a batch of tensors of one shape.

The matricised tensor times Khatri-Rao product (MTTKRP) of every mode is found from two passes over
the data: the modes are split into a left and a right group, the tensor is contracted with the
Khatri-Rao product of one group, and all modes of the other follow from that partial product
(Phan, Tichavsky and Cichocki, IEEE Trans. Signal Process. 61, 2013). Factors are kept as
(batch, R, n_k), so that each step is one matrix product a rank or a batch item. They are conjugated
where a tensor meets them, and are not in the sum of the terms.

Products with single precision data are accumulated in single precision or, for *wide* data, in
double: the data are then converted a tile at a time.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.linalg.basis import Vector

# Entries up to which data are taken into double precision whole.
_SMALL = 1 << 16
# Entries that are converted to double precision at a time.
_TILE = 1 << 18


@dataclass(frozen=True)
class Data:
    """A batch of tensors as matrices (batch, N_left, N_right).

    `energies` are those that errors are relative to; `roundoff` is that of the arrays to return;
    `lost` is what a compression before has already taken off the one tensor of a batch of one.
    Products are accumulated in `double`, float64 or complex128, where they are `wide`. `mask` is
    True where entries are observed; the others are zero in `matrix`. The factors of `fixed` modes
    stay.
    """

    matrix: Array
    modes: tuple[int, ...]
    split: int
    energies: tuple[float, ...]
    roundoff: float
    lost: float
    double: Any
    wide: bool
    mask: Array | None = None
    fixed: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        batch: Array,
        roundoff: float = 0.0,
        *,
        lost: float = 0.0,
        mask: Array | None = None,
        fixed: tuple[int, ...] = (),
    ) -> Data:
        """Split the modes of (batch, n_1, ..., n_d) where the two groups are smallest."""
        modes = tuple(int(size) for size in batch.shape[1:])
        sizes = [math.prod(modes[:k]) + math.prod(modes[k:]) for k in range(1, len(modes))]
        split = 1 + sizes.index(min(sizes))
        matrix = batch.reshape(batch.shape[0], math.prod(modes[:split]), -1)
        name = "complex128" if backend.is_complex(matrix.dtype) else "float64"
        double = backend.resolve_dtype(array_namespace(matrix), name)
        if math.prod(matrix.shape) <= _SMALL:
            matrix = backend.astype(matrix, double)
        wide = matrix.dtype == double or mask is not None
        if mask is not None:
            mask = mask.reshape(tuple(matrix.shape))
        energies = tuple(_energy(item) + lost for item in matrix)
        return cls(
            matrix, modes, split, energies, roundoff, lost, double, wide, mask=mask, fixed=fixed
        )

    @property
    def dtype(self) -> Any:
        """The precision of products with the data."""
        return self.double if self.wide else self.matrix.dtype

    @property
    def ridge(self) -> float:
        """Mean squared error of a term of norm 1 whose vectors and weight are rounded.

        The mean square of one relative rounding error is about a fifth of the squared unit
        roundoff. With this share of the squared weights added, the squared error is what can be
        expected of the arrays that are returned. So weights only grow as far as that pays off.
        """
        return (len(self.modes) + 1) * self.roundoff**2 / 5

    def widened(self) -> Data:
        """The same data with products in double precision."""
        return replace(self, wide=True)

    def item(self, row: int) -> Data:
        """The data of one tensor of the batch."""
        matrix = self.matrix[row : row + 1]
        return replace(self, matrix=matrix, energies=(self.energies[row],))

    def side(self, left: bool) -> range:
        """The modes of one group."""
        return range(self.split) if left else range(self.split, len(self.modes))

    @property
    def free(self) -> list[int]:
        """The modes whose factors are not fixed, in order."""
        modes = range(len(self.modes))
        return [mode for mode in modes if mode not in self.fixed] if self.fixed else list(modes)

    def partial(self, factors: Sequence[Array], left: bool) -> Array:
        """Contract all modes of the other group: (batch, R, modes of this group)."""
        others = [conj(backend.astype(factors[k], self.dtype)) for k in self.side(not left)]
        product = contracted(khatri_rao(others), self.matrix, left)
        sizes = [self.modes[k] for k in self.side(left)]
        return product.reshape(*product.shape[:2], *sizes)

    def mttkrp(self, partial: Array, factors: Sequence[Array], mode: int) -> Array:
        """MTTKRP of one mode, (batch, R, n), in double, from the partial product of its group."""
        group = list(self.side(mode < self.split))
        batch, rank = partial.shape[:2]
        narrow = [conj(backend.astype(factors[k], partial.dtype)) for k in group]
        position = group.index(mode)
        for k in range(len(group) - 1, position, -1):
            folded = partial.reshape(batch, rank, -1, self.modes[group[k]])
            partial = (folded @ narrow[k][..., None])[..., 0]
        for k in range(position):
            folded = partial.reshape(batch, rank, self.modes[group[k]], -1)
            partial = (narrow[k][..., None, :] @ folded)[..., 0, :]
        return backend.astype(partial.reshape(batch, rank, -1), self.double)

    def gradients(self, factors: Sequence[Array]) -> list[Array]:
        """The MTTKRPs of all free modes with the same factors."""
        found: list[Array] = []
        for left in (True, False):
            modes = [mode for mode in self.side(left) if mode in self.free]
            partial = self.partial(factors, left) if modes else None
            found += [self.mttkrp(partial, factors, mode) for mode in modes]
        return found

    def residual(self, factors: Sequence[Array]) -> Array:
        """The data minus the sum of the terms, as matrices; zero where nothing is observed."""
        left, right = self._halves(factors)
        return self.observed(self.matrix - left.mT @ right)

    def observed(self, values: Array) -> Array:
        """`values` where entries are observed, zero elsewhere."""
        if self.mask is None:
            return values
        xp = array_namespace(values)
        return xp.where(self.mask, values, xp.zeros_like(values[:1, :1, :1]))

    def errors(self, factors: Sequence[Array]) -> Vector:
        """Relative errors of the terms over what is observed.

        The residuals are formed a tile at a time, whole only where there is a mask.
        """
        if self.mask is None:
            left, right = self._halves(factors)
            triples = zip(self.matrix, left, right, strict=True)
            squared = [backend.residual_energy(item, a.mT, b) + self.lost for item, a, b in triples]
        else:
            squared = [backend.energy(item) for item in self.residual(factors)]
        relative: Vector = np.asarray(squared) / np.asarray(self.energies)
        return np.sqrt(relative)

    def _halves(self, factors: Sequence[Array]) -> tuple[Array, Array]:
        narrow = [backend.astype(factor, self.dtype) for factor in factors]
        return khatri_rao(narrow[: self.split]), khatri_rao(narrow[self.split :])


def _energy(array: Array) -> float:
    """Sum of squared absolute values, in double precision throughout."""
    wide = backend.double(array_namespace(array), array.dtype)
    blocks = backend.blocks(array.reshape(-1), _TILE)
    return math.fsum(backend.energy(backend.astype(block, wide)) for block in blocks)


def contracted(rows: Array, matrix: Array, left: bool) -> Array:
    """``rows @ matrix``, with the matrix transposed for the left group, in the dtype of `rows`."""
    if matrix.dtype == rows.dtype:
        return rows @ (matrix.mT if left else matrix)
    xp = array_namespace(matrix)
    batch, height, width = matrix.shape
    shape = (batch, rows.shape[1], height if left else width)
    out = xp.zeros(shape, dtype=rows.dtype, device=matrix.device)
    items, step = max(1, _TILE // (height * width)), max(1, _TILE // width)
    for first in range(0, batch, items):
        own = slice(first, first + items)
        for start in range(0, height, step):
            part = slice(start, start + step)
            tile = backend.astype(matrix[own, part], rows.dtype)
            if left:
                out[own, :, part] = rows[own] @ tile.mT
            else:
                out[own] += rows[own, :, part] @ tile
    return out


def conj(array: Array) -> Array:
    """Complex conjugate; real arrays as they are."""
    return array_namespace(array).conj(array) if backend.is_complex(array.dtype) else array


def real(array: Array) -> Array:
    """Real part; real arrays as they are."""
    return array_namespace(array).real(array) if backend.is_complex(array.dtype) else array


def khatri_rao(factors: Sequence[Array]) -> Array:
    """Row-wise Kronecker product of (..., R, n_k), the last mode running fastest."""
    product = factors[0]
    for factor in factors[1:]:
        outer = product[..., :, None] * factor[..., None, :]
        product = outer.reshape(*factor.shape[:-1], -1)
    return product


def gram(factor: Array) -> Array:
    """Inner products of the rows, (..., R, R), the left one conjugated."""
    return conj(factor) @ factor.mT


def hadamard(grams: Sequence[Array], leave_out: Sequence[int] = ()) -> Array:
    """Elementwise product of Gram matrices but for some modes."""
    kept = [matrix for k, matrix in enumerate(grams) if k not in leave_out]
    return functools.reduce(operator.mul, kept) if kept else 0 * grams[0] + 1


def normal(grams: Sequence[Array], mode: int, ridge: float) -> Array:
    """Normal matrix of one mode: the other Grams' product, its diagonal raised by `ridge`."""
    product = hadamard(grams, (mode,))
    size = product.shape[-1]
    if isinstance(product, np.ndarray):
        return product * _raised(size, ridge)
    eye = array_namespace(product).eye(size, dtype=product.dtype, device=product.device)
    return product * (1 + ridge * eye)


@functools.lru_cache(maxsize=64)
def _raised(size: int, ridge: float) -> Vector:
    """A matrix of ones whose diagonal is raised, in NumPy, read only."""
    raised: Vector = 1 + ridge * identity(size)
    raised.flags.writeable = False
    return raised


@functools.lru_cache(maxsize=64)
def identity(size: int) -> Vector:
    """The identity matrix in NumPy, read only."""
    eye = np.eye(size)
    eye.flags.writeable = False
    return eye
