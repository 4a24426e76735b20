"""To and from tensorly, and the constrained CP decompositions that it knows.

Conversions share memory. tensorly's backend is the caller's to choose: no function here changes it,
in any thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import array_checks, backend, checks
from tnlib.arrays.backend import Array
from tnlib.common.type_aliases import RNG, ArrayT, DType
from tnlib.cp.format import CP
from tnlib.cp.mttkrp import Data
from tnlib.cp.result import error_of
from tnlib.interop import tensorly_solver
from tnlib.interop.tensorly_solver import Constraint, Solution
from tnlib.linalg.preparation import Prepared, dtypes, prepare, verify
from tnlib.result import Format, Info
from tnlib.trains.mpo import MPO
from tnlib.trains.tt import TT
from tnlib.tucker.format import Tucker


def to_tensorly(decomposition: Format) -> Any:
    """The same decomposition as an object of tensorly, sharing memory.

    tensorly computes with it under the backend of its arrays: ``tensorly.set_backend("pytorch")``
    for torch. The error and the record of how it was computed are left behind.

    Parameters
    ----------
    decomposition : TT, MPO, Tucker or CP
        Of NumPy arrays or torch tensors.

    Returns
    -------
    TTTensor, TTMatrix, TuckerTensor or CPTensor

    Raises
    ------
    ImportError
        If tensorly is not installed.
    TypeError
        If `decomposition` is not a format of tnlib.
    ValueError
        If tensorly has no such object: its Tucker tensors have two axes or more.

    Examples
    --------
    >>> import numpy as np
    >>> from tnlib import tt_svd
    >>> train = tt_svd(np.arange(24.0).reshape(2, 3, 4), eps=1e-12)
    >>> theirs = to_tensorly(train)
    >>> theirs.rank, np.shares_memory(theirs[1], train.cores[1])
    ((1, 2, 2, 1), True)
    """
    tensorly = tensorly_solver.load()
    match decomposition:
        case TT():
            return tensorly_solver.with_numpy(
                tensorly.tt_tensor.TTTensor, list(decomposition.cores)
            )
        case MPO():
            return tensorly_solver.with_numpy(
                tensorly.tt_matrix.TTMatrix, list(decomposition.cores)
            )
        case Tucker():
            pair = (decomposition.core, _plain_factors(decomposition))
            return tensorly_solver.with_numpy(tensorly.tucker_tensor.TuckerTensor, pair)
        case CP():
            pair = (decomposition.weights, list(decomposition.factors))
            return tensorly_solver.with_numpy(tensorly.cp_tensor.CPTensor, pair)
    raise TypeError(f"expected a TT, MPO, Tucker or CP, got {type(decomposition).__name__}")


def _plain_factors(tucker: Tucker[Any]) -> list[Array]:
    """The factors as matrices, the identity of a whole mode among them."""
    core = tucker.core
    xp = array_namespace(core)
    there = dict(zip(tucker.modes, tucker.factors, strict=True))
    return [
        there[k] if k in there else xp.eye(size, dtype=core.dtype, device=core.device)
        for k, size in enumerate(tucker.shape)
    ]


def from_tensorly(decomposition: Any) -> TT[Any] | MPO[Any] | Tucker[Any] | CP[Any]:
    """A decomposition of tensorly as one of tnlib, sharing memory.

    Parameters
    ----------
    decomposition : TTTensor, TTMatrix, TuckerTensor or CPTensor
        Of NumPy arrays or torch tensors. CP weights that are None become ones.

    Returns
    -------
    TT, MPO, Tucker or CP

    Raises
    ------
    ImportError
        If tensorly is not installed.
    TypeError
        If `decomposition` is none of these, or its arrays are of another library or of several
        dtypes.
    ValueError
        If its arrays do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from tensorly.cp_tensor import CPTensor
    >>> from_tensorly(CPTensor((None, [np.ones((4, 2)), np.ones((3, 2))])))
    CP(shape=(4, 3), ranks=(2,), n_params=16, error=None)
    """
    tensorly = tensorly_solver.load()
    if isinstance(decomposition, tensorly.tt_tensor.TTTensor):
        return TT(tuple(decomposition.factors))
    if isinstance(decomposition, tensorly.tt_matrix.TTMatrix):
        return MPO(tuple(decomposition.factors))
    if isinstance(decomposition, tensorly.tucker_tensor.TuckerTensor):
        return Tucker(decomposition.core, tuple(decomposition.factors))
    if not isinstance(decomposition, tensorly.cp_tensor.CPTensor):
        raise TypeError(
            "expected a TTTensor, TTMatrix, TuckerTensor or CPTensor of tensorly, got "
            f"{type(decomposition).__name__}"
        )
    factors = [f[:, None] if f.ndim == 1 else f for f in decomposition.factors]
    weights = decomposition.weights
    if weights is None:
        xp = backend.namespace(*factors)
        weights = xp.ones(factors[0].shape[1], dtype=factors[0].dtype, device=factors[0].device)
    return CP(weights, tuple(factors))


def cp_constrained(
    X: ArrayT,
    rank: int,
    *,
    tol: float = 1e-8,
    max_iter: int = 200,
    rng: RNG = None,
    dtype: DType | None = None,
    **constraints: Constraint,
) -> CP[ArrayT]:
    """Decompose an array into `rank` terms whose factors are constrained or penalised.

    tensorly's solvers do the work: non-negativity in every mode by hierarchical alternating least
    squares (Gillis and Glineur, Neural Comput. 24, 2012), anything else by alternating ADMM
    (Huang, Sidiropoulos and Liavas, IEEE Trans. Signal Process. 64, 2016). They look at the
    convergence after every fifth sweep.

    Parameters
    ----------
    X : array, shape (n_1, ..., n_d)
        NumPy array or dense torch tensor with at least two axes, real or integer. Never modified.
    rank : int
        Number of terms.
    tol : float, optional
        Stop when a sweep changes the relative error by less than this.
    max_iter : int, optional
        Largest number of sweeps.
    rng : None, int, numpy.random.Generator or torch.Generator, optional
        Randomness of the start; None is the fixed seed 0.
    dtype : dtype or str, optional
        Floating type of the result, by default that of `X`. Computed in float64.
    **constraints : bool, number, sequence or dict
        By tensorly's names; at most one a mode. One value is for all modes, a sequence has one
        for each mode (None for no constraint), a dict maps modes to values.

        True or False: ``non_negative``; ``monotonicity``, columns that never descend;
        ``unimodality``, columns with one peak; ``normalize``, largest magnitude 1.
        Positive numbers: ``simplex``, the sum of every (non-negative) column; ``soft_sparsity``,
        the largest l1 norm of a column; the weights ``l1_reg``, ``l2_reg``, ``l2_square_reg``,
        ``group_lasso`` (rows) and ``smoothness`` of penalties.
        Positive integers: ``hard_sparsity``, the entries of a factor that are not zero;
        ``normalized_sparsity``, the same with norm 1.

        tensorly 0.10 weighs penalties relative to the other factors, which grow as the penalised
        one shrinks. So keep the weights small: from about 0.01 a factor can shrink to nothing.

    Returns
    -------
    CP
        In the library and on the device of `X`, with the exact relative error. The weights are
        equal and the scale is in the factors, so some mode must be free to take it.

    Raises
    ------
    ImportError
        If tensorly is not installed.
    TypeError
        If `X` is not a dense real array, or an argument has the wrong type.
    ValueError
        If `X` is empty, has fewer than two axes or holds nan or inf, an argument is out of range,
        or the solver broke down.

    Examples
    --------
    >>> import numpy as np
    >>> i, j, k = np.ogrid[:6, :7, :8]
    >>> cp = cp_constrained(1.0 + i * j * k, rank=2, non_negative=True)
    >>> cp.error < 1e-3, all((factor >= 0).all() for factor in cp.factors)
    (True, True)
    """
    array = array_checks.tensor("X", X)
    if array.ndim < 2:
        raise ValueError(f"a CP decomposition needs two axes or more, got {tuple(array.shape)}")
    if backend.is_complex(array.dtype):
        raise TypeError(f"constraints are for real data, got {backend.dtype_name(array.dtype)}")
    terms = checks.positive_int("rank", rank)
    chosen = tensorly_solver.chosen(constraints, array.ndim)
    if terms == 1 and any(name == "simplex" for name, _ in chosen.values()):
        raise ValueError("tensorly has no simplex constraint for rank 1; use rank 2 or more")
    level, sweeps = checks.tolerance("tol", tol), checks.positive_int("max_iter", max_iter)
    generator = backend.as_generator(rng)
    out, _ = dtypes(array_namespace(array), array, dtype)
    prepared = prepare(array, "float64")
    if prepared.energy == 0.0:
        factors = tensorly_solver.feasible(array.shape, terms, chosen)
        zero = Solution(factors, [], True)
        return _result(array, out, prepared, np.zeros(terms), zero, "the array is zero")
    start = tensorly_solver.start(array.shape, terms, prepared.energy, generator)
    found = tensorly_solver.solve(backend.to_numpy(prepared.data), start, chosen, level, sweeps)
    weights = backend.times_power_of_two(np.ones(terms), prepared.exponent)
    reason = "the error changed by at most tol" if found.converged else "max_iter was reached"
    return _result(array, out, prepared, weights, found, reason)


def _result(
    array: Array, out: Any, prepared: Prepared, weights: Any, found: Solution, reason: str
) -> CP[Any]:
    """The terms in the caller's library and dtype, with the error of what is returned."""
    restored = [backend.restored(values, array, out) for values in (weights, *found.factors)]
    error = 0.0
    if prepared.energy:
        data = Data.of(prepared.data[None])
        error = error_of(data, restored, prepared.exponent)
    verify(error, None, out, ("tensorly",))
    info = Info(
        ("tensorly",),
        (),
        None,
        prepared.compute_name,
        n_iter=len(found.trace),
        converged=found.converged,
        reason=reason,
        trace=tuple(found.trace),
    )
    return CP(restored[0], tuple(restored[1:]), error=error, error_kind="exact", info=info)
