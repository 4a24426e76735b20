"""Random contractions of every dtype and library are what one loop over all indices gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tnlib.contraction import cases


def hold(rng):
    case = cases.draw(rng)
    cases.check(case)
    if cases.has_gradients(case):
        cases.check_gradients(case)


@given(st.integers(0, 2**32))
def test_a_contraction_is_what_one_loop_gives(seed):
    hold(np.random.default_rng(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
def test_many_contractions_are_what_one_loop_gives(seed):
    rng = np.random.default_rng([17, seed])
    for _ in range(500):
        hold(rng)
