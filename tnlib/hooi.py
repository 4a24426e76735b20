"""Higher-order orthogonal iteration: a Tucker decomposition improved mode by mode.

Each factor is replaced by the leading singular vectors of the data projected on all the others (De
Lathauwer, De Moor and Vandewalle, SIAM J. Matrix Anal. Appl. 21, 2000). With exact vectors the norm
of the core never falls, so the error never rises. The modes are taken in two groups, so a sweep
reads the data twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from array_api_compat import array_namespace

from tnlib import _array, _checks, _lapack, _operands
from tnlib._array import RNG, Array
from tnlib._prepare import Prepared, prepare, verify
from tnlib.choice.budget import checked, mode_ranks
from tnlib.choice.counts import TuckerCount
from tnlib.info import Info
from tnlib.lowrank import truncated_basis
from tnlib.tucker import Tucker, multiplied, relative_error, rounded, st_hosvd, zero_tucker


def tucker_hooi(
    X: Array,
    ranks: int | Sequence[int] | None = None,
    *,
    max_params: int | None = None,
    tol: float = 1e-8,
    max_iter: int = 50,
    init: str | Tucker = "hosvd",
    method: str = "auto",
    rng: RNG = None,
    dtype: object = None,
) -> Tucker:
    """Decompose an array by higher-order orthogonal iteration.

    From the sequentially truncated HOSVD, which is within sqrt(d) of the best and mostly much
    closer, little is left to gain; ``info.trace`` shows how little.

    Parameters
    ----------
    X : array, shape (n_1, ..., n_d)
        As in :func:`tucker_hosvd`.
    ranks : int or sequence of int, optional
        Largest multilinear ranks: one for all modes, or d.
    max_params : int, optional
        Largest number of values of the result: the ranks are chosen by the singular values of the
        unfoldings so that little is lost (:func:`rank_profile`). One of the two must be
        given.
    tol : float, optional
        Stop when a sweep lowers the relative error by at most this.
    max_iter : int, optional
        Largest number of sweeps.
    init : {"hosvd", "random"} or Tucker, optional
        Factors to start from; those of a Tucker need not be orthonormal.
    method : {"auto", "svd", "gram", "krylov"}, optional
        Kernel of the truncated SVDs, see :doc:`/explanations/error`.
    rng : None, int, numpy.random.Generator or torch.Generator, optional
        Randomness of a random start and of the Krylov kernel; None is the fixed seed 0.
    dtype : dtype or str, optional
        Floating type of core and factors, by default that of `X`.

    Returns
    -------
    Tucker
        In the library and on the device of `X`, with orthonormal factors, the exact relative
        error, and the errors after every sweep in ``info.trace``.

    Raises
    ------
    TypeError
        If `X` is not a dense numeric array, or an argument has the wrong type.
    ValueError
        If `X` is empty or holds nan or inf, or an argument is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).standard_normal((6, 7, 8))
    >>> tucker = tucker_hooi(X, (2, 3, 4))
    >>> tucker.ranks, tucker.info.converged
    ((2, 3, 4), True)
    """
    array = _operands.tensor("X", X)
    if array.ndim == 0:
        raise ValueError("X has no axes; a Tucker decomposition needs at least one")
    _checks.some_limit(ranks=ranks, max_params=max_params)
    limits = _checks.multilinear_ranks(ranks, array.ndim)
    allowed = checked(max_params, TuckerCount(tuple(array.shape)))
    tolerance = _checks.tolerance("tol", tol)
    sweeps = _checks.positive_int("max_iter", max_iter)
    kernel = _checks.method(method)
    generator = _array.as_generator(rng)
    start = _checked_start(init, tuple(array.shape))
    prepared = prepare(array, dtype)
    if prepared.energy == 0.0:
        return zero_tucker(array, prepared, None)
    data, energy = prepared.data, prepared.energy
    if allowed is not None:
        limits = mode_ranks(prepared, limits, allowed, generator)
    limits = limits or tuple(array.shape)
    if start == "hosvd":
        _, factors, _, _ = st_hosvd(data, limits, None, energy, kernel, generator)
    else:
        factors = _first_factors(start, prepared, limits, generator)
    trace: list[float] = []
    converged = False
    while len(trace) < sweeps and not converged:
        factors, core, kernels = _sweep(data, factors, limits, kernel, generator)
        trace.append(math.sqrt(max(1 - _array.energy(core) / energy, 0.0)))
        converged = len(trace) > 1 and trace[-2] - trace[-1] <= tolerance
    result = rounded(core, factors, prepared, array)
    error = relative_error(prepared, result, range(array.ndim))
    verify(error, None, prepared.out, kernels)
    reason = "a sweep changed the error by less than tol" if converged else "max_iter was reached"
    info = Info(
        tuple(kernels),
        (),
        None,
        prepared.compute_name,
        n_iter=len(trace),
        converged=converged,
        reason=reason,
        trace=tuple(trace),
    )
    return Tucker(result.core, result.factors, error=error, error_kind="exact", info=info)


def _sweep(
    data: Array,
    factors: list[Array],
    limits: Sequence[int],
    method: str,
    generator: np.random.Generator,
) -> tuple[list[Array], Array, list[str]]:
    """Update every mode once: factors, the core, and the kernels used."""
    xp = array_namespace(data)
    factors = list(factors)
    half = max(data.ndim // 2, 1)
    groups = (range(half), range(half, data.ndim))
    kernels = []
    rest = data
    for group, others in (groups, groups[::-1]):
        partial = multiplied(data, {k: _array.adjoint(factors[k]) for k in others})
        for mode in group:
            matrices = {k: _array.adjoint(factors[k]) for k in group if k != mode}
            rest = xp.moveaxis(multiplied(partial, matrices), mode, 0)
            unfolding = rest.reshape(rest.shape[0], -1)
            basis = truncated_basis(
                unfolding,
                energy=_array.energy(unfolding),
                max_rank=limits[mode],
                allowed=None,
                method=method,
                rng=generator,
            )
            factors[mode] = basis.vectors
            kernels.append(basis.kernel)
            core = xp.moveaxis(basis.rest.reshape(-1, *rest.shape[1:]), 0, mode)
    return factors, core, kernels


def _checked_start(init: str | Tucker, shape: tuple[int, ...]) -> str | Tucker:
    if isinstance(init, Tucker):
        if init.shape != shape:
            raise ValueError(f"init has shape {init.shape}, expected {shape}")
        _operands.finite("init", init.factors)
        return init
    if not isinstance(init, str) or init not in ("hosvd", "random"):
        raise ValueError(f"init must be 'hosvd', 'random' or a Tucker, got {init!r}")
    return init


def _first_factors(
    start: str | Tucker,
    prepared: Prepared,
    limits: Sequence[int],
    generator: np.random.Generator,
) -> list[Array]:
    """Orthonormal factors, random or spanning those of a given decomposition."""
    data = prepared.data
    xp = array_namespace(data)
    factors = []
    for k, size in enumerate(data.shape):
        columns = _array.normal(generator, (size, min(limits[k], size)), data)
        if isinstance(start, Tucker):
            given = _array.computable(_array.plain(start.factors[k]), data)
            missing = columns.shape[1] - min(given.shape[1], columns.shape[1])
            columns = xp.concat([given, columns[:, :missing]], axis=1)
        factors.append(_lapack.qr(columns)[0])
    return factors
