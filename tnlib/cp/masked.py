"""CP where entries are missing: least squares over the observed entries alone.

Every row of a factor has a normal matrix of its own, a sum over the observed entries of its slice
(weighted least squares: Tomasi and Bro, Chemom. Intell. Lab. Syst. 75, 2005; Acar, Dunlavy, Kolda
and Morup, ibid. 106, 2011). Nothing is filled in, so sweeps converge as without a mask. The normal
matrices of all rows are a product of the mask with the products of pairs of terms, as the
right-hand sides are one of the data with the terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.cp.damped import conjugate_gradients
from tnlib.cp.mttkrp import Data, conj, hadamard, khatri_rao
from tnlib.linalg import lapack
from tnlib.linalg.basis import Vector

# Entries of J up to which it is formed.
_DENSE = 1 << 20
# Relative accuracy of a step by conjugate gradients, each a pass over the data, and their limit.
_ACCURACY, _ITERATIONS = 1e-3, 30


@dataclass(frozen=True)
class Rows:
    """The normal matrices of the rows of one group's factors, from the partial product of it."""

    mask: Data
    partial: Array

    @classmethod
    def of(cls, data: Data, factors: Sequence[Array], left: bool) -> Rows:
        """Contract the mask with pairs of terms over all modes of the other group."""
        mask = replace(data, matrix=data.mask)
        return cls(mask, mask.partial(_pairs(factors), left))

    def sums(self, factors: Sequence[Array], mode: int) -> Array:
        """Sums over the observed entries of every row's slice, (batch, n, R, R)."""
        product = self.mask.mttkrp(self.partial, _pairs(factors), mode)
        batch, _, size = product.shape
        rank = factors[0].shape[-2]
        return product.mT.reshape(batch, size, rank, rank)

    def normals(
        self, factors: Sequence[Array], grams: Sequence[Array], mode: int, ridge: float
    ) -> Array:
        """The normal matrices of one mode, raised by `ridge` of the diagonal of them all.

        That is the diagonal that they would add up to with nothing missing.
        """
        sums = self.sums(factors, mode)
        eye = array_namespace(sums).eye(sums.shape[-1], dtype=sums.dtype, device=sums.device)
        return sums + ridge * (hadamard(grams, (mode,)) * eye)[:, None]


def _pairs(factors: Sequence[Array]) -> list[Array]:
    """Products of two terms, (batch, R^2, n)."""
    products = (factor[:, :, None] * conj(factor)[:, None, :] for factor in factors)
    return [product.reshape(product.shape[0], -1, product.shape[-1]) for product in products]


def damped_step(
    data: Data,
    factors: Sequence[Vector],
    grams: Sequence[Vector],
    descent: Sequence[Vector],
    damping: float,
) -> list[Vector]:
    """Solve (J^H J + damping) D = descent for the free modes.

    Small problems form J, a row for each observed entry; large ones take conjugate gradients.
    """
    ridges = [_ridge(data, grams, mode) + damping for mode in data.free]
    unknowns = sum(part.size for part in descent)
    solve = _dense_solve if math.prod(data.modes) * unknowns <= _DENSE else _iterative_solve
    return solve(data, factors, descent, ridges)


def _dense_solve(
    data: Data, factors: Sequence[Vector], descent: Sequence[Vector], ridges: Sequence[Vector]
) -> list[Vector]:
    """Form J and its normal matrix, and eliminate."""
    columns = []
    for mode in data.free:
        others = [factor for k, factor in enumerate(factors) if k != mode]
        size, rows = data.modes[mode], khatri_rao(others).T
        shape = [length for k, length in enumerate(data.modes) if k != mode]
        block = np.zeros((size, *rows.shape, size), dtype=rows.dtype)
        block[np.arange(size), :, :, np.arange(size)] = rows
        block = np.moveaxis(block.reshape(size, *shape, -1), 0, mode)
        columns.append(block.reshape(math.prod(data.modes), -1))
    seen = np.concatenate(columns, axis=1)[backend.to_numpy(data.mask).reshape(-1)]
    normal = seen.conj().T @ seen
    raised = [
        np.broadcast_to(r, part.shape).ravel() for r, part in zip(ridges, descent, strict=True)
    ]
    normal[np.diag_indices_from(normal)] += np.concatenate(raised)
    solved = lapack.solve(normal, np.concatenate([part.ravel() for part in descent]))
    parts = np.split(solved, np.cumsum([part.size for part in descent])[:-1])
    return [part.reshape(like.shape) for part, like in zip(parts, descent, strict=True)]


def _iterative_solve(
    data: Data, factors: Sequence[Vector], descent: Sequence[Vector], ridges: Sequence[Vector]
) -> list[Vector]:
    """Conjugate gradients, preconditioned by the normal matrices of the rows.

    J^H J takes one product with the terms and one with the data's sides a mode.
    """
    arrays = [backend.from_numpy(factor[None], data.matrix) for factor in factors]
    rows = {left: Rows.of(data, arrays, left) for left in (True, False)}
    inverses = []
    for mode, ridge in zip(data.free, ridges, strict=True):
        normals = backend.to_numpy(rows[mode < data.split].sums(arrays, mode)[0])
        inverses.append(lapack.inv(normals + np.diag(ridge[:, 0])))

    def product(step: Sequence[Vector]) -> list[Vector]:
        changes = dict(zip(data.free, step, strict=True))
        seen = replace(data, matrix=data.observed(_tangent(data, arrays, changes)))
        found = [backend.to_numpy(gradient[0]) for gradient in seen.gradients(arrays)]
        parts = zip(found, ridges, step, strict=True)
        return [gradient + ridge * part for gradient, ridge, part in parts]

    def precondition(step: Sequence[Vector]) -> list[Vector]:
        pairs = zip(inverses, step, strict=True)
        return [(inverse @ part.T[..., None])[..., 0].T for inverse, part in pairs]

    return conjugate_gradients(product, precondition, descent, _ACCURACY, _ITERATIONS)


def _ridge(data: Data, grams: Sequence[Vector], mode: int) -> Vector:
    diagonal: Vector = data.ridge * np.diag(hadamard(grams, (mode,))).real[:, None]
    return diagonal


def _tangent(data: Data, factors: Sequence[Array], changes: dict[int, Vector]) -> Array:
    """The first change of the sum of terms when factors change, as matrices."""
    sides = [data.side(left) for left in (True, False)]
    whole = [khatri_rao([factors[k] for k in side]) for side in sides]
    total = None
    for position, side in enumerate(sides):
        for mode in side:
            if mode not in changes:
                continue
            change = backend.from_numpy(changes[mode][None], data.matrix)
            moved = khatri_rao([change if k == mode else factors[k] for k in side])
            ends = (moved, whole[1]) if position == 0 else (whole[0], moved)
            part = ends[0].mT @ ends[1]
            total = part if total is None else total + part
    return total
