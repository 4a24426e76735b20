"""Gathered entries are the entries of the array, whatever the scales of the cores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.arrays import LIBRARIES, numpy_of
from tests.tolerances import assert_close, rounding
from tnlib import MPO, TT, mpo_random, tt_random
from tnlib.testing import operators, trains

LIBRARY = st.sampled_from(sorted(LIBRARIES))
SEED = st.integers(0, 2**32 - 1)


def operations(chain):
    """Additions and products behind one entry."""
    return 2 * len(chain.cores) * max(chain.ranks)


def bound_of(chain, absolute):
    """The array of the absolute values of the cores, which bounds the sums of every entry."""
    cores = tuple(np.abs(numpy_of(core)) for core in chain.cores)
    return float(absolute(cores).to_dense().max())


@given(trains(), LIBRARY, LIBRARY, SEED, st.integers(0, 9))
def test_gathered_entries_of_a_train_are_those_of_the_array(train, library, other, seed, count):
    cores = tuple(LIBRARIES[library](core) for core in train.cores)
    dense, rng = train.to_dense(), np.random.default_rng(seed)
    where = np.stack([rng.integers(-n, n, count) for n in train.shape], axis=-1)
    size = bound_of(train, TT)
    expected = dense[tuple(where.T)]
    for given_ in (where, tuple(where.T)):
        indices = (
            LIBRARIES[other](given_)
            if isinstance(given_, np.ndarray)
            else tuple(LIBRARIES[other](np.ascontiguousarray(part)) for part in given_)
        )
        found = TT(cores).gather(indices)
        assert isinstance(found, torch.Tensor) == (library == "torch")
        assert_close(numpy_of(found), expected, operations(train), size)


@given(operators(), LIBRARY, SEED, st.integers(0, 9))
def test_gathered_entries_of_an_operator_are_those_of_the_matrix(operator, library, seed, count):
    moved = MPO(tuple(LIBRARIES[library](core) for core in operator.cores))
    rng = np.random.default_rng(seed)
    rows, columns = (rng.integers(-n, n, count) for n in operator.shape)
    size = bound_of(operator, MPO)
    found = moved.gather(rows, LIBRARIES[library](columns))
    dense = operator.to_matrix()
    assert_close(numpy_of(found), dense[rows, columns], operations(operator), size)
    digits = np.unravel_index(rows % operator.shape[0], operator.row_dims)
    again = numpy_of(moved.gather(tuple(digits), columns))
    assert_close(again, dense[rows, columns], operations(operator), size)
    whole = moved.gather(np.arange(operator.shape[0])[:, None], np.arange(operator.shape[1]))
    assert_close(numpy_of(whole), dense, operations(operator), size)


@pytest.mark.parametrize("library", sorted(LIBRARIES))
@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128"])
def test_scales_that_cancel_over_the_cores_are_carried(library, dtype):
    large = 1e30 if dtype == "float32" else 1e200
    one = LIBRARIES[library](np.ones((1, 2, 1), dtype))
    train = TT([one * large] * 3 + [one * (1 / large)] * 3)
    found = numpy_of(train.gather(np.zeros((3, 6), int)))
    np.testing.assert_allclose(found, 1.0, rtol=rounding(dtype, 12))
    # Within one core too: the position decides the scale.
    uneven = LIBRARIES[library](np.array([large, 1 / large], dtype).reshape(1, 2, 1))
    mixed = TT([uneven] * 4)
    found = numpy_of(mixed.gather(np.array([[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])))
    np.testing.assert_allclose(found, [1, 1, 0], rtol=rounding(dtype, 8))
    assert not np.isfinite(numpy_of(mixed.gather(np.zeros((1, 4), int)))).any()


def test_long_chains_keep_the_entries_that_are_in_range():
    core = np.full((3, 2, 3), 1e3)
    chain = TT([core[:1], *[core] * 200, *[core * 1e-7] * 200, core[:, :, :1]])
    exact = 6 + 200 * 3 - 200 * 4 + 401 * np.log10(3)
    found = chain.gather(np.zeros((2, 402), int))
    assert np.log10(found) == pytest.approx(exact, abs=1e-9)
    eye = MPO([np.eye(2).reshape(1, 2, 2, 1)] * 100)
    zero, one = (np.full(2, k) for k in (0, 1))
    assert eye.gather((one,) * 100, (one,) * 100).tolist() == [1, 1]
    assert eye.gather((one,) * 100, (*(one,) * 99, zero)).tolist() == [0, 0]


def test_half_precision_is_computed_in_single():
    rng = torch.Generator().manual_seed(0)
    cores = [torch.randn(s, generator=rng) for s in [(1, 5, 8), (8, 5, 8), (8, 5, 1)]]
    where = torch.randint(5, (20, 3), generator=rng)
    for dtype in (torch.bfloat16, torch.float16):
        half = TT([core.to(dtype) for core in cores])
        exact = TT([core.double() for core in half.cores]).gather(where)
        found = half.gather(where)
        assert found.dtype == dtype
        assert_close(found, exact, 1, float(exact.abs().max()), dtype=dtype)
    ladder = TT([torch.full((1, 2, 1), scale).half() for scale in (256, 256, 1 / 256, 1 / 256)])
    assert ladder.gather(torch.zeros(1, 4, dtype=torch.int64)).item() == 1.0


def test_gathering_is_differentiable_and_vectorises():
    cores = tt_random((2, 3, 2), 2, rng=0, like=torch.empty(0), dtype="float64").cores
    leaves = [core.clone().requires_grad_() for core in cores]
    where = torch.tensor([[0, 1, 1], [1, 2, 0], [0, 1, 1]])
    assert torch.autograd.gradcheck(lambda *c: TT(c).gather(where), leaves)
    assert torch.autograd.gradgradcheck(lambda *c: TT(c).gather(where), leaves)
    functional = torch.func.grad(lambda c: TT((c, *cores[1:])).gather(where).sum())(cores[0])
    TT(leaves).gather(where).sum().backward()
    assert_close(functional, leaves[0].grad, 20)


def test_autocast_and_seterr_change_nothing():
    cores = tt_random((4, 5, 6), 3, rng=0, like=torch.empty(0), dtype="float32").cores
    where = torch.tensor([[0, 1, 2], [3, 4, 5]])
    plain = TT(cores).gather(where)
    with torch.autocast("cpu"):
        assert_close(TT(cores).gather(where), plain, 20)
    with np.errstate(all="raise"):
        assert TT([np.full((1, 2, 1), 1e-200)] * 3).gather((0, 0, 0)) == 0.0


def test_shapes_follow_the_indices():
    train = tt_random((3, 4), 2)
    assert train.gather((1, -1)).shape == ()
    assert train.gather((np.int64(1), np.uint8(2))).shape == ()
    assert train.gather(np.zeros((0, 2), int)).shape == (0,)
    assert train.gather(np.zeros((2, 5, 2), np.uint8)).shape == (2, 5)
    operator = mpo_random((3, 2), (2, 2), 2, like=torch.empty(0))
    assert operator.gather(np.zeros(0, int), 0).shape == (0,)
    assert operator.gather(-1, torch.arange(4)).shape == (4,)


TRAIN, OPERATOR = tt_random((3, 4), 2), mpo_random((3, 2), (2, 2), 2)
BAD = [
    (lambda: TRAIN.gather(np.array([[0, 4]])), IndexError, "axis 1 must be from -4 to 3, got 4"),
    (lambda: TRAIN.gather((np.array([-4]), 0)), IndexError, "axis 0 must be from -3 to 2, got -4"),
    (lambda: TRAIN.gather(np.array([0, 1, 1])), ValueError, r"shape \(..., 2\)"),
    (lambda: TRAIN.gather(np.array(1)), ValueError, r"shape \(..., 2\)"),
    (lambda: TRAIN.gather((0, 1, 1)), ValueError, "each of 2 axes, got 3"),
    (lambda: TRAIN.gather([[0, 1], [1, 1]]), TypeError, r"indices\[0\] must be an integer array"),
    (lambda: TRAIN.gather(np.array([[0.0, 1.0]])), TypeError, "must be integers, got float64"),
    (lambda: TRAIN.gather(np.ones((3, 2), bool)), TypeError, "for a mask"),
    (lambda: TRAIN.gather((True, 0)), TypeError, "integer array"),
    (lambda: TRAIN.gather((np.arange(2), np.arange(3))), ValueError, r"broadcast.*\(2,\), \(3,\)"),
    (lambda: TRAIN.gather(np.full((1, 2), 2**64 - 1, np.uint64)), IndexError, "out of range"),
    (lambda: TRAIN.gather((2**70, 0)), IndexError, "out of range"),
    (lambda: OPERATOR.gather(6, 0), IndexError, "rows must be from -6 to 5, got 6"),
    (lambda: OPERATOR.gather(0, np.array([1, -5])), IndexError, "columns must be .* got -5"),
    (lambda: OPERATOR.gather((2, 2), 0), IndexError, r"rows\[1\] must be from -2 to 1, got 2"),
    (lambda: OPERATOR.gather((2,), 0), ValueError, "each of 2 modes, got 1"),
    (lambda: OPERATOR.gather(0.5, 0), TypeError, "rows must be an integer array"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_indices_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_small_entries_beside_large_ones_are_kept_where_later_cores_make_up_for_them(library):
    a, b = 1e200, 1e-200
    array = LIBRARIES[library]
    first = array(np.array([[a, b], [b, a]]).reshape(1, 2, 2))
    last = array(np.array([[b, a], [a, b]]).reshape(2, 2, 1))
    diagonal = array(np.einsum("ab,i->aib", np.diag([1, b]), [1.0, 1.0]))
    inverse = array(np.einsum("ab,i->aib", np.diag([1, a]), [1.0, 1.0]))
    where = array(np.array([[0, 0], [1, 1]]))
    assert numpy_of(TT([first, last]).gather(where)).tolist() == [2, 2]
    ends = array(np.ones((1, 1, 2))), array(np.ones((2, 1, 1)))
    chain = TT([ends[0], *[diagonal] * 3, *[inverse] * 3, ends[1]])
    found = numpy_of(chain.gather(array(np.zeros((3, 8), int))))
    np.testing.assert_allclose(found, 2, rtol=rounding(np.float64, 16))


def test_derivatives_at_zeros_are_those_of_the_plain_product():
    matrices = [[[0.0, 1.0]], [[1.0, 0.0], [2.0, 3.0]], [[0.0, 0.0], [1.0, 5.0]], [[1.0], [0.0]]]
    plain = [torch.tensor(m, dtype=torch.float64, requires_grad=True) for m in matrices]
    exact = torch.autograd.grad(torch.linalg.multi_dot(plain).sum(), plain)
    scales = (1e200, 1e200, 1e-200, 1e-200)
    leaves = [
        (matrix.detach() * scale)[:, None].requires_grad_()
        for matrix, scale in zip(plain, scales, strict=True)
    ]
    value = TT(leaves).gather(torch.zeros(1, 4, dtype=torch.int64))
    for found, expected, scale in zip(
        torch.autograd.grad(value.sum(), leaves), exact, scales, strict=True
    ):
        assert_close(found[:, 0] * scale, expected, 16)


def test_operators_with_more_rows_than_integers_of_64_bits_are_gathered():
    order = 70
    eye = MPO([np.eye(2).reshape(1, 2, 2, 1)] * order)
    assert eye.gather(2**69, 2**69) == 1.0
    assert eye.gather(2**69, 2**68) == 0.0
    last = np.array([-1, -2, -1, 0])
    assert eye.gather(last, np.array([-1, -2, -3, -1])).tolist() == [1, 1, 0, 0]
    assert eye.gather(-3, 2**70 - 3) == 1.0
    with pytest.raises(IndexError, match="rows must be from"):
        eye.gather(2**70, 0)


def test_small_terms_on_the_way_are_not_lost_where_later_cores_are_large():
    small, large = 1e-160, 1e160
    first = np.array([[[small, 0.0]]])
    middle = np.array([[small, 0.0], [0.0, 1.0]])[:, None]
    last = np.array([large, 1.0])[:, None, None]
    train = TT([first, middle, np.array([[large, 0.0], [0.0, 1.0]])[:, None], last])
    assert train.gather((0, 0, 0, 0)) == pytest.approx(1.0, rel=rounding(np.float64, 16))
