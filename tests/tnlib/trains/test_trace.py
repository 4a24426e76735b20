"""Traces of operators are those of the matrices, whole and partial."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.arrays import LIBRARIES, numpy_of
from tests.tolerances import assert_close, rounding
from tnlib import MPO, mpo_random

SEED = st.integers(0, 2**32 - 1)
LIBRARY = st.sampled_from(sorted(LIBRARIES))


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), SEED, LIBRARY, st.data())
def test_traces_are_those_of_the_matrix(dims, seed, library, data):
    dtype = data.draw(st.sampled_from(["float64", "complex128"]))
    like = LIBRARIES[library](np.empty(0))
    operator = mpo_random(dims, dims, 3, rng=seed, dtype=dtype, like=like)
    matrix, order = numpy_of(operator.to_matrix()), len(dims)
    # Every entry is a sum of at most 3^(d - 1) products of d numbers below 6.
    size = np.abs(matrix).sum() + 10.0**order
    terms = 4 * sum(dims) * order
    assert_close(numpy_of(operator.trace()), np.asarray(np.trace(matrix)), terms, size)
    positions = data.draw(st.lists(st.integers(0, order - 1), max_size=order - 1, unique=True))
    rest = [k for k in range(order) if k not in positions]
    axes = list(range(order)), [k if k in positions else order + k for k in range(order)]
    kept = [*rest, *(order + k for k in rest)]
    tensor = np.einsum(matrix.reshape(*dims, *dims), [*axes[0], *axes[1]], kept)
    reduced = operator.partial_trace([k - order for k in positions])
    assert reduced.row_dims == tuple(dims[k] for k in rest)
    side = int(np.prod([dims[k] for k in rest]))
    assert_close(numpy_of(reduced.to_matrix()), tensor.reshape(side, side), terms, size)


def test_tracing_out_in_two_steps_is_tracing_out_at_once():
    operator = mpo_random((2, 3, 2, 2), (2, 3, 2, 2), 3, rng=0)
    once = operator.partial_trace((1, 3))
    twice = operator.partial_trace(3).partial_trace(1)
    assert_close(once.to_matrix(), twice.to_matrix(), 100)
    whole = operator.trace()
    assert whole.shape == ()
    assert_close(once.trace(), whole, 100, float(np.abs(operator.to_matrix()).sum()))
    same = operator.partial_trace(())
    assert_close(same.to_matrix(), operator.to_matrix(), 100)


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_scales_that_cancel_over_the_cores_are_carried(library):
    eye = LIBRARIES[library](np.eye(2).reshape(1, 2, 2, 1))
    operator = MPO([eye * 1e200] * 3 + [eye * 1e-200] * 3)
    assert float(operator.trace()) == pytest.approx(64, rel=rounding(np.float64, 50))
    for positions in ((0, 1, 2), (3, 4, 5), (0, 5), (1, 2, 3, 4, 5)):
        reduced = operator.partial_trace(positions)
        exact = np.eye(2 ** (6 - len(positions))) * 2 ** len(positions)
        assert_close(numpy_of(reduced.to_matrix()), exact, 50)
    many = MPO([eye * 1e10] * 60)
    assert float(many.trace()) == np.inf
    assert many.partial_trace(range(59)).to_dense()[0, 0] == np.inf
    balanced = MPO([eye * 1e10] * 60 + [eye * 0.25e-10] * 60)
    assert float(balanced.trace()) == pytest.approx(1, rel=rounding(np.float64, 500))
    reduced = balanced.partial_trace(range(1, 119))
    assert_close(numpy_of(reduced.to_matrix()), np.eye(4) / 4, 500)


def test_half_precision_is_summed_in_single():
    ones = torch.ones(1, 60, 60, 1, dtype=torch.float16)
    value = MPO([ones * 30, ones * 30]).trace()
    assert (value.dtype, value.item()) == (torch.float32, 1800.0**2)
    reduced = MPO([ones, ones / 2]).partial_trace(0)
    assert reduced.cores[0].dtype == torch.float16
    assert reduced.to_dense()[0, 0] == 30


def test_traces_are_differentiable():
    cores = mpo_random((2, 3, 1), (2, 3, 1), 2, rng=0, like=torch.empty(0)).cores
    leaves = [core.double().requires_grad_() for core in cores]

    def values(*cores):
        operator = MPO(cores)
        ends, middle = operator.partial_trace((0, 2)), operator.partial_trace(1)
        return operator.trace(), ends.cores[0], middle.to_matrix()

    assert torch.autograd.gradcheck(values, leaves, fast_mode=True)
    gradient = torch.func.grad(lambda *c: MPO(c).trace())(*leaves)
    MPO(leaves).trace().backward()
    assert_close(gradient, leaves[0].grad, 20)
    zero = torch.zeros(1, 2, 2, 1, dtype=torch.float64, requires_grad=True)
    MPO([zero, leaves[0][:, :, :, :1].detach()]).partial_trace(1).trace().backward()
    assert torch.isfinite(zero.grad).all()
    assert zero.grad.any()


SQUARE = mpo_random((2, 2), (2, 2), 1)
OPERATOR = mpo_random((2, 3, 2), (2, 2, 2), 2)
BAD = [
    (lambda: OPERATOR.trace(), ValueError, "core 1 has the row mode 3 and the column mode 2"),
    (lambda: OPERATOR.partial_trace(1), ValueError, "square modes, core 1"),
    (lambda: SQUARE.partial_trace(range(2)), ValueError, r"use trace\(\)"),
    (lambda: OPERATOR.partial_trace(3), IndexError, "from -3 to 2, got 3"),
    (lambda: OPERATOR.partial_trace((0, -3)), ValueError, "given once"),
    (lambda: OPERATOR.partial_trace("0"), TypeError, "must be an integer"),
    (lambda: OPERATOR.partial_trace(0.0), TypeError, "must be an integer"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_positions_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
    assert OPERATOR.partial_trace((0, 2)).shape == (3, 2)
