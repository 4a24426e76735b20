"""``cp_als`` and ``cp_als_batch``: checks, compression, starts, and the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from tnlib import _array, _checks, _operands
from tnlib._arithmetic import own_arithmetic
from tnlib._array import RNG, Array
from tnlib._prepare import Prepared, is_moderate, prepare
from tnlib.cp.als import Terms
from tnlib.cp.format import CP
from tnlib.cp.products import Data
from tnlib.cp.result import result, zero
from tnlib.cp.solve import METHODS, Callback, Course, Method, solve
from tnlib.cp.start import STARTS, Init, first_terms, given_terms
from tnlib.tucker import st_hosvd

# Compression is worth its cost for data of this many entries and a core this much smaller.
_LARGE, _WORTHWHILE = 1 << 12, 8


@own_arithmetic()
def cp_als(
    X: Array,
    rank: int | None = None,
    *,
    max_params: int | None = None,
    method: Method = "auto",
    init: Init | CP = "hosvd",
    tol: float = 1e-8,
    max_iter: int = 100,
    restarts: int = 0,
    compress: bool | None = None,
    rng: RNG = None,
    callback: Callback | None = None,
    dtype: Any = None,
) -> CP:
    """Decompose an array into a sum of `rank` rank-one terms.

    Alternating least squares (Carroll and Chang, 1970; Harshman, 1970) with two passes over the
    data a sweep, changed for Levenberg-Marquardt steps (Tomasi and Bro, 2006) where it stalls.
    Where the rank is far below the modes, the iteration runs on a Tucker core (Bro and Andersson,
    Chemom. Intell. Lab. Syst. 42, 1998) and ends on the data themselves. A best decomposition of
    a given rank need not exist: :meth:`CP.congruence` shows terms that cancel each other.

    Parameters
    ----------
    X : array, shape (n_1, ..., n_d)
        NumPy array or dense torch tensor with at least two axes: real floating point of any
        precision, or integers (which are computed in the default floating type). Never modified;
        a torch parameter is read as data.
    rank : int, optional
        Number of terms; it may be larger than any mode.
    max_params : int, optional
        Largest number of values of the result, from which the number of terms follows. One of the
        two must be given.
    method : {"auto", "als", "lm"}, optional
        "auto" starts with ALS and goes over to Levenberg-Marquardt when the rate of convergence
        foresees many more sweeps.
    init : {"hosvd", "random"} or CP, optional
        Start: leading singular vectors of every unfolding (filled up with random ones where the
        rank is larger than the mode), standard normal factors, or given terms.
    tol : float, optional
        Stop when two iterations in a row change the relative error by at most this.
    max_iter : int, optional
        Largest number of sweeps and steps, together, of each start.
    restarts : int, optional
        Further random starts; the result with the least error is returned.
    compress : bool, optional
        Whether to iterate on a Tucker core first; by default where that saves work and no terms
        are given to start from.
    rng : None, int, numpy.random.Generator or torch.Generator, optional
        Randomness of starts and kernels; None is the fixed seed 0.
    callback : callable, optional
        Called as ``callback(iteration, error)`` after every iteration; False stops. A progress bar
        is ``callback=lambda iteration, error: bar.update()``.
    dtype : dtype or str, optional
        Floating type of the result, by default that of `X`. Half precision is computed in
        float32.

    Returns
    -------
    CP
        In the library and on the device of `X`: unit columns, weights that are not negative and
        descend, the exact relative error, and in ``info`` how the iteration went.

    Raises
    ------
    TypeError
        If `X` is not a dense real array, or an argument has the wrong type.
    ValueError
        If `X` is empty, has fewer than two axes or holds nan or inf, or an argument is out of
        range.

    Examples
    --------
    >>> import numpy as np
    >>> i, j, k = np.ogrid[:6, :7, :8]
    >>> cp = cp_als(1.0 / (1 + i) / (1 + j) + np.cos(k), rank=2)
    >>> weights, factors = cp
    >>> [factor.shape for factor in factors], cp.error < 1e-7
    ([(6, 2), (7, 2), (8, 2)], True)
    """
    array = _checked(X, 2)
    terms = _rank(rank, max_params, tuple(array.shape))
    start = _start(init, tuple(array.shape), terms)
    course = _course(method, tol, max_iter, callback)
    _checks.flag("compress", compress)
    extra = _checks.positive_int("restarts", restarts, least=0)
    generator = _array.as_generator(rng)
    prepared = _prepared(array, dtype)
    if prepared.energy == 0.0:
        return zero(array, terms, prepared)
    again: list[Init] = ["random"] * extra
    found: list[CP] = []
    for begin in (start, *again):
        own = course.fresh()
        found.append(_decomposed(array, prepared, terms, method, begin, own, compress, generator))
        if own.stopped:
            break
    return min(found, key=lambda cp: cp.error or 0.0)


@own_arithmetic()
def cp_als_batch(
    tensors: Array | Sequence[Array],
    rank: int,
    *,
    init: Init = "hosvd",
    tol: float = 1e-8,
    max_iter: int = 100,
    rng: RNG = None,
    callback: Callback | None = None,
    dtype: Any = None,
) -> tuple[CP, ...]:
    """Decompose many arrays of one shape by alternating least squares, all in the same sweeps.

    Every product and every solve is one batched call. The sweeps go on until all arrays have
    converged.

    Parameters
    ----------
    tensors : array, shape (b, n_1, ..., n_d), or sequence of arrays of shape (n_1, ..., n_d)
        What to decompose, as in :func:`cp_als`.
    rank, init, tol, max_iter, rng, dtype
        As in :func:`cp_als`.
    callback : callable, optional
        Called as ``callback(iteration, error)`` with the largest error of the batch; False stops.
        Arrays whose entries are far smaller or larger than the others' are decomposed one by one,
        and call it with their own error.

    Returns
    -------
    tuple of CP
        One for each array, in order.

    Raises
    ------
    TypeError, ValueError
        As :func:`cp_als`; also if the arrays differ in shape, library or dtype.

    Examples
    --------
    >>> import numpy as np
    >>> outer = np.ones((5, 2, 3, 4)) * np.arange(5.0)[:, None, None, None]
    >>> [round(float(cp.weights[0]), 3) for cp in cp_als_batch(outer, 1)]
    [0.0, 4.899, 9.798, 14.697, 19.596]
    """
    array = _checked(_operands.stacked(_operands.alike("tensors", tensors)), 3)
    terms = _checks.positive_int("rank", rank)
    if not isinstance(init, str) or init not in STARTS:
        raise ValueError(f"init must be one of {', '.join(STARTS)}, got {init!r}")
    course = _course("als", tol, max_iter, callback)
    prepared = _prepared(array, dtype)
    energies = [_array.energy(item) for item in prepared.data]
    # Members at another scale than the rest, zero ones among them, are decomposed alone.
    usual = [k for k, energy in enumerate(energies) if is_moderate(energy, prepared.data)]
    generator = _array.as_generator(rng)
    same: dict[str, Any] = {"method": "als", "init": init, "tol": tol, "max_iter": max_iter}
    same |= {"dtype": dtype, "callback": callback, "rng": generator}
    alone = sorted(set(range(len(energies))) - set(usual))
    results = {k: cp_als(array[k], terms, **same) for k in alone}
    if usual:
        batch = prepared.data if len(usual) == len(energies) else prepared.data[usual]
        roundoff = _array.unit_roundoff(prepared.out)
        data = Data.of(batch, roundoff)
        found = solve(data, first_terms(data, terms, init, generator), "als", course)
        for row, k in enumerate(usual):
            one = found.row(row)
            results[k] = result(array[k], prepared, data.item(row), one, course, row)
    return tuple(results[k] for k in range(len(energies)))


def _checked(X: Any, least: int) -> Array:
    array = _operands.tensor("X", X)
    if array.ndim < least:
        raise ValueError(f"a CP decomposition needs two axes or more, got {tuple(array.shape)}")
    if _array.is_complex(array.dtype):
        raise TypeError(f"CP of complex data is not supported, got {array.dtype}; use tucker_hosvd")
    return array


def _prepared(array: Array, dtype: Any) -> Prepared:
    prepared = prepare(array, dtype)
    if _array.is_complex(prepared.out):
        raise TypeError(f"CP of complex numbers is not supported, got dtype={dtype!r}")
    return prepared


def _rank(rank: Any, max_params: Any, shape: tuple[int, ...]) -> int:
    """The number of terms, or as many as fit into a budget, whichever is less."""
    _checks.some_limit(rank=rank, max_params=max_params)
    terms = None if rank is None else _checks.positive_int("rank", rank)
    if max_params is None:
        return terms or 0
    each = 1 + sum(shape)
    budget = _checks.positive_int("max_params", max_params)
    if budget < each:
        raise ValueError(f"max_params={budget} is too small: one term already has {each} values")
    # No array needs more terms than its entries over its largest mode.
    most = max(1, math.prod(shape) // max(shape))
    return min(budget // each, most) if terms is None else min(budget // each, terms)


def _start(init: Any, shape: tuple[int, ...], rank: int) -> Init | CP:
    if isinstance(init, CP):
        if (init.shape, init.rank) != (shape, rank):
            raise ValueError(
                f"init has shape {init.shape} and rank {init.rank}, expected {shape} and {rank}"
            )
        _operands.finite("init", (init.weights, *init.factors))
        return init
    if not isinstance(init, str) or init not in STARTS:
        raise ValueError(f"init must be a CP or one of {', '.join(STARTS)}, got {init!r}")
    return init


def _course(method: Any, tol: Any, max_iter: Any, callback: Any) -> Course:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {type(callback).__name__}")
    return Course(
        _checks.tolerance("tol", tol), _checks.positive_int("max_iter", max_iter), callback
    )


def _decomposed(
    array: Array,
    prepared: Prepared,
    rank: int,
    method: Method,
    begin: Init | CP,
    course: Course,
    compress: bool | None,
    rng: np.random.Generator,
) -> CP:
    """One start, on a Tucker core first where that is asked for or worthwhile."""
    roundoff = _array.unit_roundoff(prepared.out)
    data = Data.of(prepared.data[None], roundoff)
    limits = [min(rank, size) for size in data.modes]
    size = math.prod(data.modes)
    smaller = size > _LARGE and math.prod(limits) * _WORTHWHILE <= size
    if not (smaller and isinstance(begin, str) if compress is None else compress):
        terms = _begin(data, begin, rank, None, rng)
        return result(array, prepared, data, solve(data, terms, method, course), course)
    core, bases, gone, _ = st_hosvd(prepared.data, limits, None, prepared.energy, "auto", rng)
    lost = math.fsum(gone)
    small = Data.of(core[None], roundoff, lost)
    terms = solve(small, _begin(small, begin, rank, bases, rng), method, course)
    xp = array_namespace(prepared.data)
    wide = [_array.astype(basis, _array.double(xp, basis.dtype)) for basis in bases]
    factors = tuple(f @ basis.mT for f, basis in zip(terms.factors, wide, strict=True))
    terms = Terms(factors, terms.weights, terms.errors)
    if lost > course.tol**2 * prepared.energy and not course.stopped:
        if course.exhausted:
            course.converged, course.reason = False, "max_iter was reached"
        else:
            terms = solve(data, terms, method, course)
    return result(array, prepared, data, terms, course)


def _begin(
    data: Data, begin: Init | CP, rank: int, bases: list[Array] | None, rng: np.random.Generator
) -> Terms:
    if isinstance(begin, CP):
        return given_terms(begin, data, bases)
    return first_terms(data, rank, begin, rng)
