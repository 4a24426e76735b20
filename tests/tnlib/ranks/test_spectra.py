"""Spectra of bonds are those of the unfoldings, and entropies follow from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.arrays import LIBRARIES, numpy_of
from tests.tolerances import rounding
from tnlib import MPO, TT, mpo_random, tt_random, tt_svd
from tnlib.testing import operators, trains

LIBRARY = st.sampled_from(sorted(LIBRARIES))


def moved(chain, library):
    return type(chain)(tuple(LIBRARIES[library](core) for core in chain.cores))


def unfoldings(chain):
    """The dense matrix of every bond."""
    modes = [core.shape[1:-1] for core in chain.cores]
    flat = TT(chain._merged()).to_dense()
    sizes = [math.prod(mode) for mode in modes]
    return [flat.reshape(math.prod(sizes[:k]), -1) for k in range(1, len(sizes))]


def off(chain):
    """What rounding may move a singular value: that of the train of absolute values."""
    sizes = TT([np.abs(core) for core in chain._merged()])
    operations = 4 * sum(core.size for core in chain.cores)
    return rounding(np.float64, operations, np.linalg.norm(sizes.to_dense()))


@given(st.one_of(trains(), operators()), LIBRARY)
def test_schmidt_values_are_the_singular_values_of_the_unfoldings(chain, library):
    found = moved(chain, library).singular_values()
    assert len(found) == len(chain.cores) - 1
    for values, matrix, rank in zip(found, unfoldings(chain), chain.ranks[1:], strict=False):
        assert isinstance(values, torch.Tensor) == (library == "torch")
        values = numpy_of(values)
        assert 1 <= len(values) <= rank
        exact = np.linalg.svd(matrix, compute_uv=False)
        padded = np.zeros(max(len(exact), len(values)))
        padded[: len(values)] = values
        exact = np.pad(exact, (0, len(padded) - len(exact)))
        assert np.abs(padded - exact).max() <= off(chain)


@given(trains(), LIBRARY, st.sampled_from([0.5, 2.0, 3.0]))
def test_entropies_fall_with_their_order_and_are_at_most_the_logarithm_of_the_rank(
    train, library, alpha
):
    chain = moved(train, library)
    hartley, mine, collision = (chain.entropies(a) for a in (0, alpha, math.inf))
    slack = rounding(np.float64, 100)
    for values, low, middle, high in zip(
        chain.singular_values(), collision, mine, hartley, strict=True
    ):
        count = len(values)
        assert high == (pytest.approx(math.log(count)) if float(values[0]) else 0.0)
        assert -slack <= low <= middle + slack <= high + 2 * slack
    near = chain.entropies(1 + 1e-6)
    assert chain.entropies() == pytest.approx(near, abs=1e-4)


def test_entropies_of_a_known_state():
    shares = np.array([0.5, 0.25, 0.25])
    state = tt_svd(np.diag(np.sqrt(shares)) * 7.0, eps=1e-10)
    expected = {
        0: math.log2(3),
        0.5: 2 * math.log2(np.sqrt(shares).sum()),
        1: 1.5,
        2: -math.log2((shares**2).sum()),
        math.inf: 1.0,
    }
    for alpha, value in expected.items():
        assert state.entropies(alpha, base=2)[0] == pytest.approx(value, rel=1e-12)
    normalized = state.singular_values(normalized=True)[0]
    np.testing.assert_allclose(normalized**2, shares, rtol=1e-12)
    assert state.entropies(1000)[0] == pytest.approx(math.log(2) * 1000 / 999, rel=1e-9)


def test_scales_and_long_chains_have_spectra():
    train = tt_random((2, 3, 2, 3), 3, rng=1)
    exact = train.singular_values(normalized=True)
    spread = TT(
        [core * s for core, s in zip(train.cores, (1e200, 1e200, 1e250, 1e-300), strict=True)]
    )
    for a, b in zip(exact, spread.singular_values(normalized=True), strict=True):
        np.testing.assert_allclose(a, b, atol=rounding(np.float64, 1000))
    assert all(np.isinf(values).all() for values in spread.singular_values())
    back = TT([spread.cores[0] * 1e-200, spread.cores[1] * 1e-200, *spread.cores[2:]]) * 1e50
    for a, b in zip(train.singular_values(), back.singular_values(), strict=True):
        np.testing.assert_allclose(a, b, atol=rounding(np.float64, 1000, float(train.norm())))
    eye = MPO([16 * np.eye(2).reshape(1, 2, 2, 1)] * 300)
    assert set(eye.entropies()) == {0.0}
    assert set(map(len, eye.singular_values())) == {1}


def test_zeros_single_cores_and_other_dtypes():
    zero = TT([np.zeros((1, 2, 3)), np.ones((3, 2, 1))])
    assert zero.singular_values()[0].tolist() == [0.0]
    assert zero.singular_values(normalized=True)[0].tolist() == [0.0]
    assert zero.entropies() == (0.0,)
    assert tt_random((5,), 1).singular_values() == ()
    assert tt_random((5,), 1).entropies() == ()
    half = tt_random((4, 5, 6), 3, like=torch.empty(0), dtype="bfloat16")
    assert half.singular_values()[0].dtype == torch.float64
    wide = TT([core.double() for core in half.cores])
    assert half.entropies() == pytest.approx(wide.entropies(), rel=1e-12)
    turned = mpo_random((2, 3), (3, 2), 4, dtype="complex64")
    matrix = np.moveaxis(turned.to_matrix().reshape(2, 3, 3, 2), 2, 1).reshape(6, 6)
    exact = np.linalg.svd(matrix, compute_uv=False)[:4]
    allowed = rounding(np.float32, 100, exact[0])
    np.testing.assert_allclose(turned.singular_values()[0], exact, atol=allowed)


TRAIN = tt_random((2, 3), 2)
BAD = [
    (lambda: TRAIN.entropies(-1), ValueError, "alpha must be at least 0, got -1"),
    (lambda: TRAIN.entropies(math.nan), ValueError, "alpha must be at least 0"),
    (lambda: TRAIN.entropies("1"), TypeError, "alpha must be a real number"),
    (lambda: TRAIN.entropies(base=1), ValueError, "base must be a finite number above 1"),
    (lambda: TRAIN.singular_values(normalized=2), TypeError, "True, False or None"),
    (lambda: TT([np.full((1, 2, 1), np.inf)] * 2).entropies(), ValueError, "nan or inf"),
    (
        lambda: TT([torch.ones(1, 2, 1, requires_grad=True) * 2] * 2).entropies(),
        ValueError,
        "not differentiable",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_calls_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
