"""Damped Gauss-Newton steps for CP: (J^H J + damping) D = descent, in all modes at once.

The normal matrix has the structure (Phan, Tichavsky and Cichocki, SIAM J. Matrix Anal. Appl. 34,
2013)

    (J^H J D)_k = G_k D_k + sum_{l != k} (G_kl * (conj(A_l) D_l^T)) A_k,

with G_k and G_kl the elementwise products of all Grams but one or two. The part of a step outside
the row space of A_k only meets G_k; the part inside is a dense system of at most d R^2 unknowns,
whatever the size of the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

from tnlib.arrays.arithmetic import note
from tnlib.cp.mttkrp import identity
from tnlib.linalg import lapack
from tnlib.linalg.basis import Vector

Step: TypeAlias = list[Vector]
Linear: TypeAlias = Callable[[Step], Step]
Pairs: TypeAlias = Mapping[tuple[int, int], Vector]

# Unknowns up to which the normal equations are formed and factorised.
_DENSE = 3200
# Unknowns up to which they are solved by elimination, above by Cholesky.
_SMALL = 768


def damped_step(
    factors: Sequence[Vector],
    blocks: Sequence[Vector],
    pairs: Pairs,
    descent: Sequence[Vector],
    damping: float,
) -> list[Vector]:
    """The step D (R, n_k) of every mode; `blocks` are the G_k and `pairs` the G_kl with k > l."""
    bases = [_row_space(factor) for factor in factors]
    inside = [g @ q.conj() for g, q in zip(descent, bases, strict=True)]
    small = [a @ q.conj() for a, q in zip(factors, bases, strict=True)]
    solve = _dense_solve if sum(part.size for part in inside) <= _DENSE else _iterative_solve
    solved = solve(small, blocks, pairs, inside, damping)
    step = [part @ basis.T for part, basis in zip(solved, bases, strict=True)]
    if all(factor.shape[1] <= factor.shape[0] for factor in factors):
        return step
    inverses = _inverses(blocks, damping)
    outside = [g - part @ q.T for g, part, q in zip(descent, inside, bases, strict=True)]
    return [d + inverse @ g for d, inverse, g in zip(step, inverses, outside, strict=True)]


def conjugate_gradients(
    product: Linear, precondition: Linear, right: Sequence[Vector], rtol: float, limit: int
) -> Step:
    """Solve ``product(step) = right`` for a Hermitian positive definite product.

    A solution that `limit` iterations leave inexact still lowers the model as far as is predicted.
    """
    sizes = [part.size for part in right]

    def flat(map_of_parts: Linear) -> Any:
        def mapped(values: Vector) -> Vector:
            return np.concatenate([part.ravel() for part in map_of_parts(split(values))])

        shape = (sum(sizes), sum(sizes))
        return scipy.sparse.linalg.LinearOperator(shape, matvec=mapped, dtype=right[0].dtype)

    def split(values: Vector) -> Step:
        parts = np.split(values, np.cumsum(sizes)[:-1])
        return [part.reshape(r.shape) for part, r in zip(parts, right, strict=True)]

    target = np.concatenate([part.ravel() for part in right])
    solution, _ = scipy.sparse.linalg.cg(
        flat(product), target, rtol=rtol, maxiter=limit, M=flat(precondition)
    )
    return split(solution)


def _inverses(blocks: Sequence[Vector], damping: float) -> Vector:
    raised: Vector = np.stack(blocks) + damping * identity(blocks[0].shape[0])
    inverses: Vector = lapack.inv(raised)
    return inverses


def _row_space(factor: Vector) -> Vector:
    """Orthonormal columns (n, p) that span the rows of (R, n), or everything where R >= n."""
    rank, size = factor.shape
    return identity(size) if size <= rank else lapack.qr(factor.T)[0]


def _dense_solve(
    small: Sequence[Vector],
    blocks: Sequence[Vector],
    pairs: Pairs,
    right: Sequence[Vector],
    damping: float,
) -> list[Vector]:
    """Form the normal matrix and factorise it; small ones by NumPy, one pool of threads."""
    flat = np.concatenate([part.ravel() for part in right])
    if flat.size <= _SMALL:
        solution = lapack.solve(_normal_matrix(small, blocks, pairs, damping), flat)
    else:
        solution = _by_cholesky(lambda: _normal_matrix(small, blocks, pairs, damping), flat)
    parts = np.split(solution, np.cumsum([part.size for part in right])[:-1])
    return [part.reshape(r.shape) for part, r in zip(parts, right, strict=True)]


def _normal_matrix(
    small: Sequence[Vector], blocks: Sequence[Vector], pairs: Pairs, damping: float
) -> Vector:
    """J^H J + damping, block by block."""
    sizes = [part.size for part in small]
    starts = np.cumsum([0, *sizes])
    normal = np.zeros((starts[-1], starts[-1]), dtype=small[0].dtype)
    for k, a in enumerate(small):
        rows = slice(starts[k], starts[k + 1])
        block = blocks[k][:, None, :, None] * identity(a.shape[1])[:, None, :]
        normal[rows, rows] = block.reshape(sizes[k], sizes[k])
        for other in range(k):
            columns = slice(starts[other], starts[other + 1])
            across = small[other].conj()[:, None, None, :]
            block = pairs[k, other][:, None, :, None] * across
            block = block * a.T[None, :, :, None]
            normal[rows, columns] = block.reshape(sizes[k], sizes[other])
            normal[columns, rows] = normal[rows, columns].conj().T
    normal.reshape(-1)[:: starts[-1] + 1] += damping
    return normal


def _by_cholesky(formed: Callable[[], Vector], right: Vector) -> Vector:
    """Solve a Hermitian positive definite system; one that is not, to rounding, in another way."""
    # The transpose, a view in Fortran order, is the conjugate and is factorised in place.
    try:
        factor = scipy.linalg.cho_factor(
            formed().T, lower=True, overwrite_a=True, check_finite=False
        )
    except np.linalg.LinAlgError:
        note("cholesky: solve instead of potrf")
        solution: Vector = lapack.solve(formed(), right)
        return solution
    solution = scipy.linalg.cho_solve(factor, right.conj(), check_finite=False)
    return solution.conj()


def _iterative_solve(
    small: Sequence[Vector],
    blocks: Sequence[Vector],
    pairs: Pairs,
    right: Sequence[Vector],
    damping: float,
) -> Step:
    """Conjugate gradients, preconditioned by the diagonal blocks G_k + damping."""
    inverses = _inverses(blocks, damping)

    def product(step: Sequence[Vector]) -> Step:
        overlaps = [a.conj() @ d.T for a, d in zip(small, step, strict=True)]
        results = []
        for k, a in enumerate(small):
            others = (j for j in range(len(small)) if j != k)
            result = blocks[k] @ step[k] + damping * step[k]
            for j in others:
                result += (pairs[max(k, j), min(k, j)] * overlaps[j]) @ a
            results.append(result)
        return results

    def precondition(step: Sequence[Vector]) -> Step:
        return [inverse @ part for inverse, part in zip(inverses, step, strict=True)]

    return conjugate_gradients(product, precondition, right, 1e-6, 300)
