"""A train from a function of indices, of which it asks few entries: TT-cross.

Sweeps over nested pivots (:mod:`tnlib.cross.nested_pivots`) interpolate the function; ranks grow by
random pivots and by those where the last train was worst on random samples, and rounding lowers
them. No
finite number of samples bounds the error of an arbitrary function, so what is reported is an
estimate, from samples that no pivot was chosen by, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import backend, checks
from tnlib.arrays.arithmetic import own_arithmetic
from tnlib.arrays.backend import Array
from tnlib.common.keywords import keywords_named
from tnlib.common.type_aliases import RNG, AnyArray, ArrayT, DType
from tnlib.cross import nested_pivots
from tnlib.cross.nested_pivots import Pivots
from tnlib.cross.sampling import Exhausted, Sampled, Vector, random_indices
from tnlib.linalg.preparation import Prepared, budget
from tnlib.result import ErrorKind, Info
from tnlib.trains import entry_products, gauge
from tnlib.trains.rounding import tt_round
from tnlib.trains.tt import TT

# Relative tolerance of the bases where no eps is given, and below which none is asked for.
_FLOOR = 1e-13
# Sweeps without a better train after which one more is not tried.
_PATIENCE = 6


@overload
def tt_cross(
    function: Callable[[Any], ArrayT],
    shape: Sequence[int],
    ranks: int | Sequence[int] | None = ...,
    *,
    eps: float | None = ...,
    max_evaluations: int = ...,
    max_iter: int = ...,
    n_samples: int = ...,
    start: Any = ...,
    rng: RNG = ...,
    callback: Callable[[int, float], object] | None = ...,
    dtype: DType | None = ...,
    like: None = ...,
) -> TT[ArrayT]: ...
@overload
def tt_cross(
    function: Callable[[Any], Array],
    shape: Sequence[int],
    ranks: int | Sequence[int] | None = ...,
    *,
    eps: float | None = ...,
    max_evaluations: int = ...,
    max_iter: int = ...,
    n_samples: int = ...,
    start: Any = ...,
    rng: RNG = ...,
    callback: Callable[[int, float], object] | None = ...,
    dtype: DType | None = ...,
    like: ArrayT,
) -> TT[ArrayT]: ...
@own_arithmetic()
@keywords_named
def tt_cross(
    function: Callable[[Any], Array],
    shape: Sequence[int],
    ranks: int | Sequence[int] | None = None,
    *,
    eps: float | None = None,
    max_evaluations: int = 1_000_000,
    max_iter: int = 40,
    n_samples: int = 1000,
    start: Any = None,
    rng: RNG = None,
    callback: Callable[[int, float], object] | None = None,
    dtype: DType | None = None,
    like: AnyArray | None = None,
) -> TT[Any]:
    """Approximate a function of indices by a tensor train, from few of its values.

    Adaptive cross interpolation (Oseledets and Tyrtyshnikov, Linear Algebra Appl. 432, 2010) with
    pivots of nearly largest volume; each sweep takes about the sum of n_k r^2 values, and ranks
    grow by half a sweep. Ends when the error on random samples is at most `eps`, or no longer
    falls.

    **The error is an estimate.** What no sample saw it does not know of: a function that is zero
    but for a few entries will be taken for zero, with error 0. Pass entries that matter as
    `start`.

    Parameters
    ----------
    function : callable
        Takes an integer array of index vectors, shape (n, d), and returns their values, shape
        (n,): a NumPy array or a torch tensor, real or complex, whose values are finite.
    shape : sequence of int
        Mode sizes (n_1, ..., n_d).
    ranks : int or sequence of int, optional
        Largest bond ranks: one for all, or d - 1 (d + 1 with ones at the ends is accepted).
    eps : float, optional
        Relative error at which to stop, as estimated. With `ranks` as well, the ranks win.
    max_evaluations : int, optional
        Largest number of values to ask for; never exceeded. What ranks cannot capture, such as
        noise, would use up any number.
    max_iter : int, optional
        Largest number of sweeps, each in one direction.
    n_samples : int, optional
        Random entries that are drawn anew after every sweep to estimate the error. Where the whole
        array has no more, all of it is asked for, and the error is exact.
    start : integer array, shape (m, d), optional
        Index vectors of entries that matter, such as peaks: pivots of the first sweep.
    rng : None, int, numpy.random.Generator or torch.Generator, optional
        Randomness of pivots and samples; None is the fixed seed 0.
    callback : callable, optional
        Called as ``callback(iteration, error)`` after every sweep; False stops. A progress bar is
        ``callback=lambda iteration, error: bar.update()``.
    dtype : dtype or str, optional
        Floating type of the cores, by default that of the values. Computed in double precision.
    like : array, optional
        NumPy array or torch tensor whose library and device index arrays and cores have. By
        default `function` gets NumPy's, and the cores are of the library of its values.

    Returns
    -------
    TT
        ``error`` is the root mean square error over sampled entries relative to that of the
        values, the larger one of the last samples and of all before, and ``error_kind`` is
        "sampled" ("exact" where all entries were asked for).
        ``info`` has the sweeps, the evaluations, the errors after every sweep and why it stopped.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or `function` returns no array of numbers.
    ValueError
        If an argument is out of range, neither `ranks` nor `eps` is given, `function` returns an
        array of another shape, nan or inf, `max_evaluations` does not do for one sweep, or eps is
        below what the dtype resolves.

    Examples
    --------
    >>> import numpy as np
    >>> train = tt_cross(lambda index: 1 / (1 + index.sum(axis=1)), (20,) * 6, eps=1e-8)
    >>> train.error < 1e-8, train.error_kind, train.info.evaluations < 100_000
    (True, 'sampled', True)
    >>> bool(abs(train[1, 2, 3, 4, 5, 6] - 1 / 22) < 1e-8)
    True
    """
    if not callable(function):
        raise TypeError(f"function must be callable, got {type(function).__name__}")
    sizes = checks.sizes("shape", shape)
    limits, tolerance = checks.truncation(ranks, eps, len(sizes))
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {type(callback).__name__}")
    most = checks.positive_int("max_evaluations", max_evaluations)
    sweeps = checks.positive_int("max_iter", max_iter)
    samples = checks.positive_int("n_samples", n_samples)
    if like is not None:
        backend.namespace(like)
    generator = backend.as_generator(rng)
    points = np.concatenate([_points(start, sizes), random_indices(generator, sizes, 2)])
    values = Sampled(function, sizes, like, most)
    least = sum(sizes) * len(points) ** 2 + min(samples, math.prod(sizes))
    if most < least:
        raise ValueError(
            f"max_evaluations={most} does not do for one sweep, which may take {least}: "
            f"{len(points)} pivots squared for {sum(sizes)} positions, and the samples"
        )
    search = _Search(values, limits, tolerance, dtype, like, samples, generator)
    search.run(Pivots.of(points), sweeps, callback)
    return search.result()


@dataclass
class _Search:
    """The best train so far, and how it is being found."""

    values: Sampled
    limits: tuple[int, ...] | None
    eps: float | None
    dtype: Any
    like: AnyArray | None
    samples: int
    rng: np.random.Generator
    whole: tuple[Vector, Vector] | None = None
    known: list[tuple[Vector, Vector]] = field(default_factory=list)
    best: TT[Any] | None = None
    error: float = math.inf
    trace: list[float] = field(default_factory=list)
    converged: bool = False
    reason: str = "max_iter was reached"

    def run(
        self, pivots: Pivots, sweeps: int, callback: Callable[[int, float], object] | None
    ) -> None:
        """Sweep until one of the reasons to stop."""
        shape = self.values.shape
        limits = nested_pivots.attainable(shape, self.limits)
        basis = _FLOOR if self.eps is None else max(0.1 * self.eps / math.sqrt(len(shape)), _FLOOR)
        reserve = min(self.samples, math.prod(shape)) if self.whole is None else 0
        since = 0
        for count in range(1, sweeps + 1):
            try:
                cores, pivots, grows = nested_pivots.sweep(
                    self.values, pivots, limits, basis, count % 2 == 1, reserve
                )
            except Exhausted:
                self.reason = "max_evaluations was reached"
                return
            train = self._rounded(cores)
            where, exact = self._sample()
            reserve = 0 if self.whole else self.samples
            found = _approximated(train, where)
            error = max(_relative(exact, found, train), self._before(train))
            self.known.append((where, exact))
            self.trace.append(error)
            since = 0 if error < 0.99 * self.error else since + 1
            if self.best is None or error < self.error:
                self.best, self.error = train, error
            if callback is not None:
                answer = callback(count, error)
                if answer is not None and not answer:
                    self.reason = "the callback asked to stop"
                    return
            if self._done(error, grows, since):
                return
            if since:
                basis = max(basis / 10, _FLOOR)
            worst = where[np.argsort(-np.abs(exact - found))[:3]]
            pivots = nested_pivots.joined(pivots, worst, limits, shape, self.rng)

    def _before(self, train: TT[Any]) -> float:
        """The error on the samples of earlier sweeps, of which a few became pivots."""
        if not self.known or self.whole:
            return 0.0
        where, exact = (np.concatenate(parts) for parts in zip(*self.known, strict=True))
        return _relative(exact, _approximated(train, where), train)

    def _done(self, error: float, grows: bool, since: int) -> bool:
        """Whether to stop, and why; not while all pivots that are tried add something."""
        if grows and self.whole is None and since < _PATIENCE:
            return False
        if self.values.zero and error == 0.0:
            self.converged, self.reason = True, "the function is zero at every index tried"
        elif self.eps is not None and error <= self.eps:
            self.converged, self.reason = True, "the sampled error is at most eps"
        elif self.eps is None and error <= 10 * _FLOOR:
            self.converged, self.reason = True, "the sampled error is rounding"
        elif since >= _PATIENCE:
            self.converged = self.eps is None
            self.reason = "the sampled error no longer falls"
        else:
            return False
        return True

    def _rounded(self, cores: Sequence[Vector]) -> TT[Any]:
        """The interpolating train with the ranks it needs, in its own dtype."""
        wide = TT(tuple(np.ascontiguousarray(core) for core in cores))
        like = self.values.seen if self.like is None else self.like
        xp = array_namespace(like)
        out = self.values.seen.dtype
        if self.like is not None and backend.is_torch(like) != backend.is_torch(self.values.seen):
            out = backend.resolve_dtype(xp, backend.dtype_name(out))
        if self.dtype is not None:
            wanted = backend.resolve_dtype(xp, self.dtype)
            if backend.is_complex(out) and not backend.is_complex(wanted):
                raise TypeError(
                    f"complex values cannot be returned as {backend.dtype_name(wanted)} cores"
                )
            out = wanted
        eps = self.eps
        if eps is not None:
            budget(eps, len(cores), Prepared(wide.cores[0], 0, 1.0, out))
            # Half of it for rounding, if that is more than rounding errors.
            eps = eps / 2 if eps / 2 > _FLOOR else None
        most = nested_pivots.attainable(self.values.shape, self.limits)
        low = tt_round(wide, most if eps is None else self.limits, eps=eps)
        made = tuple(backend.restored(core, like, out) for core in low.cores)
        return TT(made, center=low.center)

    def _sample(self) -> tuple[Vector, Vector]:
        """Index vectors that no pivot was chosen by, or all there are, and their values."""
        shape = self.values.shape
        count = math.prod(shape)
        if count > self.samples:
            where = random_indices(self.rng, shape, self.samples)
            return where, self.values(len(where), where.__getitem__)
        if self.whole is None:
            where = np.stack(np.unravel_index(np.arange(count), shape), axis=1)
            self.whole = where, self.values(count, where.__getitem__)
        return self.whole

    def result(self) -> TT[Any]:
        """The best train, with its record."""
        assert self.best is not None
        info = Info(
            ("cross",),
            (),
            self.eps,
            "complex128" if backend.is_complex(self.values.seen.dtype) else "float64",
            n_iter=len(self.trace),
            converged=self.converged,
            reason=self.reason,
            trace=tuple(self.trace),
            evaluations=self.values.evaluations,
        )
        kind: ErrorKind = "sampled" if self.whole is None else "exact"
        return TT(
            self.best.cores,
            center=self.best.center,
            error=self.error,
            error_kind=kind,
            info=info,
        )


def _points(start: Any, shape: Sequence[int]) -> Vector:
    """Index vectors (m, d) that were given."""
    if start is None:
        return np.zeros((0, len(shape)), np.int64)
    xp = backend.namespace(start)
    if not xp.isdtype(start.dtype, "integral"):
        raise TypeError(f"start must hold integers, got {backend.dtype_name(start.dtype)}")
    found = backend.to_numpy(start).astype(np.int64)
    if found.ndim != 2 or found.shape[1] != len(shape):
        raise ValueError(
            f"start must be index vectors, shape (m, {len(shape)}), got shape {found.shape}"
        )
    for axis, size in enumerate(shape):
        wrong = (found[:, axis] < -size) | (found[:, axis] >= size)
        if wrong.any():
            raise IndexError(
                f"start has {found[wrong][0, axis]} at axis {axis}, which must be from {-size} to "
                f"{size - 1}"
            )
    return np.where(found < 0, found + np.asarray(shape), found)


def _approximated(train: TT[Any], where: Vector) -> Vector:
    """Entries of the train as it is returned, in double precision."""
    cores = gauge.working(train.cores)
    index = [backend.from_numpy(np.ascontiguousarray(column), cores[0]) for column in where.T]
    return backend.to_numpy(entry_products.gathered(cores, index))


def _relative(exact: Vector, found: Vector, train: TT[Any]) -> float:
    """Root mean square of the differences over that of the values.

    To the latter the train adds its own mean square less that of its samples: peaks that it knows
    and no sample hit.
    """
    largest = max(float(np.abs(exact).max()), float(np.abs(found).max()))
    if largest == 0.0:
        return 0.0
    lost, size, seen = (
        float(np.mean(np.abs(v / largest) ** 2)) for v in (exact - found, exact, found)
    )
    if lost == 0.0:
        return 0.0
    logarithm = 2 * (float(train.lognorm()) - math.log(largest)) - sum(map(math.log, train.shape))
    size = max(size, size - seen + math.exp(min(logarithm, 700.0)))
    return math.sqrt(lost / size) if size else math.inf
