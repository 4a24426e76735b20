"""To and from tensorly without copies, whatever its backend, and its constrained CP."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.cp_tensor import CPTensor
from tensorly.tt_matrix import TTMatrix
from tensorly.tt_tensor import TTTensor
from tensorly.tucker_tensor import TuckerTensor

from tests.arrays import LIBRARIES, numpy_of, relative, tensors
from tests.tolerances import SUBSPACE, assert_close, cancellation, rounding
from tnlib import CP, MPO, TT, Tucker
from tnlib.interop.conversions import cp_constrained, from_tensorly, to_tensorly
from tnlib.testing import cps, operators, trains, tuckers

U = np.finfo(np.float64).eps / 2
LIBRARY = st.sampled_from(sorted(LIBRARIES))
KINDS = {TT: TTTensor, MPO: TTMatrix, Tucker: TuckerTensor, CP: CPTensor}
STRATEGIES = [
    trains,
    operators,
    lambda **kwargs: tuckers(**kwargs).filter(lambda drawn: len(drawn.factors) > 1),
    cps,
]


@pytest.fixture(params=["numpy", "pytorch"])
def backend(request):
    """The backend that the caller has chosen for all threads."""
    before = tensorly.get_backend()
    tensorly.set_backend(request.param)
    yield request.param
    tensorly.set_backend(before)


def arrays_of(decomposition):
    if isinstance(decomposition, TT | MPO):
        return decomposition.cores
    first, factors = decomposition
    return (first, *factors)


def shares_memory(ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        return ours.data_ptr() == theirs.data_ptr() and ours.stride() == theirs.stride()
    return np.shares_memory(ours, theirs) and ours.strides == theirs.strides


def seen_elsewhere():
    """The backend that a new thread finds."""
    seen = []
    thread = threading.Thread(target=lambda: seen.append(tensorly.get_backend()))
    thread.start()
    thread.join()
    return seen[0]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_there_and_back_shares_memory_whatever_the_backend(strategy, library, backend):
    @given(strategy(library=library))
    @settings(max_examples=15)
    def holds(ours):
        theirs = to_tensorly(ours)
        assert type(theirs) is KINDS[type(ours)]
        back = from_tensorly(theirs)
        assert type(back) is type(ours)
        assert (back.shape, back.ranks) == (ours.shape, ours.ranks)
        for first, last in zip(arrays_of(ours), arrays_of(back), strict=True):
            assert shares_memory(first, last)

    holds()
    assert tensorly.get_backend() == seen_elsewhere() == backend


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("library", "name"), [("numpy", "numpy"), ("torch", "pytorch")])
def test_tensorly_forms_the_same_array(strategy, library, name):
    @given(strategy(library=library))
    @settings(max_examples=15)
    def holds(ours):
        theirs = to_tensorly(ours)
        dense = theirs.to_matrix() if isinstance(ours, MPO) else theirs.to_tensor()
        exact = numpy_of(ours.to_dense())
        size = cancellation(ours) * np.linalg.norm(exact)
        operations = sum(np.prod(array.shape) for array in arrays_of(ours))
        assert_close(numpy_of(dense).reshape(exact.shape), exact, operations, size)

    before = tensorly.get_backend()
    tensorly.set_backend(name)
    try:
        holds()
    finally:
        tensorly.set_backend(before)


def test_changes_of_one_are_changes_of_the_other():
    ours = TT((np.ones((1, 2, 3)), np.ones((3, 4, 1))))
    theirs = to_tensorly(ours)
    theirs[0][...] = 5
    assert ours.cores[0].min() == 5
    theirs[0] = np.zeros((1, 2, 3))
    assert ours.cores[0].min() == 5


def test_torch_cores_stay_in_their_graph_and_in_their_dtype():
    cores = (torch.ones(1, 2, 1, dtype=torch.bfloat16, requires_grad=True),)
    theirs = to_tensorly(TT(cores))
    assert theirs[0] is cores[0]
    assert from_tensorly(theirs).cores[0] is cores[0]


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_missing_weights_become_ones(library):
    factors = [LIBRARIES[library](np.ones((n, 2), np.float32)) for n in (3, 4)]
    theirs = CPTensor((factors[0][0], factors))
    theirs.weights = None
    ours = from_tensorly(theirs)
    np.testing.assert_array_equal(numpy_of(ours.weights), [1, 1])
    assert ours.weights.dtype == factors[0].dtype
    assert type(ours.weights) is type(factors[0])


def test_vectors_as_factors_become_columns():
    factors = [np.arange(3.0), np.arange(4.0)]
    ours = from_tensorly(CPTensor((None, factors)))
    assert ours.rank == 1
    assert np.shares_memory(ours.factors[1], factors[1])
    np.testing.assert_array_equal(ours.to_dense(), np.outer(*factors))


def test_decompositions_of_tensorly_come_over():
    array = np.random.default_rng(0).standard_normal((3, 4, 5))
    train = from_tensorly(tensorly.decomposition.tensor_train(array, rank=[1, 3, 5, 1]))
    assert relative(train.to_dense(), array) < 1e-14
    tucker = from_tensorly(tensorly.decomposition.tucker(array, rank=[3, 4, 5]))
    assert relative(tucker.to_dense(), array) < 1e-14


BAD_CONVERSIONS = [
    (to_tensorly, np.ones(3), TypeError, "expected a TT, MPO, Tucker or CP, got ndarray"),
    (to_tensorly, Tucker(np.ones(2), (np.ones((3, 2)),)), ValueError, "at least two factors"),
    (from_tensorly, [np.ones((1, 2, 1))], TypeError, "of tensorly, got list"),
    (from_tensorly, 3, TypeError, "of tensorly, got int"),
    (
        from_tensorly,
        CPTensor((np.ones(2, np.float32), [np.ones((3, 2))])),
        TypeError,
        "must have one dtype, got float32, float64",
    ),
]


@pytest.mark.parametrize(("function", "value", "error", "message"), BAD_CONVERSIONS)
def test_bad_conversions_say_what_is_wrong(function, value, error, message):
    with pytest.raises(error, match=message):
        function(value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: to_tensorly(TT((np.ones((1, 2, 1)),))),
        lambda: from_tensorly(3),
        lambda: cp_constrained(np.eye(2), 1, non_negative=True),
        lambda: cp_constrained(np.zeros((2, 2)), 1, non_negative=True),
    ],
)
def test_without_tensorly_the_message_says_what_to_install(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorly", None)
    with pytest.raises(ImportError, match="pip install tensorly"):
        call()


def positive_terms(shape, rank, seed=1, noise=0.0):
    rng = np.random.default_rng(seed)
    array = np.ones((1, rank))
    for size in shape:
        array = (array[:, None, :] * rng.random((size, rank))).reshape(-1, rank)
    array = array.sum(1).reshape(shape)
    return array + noise * rng.standard_normal(shape)


def map_arrays(cp, function):
    return function(cp.weights), tuple(map(function, cp.factors))


def rounding_of(cp, array):
    """What rounding can do to an error of terms that may cancel each other."""
    operations = cp.rank + array.ndim + array.size
    return rounding(np.float64, operations, size=1 + cancellation(cp, array))


def is_unimodal(column):
    steps = np.sign(np.diff(column))
    return (np.diff(steps[steps != 0]) <= 0).all()


MEETS = {
    "non_negative": (True, lambda factor: (factor >= 0).all()),
    "monotonicity": (True, lambda factor: (np.diff(factor, axis=0) >= 0).all()),
    "unimodality": (True, lambda factor: all(map(is_unimodal, factor.T))),
    "normalize": (True, lambda factor: np.abs(factor).max() == pytest.approx(1)),
    "simplex": (2.0, lambda f: (f >= 0).all() and np.allclose(f.sum(0), 2, rtol=1e-9)),
    "soft_sparsity": (1.5, lambda factor: np.abs(factor).sum(0).max() <= 1.5 * (1 + 1e-9)),
    "hard_sparsity": (3, lambda factor: np.count_nonzero(factor) <= 3),
    "normalized_sparsity": (
        3,
        lambda f: np.count_nonzero(f) <= 3 and np.linalg.norm(f) == pytest.approx(1),
    ),
}
PENALTIES = ["group_lasso", "l1_reg", "l2_reg", "l2_square_reg", "smoothness"]


@pytest.mark.parametrize("name", MEETS)
@pytest.mark.parametrize("sign", [1, -1])
def test_constrained_factors_meet_their_constraint_and_the_error_is_exact(name, sign):
    value, meets = MEETS[name]

    @given(tensors(min_order=2, max_order=4), st.integers(2, 4), LIBRARY, st.data())
    @settings(max_examples=15)
    def holds(array, rank, library, data):
        mode = data.draw(st.integers(0, array.ndim - 1))
        X = LIBRARIES[library](sign * np.abs(array))
        cp = cp_constrained(X, rank, max_iter=7, **{name: {mode: value}})
        assert meets(numpy_of(cp.factors[mode]))
        assert abs(cp.error - relative(cp.to_dense(), X)) <= rounding_of(cp, array)
        assert (cp.error_kind, cp.shape, cp.rank) == ("exact", array.shape, rank)

    holds()


@given(tensors(min_order=2, max_order=4), st.integers(1, 4), LIBRARY)
@settings(max_examples=30)
def test_all_factors_are_non_negative_whatever_the_signs_of_the_data(array, rank, library):
    cp = cp_constrained(LIBRARIES[library](array), rank, non_negative=True, max_iter=12)
    assert all((numpy_of(factor) >= 0).all() for factor in cp.factors)
    assert abs(cp.error - relative(cp.to_dense(), array)) <= rounding_of(cp, array)
    assert cp.error <= 1 + 50 * U


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        *((name, 1e-7) for name in PENALTIES),
        ("l1_reg", {0: 1e-7, 2: 1e-7}),
        ("smoothness", [None, 1e-7, None]),
    ],
)
def test_light_penalties_leave_the_terms_nearly_exact(name, weights):
    array = positive_terms((6, 7, 8), 2)
    cp = cp_constrained(array, 2, max_iter=300, **{name: weights})
    assert cp.error < 1e-3


@pytest.mark.parametrize("name", PENALTIES)
def test_heavier_penalties_cost_accuracy(name):
    array = positive_terms((6, 7, 8), 2)
    light, heavy = (cp_constrained(array, 2, **{name: {1: w}}) for w in (1e-7, 3e-3))
    assert light.error < 1e-6
    assert heavy.error > 1e-4


@pytest.mark.parametrize("constraints", [{"non_negative": True}, {"non_negative": {0: True}}])
def test_positive_terms_are_found(constraints):
    cp = cp_constrained(positive_terms((6, 7, 8), 3), 3, max_iter=1000, **constraints)
    assert cp.error < 1e-3
    assert cp.info.kernels == ("tensorly",)
    assert cp.info.compute_dtype == "float64"


def test_inactive_constraints_do_not_stop_the_sweeps():
    array = positive_terms((6, 7, 8), 3)
    theirs, errors = tensorly.decomposition.constrained_parafac(
        array, 3, non_negative={0: True}, init="random", random_state=0, return_errors=True
    )
    cp = cp_constrained(array, 3, non_negative={0: True})
    assert len(errors) < 60
    assert cp.error < 0.3 * relative(tensorly.cp_to_tensor(theirs), array)


def test_constraints_may_differ_from_mode_to_mode():
    array = np.cumsum(positive_terms((6, 7, 8), 2), axis=1)
    cp = cp_constrained(
        array, 2, non_negative=[True, False, None], monotonicity={-2: True}, l1_reg={2: 1e-9}
    )
    assert (cp.factors[0] >= 0).all()
    assert (np.diff(cp.factors[1], axis=0) >= 0).all()
    assert cp.error < 0.1


@pytest.mark.parametrize("shape", [(1, 1, 6), (3, 4), (2, 1, 3)])
def test_negative_data_need_no_negative_factor_where_another_is_free(shape):
    cp = cp_constrained(-positive_terms(shape, 1), 1, non_negative={0: True})
    assert (cp.factors[0] >= 0).all()
    assert cp.error < 1e-6


@pytest.mark.parametrize("scale", [1e-200, 1e-12, 1e12, 1e200])
def test_the_scale_of_the_data_does_not_matter(scale):
    array = positive_terms((4, 5, 6), 2, noise=0.1)
    plain, scaled = (cp_constrained(a, 2, non_negative={0: True}) for a in (array, array * scale))
    assert scaled.error == pytest.approx(plain.error, rel=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_the_result_has_the_library_and_dtype_of_the_data(dtype, to_library):
    array = to_library(np.rint(9 * positive_terms((3, 4, 5), 2)).astype(dtype))
    cp = cp_constrained(array, 2, non_negative=True)
    expected = array.dtype if dtype is not np.int64 else (array * 1.0).dtype
    assert all(type(a) is type(array) and a.dtype == expected for a in arrays_of(cp))
    dense = CP(*map_arrays(cp, lambda a: numpy_of(a).astype(np.float64))).to_dense()
    assert cp.error == pytest.approx(relative(dense, array), rel=1e-6)


def test_bfloat16_and_a_dtype_that_was_asked_for():
    array = torch.from_numpy(positive_terms((3, 4, 5), 2)).bfloat16()
    cp = cp_constrained(array, 2, non_negative=True)
    assert cp.weights.dtype == torch.bfloat16
    assert 1e-4 < cp.error < 0.02
    assert (
        cp_constrained(array, 2, non_negative=True, dtype="float64").weights.dtype == torch.double
    )


@given(LIBRARY, st.integers(2, 3), st.sampled_from(sorted(MEETS)))
@settings(max_examples=20)
def test_zero_data_have_error_zero_and_factors_that_meet_the_constraint(library, rank, name):
    value, meets = MEETS[name]
    cp = cp_constrained(LIBRARIES[library](np.zeros((5, 1, 3))), rank, **{name: value})
    assert cp.error == 0.0
    assert not numpy_of(cp.to_dense()).any()
    assert all(meets(numpy_of(factor)) for factor in cp.factors)
    assert (cp.info.converged, cp.info.reason) == (True, "the array is zero")


def test_the_trace_ends_with_the_error_and_says_whether_it_converged():
    array = positive_terms((6, 7, 8), 2, noise=0.1)
    done = cp_constrained(array, 2, non_negative=True, tol=1e-6)
    assert done.info.converged
    assert done.info.reason == "the error changed by at most tol"
    assert done.info.n_iter == len(done.info.trace) < 200
    assert done.info.trace[-1] == pytest.approx(done.error, abs=1e-7)
    assert abs(done.info.trace[-1] - done.info.trace[-2]) <= 1e-6
    cut = cp_constrained(array, 2, non_negative={1: True}, tol=0, max_iter=7)
    assert (cut.info.converged, cut.info.n_iter) == (False, 7)
    assert cut.info.reason == "max_iter was reached"


def test_a_seed_decides_and_the_global_one_is_left_alone():
    array = positive_terms((4, 5, 6), 2, noise=0.1)
    state = np.random.get_state()[1].copy()
    torch_state = torch.get_rng_state()
    calls = [
        (array, 3),
        (array, np.random.default_rng(3)),
        (torch.from_numpy(array), 3),
        (array, 4),
    ]
    first, again, other_library, other = (
        numpy_of(cp_constrained(X, 2, l1_reg=0.01, rng=rng, max_iter=5).factors[0])
        for X, rng in calls
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(first, other_library, rtol=SUBSPACE, atol=SUBSPACE)
    assert np.abs(first - other).max() > 1e-6
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_the_backend_of_nobody_changes(backend):
    array = torch.from_numpy(positive_terms((3, 4, 5), 2))
    other = {"numpy": "pytorch", "pytorch": "numpy"}[backend]
    seen = []

    def work():
        tensorly.set_backend(other, local_threadsafe=True)
        cp_constrained(array, 2, monotonicity=True, max_iter=5)
        to_tensorly(TT((torch.ones(1, 2, 1),)))
        seen.append(tensorly.get_backend())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [other]
    assert tensorly.get_backend() == seen_elsewhere() == backend
    cp_constrained(array, 2, non_negative=True, max_iter=5)
    assert tensorly.get_backend() == seen_elsewhere() == backend


def test_data_are_not_modified_and_the_result_owns_its_memory(to_library):
    array = positive_terms((3, 4, 5), 2)
    X = to_library(array.copy())
    for constraints in ({"non_negative": True}, {"normalize": {0: True}}):
        cp = cp_constrained(X, 2, max_iter=5, **constraints)
        for factor in cp.factors:
            factor *= 2
        np.testing.assert_array_equal(numpy_of(X), array)


def test_a_parameter_is_read_as_data():
    parameter = torch.nn.Parameter(torch.from_numpy(positive_terms((3, 4), 1)))
    assert not cp_constrained(parameter, 1, non_negative=True).weights.requires_grad


ONES = np.ones((2, 3))
BAD_CALLS = [
    ([[1.0]], 1, {}, TypeError, "got list"),
    (np.ones(3), 1, {}, ValueError, r"two axes or more, got \(3,\)"),
    (np.ones((2, 0)), 1, {}, ValueError, "is empty"),
    (ONES * 1j, 1, {}, TypeError, "real data, got complex128"),
    (np.array([[1.0, np.nan]]), 1, {}, ValueError, "nan or inf"),
    (torch.tensor([[1.0, -float("inf")]]), 1, {}, ValueError, "nan or inf"),
    (ONES, 0, {}, ValueError, "rank must be at least 1, got 0"),
    (ONES, 1.5, {}, TypeError, "rank must be an integer"),
    (ONES, 1, {"tol": -1}, ValueError, "tol must be a finite number of at least 0"),
    (ONES, 1, {"max_iter": 0}, ValueError, "max_iter must be at least 1"),
    (ONES, 1, {"rng": "seed"}, TypeError, "rng must be"),
    (ONES, 1, {"dtype": "int8"}, TypeError, "dtype must be one of"),
    (ONES, 1, {"non_negative": None}, ValueError, "no mode is constrained"),
    (ONES, 1, {"non_negative": {0: False}}, ValueError, "no mode is constrained"),
    (ONES, 1, {"non_negative": 1}, TypeError, "non_negative must be True, False or None, got 1"),
    (ONES, 1, {"non_negative": [True]}, ValueError, "one value for each of 2 modes"),
    (ONES, 1, {"non_negative": {2: True}}, ValueError, "a mode of non_negative must be from -2"),
    (ONES, 1, {"non_negative": {"a": True}}, TypeError, "must be an integer, got 'a'"),
    (ONES, 1, {"non_negative": {0: True, -2: True}}, ValueError, "names a mode twice"),
    (ONES, 1, {"unimodality": {0: True}}, ValueError, "mode 0 has two constraints, .*unimodality"),
    (ONES, 1, {"l1_reg": 0.0}, ValueError, "l1_reg must be positive, got 0.0"),
    (ONES, 1, {"l1_reg": True}, TypeError, r"l1_reg must be a real number, got True \(bool\)"),
    (ONES, 1, {"simplex": {0: -1.0}}, ValueError, "simplex must be a finite number of at least 0"),
    (ONES, 1, {"simplex": {0: 1.0}}, ValueError, "no simplex constraint for rank 1"),
    (ONES, 1, {"hard_sparsity": 1.5}, TypeError, "hard_sparsity must be an integer"),
    (ONES, 1, {"sparsity": 1}, TypeError, "unknown constraint 'sparsity'; the constraints are gro"),
    (ONES, 1, {"l1_reg": 1e9}, ValueError, "solver broke down"),
]


@pytest.mark.parametrize(("array", "rank", "arguments", "error", "message"), BAD_CALLS)
def test_bad_calls_say_what_is_wrong(array, rank, arguments, error, message):
    named = {"non_negative", "simplex", "hard_sparsity", "sparsity", "l1_reg"} & set(arguments)
    with pytest.raises(error, match=message):
        cp_constrained(array, rank, **({} if named else {"non_negative": {0: True}}), **arguments)
