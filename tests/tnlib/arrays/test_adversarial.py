"""Whatever finite numbers come in, a true error comes out; nan and inf are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.arrays import numpy_of, relative
from tnlib import cp_als, mpo_decompose_batch, tt_svd, tucker_hooi, tucker_hosvd
from tnlib.testing import adversarial_tensors

LIBRARY = st.sampled_from(["numpy", "torch"])
ARRAYS = LIBRARY.flatmap(lambda name: adversarial_tensors(library=name)).filter(
    lambda array: array.ndim > 1
)
DECOMPOSITIONS = [
    tt_svd,
    tucker_hosvd,
    tucker_hooi,
    lambda array, rank: cp_als(array, rank, max_iter=5),
]


@pytest.mark.parametrize("decompose", DECOMPOSITIONS)
@given(array=ARRAYS, rank=st.integers(1, 4))
def test_every_decomposition_tells_the_truth_or_refuses(decompose, array, rank):
    values = numpy_of(array)
    if not np.isfinite(values).all():
        with pytest.raises(ValueError, match="nan or inf"):
            decompose(array, rank)
        return
    limit = np.finfo(values.dtype).max
    if np.linalg.norm(values / limit) > 0.25:
        # Entries near the largest float: their norm, which one core holds, may overflow.
        refusal = "overflows"
        try:
            assert decompose(array, rank).error <= 1.0 + 1e-6
        except ValueError as error:
            refusal = str(error)
        assert "overflows" in refusal
        return
    result = decompose(array, rank)
    assert 0.0 <= result.error <= 1.0 + 1e-6
    largest = float(np.abs(values).max())
    if 1e-12 < largest < 1e12:
        tolerance = 1e-5 if values.dtype == np.float32 else 1e-12
        assert result.error == pytest.approx(relative(result.to_dense(), array), abs=tolerance)


@given(ARRAYS.filter(lambda array: array.ndim == 2), st.integers(1, 4))
def test_batches_tell_the_truth_or_refuse(array, rank):
    values = numpy_of(array)
    pair = [array, array[:, :]]
    if not np.isfinite(values).all():
        with pytest.raises(ValueError, match="nan or inf"):
            mpo_decompose_batch(pair, rank)
        return
    if np.linalg.norm(values / np.finfo(values.dtype).max) > 0.25:
        return
    for mpo in mpo_decompose_batch(pair, rank):
        assert 0.0 <= mpo.error <= 1.0 + 1e-6
