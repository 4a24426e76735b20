"""The course of a CP decomposition: sweeps, a change of solver where they stall, and stopping."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import numpy as np

from tnlib.arrays import backend
from tnlib.cp import als, levenberg_marquardt
from tnlib.cp.als import Terms
from tnlib.cp.mttkrp import Data
from tnlib.linalg.basis import Vector

Method: TypeAlias = Literal["auto", "als", "lm"]
METHODS: tuple[Method, ...] = get_args(Method)
# Sweeps over which the rate of convergence is measured, and how many more may be foreseen.
_WINDOW, _PATIENCE = 4, 30
# Ridge of the first sweep from directions alone, and what is left of it after every sweep.
_RIDGE, _VANISHING = 1e-2, 0.25
# Changes of a relative error below this are rounding.
_RESOLVED = 1e-16

Callback = Callable[[int, float], object]


@dataclass
class Course:
    """What happened so far, and what limits it.

    `trace` holds the errors of all tensors of the batch after every iteration.
    """

    tol: float
    max_iter: int
    callback: Callback | None
    trace: list[Vector] = field(default_factory=list)
    solvers: list[str] = field(default_factory=list)
    converged: bool = False
    stopped: bool = False
    reason: str = "max_iter was reached"

    def fresh(self) -> Course:
        """The same limits before anything happened."""
        return Course(self.tol, self.max_iter, self.callback)

    def record(self, errors: Vector, solver: str) -> None:
        """Add the errors after one iteration and tell the callback the largest."""
        self.trace.append(errors)
        if solver not in self.solvers:
            self.solvers.append(solver)
        if self.callback is None:
            return
        answer = self.callback(len(self.trace), float(errors.max()))
        if answer is not None and not answer:
            self.stopped, self.reason = True, "the callback asked to stop"

    def ends(self, errors: list[Vector], data: Data) -> bool:
        """Whether to stop, given the last errors of one solver."""
        return self.stopped or _settled(errors, self, data) or self.exhausted

    @property
    def exhausted(self) -> bool:
        """Whether all iterations are used up."""
        return len(self.trace) >= self.max_iter


def solve(data: Data, terms: Terms, method: Method, course: Course) -> Terms:
    """Iterate from `terms` until converged, exhausted or stopped by the callback.

    "auto" goes from ALS to LM when the rate of the last sweeps foresees many more, or when a sweep
    raises the error; "lm" makes one sweep first, which gives the terms their scale.
    """
    course.converged, course.reason = False, "max_iter was reached"
    start = max(len(course.trace) - 1, 0)
    ridge = 0.0 if np.any(backend.to_numpy(terms.weights)) else _RIDGE
    while method != "lm" or not course.trace:
        ridge = max(data.ridge, ridge)
        swept, resolved = als.sweep(data, terms, ridge)
        if not resolved:
            data = data.widened()
            swept, _ = als.sweep(data, terms, ridge)
        terms = als.lower(data, terms, swept, ridge)
        ridge = min(_VANISHING * ridge, _RIDGE * float(terms.errors.max()) ** 2)
        course.record(terms.errors, "als")
        errors = course.trace[start:]
        if course.ends(errors, data):
            return terms
        stuck = bool(np.all(swept.errors > terms.errors + course.tol))
        if method == "als" and stuck:
            course.converged, course.reason = True, "no sweep lowers the error"
            return terms
        if method == "auto" and (stuck or _stalls(errors, course.tol)):
            break
    start = len(course.trace) - 1
    for point in levenberg_marquardt.steps(data, terms):
        course.record(point.errors(data), "lm")
        if course.ends(course.trace[start:], data):
            return point.terms(data)
    course.converged, course.reason = True, "no step lowers the error"
    return terms if len(course.trace) == start + 1 else point.terms(data)


def _settled(errors: list[Vector], course: Course, data: Data) -> bool:
    """Whether the last iterations changed the errors by at most tol, or nothing is left."""
    rounding = 2 * (data.roundoff + backend.unit_roundoff(data.double))
    if errors[-1].max() <= rounding:
        course.converged, course.reason = True, "exact to rounding"
    elif len(errors) > 2:
        changes = np.abs(np.diff(np.stack(errors[-3:]), axis=0))
        if changes.max() <= course.tol:
            course.converged, course.reason = True, "the error changed by less than tol"
    return course.converged


def _stalls(errors: list[Vector], tol: float) -> bool:
    """Whether the geometric rate of the last sweeps foresees many more."""
    if len(errors) < _WINDOW + 2:
        return False
    first, last = errors[-_WINDOW - 2] - errors[-_WINDOW - 1], errors[-2] - errors[-1]
    if not 0 < last[0] < first[0]:
        return bool(last[0] > tol)
    rate = math.log(last[0] / first[0]) / _WINDOW
    return bool(math.log(max(tol, _RESOLVED) / last[0]) / rate > _PATIENCE)
