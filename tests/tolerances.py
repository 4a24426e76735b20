"""How far two correct computations of one number may differ.

A sum of n products computed in any order has an error of at most n u / (1 - n u) times the sum of
their absolute values (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1),
u being the unit roundoff of the arithmetic. What follows from a result by solving or inverting
is amplified by the condition of the problem. So a tolerance is

    2 * operations * u * condition * size

for two results that may both be off, whatever processor, BLAS or number of threads made them.
"""

from __future__ import annotations

import numpy as np
import torch

from tnlib import _array


def rounding(dtype, operations=1, size=1.0, condition=1.0) -> float:
    """Largest difference of two results in `dtype`.

    `operations` counts the additions and products that one entry has behind it, layers of a
    computation added up; `size` bounds the absolute values that are added; `condition` is that of
    what is solved.
    """
    return 2 * operations * _array.unit_roundoff(dtype) * condition * float(size)


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


def _unit(dtype) -> float:
    return _array.unit_roundoff(dtype)


def _dtypes(*arrays):
    found = [array.dtype for array in arrays if hasattr(array, "dtype")]
    return [d for d in found if _array.dtype_name(d) in _array.FLOATING] or [np.float64]


def _double(array):
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu().resolve_conj()
        array = array.to(torch.complex128 if array.is_complex() else torch.float64).numpy()
    array = np.asarray(array)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
