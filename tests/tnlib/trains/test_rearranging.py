"""Permuted and reshaped trains are the permuted and reshaped arrays, within what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.arrays import LIBRARIES, numpy_of, relative
from tests.tolerances import assert_close, rounding
from tnlib import (
    MPO,
    TT,
    load,
    mpo_decompose,
    mpo_random,
    save,
    tt_permute,
    tt_random,
    tt_reshape,
    tt_svd,
)
from tnlib.testing import operators, tensors, trains

LIBRARY = st.sampled_from(sorted(LIBRARIES))
EPS = st.sampled_from([None, 1e-8, 0.05, 0.4])
# Unit roundoffs that orthogonalising and splitting a few small cores may cost.
OPERATIONS = 200


def moved(chain, library):
    return type(chain)(tuple(LIBRARIES[library](core) for core in chain.cores))


def size_of(chain):
    """The norm of the array of absolute values, relative to that of the array."""
    sizes = TT([np.abs(numpy_of(core)) for core in chain._merged()])
    norm = float(chain.norm())
    return float(sizes.norm()) / norm if norm else 1.0


@given(trains(max_order=4, max_size=4), st.data(), LIBRARY, EPS)
def test_a_permuted_train_is_the_permuted_array_within_its_bound(train, data, library, eps):
    axes = data.draw(st.permutations(range(len(train.shape))))
    turned = tt_permute(moved(train, library), axes, eps=eps)
    assert turned.shape == tuple(train.shape[k] for k in axes)
    assert isinstance(turned.cores[0], torch.Tensor) == (library == "torch")
    slack = rounding(np.float64, OPERATIONS, size_of(train))
    true = relative(turned.to_dense(), train.to_dense().transpose(axes))
    assert true <= turned.error + slack
    assert turned.error <= (eps or slack)


@given(tensors(min_order=2, max_order=4, max_size=4), st.data())
def test_permuting_there_and_back_loses_nothing(array, data):
    train = tt_svd(array, eps=1e-12)
    axes = data.draw(st.permutations(range(array.ndim)))
    back = tt_permute(tt_permute(train, axes), np.argsort(axes))
    assert relative(back.to_dense(), array) <= 1e-12 + rounding(np.float64, OPERATIONS)
    for rank, low in zip(back.ranks, train.ranks, strict=True):
        assert rank <= max(low, 1)


@given(operators(max_order=3), st.data(), EPS)
def test_a_permuted_operator_has_its_pairs_of_modes_permuted(operator, data, eps):
    order = len(operator.cores)
    axes = data.draw(st.permutations(range(order)))
    turned = tt_permute(operator, axes, eps=eps)
    both = [*axes, *(order + k for k in axes)]
    dense = operator.to_matrix().reshape(*operator.row_dims, *operator.col_dims)
    exact = dense.transpose(both).reshape(turned.shape)
    slack = rounding(np.float64, OPERATIONS, size_of(operator))
    assert relative(turned.to_matrix(), exact) <= turned.error + slack


@st.composite
def factorings(draw, size):
    """Modes with the given product, some of them 1."""
    modes = []
    while size > 1:
        divisors = [k for k in range(2, size + 1) if size % k == 0]
        modes.append(draw(st.sampled_from(divisors)))
        size //= modes[-1]
    ones = draw(st.lists(st.integers(0, len(modes)), max_size=2))
    for place in ones:
        modes.insert(place, 1)
    return tuple(modes) or (1,)


@given(trains(max_order=4, max_size=4), st.data(), LIBRARY, EPS)
def test_a_reshaped_train_is_the_reshaped_array_and_knows_its_error(train, data, library, eps):
    shape = data.draw(factorings(math.prod(train.shape)))
    made = tt_reshape(moved(train, library), shape, eps=eps)
    assert made.shape == shape
    slack = rounding(np.float64, OPERATIONS, size_of(train))
    true = relative(made.to_dense(), train.to_dense().reshape(shape))
    assert true <= (eps or 0.0) + slack
    assert made.error is None or abs(made.error - true) <= slack
    if eps is not None:
        assert made.error_kind == "exact"


@given(operators(max_order=3), st.data(), EPS)
def test_a_reshaped_operator_is_the_same_matrix(operator, data, eps):
    rows, columns = (data.draw(factorings(n)) for n in operator.shape)
    longer = max(len(rows), len(columns))
    rows, columns = ((1,) * (longer - len(dims)) + dims for dims in (rows, columns))
    made = tt_reshape(operator, (rows, columns), eps=eps)
    assert (made.row_dims, made.col_dims) == (rows, columns)
    slack = rounding(np.float64, OPERATIONS, size_of(operator))
    true = relative(made.to_matrix(), operator.to_matrix())
    assert true <= (eps or 0.0) + slack
    assert made.error is None or abs(made.error - true) <= slack


def test_quantising_a_smooth_vector_finds_short_bonds_and_merging_gives_it_back():
    values = np.exp(np.linspace(0, 1, 64)).reshape(8, 8)
    train = tt_svd(values, eps=1e-12)
    quantised = tt_reshape(train, (2,) * 6, eps=1e-10)
    assert quantised.ranks == (1,) * 7
    whole = tt_reshape(quantised, (64,))
    assert (whole.error, whole.error_kind, whole.center) == (quantised.error, "inherited", 0)
    assert_close(whole.to_dense(), values.reshape(-1), OPERATIONS)
    limited = tt_reshape(tt_svd(np.random.default_rng(0).standard_normal((8, 8)), 8), (2,) * 6, 2)
    assert max(limited.ranks) == 2
    assert 0.1 < limited.error < 1


def test_ranks_limit_every_swap():
    train = tt_random((4, 4, 4, 4), 4, rng=0)
    turned = tt_permute(train, (3, 1, 0, 2), ranks=3)
    assert max(turned.ranks) == 3
    exact = train.to_dense().transpose(3, 1, 0, 2)
    assert relative(turned.to_dense(), exact) <= turned.error
    assert turned.error_kind == "bound"
    assert len(turned.info.kernels) == 4


def test_operators_and_trains_over_pairs_share_their_cores():
    operator = mpo_decompose(np.random.default_rng(0).standard_normal((6, 8)), 3)
    train = operator.as_tt()
    assert np.shares_memory(train.cores[0], operator.cores[0])
    assert (train.error, train.error_kind) == (operator.error, "exact")
    assert train.center == operator.center
    again = MPO.from_tt(train, operator.row_dims, operator.col_dims)
    np.testing.assert_array_equal(again.to_matrix(), operator.to_matrix())
    single = tt_svd(operator.to_matrix().reshape(2, 3, 2, 4).transpose(0, 2, 1, 3), eps=1e-12)
    paired = MPO.from_tt(tt_reshape(single, (4, 12)), (2, 3), (2, 4))
    assert_close(paired.to_matrix(), operator.to_matrix(), OPERATIONS)


def test_half_precision_complex_and_zero_trains_are_rearranged():
    half = tt_random((4, 4, 4), 3, like=torch.empty(0), dtype="bfloat16")
    for made in (tt_permute(half, (2, 1, 0), eps=0.1), tt_reshape(half, (2,) * 6, eps=0.1)):
        assert made.cores[0].dtype == torch.bfloat16
        assert 1e-4 < made.error <= 0.1
    whole = tt_reshape(half, (64,))
    assert whole.cores[0].dtype == torch.bfloat16
    imaginary = tt_random((3, 4, 2), 3, dtype="complex128")
    turned = tt_permute(imaginary, (1, 2, 0))
    assert_close(turned.to_dense(), imaginary.to_dense().transpose(1, 2, 0), OPERATIONS)
    made = tt_reshape(imaginary, (6, 4))
    assert_close(made.to_dense(), imaginary.to_dense().reshape(6, 4), OPERATIONS)
    zero = tt_random((3, 4), 2) * 0.0
    assert tt_permute(zero, (1, 0)).ranks == (1, 1, 1)
    assert tt_reshape(zero, (2, 6)).error == 0.0
    scaled = tt_random((3, 4, 2), 3) * 1e200
    assert tt_permute(scaled, (1, 2, 0)).error < 1e-14
    assert tt_reshape(scaled, (2, 6, 2)).error < 1e-14


def test_what_cancels_to_rounding_is_zero_and_says_so():
    train = tt_random((3, 4, 6), 3)
    for made in (
        tt_permute(train - train, (2, 1, 0), eps=1e-3),
        tt_reshape(train - train, (12, 2, 3), ranks=2),
    ):
        assert not made.to_dense().any()
        assert (made.error, made.info.reason) == (1.0, "cancels to rounding")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex128"])
def test_merging_keeps_an_array_whose_cores_multiplied_are_out_of_range(to_library, dtype):
    name = "float32" if dtype == "float16" else dtype
    room = 6 if dtype == "float16" else 50 if dtype == "float32" else 450
    plain = tt_random((2, 3, 2, 2), 3, rng=1).normalized()
    powers = np.ldexp(1.0, [2 * room, 2 * room, -2 * room, -2 * room])
    cores = [core * power for core, power in zip(plain.cores, powers, strict=True)]
    wild = TT([to_library(core.astype(dtype)) for core in cores])
    made = tt_reshape(wild, (6, 4))
    assert made.cores[0].dtype == wild.cores[0].dtype
    merged = np.asarray(made.to_dense(), dtype=name).reshape(plain.shape)
    assert_close(merged, wild.to_dense(), operations=200, size=9, dtype=dtype)
    assert_close(wild.to_dense(), plain.to_dense(), operations=200, size=9, dtype=dtype)
    assert_close(tt_reshape(wild, (24,)).to_dense(), plain.to_dense().reshape(-1), 200, 9, 1, dtype)
    for factor in (0.25, 4.0):
        out = TT([to_library(np.full((1, 2, 1), factor**room, dtype))] * 3)
        with pytest.raises(ValueError, match=f"{dtype} cannot hold a train of size about 2"):
            tt_reshape(out, (8,))
        assert_close(tt_reshape(out, (2, 2, 2)).cores[0], out.cores[0], 0)


def test_merging_keeps_the_gauge_where_the_products_are_in_range():
    train = tt_random((2,) * 60, 3, like=torch.empty(0), dtype="float32").canonical(40)
    made = tt_reshape(train, (8,) * 20)
    assert made.center == 13
    for core in made.cores[:13]:
        flat = core.reshape(-1, core.shape[2])
        assert_close(flat.mT @ flat, torch.eye(flat.shape[1]), operations=200)


def test_merging_is_differentiable():
    leaves = [
        core.clone().requires_grad_()
        for core in tt_random((2, 3, 2), 2, like=torch.empty(0), dtype="float64").cores
    ]
    assert torch.autograd.gradcheck(lambda *c: tt_reshape(TT(c), (6, 2)).cores, leaves)
    with pytest.raises(ValueError, match="not differentiable"):
        tt_reshape(TT([core * 1 for core in leaves]), (3, 4))


def test_a_bound_is_saved_as_one(tmp_path):
    turned = tt_permute(tt_random((4, 4, 4), 4), (2, 0, 1), ranks=2)
    save(tmp_path / "one.safetensors", {"turned": turned})
    again = load(tmp_path / "one.safetensors")["turned"]
    assert (again.error, again.error_kind) == (turned.error, "bound")


TRAIN, OPERATOR = tt_random((2, 6), 2), mpo_random((2, 3), (4, 2), 2)
BAD = [
    (lambda: tt_permute(np.ones((2, 3)), (1, 0)), TypeError, "takes a TT or an MPO, got ndarray"),
    (lambda: tt_permute(TRAIN, (0, 0)), ValueError, "each must be there once"),
    (lambda: tt_permute(TRAIN, (0,)), ValueError, "not a permutation of 2 axes"),
    (lambda: tt_permute(TRAIN, (0, 2)), ValueError, "not a permutation: every axis must be from"),
    (lambda: tt_permute(TRAIN, (0.0, 1)), TypeError, "every axis must be an integer"),
    (lambda: tt_permute(TRAIN, (1, 0), 0.1), TypeError, "for a tolerance use eps="),
    (lambda: tt_permute(TRAIN, (1, 0), eps=1e-17), ValueError, "cannot be met"),
    (lambda: tt_permute(TRAIN, 2), TypeError, "axes must be a sequence of ints, got 2"),
    (lambda: tt_permute(TRAIN, torch.tensor(2)), TypeError, "axes must be a sequence of ints"),
    (lambda: tt_reshape(TRAIN, (5, 2)), ValueError, "has product 10, expected 12"),
    (lambda: tt_reshape(TRAIN, 12), TypeError, "shape must be a sequence of ints"),
    (lambda: tt_reshape(TRAIN, (-1, 4)), ValueError, "at least 1, got -1"),
    (lambda: tt_reshape(OPERATOR, (6, 8)), TypeError, "row_dims must be a sequence"),
    (lambda: tt_reshape(OPERATOR, (6,)), TypeError, "a pair"),
    (lambda: tt_reshape(OPERATOR, ((6,), (4, 2))), ValueError, "equally many"),
    (lambda: tt_reshape(OPERATOR, ((6,), (7,))), ValueError, "col_dims=.* expected 8"),
    (lambda: MPO.from_tt(OPERATOR, (2,), (2,)), TypeError, "takes a TT, got MPO"),
    (lambda: MPO.from_tt(TRAIN, (2, 3), (2, 2)), ValueError, r"modes \(2, 6\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_calls_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
