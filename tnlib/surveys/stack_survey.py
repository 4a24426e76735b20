"""How much of a stack of matrices factors in common hold: Tucker and CP over layers or experts.

The stack is never in memory: its matrices are read one after the other, once for the Gram matrices
of its two sides, or a few times for the leading subspace of a long one, and once more for the
cores. In the leading orthonormal bases U and V of the sides the core of matrix l is U^T W_l V, so
that the energy of the cores is what shared factors keep (De Lathauwer, De Moor and Vandewalle, SIAM
J. Matrix Anal. Appl. 21, 2000). CP is fitted to the stack of cores (Bro and Andersson, 1998).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tnlib.arrays import backend
from tnlib.cp.decompose import cp_als
from tnlib.linalg import gram_matrices, lapack
from tnlib.surveys.options import Options

Record = dict[str, Any]
Matrix = np.ndarray[Any, Any]
# Largest number of shared columns, ranks of a curve, passes for a long side, its further columns.
_MOST, _POINTS, _PASSES, _MORE = 256, 12, 3, 8
# Terms of CP that are tried, and the values of the cores that it is fitted to at most.
_TERMS, _CP_VALUES = (1, 4, 16, 64), 1 << 21


def stack_record(
    read: Sequence[Callable[[], Matrix]],
    shape: tuple[int, int],
    options: Options,
    rng: np.random.Generator,
) -> Record:
    """Errors of a stack in shared factors against numbers of values.

    Parameters
    ----------
    read : sequence of callable
        Give the matrices of the stack, in order.
    shape : (int, int)
        Their shape.
    options : Options
        Budgets, and up to which side Gram matrices are made.
    rng : numpy.random.Generator
        Randomness of starts.
    """
    count, (rows, columns) = len(read), shape
    budget = int(max(options.budgets) * count * rows * columns)
    most = _largest_rank(count, rows, columns, budget)
    energy, out, into = _sides(read, shape, most, options.exact_side, rng)
    if energy == 0 or not most:
        return {"norm": math.sqrt(energy), "tucker": None, "cp": None, "along": None}
    cores = np.stack([_core(out[:, :most], matrix, into[:, :most]) for matrix in _all(read)])
    squares = np.square(cores, dtype=np.float64).sum(0).cumsum(0).cumsum(1) / energy
    ranks = np.unique(np.geomspace(1, most, _POINTS).astype(int))
    lost = np.clip(1 - squares[ranks - 1, ranks - 1], 0.0, None)
    flat = cores.reshape(count, -1)
    along = np.cumsum(gram_matrices.energies(flat)) / energy
    return {
        "norm": math.sqrt(energy),
        "tucker": {
            "ranks": ranks.tolist(),
            "params": [int((rows + columns) * r + count * r * r) for r in ranks],
            "error": np.sqrt(lost).tolist(),
        },
        "along": np.sqrt(np.clip(1 - along, 0.0, None))[:_MOST].tolist(),
        "cp": _cp(cores, energy, shape, budget, rng),
    }


def _largest_rank(count: int, rows: int, columns: int, budget: int) -> int:
    """Columns of both shared factors within a budget, with a square core for every matrix."""
    both = rows + columns
    within = int((math.sqrt(both**2 + 4 * count * budget) - both) / (2 * count))
    return min(within, rows, columns, _MOST)


def _all(read: Sequence[Callable[[], Matrix]]) -> Iterator[Matrix]:
    for one in read:
        yield one()


def _core(out: Matrix, matrix: Matrix, into: Matrix) -> Matrix:
    """U^T W V in the precision of W."""
    return np.asarray(out.T.astype(matrix.dtype) @ matrix @ into.astype(matrix.dtype))


def _sides(
    read: Sequence[Callable[[], Matrix]],
    shape: tuple[int, int],
    most: int,
    exact_side: int,
    rng: np.random.Generator,
) -> tuple[float, Matrix, Matrix]:
    """The energy of the stack and leading orthonormal bases of both sides."""
    grams = [np.zeros((n, n)) if n <= exact_side else None for n in shape]
    bases = [
        None if n <= exact_side else _orthonormal(rng.standard_normal((n, _width(n, most))))
        for n in shape
    ]
    energy = 0.0
    for step in range(1 if max(shape) <= exact_side else _PASSES):
        products = [None if basis is None else np.zeros(basis.shape) for basis in bases]
        for matrix in _all(read):
            for k, view in enumerate((matrix, matrix.T)):
                if bases[k] is not None:
                    narrow = bases[k].astype(matrix.dtype)  # type: ignore[union-attr]
                    products[k] += view @ (view.T @ narrow)
                elif step == 0:
                    grams[k] += np.tril(gram_matrices.gram(view))
            if step == 0:
                energy += backend.energy(matrix)
        for k, product in enumerate(products):
            if product is not None:
                last = step == _PASSES - 1
                bases[k] = _leading(product, bases[k]) if last else _orthonormal(product)
        if not math.isfinite(energy):
            raise ValueError("a matrix contains nan or inf, or its square overflows")
    for k, gram in enumerate(grams):
        if gram is not None:
            bases[k] = gram_matrices.eigh_top(gram, min(max(most, 1), len(gram)))[1]
    return energy, np.asarray(bases[0]), np.asarray(bases[1])


def _width(side: int, most: int) -> int:
    return min(most + _MORE, side)


def _orthonormal(block: Matrix) -> Matrix:
    return np.asarray(np.linalg.qr(block)[0])


def _leading(product: Matrix, basis: Any) -> Matrix:
    """Leading directions first, by the Gram matrix inside the subspace."""
    inside = basis.T @ product
    rotation = lapack.eigh(np.tril(inside + inside.T) / 2, inside.shape[0])[1][:, ::-1]
    # One more step of the iteration, whose columns stay ordered.
    return _orthonormal(product @ rotation)


def _cp(
    cores: Matrix, energy: float, shape: tuple[int, int], budget: int, rng: np.random.Generator
) -> Record:
    """CP of the stack by the number of terms: the error in the cores and what they lack."""
    count, most = cores.shape[:2]
    width = min(most, max(int(math.sqrt(_CP_VALUES / count)), 1))
    inner = np.ascontiguousarray(cores[:, :width, :width], dtype=np.float64)
    held = float(np.square(inner).sum())
    found: Record = {"terms": [], "params": [], "error": []}
    for terms in _TERMS:
        params = terms * (count + sum(shape))
        if params > budget or terms > width * min(width, count) or not held:
            break
        error = cp_als(inner, terms, tol=1e-4, max_iter=60, method="als", rng=rng).error or 0.0
        lost = max(1 - held / energy, 0.0) + error**2 * held / energy
        found["terms"].append(terms)
        found["params"].append(params)
        found["error"].append(math.sqrt(lost))
    return found
