"""Matrix product operators: bounds, precisions, products, and bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.arrays import (
    LIBRARIES,
    interleaved,
    matrices,
    numpy_of,
    relative,
    unfolding_tails,
    with_spectrum,
)
from tests.tolerances import assert_close, cancellation
from tnlib import MPO, factorize, mpo_decompose, mpo_random

U = np.finfo(np.float64).eps / 2
RANKS = st.integers(1, 8)
LIBRARY = st.sampled_from(sorted(LIBRARIES))


@given(matrices(), RANKS, LIBRARY)
def test_error_is_true_and_within_the_tails(case, ranks, library):
    matrix, rows, columns = case
    mpo = mpo_decompose(LIBRARIES[library](matrix), ranks, row_dims=rows, col_dims=columns)
    tails = unfolding_tails(interleaved(matrix, rows, columns), mpo.ranks)
    assert abs(mpo.error - relative(mpo.to_matrix(), matrix)) <= 50 * U
    assert mpo.error >= max(tails, default=0.0) - 100 * U
    assert mpo.error <= math.sqrt(math.fsum(tail**2 for tail in tails)) + 100 * U


@given(matrices(), st.sampled_from([0.5, 0.1, 1e-3, 1e-10]), LIBRARY)
def test_eps_is_met(case, eps, library):
    matrix, rows, columns = case
    mpo = mpo_decompose(LIBRARIES[library](matrix), eps=eps, row_dims=rows, col_dims=columns)
    assert relative(mpo.to_matrix(), matrix) <= eps + 50 * U


@given(matrices(), RANKS, LIBRARY, st.sampled_from([(), (3,), (2, 2), (0,)]))
def test_matvec_is_the_product_with_the_matrix(case, ranks, library, batch):
    matrix, rows, columns = case
    mpo = mpo_decompose(LIBRARIES[library](matrix), ranks, row_dims=rows, col_dims=columns)
    x = np.random.default_rng(0).standard_normal((*batch, matrix.shape[1]))
    expected = x @ numpy_of(mpo.to_matrix()).T
    result = mpo.matvec(LIBRARIES[library](x))
    assert tuple(result.shape) == expected.shape
    np.testing.assert_allclose(numpy_of(result), expected, atol=1e-11 * np.abs(matrix).max())


@given(matrices(), RANKS)
def test_balanced_operator_is_the_same_matrix(case, ranks):
    matrix, rows, columns = case
    mpo = mpo_decompose(matrix, ranks, row_dims=rows, col_dims=columns)
    scale = np.linalg.norm(matrix)
    np.testing.assert_allclose(mpo.balanced().to_matrix(), mpo.to_matrix(), atol=1e-6 * scale)


@given(st.integers(1, 12), st.integers(1, 12), RANKS)
def test_one_bond_is_the_truncated_svd(rows, columns, rank):
    matrix = np.random.default_rng(rows * 13 + columns).standard_normal((rows, columns))
    mpo = mpo_decompose(matrix, rank, row_dims=(rows, 1), col_dims=(1, columns))
    values = np.linalg.svd(matrix, compute_uv=False)
    tail = np.linalg.norm(values[rank:]) / np.linalg.norm(values)
    assert mpo.error == pytest.approx(tail, abs=1e-13)


def test_balanced_gauge_of_one_bond_shares_the_square_roots():
    matrix = with_spectrum([4.0, 1.0, 0.25], 6, 5)
    first, second = mpo_decompose(matrix, 3, row_dims=(6, 1), col_dims=(1, 5)).balanced().cores
    np.testing.assert_allclose(first[0, :, 0].T @ first[0, :, 0], np.diag([4, 1, 0.25]), atol=1e-12)
    np.testing.assert_allclose(
        second[:, 0, :, 0] @ second[:, 0, :, 0].T, np.diag([4, 1, 0.25]), atol=1e-12
    )


def test_balanced_bonds_carry_the_singular_values_on_both_sides():
    matrix = np.random.default_rng(0).standard_normal((64, 48))
    first, second, third = (
        mpo_decompose(matrix, 9, row_dims=(4, 4, 4), col_dims=(4, 3, 4)).balanced().cores
    )
    left = first.reshape(-1, 9)
    right = np.tensordot(second, third, 1).reshape(9, -1)
    values = np.linalg.svd(left @ right, compute_uv=False)[:9]
    np.testing.assert_allclose(left.T @ left, np.diag(values), atol=1e-12 * values[0])
    np.testing.assert_allclose(right @ right.T, np.diag(values), atol=1e-12 * values[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_torch_weights_of_every_precision_come_back_as_they_came(dtype):
    weight = torch.nn.Linear(96, 64).weight.data.to(getattr(torch, dtype))
    mpo = mpo_decompose(torch.nn.Parameter(weight), 24)
    u = torch.finfo(weight.dtype).eps / 2
    assert all(core.dtype == weight.dtype and not core.requires_grad for core in mpo.cores)
    exact = relative(MPO([core.double() for core in mpo.cores]).to_matrix(), weight.double())
    assert abs(mpo.error - exact) <= 50 * max(torch.finfo(torch.float32).eps, u / 50)
    assert mpo.error < 0.9


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.complex64, np.complex128, np.int64])
def test_numpy_dtypes(dtype):
    rng = np.random.default_rng(0)
    matrix = (10 * rng.standard_normal((24, 36)) + 5j * rng.standard_normal((24, 36))).astype(
        np.complex128
    )
    matrix = (matrix if np.issubdtype(dtype, np.complexfloating) else matrix.real).astype(dtype)
    mpo = mpo_decompose(matrix, 5)
    assert mpo.cores[0].dtype == (np.float64 if dtype == np.int64 else dtype)
    wide = MPO([core.astype(np.result_type(core, np.float64)) for core in mpo.cores])
    assert mpo.error == pytest.approx(relative(wide.to_matrix(), matrix), abs=1e-5)


def test_dtype_overrides_and_half_precision_says_what_rounding_costs():
    weight = torch.from_numpy(with_spectrum(2.0 ** -np.arange(64), 64, 64)).bfloat16()
    arguments = {"row_dims": (64, 1), "col_dims": (1, 64)}
    wide = mpo_decompose(weight, 50, dtype=torch.float32, **arguments)
    narrow = mpo_decompose(weight, 50, **arguments)
    assert wide.cores[0].dtype == torch.float32
    assert wide.error < 1e-3
    assert 1e-3 < narrow.error < 1e-2


def test_float64_eps_of_1e_10_is_truly_met():
    matrix = with_spectrum(np.logspace(0, -14, 128), 128, 256)
    mpo = mpo_decompose(matrix, eps=1e-10, row_dims=(128, 1), col_dims=(1, 256))
    assert relative(mpo.to_matrix(), matrix) <= 1e-10
    values = np.logspace(0, -14, 128)
    tails = np.sqrt(np.cumsum(values[::-1] ** 2)[::-1] / np.sum(values**2))
    assert mpo.ranks[1] == int(np.argmax(tails <= 1e-10))


def test_half_precision_meets_eps_after_rounding():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).half()
    for eps in (0.5, 0.1, 0.01):
        mpo = mpo_decompose(weight, eps=eps)
        exact = relative(MPO([core.double() for core in mpo.cores]).to_matrix(), weight.float())
        assert exact == pytest.approx(mpo.error, abs=1e-6)
        assert mpo.error <= eps


def test_cores_that_overflow_half_precision_are_refused():
    with pytest.raises(ValueError, match="overflows float16"):
        mpo_decompose(np.full((256, 256), 60000.0, np.float16), 4)


def test_extreme_scales_neither_overflow_nor_vanish():
    matrix = np.random.default_rng(0).standard_normal((16, 16))
    expected = mpo_decompose(matrix, 3).error
    for scale in (1e300, 1e150, 1e-150, 1e-290):
        assert mpo_decompose(matrix * scale, 3).error == pytest.approx(expected, rel=1e-10)
    for scale in (1e36, 1e-36):
        small = (matrix * scale).astype(np.float32)
        assert mpo_decompose(small, 3).error == pytest.approx(expected, rel=1e-5)


def test_the_largest_and_the_smallest_numbers_are_accepted():
    for dtype in (np.float32, np.float64):
        limits = np.finfo(dtype)
        for value in (limits.max, limits.smallest_subnormal):
            mpo = mpo_decompose(np.diag([value, 0, 0, 0]).astype(dtype), 4)
            assert mpo.error <= 2 * limits.eps


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kept", [1, 5, 17, 40])
def test_a_tolerance_on_the_edge_of_a_rank_is_met(dtype, kept):
    values = np.arange(1, 65.0) ** -0.5
    matrix = with_spectrum(values, 64, 64).astype(dtype)
    eps = float(np.sqrt(np.sum(values[kept:] ** 2) / np.sum(values**2)))
    mpo = mpo_decompose(matrix, eps=eps, row_dims=(64, 1), col_dims=(1, 64))
    assert mpo.error <= eps
    assert mpo.ranks[1] in (kept, kept + 1)


@pytest.mark.parametrize("shape", [(97, 13), (1, 7), (7, 1), (1, 1), (3, 1024), (509, 512)])
def test_any_width_is_factorised_without_padding(shape):
    matrix = np.random.default_rng(0).standard_normal(shape)
    mpo = mpo_decompose(matrix, 1000)
    assert mpo.shape == shape
    assert mpo.error < 1e-13
    assert mpo.row_dims == factorize(shape[0], len(mpo.cores))


def test_columns_follow_the_given_rows():
    mpo = mpo_decompose(np.ones((16, 27)), 2, row_dims=(4, 2, 2))
    assert mpo.col_dims == (3, 3, 3)


def test_strided_and_transposed_input_is_read_in_place():
    base = np.random.default_rng(0).standard_normal((40, 60))
    mpo = mpo_decompose(np.ascontiguousarray(base.T[::2]), 4)
    # The kept subspace moves by rounding over the gap at the cut: squared singular values of 90 and
    # 88, the largest being 139.
    options = {"operations": 60, "size": np.linalg.norm(base), "condition": 70}
    for same in (base.T[::2], torch.from_numpy(base).mT[::2]):
        found = mpo_decompose(same, 4)
        assert found.ranks == mpo.ranks
        assert_close(found.to_matrix(), mpo.to_matrix(), **options)


def test_dense_form_is_differentiable_with_respect_to_the_cores():
    rng = np.random.default_rng(0)
    shapes = [(1, 2, 3, 2), (2, 2, 2, 3), (3, 1, 2, 1)]
    cores = [torch.from_numpy(rng.standard_normal(s)).requires_grad_() for s in shapes]
    assert torch.autograd.gradcheck(lambda *c: MPO(c).to_matrix(), cores)
    x = torch.from_numpy(rng.standard_normal((2, 12)))
    assert torch.autograd.gradcheck(lambda *c: MPO(c).matvec(x), cores)


def test_long_chains_are_planned_and_applied():
    rng = np.random.default_rng(0)
    bonds = [1, *[2] * 19, 1]
    cores = [rng.standard_normal((bonds[k], 1, 2, bonds[k + 1])) for k in range(20)]
    mpo = MPO(cores)
    x = rng.standard_normal(2**20)
    size = cancellation(mpo) * np.linalg.norm(mpo.to_matrix()) * np.linalg.norm(x)
    # Roundings of a sum of n terms add up like a random walk (Higham and Mary, 2019).
    operations = math.isqrt(x.size) + 2 * sum(bonds)
    assert_close(mpo.matvec(x), mpo.to_matrix() @ x, operations=operations, size=size)


def test_a_tensor_inside_an_autograd_graph_is_refused_and_detached_is_not():
    weight = torch.ones(4, 4, requires_grad=True) * 2
    with pytest.raises(ValueError, match="detach"):
        mpo_decompose(weight, 2)
    assert mpo_decompose(weight.detach(), 2).error < 1e-6
    with torch.no_grad():
        assert mpo_decompose(weight, 2).error < 1e-6


BAD_CALLS = [
    (np.ones(4), {"ranks": 1}, ValueError, "use tt_svd"),
    (np.ones((4, 4, 4)), {"ranks": 1}, ValueError, "must be a matrix"),
    (np.ones((4, 4)), {"ranks": 1, "row_dims": (2, 3)}, ValueError, "product 6, expected 4"),
    (np.ones((4, 6)), {"ranks": 1, "col_dims": (5, 1)}, ValueError, r"factorize\(6, 2\)"),
    (np.ones((4, 4)), {"ranks": 1, "row_dims": (4, 0)}, ValueError, "at least 1, got 0"),
    (np.ones((4, 4)), {"ranks": 1, "row_dims": (2.0, 2)}, TypeError, "must be an integer"),
    (np.ones((4, 4)), {"ranks": 1, "row_dims": 4}, TypeError, "sequence of ints"),
    (np.ones((4, 4)), {"ranks": 1, "row_dims": ()}, ValueError, "must not be empty"),
    (
        np.ones((4, 4)),
        {"ranks": 1, "row_dims": (2, 2), "col_dims": (4,)},
        ValueError,
        "equally many",
    ),
    (np.ones((4, 4)), {"row_dims": (2, 2)}, ValueError, "got none"),
]


@pytest.mark.parametrize(("matrix", "arguments", "error", "message"), BAD_CALLS)
def test_bad_calls_say_what_is_wrong(matrix, arguments, error, message):
    with pytest.raises(error, match=message):
        mpo_decompose(matrix, **arguments)


@pytest.mark.parametrize("subclass", [np.matrix, lambda x: x.astype(">f8")])
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_matvec_takes_every_array_of_numpy(subclass):
    mpo, x = mpo_random((2, 3), (2, 4), 2), np.arange(24.0).reshape(3, 8)
    product = mpo.matvec(subclass(x))
    assert type(product) is np.ndarray
    assert_close(product, mpo.matvec(x), operations=20)


def test_matvec_checks_its_argument():
    mpo = mpo_decompose(np.eye(6), 2)
    with pytest.raises(ValueError, match=r"6 entries along its last axis, got shape \(5,\)"):
        mpo.matvec(np.ones(5))
    with pytest.raises(TypeError, match="cast one of them"):
        mpo.matvec(np.ones(6, np.float32))
    with pytest.raises(TypeError, match="one library, got torch, numpy"):
        mpo.matvec(torch.ones(6, dtype=torch.float64))
