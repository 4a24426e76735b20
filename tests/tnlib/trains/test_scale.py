"""Scale may be spread over cores as it likes: what is computed is that of the array."""

from __future__ import annotations

import math
import operator
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.arrays import LIBRARIES, numpy_of
from tests.tolerances import assert_close, rounding
from tnlib import MPO, TT, mpo_random, tt_random, tt_round

LIBRARY = st.sampled_from(sorted(LIBRARIES))
SEED = st.integers(0, 2**32 - 1)
ONES = np.ones((1, 2, 1))
SHAPE = (3, 2, 4, 3)
SHIFT = st.integers(-900, 900)


def scattered(train, shifts):
    """The same train with powers of two moved from core to core, another for each bond index."""
    cores = [np.array(numpy_of(core)) for core in train.cores]
    for k, shift in enumerate(shifts):
        signs = np.where(np.arange(cores[k].shape[-1]) % 2, -1, 1)
        powers = np.ldexp(1.0, shift * signs)
        cores[k] = cores[k] * powers
        cores[k + 1] = cores[k + 1] / powers.reshape(-1, *[1] * (cores[k + 1].ndim - 1))
    return cores


@st.composite
def trains(draw):
    """A train, and the same with its scale scattered; two libraries."""
    plain = tt_random(SHAPE, 3, rng=draw(SEED))
    cores = scattered(plain, draw(st.tuples(*[st.integers(-450, 450)] * 3)))
    library = LIBRARIES[draw(LIBRARY)]
    return plain, TT([library(core) for core in cores])


@settings(max_examples=25)
@given(trains(), st.data())
def test_powers_of_two_between_cores_change_no_result(pair, data):
    plain, wild = pair
    dense, norm = plain.to_dense(), float(plain.norm())
    size = math.prod(SHAPE) * np.abs(plain.cores[0]).max() * norm
    operations = 200
    assert_close(wild.to_dense(), dense, operations, size)
    assert float(wild.norm()) == pytest.approx(norm, abs=rounding(float, operations, size))
    assert float(wild.lognorm()) == pytest.approx(
        math.log(norm), abs=rounding(float, operations, size / norm + abs(math.log(norm)))
    )
    assert_close(wild.inner(wild), norm**2, operations, size**2)
    for same in (
        wild.canonical(data.draw(st.integers(0, 3))),
        wild.balanced(),
        tt_round(wild, 9),
        wild.normalized() * norm,
    ):
        assert_close(same.to_dense(), dense, operations, size)
    assert_close(wild.hadamard(wild).to_dense(), dense**2, operations, size**2)
    entry = tuple(data.draw(st.integers(0, n - 1)) for n in SHAPE)
    assert_close(wild[entry], dense[entry], operations, size)
    part = (entry[0], slice(None), entry[2])
    assert_close(wild[part].to_dense(), dense[part], operations, size)
    part = (slice(None), entry[1], slice(1), entry[3])
    assert_close(wild[part].to_dense(), dense[part], operations, size)
    assert_close((wild + wild - wild).to_dense(), dense, operations, 3 * size)


@settings(max_examples=15)
@given(LIBRARY, SEED, st.tuples(SHIFT, SHIFT))
def test_products_with_operators_keep_their_scale(library, seed, shifts):
    plain = mpo_random((2, 3, 2), (3, 2, 2), 2, rng=seed)
    wild = MPO([LIBRARIES[library](core) for core in scattered(plain, [s // 2 for s in shifts])])
    matrix = plain.to_matrix()
    size = 100 * float(plain.norm()) ** 2
    assert_close((wild @ wild.T).to_matrix(), matrix @ matrix.T, 200, size)
    x = np.random.default_rng(seed).standard_normal((3, 12))
    assert_close(wild.matvec(LIBRARIES[library](x)), x @ matrix.T, 200, 100 * size)
    assert_close(wild.entry(5, 7), matrix[5, 7], 200, size)
    assert_close(wild.row(3).to_dense().reshape(-1), matrix[3], 200, size)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_small_numbers_beside_large_ones_are_kept_on_the_way(dtype, to_library):
    least = 100 if dtype == "float32" else 900
    cores = [np.ldexp(ONES, k) for k in (0, -least // 2, least // 2)]
    cores[0][0, 1, 0] = 2.0**-least
    train = TT([to_library(core.astype(dtype)) for core in cores])
    np.testing.assert_array_equal(numpy_of(train.to_dense())[:, 0, 0], [1.0, 2.0**-least])
    assert float(train[1, 1, 1]) == 2.0**-least
    ones = TT([to_library(core.astype(dtype)) for core in (cores[0][:, 1:], *cores[1:])])
    assert float(ones.inner(ones)) == pytest.approx(4 * 2.0 ** (-2 * least), abs=2.0**-149)
    assert float(ones.norm()) == pytest.approx(2.0 ** (1 - least), rel=rounding(dtype, 100))


def exactly(cores):
    """The entries of a train of the given cores, in C order, and those of their sizes."""
    values, sizes = [[Fraction(1)]], [[Fraction(1)]]
    for core in cores:
        values, sizes = (
            [
                [sum(map(operator.mul, row, column), Fraction(0)) for column in matrix.T]
                for row in rows
                for matrix in np.moveaxis(part, 1, 0)
            ]
            for rows, part in (
                (values, np.vectorize(Fraction, otypes=[object])(core)),
                (sizes, np.vectorize(Fraction, otypes=[object])(np.abs(core))),
            )
        )
    return [row[0] for row in values], [row[0] for row in sizes]


@settings(max_examples=40)
@given(
    st.sampled_from(["float32", "float64"]),
    LIBRARY,
    SEED,
    st.floats(0, 0.5),
    st.booleans(),
    st.integers(1, 5),
)
@example("float64", "numpy", 922127, 0.5, True, 5)
def test_entries_of_any_size_are_true(dtype, library, seed, share, each, order):
    """Near where products begin to leave the range, and on both sides of it."""
    rng = np.random.default_rng(seed)
    spread = int(share * np.finfo(dtype).maxexp)
    ranks = [1, *rng.integers(1, 4, order - 1), 1]
    cores = []
    for k in range(order):
        shape = (ranks[k], 2, ranks[k + 1])
        numbers = rng.standard_normal(shape) * (rng.random(shape) < 0.8)
        powers = rng.integers(-spread, spread + 1, shape if each else ())
        cores.append(np.ldexp(numbers, powers).astype(dtype))
    train = TT([LIBRARIES[library](core) for core in cores])
    for place, (value, size) in enumerate(zip(*exactly(cores), strict=True)):
        if size < float(np.finfo(dtype).max) / 64:
            found = float(train[np.unravel_index(place, train.shape)])
            bound = rounding(dtype, 20 * order, float(size)) + np.finfo(dtype).smallest_subnormal
            assert abs(float(Fraction(found) - value)) <= bound


def test_large_cores_beside_small_ones_are_the_array_that_they_are(to_library):
    train = TT([to_library(x * ONES) for x in (1e200, 1e200, 1e-200, 1e-200)])
    assert float(train.norm()) == pytest.approx(4.0, rel=1e-14)
    rounded = tt_round(train, eps=1e-6)
    assert_close(rounded.to_dense(), np.ones((2,) * 4), 100)
    assert rounded.error < 1e-14
    mirrored = TT(train.cores[::-1])
    assert_close((train + mirrored).to_dense(), np.full((2,) * 4, 2.0), 100)
    assert float((train + mirrored).norm()) == pytest.approx(8.0, rel=1e-14)
    assert_close(tt_round(train + mirrored, 1).to_dense(), np.full((2,) * 4, 2.0), 100)


def test_a_norm_beyond_the_range_is_infinite_and_its_logarithm_is_right(to_library):
    identity = MPO([to_library(1e30 * np.eye(2).reshape(1, 2, 2, 1))] * 12)
    doubled = tt_round(identity + identity, eps=1e-8)
    logarithm = math.log(2) + 12 * math.log(1e30 * 2**0.5)
    assert doubled.ranks == (1,) * 13
    assert float(doubled.norm()) == math.inf
    assert float(doubled.lognorm()) == pytest.approx(logarithm, rel=1e-13)
    assert doubled.center is None
    assert float(doubled.entry(5, 5)) == math.inf
    assert_close(doubled.normalized().entry(5, 5), 2.0**-6, 1000)
    with pytest.raises(ValueError, match=r"about 2\^1..., in one core; take the gauge of norm"):
        doubled.canonical(0)
    small = TT([to_library(1e-30 * ONES)] * 12)
    assert float(small.norm()) == 0.0
    assert float(small.lognorm()) == pytest.approx(12 * math.log(1e-30 * 2**0.5), rel=1e-13)
    assert float(tt_round(small, 1).lognorm()) == pytest.approx(float(small.lognorm()), rel=1e-13)


def test_the_zero_train_has_no_direction(to_library):
    nothing = TT([to_library(0 * ONES)] * 2)
    assert float(nothing.lognorm()) == -math.inf
    with pytest.raises(ValueError, match="the norm is zero"):
        nothing.normalized()


@pytest.mark.parametrize(("dtype", "power"), [("float16", 12), ("float32", 99), ("float64", 700)])
def test_a_norm_that_only_a_wider_dtype_holds_is_taken_off(dtype, power, to_library):
    for exponent in (power, -power):
        core = to_library(np.full((1, 2, 1), np.ldexp(1.0, exponent), dtype))
        for train in (TT([core] * 3), TT([core * 0 + 0.5**0.5, core * 0 + 0.5**0.5, core])):
            made = train.normalized()
            assert float(made.norm()) == pytest.approx(1.0, abs=rounding(dtype, 20))
            dense = np.asarray(numpy_of(made.to_dense()), float)
            assert_close(dense, np.full((2, 2, 2), 8**-0.5), operations=20, dtype=dtype)


def test_what_no_cores_of_the_dtype_hold_is_infinite_without_a_warning(to_library):
    half = TT([to_library(np.full((1, 2, 1), 300, np.float16))] * 2)
    operator = MPO([to_library(np.full((1, 2, 2, 1), 300, np.float16))])
    for made in (half.hadamard(half), half.hadamard(half)[:, 1], operator @ operator):
        assert all(np.isinf(numpy_of(core)).all() for core in made.cores)


def test_a_core_that_would_overflow_shares_its_scale(to_library):
    train = TT([to_library(ONES)] * 3).canonical(0)
    huge = (train * 1e300) * 1e300
    assert huge.center is None
    assert float(huge.lognorm()) == pytest.approx(math.log(8) / 2 + 600 * math.log(10), rel=1e-14)
    assert_close((huge / 1e300 / 1e300).to_dense(), np.ones((2,) * 3), 100)
    assert_close((train / 5e-324 * 5e-324).to_dense(), np.ones((2,) * 3), 100)
    assert (train * 2).center == 0


@pytest.mark.parametrize("value", [5e-324, 1e-310])
def test_subnormal_data_are_rounded(value, to_library):
    train = TT([to_library(np.full((1, 3, 1), value)), to_library(np.ones((1, 3, 1)))])
    rounded = tt_round(train, 1)
    assert rounded.error <= rounding(float, 20)
    assert float(rounded.lognorm()) == pytest.approx(math.log(3) + math.log(value), rel=1e-14)
    np.testing.assert_array_equal(numpy_of(TT(train.cores[:1]).canonical(0).cores[0]), value)


def test_half_precision_spreads_what_one_core_cannot_hold():
    train = TT([torch.full((1, 4, 1), 500.0, dtype=torch.float16)] * 3)
    rounded = tt_round(train, 1)
    assert rounded.center is None
    assert rounded.error <= 3 * 2.0**-11
    assert tt_round(train, 1, dtype="float32").center == 2
    assert tt_round(train, eps=1e-6, dtype="float64").error <= 1e-6
    assert float((train * 1e5).lognorm()) == pytest.approx(
        float(train.lognorm()) + math.log(1e5), abs=4 * 2.0**-11
    )
    with pytest.raises(ValueError, match=r"overflows float16: .* in a wider dtype, as tt_round"):
        tt_round(TT([torch.full((1, 4, 1), 1e10)] * 2), 1, dtype="float16")
    with pytest.raises(ValueError, match="vanishes in float16"):
        tt_round(TT([torch.full((1, 4, 1), 1e-20)] * 2), 1, dtype="float16")


def test_a_train_that_cancels_to_rounding_is_the_zero_train(to_library):
    a = tt_random((3,) * 8, 4, like=to_library(np.empty(0)))
    for options in ({"eps": 1e-3}, {"ranks": 2}, {"eps": 1e-3, "ranks": 2}, {"max_params": 40}):
        nothing = tt_round(a - a, **options)
        assert nothing.ranks == (1,) * 9
        assert float(nothing.norm()) == 0.0
        assert nothing.error == 1.0
        assert nothing.info.reason == "cancels to rounding"
    assert tt_round(a * 0, 2).info.reason == "direct"


@given(SEED, st.integers(8, 20), LIBRARY)
@settings(max_examples=15)
def test_rounding_to_ranks_is_never_worse_than_zero(seed, digits, library):
    a, b = (tt_random((3, 4, 3, 2), 2, rng=seed + k) for k in (0, 1))
    near = TT([LIBRARIES[library](core) for core in (a + 10.0**-digits * b - a).cores])
    rounded = tt_round(near, 2)
    assert rounded.error <= 1.0
    assert float(rounded.norm()) <= 2 * float(near.norm()) or rounded.error == 1.0


def test_underflow_is_no_error_where_numpy_is_told_to_raise():
    a = TT([x * ONES for x in (1e200, 1e-200, 1e-200)])
    b = TT([x * ONES for x in (1e-200, 1e-200, 1e200)])
    operator = MPO([core.reshape(1, 2, 1, 1) for core in a.cores])
    with np.errstate(all="raise"):
        total = a + b
        results = [
            total.norm(),
            total.lognorm(),
            total.inner(b),
            total[0, 1].norm(),
            total[0, 0, 0],
            total.hadamard(total).norm(),
            (3 * total / 7).norm(),
            total.balanced().norm(),
            total.canonical(1).norm(),
            total.normalized().norm(),
            tt_round(total, 1).norm(),
            (operator @ operator.T).norm(),
            total.to_dense().sum(),
        ]
    assert np.all(np.isfinite(results))


def test_dense_arrays_that_nothing_can_hold_are_refused():
    many = TT([ONES] * 70)
    with pytest.raises(ValueError, match="at most 64 axes and this train 70"):
        many.to_dense()
    with pytest.raises(ValueError, match=r"would have 2\^70 entries"):
        TT([torch.from_numpy(ONES)] * 70).to_dense()


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_chains_carry_exponents_too(dtype):
    large = 1e30 if dtype == "complex64" else 1e250
    plain = tt_random((3, 4, 3, 2), 3, dtype=dtype, rng=4)
    factors = (large * 1j, large, -1j / large, 1 / large)
    wild = TT([np.asarray(core * f, dtype) for core, f in zip(plain.cores, factors, strict=True)])
    dense = plain.to_dense()
    size = 100 * np.abs(dense).max()
    assert_close(wild.to_dense(), dense, 100, size)
    assert_close(wild.inner(wild), np.vdot(dense, dense), 100, size**2)
    assert_close(wild.norm(), np.linalg.norm(dense), 100, size)
    assert_close(tt_round(wild, 3).to_dense(), dense, 100, size)
    assert_close(wild[0, 1, 2, 1], dense[0, 1, 2, 1], 100, size)
