"""Many matrices of one shape at once, such as the same projection of every layer of a model.

One sweep splits the whole batch: each step is one batched product and one batched eigenproblem.
That pays where a matrix alone leaves the machine idle: small ones on a CPU, any on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tnlib.arrays import array_checks, backend, checks
from tnlib.arrays.arithmetic import own_arithmetic
from tnlib.common.keywords import keywords_named
from tnlib.common.type_aliases import RNG, ArrayT, DType, Method
from tnlib.mode_sizes import matrix_modes
from tnlib.trains import batch_sweep
from tnlib.trains.mpo import MPO, mpo_decompose, operator

# Entries of one matrix up to which the batched sweep is faster on a CPU.
_SMALL = 1 << 14


@own_arithmetic()
@keywords_named
def mpo_decompose_batch(
    Ws: ArrayT | Sequence[ArrayT],
    ranks: int | Sequence[int] | None = None,
    *,
    row_dims: Sequence[int] | None = None,
    col_dims: Sequence[int] | None = None,
    eps: float | None = None,
    method: Method = "auto",
    refine: int = 0,
    rng: RNG = None,
    dtype: DType | None = None,
) -> tuple[MPO[ArrayT], ...]:
    """Decompose many matrices of one shape into matrix product operators.

    The same as :func:`mpo_decompose` of each, up to rounding, in one batched sweep where that is
    faster: for given ranks, and matrices that are small or not in the CPU's memory.

    Parameters
    ----------
    Ws : array, shape (b, m, n), or sequence of arrays of shape (m, n)
        NumPy arrays or torch tensors of one library and dtype; never modified.
    ranks, row_dims, col_dims, eps, method, refine, rng, dtype
        As in :func:`mpo_decompose`.

    Returns
    -------
    tuple of MPO
        One for each matrix, in order, each with its exact relative error.

    Raises
    ------
    TypeError, ValueError
        As :func:`mpo_decompose`; also if the matrices differ in shape, library or dtype.

    Examples
    --------
    >>> import numpy as np
    >>> projections = np.random.default_rng(0).standard_normal((12, 48, 64))
    >>> operators = mpo_decompose_batch(projections, ranks=8)
    >>> len(operators), operators[0].ranks
    (12, (1, 8, 1))
    """
    matrices = array_checks.alike("Ws", Ws)
    shape = tuple(matrices[0].shape)
    if len(shape) != 2:
        raise ValueError(f"Ws must hold matrices, got arrays of shape {shape}")
    options: dict[str, Any] = {
        "row_dims": row_dims,
        "col_dims": col_dims,
        "eps": eps,
        "method": method,
        "refine": refine,
        "dtype": dtype,
    }
    generator = backend.as_generator(rng)
    small = math.prod(shape) <= _SMALL or not backend.on_cpu(matrices[0])
    plain = eps is None and method in ("auto", "gram") and refine == 0
    if not (small and plain):
        return tuple(mpo_decompose(W, ranks, rng=generator, **options) for W in matrices)
    rows, columns = matrix_modes(shape, row_dims, col_dims)
    limits, _ = checks.truncation(ranks, eps, len(rows))
    array = array_checks.stacked(matrices)
    found = batch_sweep.sweeps(array, rows, columns, limits or (), dtype)
    return tuple(
        operator(swept, rows, columns)
        if swept is not None
        else mpo_decompose(array[k], ranks, rng=generator, **options)
        for k, swept in enumerate(found)
    )
