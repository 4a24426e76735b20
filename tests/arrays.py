"""Arrays with known spectra, and small tools to measure decompositions of them."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import strategies as st

LIBRARIES = {"numpy": np.asarray, "torch": torch.from_numpy}


def orthogonal(rng, rows, columns):
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def with_spectrum(values, rows, columns, seed=0):
    """A rows x columns matrix with the given singular values."""
    rng = np.random.default_rng(seed)
    rank = len(values)
    left, right = orthogonal(rng, rows, rank), orthogonal(rng, columns, rank)
    return (left * np.asarray(values)) @ right.T


@st.composite
def tensors(draw, min_order=2, max_order=5, max_size=5):
    """A float64 array from a drawn seed: shapes with ones, decaying spectra, scales, zeros."""
    shape = draw(st.lists(st.integers(1, max_size), min_size=min_order, max_size=max_order))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    decay = draw(st.sampled_from([0.0, 0.5, 2.0, 6.0]))
    scale = draw(st.sampled_from([0.0, 1.0, 1.0, 1.0, 1e12, 1e-12]))
    array = rng.standard_normal(shape)
    for axis, size in enumerate(shape):
        basis = orthogonal(rng, size, size) * np.arange(1, size + 1) ** -decay
        array = np.moveaxis(np.tensordot(basis, array, axes=(1, axis)), 0, axis)
    return scale * array


@st.composite
def matrices(draw):
    """A float64 matrix with its row and column modes."""
    order = draw(st.integers(1, 4))
    sizes = st.lists(st.integers(1, 4), min_size=order, max_size=order)
    rows, columns = tuple(draw(sizes)), tuple(draw(sizes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    decay = draw(st.sampled_from([0.0, 0.5, 2.0, 6.0]))
    m, n = math.prod(rows), math.prod(columns)
    scale = draw(st.sampled_from([0.0, 1.0, 1.0, 1e12, 1e-12]))
    values = np.arange(1, min(m, n) + 1) ** -decay
    return scale * with_spectrum(values, m, n, int(rng.integers(2**32))), rows, columns


def numpy_of(array):
    """The values as a NumPy array, half precision widened."""
    if isinstance(array, torch.Tensor):
        array = array.detach().resolve_conj()
        return (array.float() if array.dtype == torch.bfloat16 else array).cpu().numpy()
    return np.asarray(array)


def relative(approximation, array):
    """Relative Frobenius error in float64; 0 for the zero array met exactly."""
    exact = numpy_of(array).astype(np.result_type(numpy_of(array), np.float64))
    norm = np.linalg.norm(exact)
    difference = np.linalg.norm(numpy_of(approximation) - exact)
    return float(difference / norm) if norm else float(difference)


def unfolding_tails(array, ranks):
    """Relative tails tau_k of the unfoldings at the inner `ranks`."""
    norm = np.linalg.norm(array)
    tails = []
    for k, rank in enumerate(ranks[1:-1], start=1):
        unfolding = array.reshape(math.prod(array.shape[:k]), -1)
        values = np.linalg.svd(unfolding, compute_uv=False)
        tails.append(float(np.linalg.norm(values[rank:]) / norm) if norm else 0.0)
    return tails
