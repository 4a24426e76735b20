"""Balanced factorisation: the theorem that defines it, against brute force."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnlib import factorize


def all_factorizations(n, d):
    divisors = [k for k in range(1, n + 1) if n % k == 0]
    for head in itertools.combinations_with_replacement(divisors, d - 1):
        rest, remainder = divmod(n, math.prod(head))
        if remainder == 0 and (not head or rest >= head[-1]):
            yield (*head, rest)


@given(st.integers(1, 10**6), st.integers(1, 6))
def test_factors_ascend_and_multiply_to_the_width(n, d):
    factors = factorize(n, d)
    assert len(factors) == d
    assert math.prod(factors) == n
    assert list(factors) == sorted(factors)


@given(st.integers(1, 400), st.integers(1, 4))
def test_no_other_factorization_has_a_smaller_sum(n, d):
    best = min(sum(factors) for factors in all_factorizations(n, d))
    assert sum(factorize(n, d)) == best


def test_known_widths():
    assert factorize(768, 3) == (8, 8, 12)
    assert factorize(4096, 4) == (8, 8, 8, 8)
    assert factorize(97, 3) == (1, 1, 97)
    assert factorize(1, 3) == (1, 1, 1)
    assert factorize(2**20, 20) == (2,) * 20
    assert factorize(11008, 3) == (16, 16, 43)
    assert factorize(12, 2000) == (1,) * 1997 + (2, 2, 3)


@pytest.mark.parametrize(
    ("n", "d", "error"), [(0, 2, ValueError), (4, 0, ValueError), (4.0, 2, TypeError)]
)
def test_bad_arguments(n, d, error):
    with pytest.raises(error, match=r"must be (at least 1|an integer)"):
        factorize(n, d)
