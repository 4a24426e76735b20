"""Levenberg-Marquardt for CP: all modes at once, damped Gauss-Newton steps.

Where terms are nearly collinear, alternating least squares needs thousands of sweeps; this method
needs tens of steps (Tomasi and Bro, Comput. Stat. Data Anal. 50, 2006). The residual is formed, in
double precision, so errors are true down to rounding. As in :mod:`tnlib.cp.als`, what falls is the
squared error that the terms will have once they are rounded.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.cp import masked
from tnlib.cp.als import Terms, normalized
from tnlib.cp.damped import damped_step
from tnlib.cp.mttkrp import Data, gram, hadamard, normal
from tnlib.linalg.basis import Vector

# Damping of the first step, as a share of the largest diagonal entry, and its limits.
_START, _LEAST, _MOST = 1e-3, 1e-15, 1e10
# Share of the predicted decrease from which a step is taken.
_ACCEPTED = 1e-3


@dataclass(frozen=True)
class Point:
    """Factors (R, n_k) in NumPy, weights included, their residual, and half of what falls."""

    factors: list[Vector]
    residual: Data
    objective: float

    def errors(self, data: Data) -> Vector:
        """The relative error, as for a batch of one."""
        relative: Vector = np.asarray([(2 * self.objective + data.lost) / data.energies[0]])
        return np.sqrt(relative)

    def terms(self, data: Data) -> Terms:
        """The same terms as unit rows and weights."""
        arrays = [backend.from_numpy(factor[None], data.matrix) for factor in self.factors]
        return normalized(arrays, self.errors(data))


def steps(data: Data, terms: Terms) -> Iterator[Point]:
    """Yield the point after every step of one tensor (a batch of one); ends when none is left."""
    data = data.widened()
    rows = [backend.to_numpy(factor[0]) for factor in terms.weighted()]
    point = _point(data, _even(rows))
    damping, growth = 0.0, 2.0
    while True:
        grams = [gram(factor) for factor in point.factors]
        descent = _descent(point, grams)
        diagonals = [np.diagonal(matrix).real for matrix in grams]
        scale = max(float(hadamard(diagonals, (k,)).max()) for k in data.free)
        if scale == 0.0:
            return
        damping = max(damping or _START * scale, _LEAST * scale)
        while True:
            step = _step(data, point.factors, grams, descent, damping)
            moved = dict(zip(data.free, step, strict=True))
            trial = _point(data, [a + moved.get(k, 0) for k, a in enumerate(point.factors)])
            pairs = zip(step, descent, strict=True)
            predicted = 0.5 * sum(float(np.vdot(d, damping * d + g).real) for d, g in pairs)
            gain = (point.objective - trial.objective) / predicted if predicted > 0 else -1.0
            if gain > _ACCEPTED:
                break
            damping *= growth
            growth *= 2
            if not damping < _MOST * scale:
                return
        damping *= max(0.1, 1 - (2 * gain - 1) ** 3)
        growth = 2.0
        point = replace(trial, factors=_even(trial.factors))
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
    energy = backend.energy(residual)
    squares = functools.reduce(operator.mul, (_squares(factor) for factor in factors))
    objective = (energy + data.ridge * float(squares.sum())) / 2
    return Point(factors, replace(data, matrix=residual, energies=(energy,)), objective)


def _squares(factor: Vector) -> Vector:
    """Squared norms of the rows."""
    squares: Vector = (np.abs(factor) ** 2).sum(axis=1)
    return squares


def _batched(factors: Sequence[Vector], like: Array) -> list[Array]:
    """Factors as a batch of one in the library of `like`."""
    return [backend.from_numpy(factor[None], like) for factor in factors]


def _descent(point: Point, grams: Sequence[Vector]) -> list[Vector]:
    """Negative gradients: the MTTKRPs of the residual, less the pull of what rounding takes."""
    data = point.residual
    found = []
    diagonals = [np.diagonal(matrix).real for matrix in grams]
    gradients = data.gradients(_batched(point.factors, data.matrix))
    for mode, gradient in zip(data.free, gradients, strict=True):
        pull = data.ridge * hadamard(diagonals, (mode,))[:, None] * point.factors[mode]
        found.append(backend.to_numpy(gradient[0]) - pull)
    return found


def _step(
    data: Data,
    factors: Sequence[Vector],
    grams: Sequence[Vector],
    descent: Sequence[Vector],
    damping: float,
) -> list[Vector]:
    """The damped step of every free mode."""
    if data.mask is not None:
        return masked.damped_step(data, factors, grams, descent, damping)
    free = data.free
    blocks = [normal(grams, mode, data.ridge) for mode in free]
    pairs = {
        (k, other): hadamard(grams, (free[k], free[other]))
        for k in range(len(free))
        for other in range(k)
    }
    return damped_step([factors[mode] for mode in free], blocks, pairs, descent, damping)
