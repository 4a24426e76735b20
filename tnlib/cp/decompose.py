"""``cp_als`` and ``cp_als_batch``: checks, compression, starts, and the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tnlib.arrays import array_checks, backend, checks
from tnlib.arrays.arithmetic import own_arithmetic
from tnlib.arrays.backend import Array
from tnlib.common.keywords import keywords_named
from tnlib.common.type_aliases import RNG, ArrayT, DType, Start
from tnlib.cp.als import Terms
from tnlib.cp.format import CP
from tnlib.cp.mttkrp import Data
from tnlib.cp.request import Request, checked_array, checked_course, checked_rank
from tnlib.cp.result import result, zero
from tnlib.cp.solve import Callback, Course, Method, solve
from tnlib.cp.start import STARTS, first_terms, given_terms
from tnlib.linalg.preparation import Prepared, is_moderate, prepare
from tnlib.tucker import completion as completion
from tnlib.tucker.hosvd import st_hosvd

# Compression is worth its cost for data of this many entries and a core this much smaller.
_LARGE, _WORTHWHILE = 1 << 12, 8


@own_arithmetic()
@keywords_named
def cp_als(
    X: ArrayT,
    rank: int | None = None,
    *,
    max_params: int | None = None,
    method: Method = "auto",
    init: Start | CP[ArrayT] = "hosvd",
    tol: float = 1e-8,
    max_iter: int = 100,
    restarts: int = 0,
    compress: bool | None = None,
    mask: ArrayT | None = None,
    fixed: Sequence[int] | None = None,
    rng: RNG = None,
    callback: Callback | None = None,
    dtype: DType | None = None,
) -> CP[ArrayT]:
    """Decompose an array into a sum of `rank` rank-one terms.

    Alternating least squares (Carroll and Chang, 1970; Harshman, 1970) with two passes over the
    data a sweep, changed for Levenberg-Marquardt steps (Tomasi and Bro, 2006) where it stalls.
    Where the rank is far below the modes, the iteration runs on a Tucker core (Bro and Andersson,
    Chemom. Intell. Lab. Syst. 42, 1998) and ends on the data themselves. A best decomposition of
    a given rank need not exist: :meth:`CP.congruence` shows terms that cancel each other.

    Parameters
    ----------
    X : array, shape (n_1, ..., n_d)
        NumPy array or dense torch tensor with at least two axes: floating point of any precision,
        complex, or integers (which are computed in the default floating type). Never modified; a
        torch parameter is read as data.
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
        are given to start from. Not with `mask` or `fixed`.
    mask : array of bool, shape (n_1, ..., n_d), optional
        True where `X` is observed. Entries elsewhere are missing and may hold nan. The terms are
        the least-squares fit to the observed ones (Tomasi and Bro, 2005), and every index of every
        mode needs some.
    fixed : sequence of int, optional
        Modes whose factors stay those of `init`, a CP, as they are; at least one mode is free.
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
        In the library and on the device of `X`: unit columns, real weights that are not negative
        and descend, the exact relative error, over observed entries where there is a mask, and in
        ``info`` how the iteration went. With fixed factors the terms keep their order, and the
        weights hold the norms of the other columns.

    Raises
    ------
    TypeError
        If `X` is not a dense numeric array, or an argument has the wrong type.
    ValueError
        If `X` is empty, has fewer than two axes or holds nan or inf where it is observed, an index
        of a mode is not observed at all, or an argument is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> i, j, k = np.ogrid[:6, :7, :8]
    >>> cp = cp_als(1.0 / (1 + i) / (1 + j) + np.cos(k), rank=2)
    >>> weights, factors = cp
    >>> [factor.shape for factor in factors], cp.error < 1e-7
    ([(6, 2), (7, 2), (8, 2)], True)
    >>> known = np.random.default_rng(0).random((6, 7, 8)) < 0.6
    >>> X = np.where(known, cp.to_dense(), np.nan)
    >>> again = cp_als(X, rank=2, mask=known)
    >>> bool(np.allclose(again.to_dense(), cp.to_dense(), atol=1e-4))
    True
    """
    array = checked_array(X, 2)
    shape = tuple(int(size) for size in array.shape)
    terms = checked_rank(rank, max_params, shape)
    course = checked_course(method, tol, max_iter, callback)
    request = Request.of(array, terms, method, init, compress, mask, fixed)
    extra = checks.positive_int("restarts", restarts, least=0)
    generator = backend.as_generator(rng)
    if request.mask is not None:
        array = completion.filled(array, request.mask, 0.0)
    prepared = prepare(array, dtype)
    request.agrees(prepared)
    if prepared.energy == 0.0:
        return zero(array, terms, prepared, request.kept)
    again: list[Start] = ["random"] * extra
    found: list[CP[Any]] = []
    for begin in (request.init, *again):
        own = course.fresh()
        found.append(_decomposed(array, prepared, request, begin, own, generator))
        if own.stopped:
            break
    return min(found, key=lambda cp: cp.error or 0.0)


@own_arithmetic()
@keywords_named
def cp_als_batch(
    tensors: ArrayT | Sequence[ArrayT],
    rank: int,
    *,
    init: Start = "hosvd",
    tol: float = 1e-8,
    max_iter: int = 100,
    rng: RNG = None,
    callback: Callback | None = None,
    dtype: DType | None = None,
) -> tuple[CP[ArrayT], ...]:
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
    array = checked_array(array_checks.stacked(array_checks.alike("tensors", tensors)), 3)
    terms = checks.positive_int("rank", rank)
    if not isinstance(init, str) or init not in STARTS:
        raise ValueError(f"init must be one of {', '.join(STARTS)}, got {init!r}")
    course = checked_course("als", tol, max_iter, callback)
    prepared = prepare(array, dtype)
    energies = [backend.energy(item) for item in prepared.data]
    # Members at another scale than the rest, zero ones among them, are decomposed alone.
    usual = [k for k, energy in enumerate(energies) if is_moderate(energy, prepared.data)]
    generator = backend.as_generator(rng)
    same: dict[str, Any] = {"method": "als", "init": init, "tol": tol, "max_iter": max_iter}
    same |= {"dtype": dtype, "callback": callback, "rng": generator}
    alone = sorted(set(range(len(energies))) - set(usual))
    results = {k: cp_als(array[k], terms, **same) for k in alone}
    if usual:
        batch = prepared.data if len(usual) == len(energies) else prepared.data[usual]
        roundoff = backend.unit_roundoff(prepared.out)
        data = Data.of(batch, roundoff)
        found = solve(data, first_terms(data, terms, init, generator), "als", course)
        for row, k in enumerate(usual):
            one = found.row(row)
            results[k] = result(array[k], prepared, data.item(row), one, course, row)
    return tuple(results[k] for k in range(len(energies)))


def _decomposed(
    array: Array,
    prepared: Prepared,
    request: Request,
    begin: Start | CP[Any],
    course: Course,
    rng: np.random.Generator,
) -> CP[Any]:
    """One start, on a Tucker core first where that is asked for or worthwhile."""
    roundoff = backend.unit_roundoff(prepared.out)
    mask = request.mask
    data = Data.of(
        prepared.data[None],
        roundoff,
        mask=None if mask is None else _alike(mask, prepared.data)[None],
        fixed=request.fixed,
    )
    kept = request.kept
    limits = [min(request.rank, size) for size in data.modes]
    size = math.prod(data.modes)
    smaller = size > _LARGE and math.prod(limits) * _WORTHWHILE <= size
    plain = mask is None and isinstance(begin, str) and not kept
    if not (smaller and plain if request.compress is None else request.compress):
        terms = _begin(data, begin, request, None, rng)
        terms = solve(data, terms, request.method, course)
        return result(array, prepared, data, terms, course, kept=kept)
    core, bases, gone, _ = st_hosvd(prepared.data, limits, None, prepared.energy, "auto", rng)
    lost = math.fsum(gone)
    small = Data.of(core[None], roundoff, lost=lost)
    terms = solve(small, _begin(small, begin, request, bases, rng), request.method, course)
    wide = [backend.astype(basis, data.double) for basis in bases]
    factors = tuple(f @ basis.mT for f, basis in zip(terms.factors, wide, strict=True))
    terms = Terms(factors, terms.weights, terms.errors)
    if lost > course.tol**2 * prepared.energy and not course.stopped:
        if course.exhausted:
            course.converged, course.reason = False, "max_iter was reached"
        else:
            terms = solve(data, terms, request.method, course)
    return result(array, prepared, data, terms, course)


def _begin(
    data: Data,
    begin: Start | CP[Any],
    request: Request,
    bases: list[Array] | None,
    rng: np.random.Generator,
) -> Terms:
    """The terms to start from, with the fixed factors among them."""
    if isinstance(begin, CP):
        return given_terms(begin, data, bases)
    terms = first_terms(_filled(data), request.rank, begin, rng)
    if not data.fixed:
        return terms
    assert isinstance(request.init, CP)
    kept = given_terms(request.init, data, None).factors
    factors = [kept[k] if k in data.fixed else f for k, f in enumerate(terms.factors)]
    return replace(terms, factors=tuple(factors))


def _alike(mask: Array, data: Array) -> Array:
    """A mask in the library of the data."""
    return backend.to_numpy(mask) if isinstance(data, np.ndarray) else mask


def _filled(data: Data) -> Data:
    """The data with the mean of the observed entries where there are none."""
    if data.mask is None:
        return data
    mean = completion.mean(data.matrix, data.mask)
    return replace(data, matrix=completion.filled(data.matrix, data.mask, mean))
