"""Higher-order orthogonal iteration: a Tucker decomposition improved mode by mode.

Each factor is replaced by the leading singular vectors of the data projected on all the others (De
Lathauwer, De Moor and Vandewalle, SIAM J. Matrix Anal. Appl. 21, 2000). With exact vectors the norm
of the core never falls, so the error never rises. The modes are taken in two groups, so a sweep
reads the data twice. Missing entries are filled in between sweeps, see
:mod:`tnlib.tucker.completion`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import array_checks, backend, checks
from tnlib.arrays.arithmetic import own_arithmetic
from tnlib.arrays.backend import Array
from tnlib.common.keywords import keywords_named
from tnlib.common.type_aliases import RNG, ArrayT, DType, Method, Start
from tnlib.linalg.preparation import prepare, verify
from tnlib.linalg.truncated_basis import truncated_basis
from tnlib.ranks.budget import mode_ranks
from tnlib.result import Info
from tnlib.tucker import completion
from tnlib.tucker.format import Tucker, multiplied, relative_error, rounded, zero_tucker
from tnlib.tucker.hosvd import whole_budget
from tnlib.tucker.start import Beginning, feasible


@own_arithmetic()
@keywords_named
def tucker_hooi(
    X: ArrayT,
    ranks: int | Sequence[int] | None = None,
    *,
    max_params: int | None = None,
    tol: float = 1e-8,
    max_iter: int = 50,
    init: Start | Tucker[ArrayT] = "hosvd",
    modes: Sequence[int] | None = None,
    fixed: Sequence[int] | None = None,
    mask: ArrayT | None = None,
    method: Method = "auto",
    rng: RNG = None,
    dtype: DType | None = None,
) -> Tucker[ArrayT]:
    """Decompose an array by higher-order orthogonal iteration.

    From the sequentially truncated HOSVD, which is within sqrt(d) of the best and mostly much
    closer, little is left to gain; ``info.trace`` shows how little.

    Parameters
    ----------
    X : array, shape (n_1, ..., n_d)
        As in :func:`tucker_hosvd`.
    ranks : int or sequence of int, optional
        Largest multilinear ranks: one for all modes, or one for each that is decomposed. They do
        not limit the columns of fixed factors.
    max_params : int, optional
        Largest number of values of the result: the ranks are chosen by the singular values of the
        unfoldings so that little is lost (:func:`rank_profile`). One of the two must be
        given. Not together with `modes` or `fixed`.
    tol : float, optional
        Stop when a sweep lowers the relative error by at most this.
    max_iter : int, optional
        Largest number of sweeps.
    init : {"hosvd", "random"} or Tucker, optional
        Factors to start from; those of a Tucker need not be orthonormal.
    modes : sequence of int, optional
        The modes to decompose; the others are left whole (partial Tucker) and have no factor. By
        default all.
    fixed : sequence of int, optional
        Modes whose factors stay those of `init`, a Tucker, as they are. The core is the best for
        them.
    mask : array of bool, shape (n_1, ..., n_d), optional
        True where `X` is observed. Entries elsewhere are missing, may hold nan, and are filled in
        by the decomposition between sweeps. Mostly more sweeps are needed.
    method : {"auto", "svd", "gram", "krylov"}, optional
        Kernel of the truncated SVDs, see :doc:`/explanations/error`.
    rng : None, int, numpy.random.Generator or torch.Generator, optional
        Randomness of a random start and of the Krylov kernel; None is the fixed seed 0.
    dtype : dtype or str, optional
        Floating type of core and factors, by default that of `X`.

    Returns
    -------
    Tucker
        In the library and on the device of `X`, with orthonormal factors but for fixed ones, the
        exact relative error, over observed entries where there is a mask, and the errors after
        every sweep in ``info.trace``.

    Raises
    ------
    TypeError
        If `X` is not a dense numeric array, or an argument has the wrong type.
    ValueError
        If `X` is empty or holds nan or inf where it is observed, nothing is observed, or an
        argument is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).standard_normal((6, 7, 8))
    >>> tucker = tucker_hooi(X, (2, 3, 4))
    >>> tucker.ranks, tucker.info.converged
    ((2, 3, 4), True)
    >>> known = np.random.default_rng(1).random((6, 7, 8)) < 0.8
    >>> i, j, k = np.ogrid[:6, :7, :8]
    >>> X = np.sin(i + j + k)
    >>> found = tucker_hooi(np.where(known, X, np.nan), 2, mask=known, max_iter=500)
    >>> bool(abs(found.to_dense() - X).max() < 1e-4)
    True
    """
    array = array_checks.tensor("X", X)
    shape = tuple(int(size) for size in array.shape)
    if array.ndim == 0:
        raise ValueError("X has no axes; a Tucker decomposition needs at least one")
    checks.some_limit(ranks=ranks, max_params=max_params)
    chosen = checks.modes(modes, array.ndim)
    limits = checks.multilinear_ranks(ranks, len(chosen))
    allowed = whole_budget(max_params, shape, chosen)
    tolerance = checks.tolerance("tol", tol)
    sweeps = checks.positive_int("max_iter", max_iter)
    kernel = checks.method(method)
    generator = backend.as_generator(rng)
    start = Beginning.of(init, fixed, shape, chosen)
    if start.fixed and allowed is not None:
        raise ValueError(
            "max_params= chooses the ranks of all modes together; with fixed= give ranks="
        )
    observed = None if mask is None else completion.checked(array, mask)
    if observed is not None:
        array = completion.filled(array, observed, 0.0)
    prepared = prepare(array, dtype)
    start = start.like(prepared)
    if prepared.energy == 0.0:
        return zero_tucker(array, prepared, None, chosen, {k: start.own[k] for k in start.fixed})
    data = prepared.data
    if observed is not None:
        observed = backend.to_numpy(observed) if isinstance(data, np.ndarray) else observed
        data = completion.filled(data, observed, completion.mean(data, observed))
    if allowed is not None:
        limits = mode_ranks(replace(prepared, data=data), limits, allowed, generator)
    bounds = dict(zip(chosen, limits or shape, strict=True))
    begin, back = start.factors(data, bounds, kernel, generator)
    free = tuple(k for k in begin if k not in back)
    limits_of = feasible({**bounds, **{k: begin[k].shape[1] for k in back}}, shape)
    task = _Task(limits_of, free, kernel, generator)
    if observed is None:
        course = _iterate(data, begin, task, prepared.energy, tolerance, sweeps)
    else:
        course = completion.iterate(
            prepared.data, observed, data, begin, task.sweep, prepared.energy, tolerance, sweeps
        )
    core = multiplied(course.core, back)
    factors = {k: start.own[k] if k in back else f for k, f in course.factors.items()}
    result = rounded(core, factors, prepared, array)
    if observed is None:
        error = relative_error(prepared, result, range(array.ndim))
    else:
        error = completion.relative_error(prepared, observed, result)
    verify(error, None, prepared.out, course.kernels)
    info = Info(
        course.kernels,
        (),
        None,
        prepared.compute_name,
        n_iter=len(course.trace),
        converged=course.converged,
        reason=course.reason,
        trace=course.trace,
    )
    return replace(result, error=error, error_kind="exact", info=info)


@dataclass(frozen=True)
class _Task:
    """What a sweep updates: the largest ranks of all modes, the free ones, and how."""

    limits: dict[int, int]
    free: tuple[int, ...]
    method: str
    generator: np.random.Generator

    def sweep(
        self, data: Array, factors: Mapping[int, Array]
    ) -> tuple[dict[int, Array], Array, tuple[str, ...]]:
        """Update every free mode once: factors, the core, and the kernels used."""
        xp = array_namespace(data)
        factors = dict(factors)
        half = max(data.ndim // 2, 1)
        groups = (range(half), range(half, data.ndim))
        kernels = []
        core = None
        for group, others in (groups, groups[::-1]):
            if not any(mode in self.free for mode in group):
                continue
            partial = multiplied(data, _adjoints(factors, others))
            for mode in group:
                if mode not in self.free:
                    continue
                rest = multiplied(partial, _adjoints(factors, [k for k in group if k != mode]))
                rest = xp.moveaxis(rest, mode, 0)
                unfolding = rest.reshape(rest.shape[0], -1)
                basis = truncated_basis(
                    unfolding,
                    energy=backend.energy(unfolding),
                    max_rank=self.limits[mode],
                    allowed=None,
                    method=self.method,
                    rng=self.generator,
                )
                factors[mode] = basis.vectors
                kernels.append(basis.kernel)
                core = xp.moveaxis(basis.rest.reshape(-1, *rest.shape[1:]), 0, mode)
        if core is None:
            core = multiplied(data, _adjoints(factors, range(data.ndim)))
        return factors, core, tuple(kernels)


def _adjoints(factors: Mapping[int, Array], modes: Sequence[int]) -> dict[int, Array]:
    """What projects the given modes on their factors."""
    return {k: backend.adjoint(f) for k, f in factors.items() if k in modes}


def _iterate(
    data: Array,
    factors: Mapping[int, Array],
    task: _Task,
    energy: float,
    tolerance: float,
    sweeps: int,
) -> completion.Course:
    """Sweep until the error settles."""
    trace: list[float] = []
    converged = False
    while len(trace) < sweeps and not converged:
        factors, core, kernels = task.sweep(data, factors)
        trace.append(math.sqrt(max(1 - backend.energy(core) / energy, 0.0)))
        converged = len(trace) > 1 and trace[-2] - trace[-1] <= tolerance
        if not task.free:
            converged = True
    return completion.Course(factors, core, kernels, tuple(trace), converged)
