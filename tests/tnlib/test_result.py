"""What all formats share: they are read as arrays, and say what they are in one line."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse
import torch

from tnlib import MPO, TT, contract, cp_als, mpo_decompose, tt_svd, tucker_hosvd

MATRIX = np.arange(24.0).reshape(4, 6)
FORMATS = {
    "TT": lambda x: tt_svd(x, 9),
    "MPO": lambda x: mpo_decompose(x, 9),
    "Tucker": lambda x: tucker_hosvd(x, 9),
    "CP": lambda x: cp_als(x, 2),
}


@pytest.fixture(params=sorted(FORMATS))
def made(request, to_library):
    return FORMATS[request.param](to_library(MATRIX))


def test_a_format_is_read_as_its_dense_array(made):
    dense = np.asarray(made)
    np.testing.assert_array_equal(dense, np.asarray(made.to_dense()))
    assert np.array(made, dtype=np.float32).dtype == np.float32
    assert np.array(made, copy=True).shape == (4, 6)
    with pytest.raises(ValueError, match="cannot share memory"):
        np.array(made, copy=False)


def test_what_numpy_cannot_hold_is_refused():
    with pytest.raises(TypeError, match="NumPy lacks bfloat16"):
        np.asarray(TT([torch.ones(1, 2, 1, dtype=torch.bfloat16)]))
    with pytest.raises(RuntimeError, match="detach"):
        np.asarray(TT([torch.ones(1, 2, 1, requires_grad=True)]))


def test_what_is_not_an_array_is_refused_with_advice_that_works():
    sparse = scipy.sparse.csr_matrix(MATRIX)
    for call in (lambda x: tt_svd(x, 2), lambda x: contract("ij->j", x)):
        with pytest.raises(TypeError, match=r"its method toarray\(\)"):
            call(sparse)
        with pytest.raises(TypeError, match=r"its method to_dense\(\)"):
            call(tt_svd(MATRIX, 2))
        call(sparse.toarray())
        with pytest.raises(TypeError, match=r"numpy\.asarray"):
            call(MATRIX.tolist())


@pytest.mark.parametrize("count", [65, 1000, 5000])
def test_operators_of_many_cores_are_read_and_described(count, to_library):
    identity = MPO([to_library(np.eye(2).reshape(1, 2, 2, 1))] * count)
    assert identity.n_params == 4 * count
    assert identity.shape == (2**count, 2**count)
    bits = 2 * count - math.log2(4 * count)
    assert math.log2(identity.compression) == pytest.approx(bits) or bits >= 1024
    assert repr(identity) == (
        f"MPO(shape=(2^{count}, 2^{count}), row_dims=(2, 2, 2, ..., 2, 2, 2), "
        "col_dims=(2, 2, 2, ..., 2, 2, 2), ranks=(1, 1, 1, ..., 1, 1, 1), "
        f"n_params={4 * count}, error=None)"
    )
    place = 2 ** (count - 1) + 5
    row = identity.row(place)
    assert [int(core.reshape(-1)[1]) for core in row.cores[-4:]] == [0, 1, 0, 1]
    if count == 65:
        assert float(identity.entry(place, place)) == float(identity.column(-1)[(1,) * count]) == 1
        assert float(identity.entry(place, place + 1)) == 0
    with pytest.raises(IndexError, match=rf"i must be from -2\^{count} to about 2\^{count}"):
        identity.entry(2**count, 0)
    with pytest.raises(ValueError, match="no memory holds such a vector"):
        identity.matvec(to_library(np.ones(4)))
    with pytest.raises(ValueError, match=rf"would have 2\^{2 * count} entries"):
        identity.to_matrix()


def test_modes_of_one_do_not_count_as_axes(to_library):
    rng = np.random.default_rng(0)
    small = [np.ones((1, 1, 1, 1))] * 40
    operator = MPO(
        [to_library(core) for core in [*small, rng.standard_normal((1, 3, 4, 1)), *small]]
    )
    matrix = np.asarray(operator)
    assert matrix.shape == (3, 4)
    x = rng.standard_normal((5, 4))
    np.testing.assert_allclose(np.asarray(operator.matvec(to_library(x))), x @ matrix.T, rtol=1e-13)


def test_an_operator_shows_its_modes():
    operator = mpo_decompose(np.ones((12, 6)), 1, row_dims=(4, 3), col_dims=(2, 3))
    assert "row_dims=(4, 3), col_dims=(2, 3)" in repr(operator)
