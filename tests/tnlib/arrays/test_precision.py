"""Half precision is rounded once, and autocast changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tolerances import assert_close
from tnlib import MPO, TT, mpo_decompose, mpo_random, tt_random, tt_round, tt_svd
from tnlib.arrays.backend import unit_roundoff

HALF = ["float16", "bfloat16"]


def train(dtype, seed=0):
    return tt_random((5, 6, 4), 6, like=torch.empty(0), dtype=dtype, rng=seed)


def operator(dtype):
    return mpo_random((3, 4), (3, 4), 4, like=torch.empty(0), dtype=dtype)


def wide(chain):
    return type(chain)([core.double() for core in chain.cores])


@pytest.mark.parametrize("dtype", HALF)
def test_entries_in_half_precision_are_right_to_their_last_digit(dtype):
    chain, matrix = train(dtype), operator(dtype)
    exact, dense = wide(chain).to_dense(), wide(matrix).to_matrix()
    # One rounding of the result, and float32 below.
    allowed = unit_roundoff(dtype) + 100 * unit_roundoff("float32")
    for index in np.ndindex(*chain.shape):
        assert abs(float(chain[index]) - exact[index]) <= allowed * abs(exact[index]) + 1e-6
    for i, j in np.ndindex(*matrix.shape):
        assert abs(float(matrix.entry(i, j)) - dense[i, j]) <= allowed * abs(dense[i, j]) + 1e-6


RESULTS = {
    "to_dense": lambda t, m: t.to_dense(),
    "slice": lambda t, m: t[1, :, 2].to_dense(),
    "hadamard": lambda t, m: t.hadamard(t).to_dense(),
    "multiple": lambda t, m: (3 * t / 7 - t).to_dense(),
    "inner": lambda t, m: t.inner(t),
    "norm": lambda t, m: t.norm(),
    "lognorm": lambda t, m: t.lognorm(),
    "normalized": lambda t, m: t.normalized().to_dense(),
    "product": lambda t, m: (m @ m.T).to_matrix(),
    "row": lambda t, m: m.row(3).to_dense(),
    "matvec": lambda t, m: m.matvec(torch.ones(12, dtype=m.cores[0].dtype)),
    "canonical": lambda t, m: t.canonical(1).to_dense(),
    "balanced": lambda t, m: t.balanced().to_dense(),
    "rounded": lambda t, m: tt_round(t, 9).to_dense(),
    "asarray": lambda t, m: torch.from_numpy(np.asarray(wide(t))),
    "decomposed": lambda t, m: tt_svd(wide(t).to_dense().to(t.cores[0].dtype), 9).to_dense(),
    "operator": lambda t, m: mpo_decompose(m.to_matrix(), 99).to_matrix(),
}


@pytest.mark.parametrize("dtype", [*HALF, "float32"])
@pytest.mark.parametrize("name", sorted(RESULTS))
def test_results_are_those_of_double_precision_under_autocast_too(name, dtype):
    pair = train(dtype), operator(dtype)
    exact = RESULTS[name](*map(wide, pair))
    plain = RESULTS[name](*pair)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = RESULTS[name](*pair)
    assert plain.dtype == cast.dtype
    # Every core is rounded at most twice, and entries are sums of products of three.
    size = 10 * float(exact.abs().max())
    for result in (plain, cast):
        assert_close(result, exact, 20, size, dtype=dtype)


def test_random_chains_under_autocast_are_those_without():
    plain = train("float32"), operator("float32")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = train("float32"), operator("float32")
    for a, b in zip(plain, cast, strict=True):
        for x, y in zip(a.cores, b.cores, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_products_that_overflow_float16_on_the_way_do_not():
    cores = [torch.full(shape, 300.0).half() for shape in ((1, 4, 4, 3), (3, 4, 4, 1))]
    cores[1] *= 1e-4
    large = MPO(cores)
    exact = wide(large)
    row = large.row(1)
    for ours, theirs in (
        (large @ large, exact @ exact),
        (large.hadamard(large), exact.hadamard(exact)),
        (row.hadamard(row), wide(row).hadamard(wide(row))),
        (large * 1e5, exact * 1e5),
        (large @ row, exact @ wide(row)),
    ):
        assert ours.cores[0].dtype == torch.float16
        assert all(torch.isfinite(core).all() for core in ours.cores)
        assert_close(ours.lognorm(), theirs.lognorm(), 10, size=1.0, dtype="float16")
    x = torch.full((16,), 1e-1, dtype=torch.float16)
    assert_close(large.matvec(x), exact.matvec(x.double()), 10, dtype="float16")


@pytest.mark.parametrize("dtype", HALF)
def test_gradients_of_half_precision_are_rounded_once(dtype):
    for f in (
        lambda t: t.norm(),
        lambda t: t[1, 2, 3],
        lambda t: t.inner(t),
        lambda t: (t * t.norm())[0, 0, 0],
    ):
        cores = [core.clone().requires_grad_() for core in train(dtype).cores]
        exact = [core.detach().double().requires_grad_() for core in cores]
        f(TT(cores)).backward()
        f(TT(exact)).backward()
        for a, b in zip(cores, exact, strict=True):
            assert_close(a.grad, b.grad, 4, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_lazily_negated_tensors_keep_their_sign(dtype):
    array = torch.linspace(-1, 1, 60, dtype=torch.float64).to(dtype).reshape(4, 3, 5)
    made = tt_svd(torch._neg_view(-array), 3).to_dense()
    assert_close(made, array, operations=60, dtype=dtype)
