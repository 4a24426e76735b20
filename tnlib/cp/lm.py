"""Levenberg-Marquardt for CP: all modes at once, damped Gauss-Newton steps.

Where terms are nearly collinear, alternating least squares needs thousands of sweeps; this method
needs tens of steps (Tomasi and Bro, Comput. Stat. Data Anal. 50, 2006). The normal matrix J^T J
has the structure (Phan, Tichavsky and Cichocki, SIAM J. Matrix Anal. Appl. 34, 2013)

    (J^T J D)_k = G_k D_k + sum_{l != k} (G_kl * (A_l D_l^T)) A_k,

with G_k and G_kl the elementwise products of all Grams but one or two. The part of a step outside
the row space of A_k only meets G_k; the part inside is a dense system of at most d R^2 unknowns,
whatever the size of the tensor. The residual is formed, so errors are true down to rounding.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

from tnlib import _array
from tnlib._array import Array
from tnlib._basis import Vector
from tnlib.cp.als import Terms, normalized
from tnlib.cp.products import Data, gram, hadamard

# Unknowns up to which the normal equations are formed and factorised.
_DENSE = 3200
# Unknowns up to which NumPy solves and above which SciPy does, by Cholesky.
_SMALL = 768
# Damping of the first step, as a share of the largest diagonal entry, and its limits.
_START, _LEAST, _MOST = 1e-3, 1e-15, 1e10
# Share of the predicted decrease from which a step is taken.
_ACCEPTED = 1e-3


@dataclass(frozen=True)
class Point:
    """Factors (R, n_k) in NumPy, weights included, their residual, and half its energy."""

    factors: list[Vector]
    residual: Data
    objective: float

    def errors(self, data: Data) -> Vector:
        """The relative error, as for a batch of one."""
        relative: Vector = np.asarray([(2 * self.objective + data.lost) / data.energies[0]])
        return np.sqrt(relative)

    def terms(self, data: Data) -> Terms:
        """The same terms as unit rows and weights."""
        arrays = [_array.from_numpy(factor[None], data.matrix) for factor in self.factors]
        return normalized(arrays, self.errors(data))


def steps(data: Data, terms: Terms) -> Iterator[Point]:
    """Yield the point after every step of one tensor (a batch of one); ends when none is left."""
    rows = [_array.to_numpy(factor[0]) for factor in terms.weighted()]
    point = _point(data, _even(rows))
    damping, growth = 0.0, 2.0
    while True:
        descent = _descent(point)
        grams = [gram(factor) for factor in point.factors]
        scale = max(float(np.diag(hadamard(grams, (k,))).max()) for k in range(len(grams)))
        if scale == 0.0:
            return
        damping = max(damping or _START * scale, _LEAST * scale)
        while True:
            step = _step(point.factors, grams, descent, damping)
            trial = _point(data, [a + d for a, d in zip(point.factors, step, strict=True)])
            pairs = zip(step, descent, strict=True)
            predicted = 0.5 * sum(float(np.vdot(d, damping * d + g)) for d, g in pairs)
            gain = (point.objective - trial.objective) / predicted if predicted > 0 else -1.0
            if gain > _ACCEPTED:
                break
            damping *= growth
            growth *= 2
            if not damping < _MOST * scale:
                return
        damping *= max(0.1, 1 - (2 * gain - 1) ** 3)
        growth = 2.0
        point = Point(_even(trial.factors), trial.residual, trial.objective)
        yield point


def _even(factors: list[Vector]) -> list[Vector]:
    """The same terms with every term's norm shared evenly by its modes."""
    norms = [np.linalg.norm(factor, axis=1, keepdims=True) for factor in factors]
    mean = functools.reduce(operator.mul, norms) ** (1 / len(factors))
    return [
        factor * (mean / np.where(norm > 0, norm, 1.0))
        for factor, norm in zip(factors, norms, strict=True)
    ]


def _point(data: Data, factors: list[Vector]) -> Point:
    residual = data.residual(_batched(factors, data.matrix))
    energy = _array.energy(residual)
    return Point(factors, Data(residual, data.modes, data.split, (energy,)), energy / 2)


def _batched(factors: Sequence[Vector], like: Array) -> list[Array]:
    """Factors as a batch of one in the library and precision of `like`."""
    return [_array.astype(_array.from_numpy(f[None], like), like.dtype) for f in factors]


def _descent(point: Point) -> list[Vector]:
    """Negative gradient: the MTTKRPs of the residual."""
    residual = point.residual
    factors = _batched(point.factors, residual.matrix)
    found: list[Vector] = []
    for left in (True, False):
        partial = residual.partial(factors, left)
        modes = residual.side(left)
        found += [_array.to_numpy(residual.mttkrp(partial, factors, k)[0]) for k in modes]
    return found


def _step(
    factors: list[Vector], grams: list[Vector], descent: list[Vector], damping: float
) -> list[Vector]:
    """Solve (J^T J + damping) D = descent."""
    bases = [_row_space(factor) for factor in factors]
    inside = [g @ q for g, q in zip(descent, bases, strict=True)]
    small = [a @ q for a, q in zip(factors, bases, strict=True)]
    solve = _dense_solve if sum(part.size for part in inside) <= _DENSE else _iterative_solve
    solved = solve(small, grams, inside, damping)
    step = [part @ basis.T for part, basis in zip(solved, bases, strict=True)]
    if all(factor.shape[1] <= factor.shape[0] for factor in factors):
        return step
    single = np.stack([hadamard(grams, (k,)) for k in range(len(grams))])
    inverses = np.linalg.inv(single + damping * np.eye(single.shape[1]))
    outside = [g - part @ q.T for g, part, q in zip(descent, inside, bases, strict=True)]
    return [d + inverse @ g for d, inverse, g in zip(step, inverses, outside, strict=True)]


def _row_space(factor: Vector) -> Vector:
    """Orthonormal columns (n, p) that span the rows of (R, n), or everything where R >= n."""
    rank, size = factor.shape
    return np.eye(size) if size <= rank else np.linalg.qr(factor.T)[0]


def _dense_solve(
    small: list[Vector], grams: list[Vector], right: list[Vector], damping: float
) -> list[Vector]:
    """Form the normal matrix block by block and factorise it."""
    sizes = [part.size for part in right]
    starts = np.cumsum([0, *sizes])
    normal = np.zeros((starts[-1], starts[-1]))
    for k, a in enumerate(small):
        rows = slice(starts[k], starts[k + 1])
        block = hadamard(grams, (k,))[:, None, :, None] * np.eye(a.shape[1])[:, None, :]
        normal[rows, rows] = block.reshape(sizes[k], sizes[k])
        for other in range(k):
            columns = slice(starts[other], starts[other + 1])
            block = hadamard(grams, (k, other))[:, None, :, None] * small[other][:, None, None, :]
            block = block * a.T[None, :, :, None]
            normal[rows, columns] = block.reshape(sizes[k], sizes[other])
            normal[columns, rows] = normal[rows, columns].T
    normal[np.diag_indices_from(normal)] += damping
    flat = np.concatenate([part.ravel() for part in right])
    solution = _positive_solve(normal, flat)
    parts = np.split(solution, starts[1:-1])
    return [part.reshape(r.shape) for part, r in zip(parts, right, strict=True)]


def _positive_solve(matrix: Vector, right: Vector) -> Vector:
    """Solve a positive definite system; NumPy's solver where it is small, one pool of threads."""
    if matrix.shape[0] <= _SMALL:
        return np.linalg.solve(matrix, right)
    # The matrix is symmetric: its transpose, a view in Fortran order, is factorised in place.
    factor = scipy.linalg.cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)
    solution: Vector = scipy.linalg.cho_solve(factor, right, check_finite=False)
    return solution


def _iterative_solve(
    small: list[Vector], grams: list[Vector], right: list[Vector], damping: float
) -> list[Vector]:
    """Conjugate gradients, preconditioned by the diagonal blocks G_k + damping."""
    starts = np.cumsum([0, *(part.size for part in right)])
    single = [hadamard(grams, (k,)) for k in range(len(small))]
    pairs = {(k, j): hadamard(grams, (k, j)) for k in range(len(small)) for j in range(k)}
    inverses = [np.linalg.inv(g + damping * np.eye(g.shape[0])) for g in single]

    def split(flat: Vector) -> list[Vector]:
        parts = np.split(flat, starts[1:-1])
        return [part.reshape(r.shape) for part, r in zip(parts, right, strict=True)]

    def product(flat: Vector) -> Vector:
        step = split(flat)
        overlaps = [a @ d.T for a, d in zip(small, step, strict=True)]
        results = []
        for k, a in enumerate(small):
            others = (j for j in range(len(small)) if j != k)
            mixed = sum(pairs[max(k, j), min(k, j)] * overlaps[j] for j in others)
            results.append(single[k] @ step[k] + mixed @ a + damping * step[k])
        return np.concatenate([result.ravel() for result in results])

    def precondition(flat: Vector) -> Vector:
        parts = zip(inverses, split(flat), strict=True)
        return np.concatenate([(inverse @ part).ravel() for inverse, part in parts])

    size = int(starts[-1])
    flat = np.concatenate([part.ravel() for part in right])
    operator = scipy.sparse.linalg.LinearOperator((size, size), matvec=product, dtype=flat.dtype)
    guess = scipy.sparse.linalg.LinearOperator((size, size), matvec=precondition, dtype=flat.dtype)
    solution, _ = scipy.sparse.linalg.cg(operator, flat, rtol=1e-6, maxiter=300, M=guess)
    return split(solution)
