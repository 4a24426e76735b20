"""Arrays with known spectra, and small tools to measure decompositions of them."""

from __future__ import annotations

import numpy as np
import torch

from tnlib.testing import matrices, mode_tails, tensors, unfolding_tails, with_spectrum
from tnlib.testing import relative_error as relative
from tnlib.testing.oracles import orthogonal

__all__ = [
    "LIBRARIES",
    "matrices",
    "mode_tails",
    "numpy_of",
    "orthogonal",
    "relative",
    "tensors",
    "unfolding_tails",
    "with_spectrum",
]

LIBRARIES = {"numpy": np.asarray, "torch": torch.from_numpy}


def numpy_of(array):
    """The values as a NumPy array, half precision widened."""
    if isinstance(array, torch.Tensor):
        array = array.detach().resolve_conj()
        return (array.float() if array.dtype == torch.bfloat16 else array).cpu().numpy()
    return np.asarray(array)


def interleaved(matrix, rows, columns):
    """The tensor of modes (i_1 j_1), ..., (i_d j_d) whose unfoldings the MPO truncates."""
    order = len(rows)
    axes = [axis for k in range(order) for axis in (k, order + k)]
    modes = [i * j for i, j in zip(rows, columns, strict=True)]
    return matrix.reshape(rows + columns).transpose(axes).reshape(modes)
