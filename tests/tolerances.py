"""How far two correct computations of one number may differ.

A sum of n products computed in any order has an error of at most n u / (1 - n u) times the sum of
their absolute values (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1),
u being the unit roundoff of the arithmetic. What follows from a result by solving or inverting
is amplified by the condition of the problem. So a tolerance is

    2 * operations * u * condition * size

for two results that may both be off, whatever processor, BLAS or number of threads made them.

A truncated basis has the gap of the singular values at the cut as its condition: it moves by u over
the gap (Davis and Kahan, 1970), and so does what comes after it. Drawn spectra have relative gaps
above the root of u, so errors of truncations in double precision agree to `SUBSPACE`.
"""

from __future__ import annotations

import numpy as np
import torch

from tnlib import CP, MPO, TT, Tucker
from tnlib.arrays import backend

SUBSPACE = 2.0**-26


def rounding(dtype, operations=1, size=1.0, condition=1.0) -> float:
    """Largest difference of two results in `dtype`.

    `operations` counts the additions and products that one entry has behind it, layers of a
    computation added up; `size` bounds the absolute values that are added; `condition` is that of
    what is solved.
    """
    return 2 * operations * backend.unit_roundoff(dtype) * condition * float(size)


def assert_close(result, expected, operations=1, size=None, condition=1.0, dtype=None) -> None:
    """Two arrays are the same mathematics, rounded differently.

    `dtype` is the arithmetic's, by default the coarser of the two; `size` by default the largest
    entry of `expected`.
    """
    first, second = _double(result), _double(expected)
    assert first.shape == second.shape
    coarser = max(_dtypes(result, expected) if dtype is None else [dtype], key=_unit)
    largest = float(np.abs(second).max(initial=0.0)) if size is None else float(size)
    allowed = rounding(coarser, operations, largest, condition)
    off = float(np.abs(first - second).max(initial=0.0))
    assert off <= allowed, f"off by {off:.3g}, rounding explains {allowed:.3g}"


def cancellation(decomposition, array=None) -> float:
    """How much larger what is added up is than its sum, at least 1.

    The norm of the dense form made of absolute values, over that of `array`, by default of the
    dense form itself: the `size` of an entry, and of an error relative to `array`.
    """
    if isinstance(decomposition, TT | MPO):
        parts = [_double(core) for core in decomposition.cores]
        sizes = type(decomposition)([np.abs(part) for part in parts])
    else:
        assert isinstance(decomposition, CP | Tucker)
        first, factors = decomposition
        parts = [np.abs(_double(part)) for part in (first, *factors)]
        sizes = type(decomposition)(parts[0], tuple(parts[1:]))
    whole = np.linalg.norm(_double(decomposition.to_dense() if array is None else array))
    added = np.linalg.norm(sizes.to_dense())
    return max(1.0, float(added / whole)) if whole else max(1.0, float(added))


def _unit(dtype) -> float:
    return backend.unit_roundoff(dtype)


def _dtypes(*arrays):
    found = [array.dtype for array in arrays if hasattr(array, "dtype")]
    return [d for d in found if backend.dtype_name(d) in backend.FLOATING] or [np.float64]


def _double(array):
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu().resolve_conj()
        array = array.to(torch.complex128 if array.is_complex() else torch.float64).numpy()
    array = np.asarray(array)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
