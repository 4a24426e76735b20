"""Arithmetic of trains and operators is arithmetic of the arrays they stand for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.arrays import LIBRARIES, numpy_of
from tests.tolerances import cancellation, rounding
from tnlib import MPO, TT, mpo_decompose, mpo_random, tt_random, tt_svd

LIBRARY = st.sampled_from(sorted(LIBRARIES))
SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4)
SEED = st.integers(0, 2**32 - 1)


def like(library):
    return LIBRARIES[library](np.empty(0))


@st.composite
def pairs(draw, operators=False):
    """Two trains, or two operators, of the same modes and their own ranks."""
    rows = draw(SIZES)
    columns = draw(st.lists(st.integers(1, 3), min_size=len(rows), max_size=len(rows)))
    template = like(draw(LIBRARY))
    made = []
    for _ in range(2):
        rank, seed = draw(st.integers(1, 4)), draw(SEED)
        if operators:
            made.append(mpo_random(rows, columns, rank, rng=seed, like=template))
        else:
            made.append(tt_random(rows, rank, rng=seed, like=template))
    return made


def check(result, expected):
    np.testing.assert_allclose(
        numpy_of(result), expected, atol=1e-10 * (1 + np.abs(expected).max())
    )


def added(chain):
    """The norm of what is added up in the dense form, which may be much smaller."""
    return cancellation(chain) * np.linalg.norm(numpy_of(chain.to_dense()))


def rounding_of(a, b, size):
    """Rounding of a number that has all bonds and modes of both chains behind it."""
    operations = sum(np.prod(core.shape) for chain in (a, b) for core in chain.cores)
    return rounding(np.float64, operations, size)


@given(st.one_of(pairs(), pairs(operators=True)))
def test_sums_differences_and_multiples_are_those_of_the_arrays(pair):
    a, b = pair
    x, y = numpy_of(a.to_dense()), numpy_of(b.to_dense())
    check((a + b).to_dense(), x + y)
    check((a - b).to_dense(), x - y)
    check((2.5 * a).to_dense(), 2.5 * x)
    check((a * np.float64(2.5)).to_dense(), 2.5 * x)
    check((-a / 4).to_dense(), -x / 4)
    assert type(a + b) is type(a)
    if len(a.cores) > 1:
        assert (a + b).ranks[1:-1] == tuple(
            p + q for p, q in zip(a.ranks[1:-1], b.ranks[1:-1], strict=True)
        )


@given(st.one_of(pairs(), pairs(operators=True)))
def test_hadamard_inner_and_norm_are_those_of_the_arrays(pair):
    a, b = pair
    x, y = numpy_of(a.to_dense()), numpy_of(b.to_dense())
    check(a.hadamard(b).to_dense(), x * y)
    scale = added(a) * added(b)
    assert float(a.inner(b)) == pytest.approx(np.vdot(x, y), abs=rounding_of(a, b, scale))
    assert float(a.norm()) == pytest.approx(np.linalg.norm(x), abs=rounding_of(a, a, added(a)))


@given(pairs())
def test_the_norm_of_a_difference_does_not_cancel(pair):
    a, _ = pair
    moved = a * (1 + 1e-12)
    # The entries of a core move by 1e-12, give or take a rounding of themselves.
    rounded = rounding_of(a, a, added(a))
    assert float((moved - a).norm()) == pytest.approx(1e-12 * float(a.norm()), abs=rounded)


@given(pairs(), st.data())
def test_every_canonical_form_is_the_same_array_with_orthonormal_sides(pair, data):
    train, _ = pair
    order = len(train.cores)
    center = data.draw(st.integers(0, order - 1))
    canonical = train.canonical(center)
    assert canonical.center == center
    check(canonical.to_dense(), numpy_of(train.to_dense()))
    for k, core in enumerate(map(numpy_of, canonical.cores)):
        left, right = core.reshape(-1, core.shape[2]), core.reshape(core.shape[0], -1)
        if k < center:
            np.testing.assert_allclose(left.T @ left, np.eye(left.shape[1]), atol=1e-13)
        if k > center:
            np.testing.assert_allclose(right @ right.T, np.eye(right.shape[0]), atol=1e-13)
    norm = np.linalg.norm(numpy_of(canonical.cores[center]))
    assert norm == pytest.approx(float(train.norm()), abs=rounding_of(train, train, added(train)))


@given(st.one_of(pairs(), pairs(operators=True)))
def test_any_gauge_can_be_balanced(pair):
    chain, _ = pair
    even = chain.balanced()
    check(even.to_dense(), numpy_of(chain.to_dense()))
    merged = [core.reshape(core.shape[0], -1, core.shape[-1]) for core in map(numpy_of, even.cores)]
    for left, right in itertools.pairwise(merged):
        assert left.shape[2] == right.shape[0]
    if len(merged) == 2:
        first, second = merged[0][0], merged[1][:, :, 0]
        np.testing.assert_allclose(first.T @ first, second @ second.T, atol=1e-10 * len(first))


@given(SIZES, st.data())
def test_products_with_operators_are_those_of_the_matrices(rows, data):
    order = len(rows)
    sizes = st.lists(st.integers(1, 3), min_size=order, max_size=order)
    inner, columns = data.draw(sizes), data.draw(sizes)
    template = like(data.draw(LIBRARY))
    a = mpo_random(rows, inner, 3, rng=data.draw(SEED), like=template)
    b = mpo_random(inner, columns, 2, rng=data.draw(SEED), like=template)
    vector = tt_random(inner, 2, rng=data.draw(SEED), like=template)
    left, right = numpy_of(a.to_matrix()), numpy_of(b.to_matrix())
    check((a @ b).to_matrix(), left @ right)
    check((a @ vector).to_dense().reshape(-1), left @ numpy_of(vector.to_dense()).ravel())
    check(a.T.to_matrix(), left.T)
    i, j = (
        data.draw(st.integers(0, left.shape[0] - 1)),
        data.draw(st.integers(0, left.shape[1] - 1)),
    )
    check(a.entry(i, j), left[i, j])
    check(a.row(i).to_dense().reshape(-1), left[i])
    check(a.column(-1).to_dense().reshape(-1), left[:, -1])


@given(SIZES, LIBRARY, SEED, st.data())
def test_slices_of_a_train_are_slices_of_the_array(sizes, library, seed, data):
    train = tt_random(sizes, 3, rng=seed, like=like(library))
    array = numpy_of(train.to_dense())
    index = st.one_of(
        *[
            st.sampled_from(
                [0, -1, slice(None), slice(0, 1), slice(None, None, -1), slice(-2, None)]
            )
        ]
    )
    key = tuple(data.draw(index) for _ in sizes)
    check(as_array(train[key]), array[key])
    check(as_array(train[0, ...]), array[0, ...])
    check(as_array(train[..., -1]), array[..., -1])
    check(as_array(train[-1]), array[-1])


def as_array(result):
    return result.to_dense() if isinstance(result, TT) else result


def test_random_trains_have_the_ranks_asked_for_and_unit_variance():
    train = tt_random((20, 30, 40), (4, 6), rng=1)
    assert train.ranks == (1, 4, 6, 1)
    assert tt_svd(train.to_dense(), eps=1e-10).ranks == (1, 4, 6, 1)
    means = [np.var(tt_random((20, 30, 40), (4, 6), rng=seed).to_dense()) for seed in range(40)]
    assert np.mean(means) == pytest.approx(1.0, abs=0.15)
    assert mpo_random((2, 3), (4, 5), 100).ranks == (1, 8, 1)
    again = tt_random((20, 30, 40), (4, 6), rng=1)
    np.testing.assert_array_equal(train.cores[1], again.cores[1])
    other = tt_random((3, 3), 2, dtype="bfloat16", like=torch.empty(0))
    assert other.cores[0].dtype == torch.bfloat16
    assert np.iscomplexobj(tt_random((3, 3), 2, dtype="complex128").to_dense())


def test_complex_chains_conjugate_where_they_should():
    a, b = (mpo_random((3, 2), (2, 4), 2, rng=seed, dtype="complex128") for seed in (0, 1))
    x, y = a.to_matrix(), b.to_matrix()
    assert complex(a.inner(b)) == pytest.approx(np.vdot(x, y))
    assert float(a.norm()) == pytest.approx(np.linalg.norm(x))
    np.testing.assert_allclose(a.conj().T.to_matrix(), x.conj().T)
    np.testing.assert_allclose((1j * a - b).to_matrix(), 1j * x - y, atol=1e-12)
    np.testing.assert_allclose(a.balanced().to_matrix(), x, atol=1e-12)
    real = mpo_random((3, 2), (2, 4), 2)
    np.testing.assert_allclose((real * 2j).to_matrix(), real.to_matrix() * 2j)


def test_multiples_keep_dtype_gauge_and_library():
    train = tt_svd(torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)), 3)
    assert sum([train, train]).ranks == (train + train).ranks
    for scaled in (2 * train, np.float64(2) * train, train * np.array(2.0), train / 2):
        assert scaled.cores[0].dtype == torch.float32
        assert scaled.center == train.center
        assert (scaled.error, scaled.error_kind) == (None, "none")
    mixed = train + tt_random((4, 5, 6), 2, like=torch.empty(0), dtype="float64")
    assert mixed.cores[0].dtype == torch.float64


def test_arithmetic_is_differentiable():
    first = tt_random((2, 3, 2), 2, rng=0, like=torch.empty(0), dtype="float64").cores
    second = tt_random((2, 3, 2), 2, rng=1, like=torch.empty(0), dtype="float64").cores
    leaves = [core.clone().requires_grad_() for core in (*first, *second)]

    def values(*cores):
        a, b = TT(cores[:3]), TT(cores[3:])
        total = (a + 2 * b - a.hadamard(b)) / 3
        return total.to_dense(), total.norm(), a.inner(b), a[1, :, 0].to_dense()

    assert torch.autograd.gradcheck(values, leaves)
    operator = [core.reshape(*core.shape[:2], 1, core.shape[2]) for core in leaves[:3]]
    product = (MPO(operator).T @ MPO(operator)).to_matrix()
    (gradient,) = torch.autograd.grad(product.sum(), leaves[0])
    assert torch.isfinite(gradient).all()


def test_the_norm_of_the_zero_train_has_gradient_zero():
    core = torch.zeros(1, 3, 1, requires_grad=True)
    value = TT([core]).norm()
    value.backward()
    assert value.item() == 0.0
    assert not core.grad.any()


def test_the_norm_has_first_and_second_derivatives_at_any_scale():
    for scale in (1.0, 1e160, 1e-160):
        leaves = [
            core.clone().requires_grad_()
            for core in tt_random((2, 3), 2, like=torch.empty(0), dtype="float64").cores
        ]
        value = (TT(leaves) * scale).norm()
        exact = torch.linalg.norm(TT(leaves).to_dense()) * scale
        assert value.item() == pytest.approx(exact.item(), rel=1e-13)
        ours = torch.autograd.grad(value, leaves)
        for a, b in zip(ours, torch.autograd.grad(exact, leaves), strict=True):
            torch.testing.assert_close(a, b)
    assert torch.autograd.gradgradcheck(lambda *cores: TT(cores).norm(), leaves)


def test_results_never_share_memory_with_what_they_came_from():
    array = np.random.default_rng(0).standard_normal(5)
    train = TT([array.reshape(1, 5, 1)])
    for other in (train.canonical(0), train.balanced(), tt_svd(array, 1)):
        assert not np.shares_memory(other.cores[0], array)


def test_error_is_inherited_by_gauges_and_forgotten_by_arithmetic():
    mpo = mpo_decompose(np.random.default_rng(0).standard_normal((16, 16)), 3)
    assert mpo.canonical(0).error == mpo.error
    assert mpo.canonical(0).error_kind == "inherited"
    assert mpo.T.error_kind == "exact"
    assert (mpo + mpo).error is None
    assert repr(mpo).startswith(
        "MPO(shape=(16, 16), row_dims=(4, 4), col_dims=(4, 4), ranks=(1, 3, 1), n_params="
    )


TRAIN = tt_random((2, 3), 2)
OPERATOR = mpo_random((2, 3), (2, 2), 2)
BAD = [
    (lambda: TRAIN + OPERATOR, TypeError, "another TT, got MPO"),
    (lambda: TRAIN + 1, TypeError, "unsupported operand"),
    (lambda: TRAIN - tt_random((3, 2), 2), ValueError, r"\(2, 3\) and \(3, 2\)"),
    (lambda: TRAIN + tt_random((2, 3), 2, like=torch.empty(0)), TypeError, "one library"),
    (lambda: TRAIN * TRAIN, TypeError, r"a.hadamard\(b\)"),
    (lambda: TRAIN * np.ones(3), TypeError, "must be a number, got ndarray"),
    (lambda: TRAIN * "2", TypeError, "must be a number, got str"),
    (lambda: TRAIN * True, TypeError, "must be a number, got bool"),
    (lambda: TRAIN / 0, ZeroDivisionError, "division by zero"),
    (lambda: TRAIN.inner(OPERATOR), TypeError, "another TT"),
    (lambda: TRAIN.hadamard(tt_random((2, 4), 1)), ValueError, "the modes must agree"),
    (lambda: TRAIN.canonical(2), ValueError, "from -2 to 1, got 2"),
    (lambda: TRAIN.canonical(1.0), TypeError, "center must be an integer"),
    (lambda: TRAIN[0, 0, 0], IndexError, "3 indices for a train of 2 axes"),
    (lambda: TRAIN[0, 3], IndexError, "index of axis 1 must be from -3 to 2, got 3"),
    (lambda: TRAIN[5:], ValueError, "slice of axis 0, of size 2, is empty"),
    (lambda: TRAIN["a"], TypeError, "must be an integer, got 'a'"),
    (lambda: TRAIN[..., ...], IndexError, "at most one ellipsis"),
    (lambda: TRAIN[np.array([0, 1])], TypeError, "must be an integer"),
    (lambda: TRAIN[True], TypeError, "must be an integer, got True"),
    (lambda: list(TRAIN), TypeError, "not iterable"),
    (lambda: TT([np.ones((1, 2, 1), int)]), TypeError, r"floating point \(.*\), got int64"),
    (lambda: OPERATOR @ tt_random((3, 2), 1), ValueError, r"\(2, 2\) meet the modes \(3, 2\)"),
    (lambda: OPERATOR @ OPERATOR, ValueError, "meet the modes"),
    (lambda: OPERATOR @ np.ones((4, 4)), TypeError, "for arrays use matvec"),
    (lambda: OPERATOR.row(6), IndexError, "i must be from -6 to 5, got 6"),
    (lambda: OPERATOR.entry(0, 4), IndexError, "j must be from -4 to 3, got 4"),
    (lambda: OPERATOR.column(0.5), TypeError, "j must be an integer"),
    (lambda: tt_random((2, 3), 0), ValueError, "at least 1"),
    (lambda: tt_random((2, 3), None), TypeError, "ranks must be given"),
    (lambda: tt_random((), 2), ValueError, "must not be empty"),
    (lambda: tt_random(4, 2), TypeError, "sequence of ints"),
    (lambda: tt_random((2, 3), 2, dtype="int8"), TypeError, "dtype must be one of"),
    (lambda: tt_random((2, 3), 2, like=[1.0]), TypeError, "got list"),
    (lambda: mpo_random((2, 3), (2,), 2), ValueError, "equally many"),
    (lambda: TT([np.full((1, 2, 1), np.nan)]).norm(), ValueError, "core 0 contains nan or inf"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_calls_say_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_gauges_of_cores_in_a_graph_are_refused():
    core = torch.ones(1, 2, 1, requires_grad=True) * 2
    for call in (lambda: TT([core]).canonical(0), lambda: TT([core]).balanced()):
        with pytest.raises(ValueError, match="not differentiable"):
            call()


@pytest.mark.parametrize(
    "value", [np.array("a"), np.array(None), np.datetime64("2020"), np.bool_(True), "2", [2]]
)
def test_what_is_no_number_is_no_factor(value):
    train = tt_random((2, 3), 2)
    for use in (lambda: train * value, lambda: train / value):
        with pytest.raises(TypeError, match="must be a number, got"):
            use()
