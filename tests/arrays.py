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
