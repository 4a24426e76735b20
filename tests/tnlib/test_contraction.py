"""Planned contractions equal einsum, whatever the order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.arrays import LIBRARIES, numpy_of
from tnlib import plan_contraction


@st.composite
def networks(draw):
    """A random einsum equation of 1 to 5 operands with its shapes."""
    letters = "abcdefg"
    sizes = {letter: draw(st.integers(1, 4)) for letter in letters}
    term = st.lists(st.sampled_from(letters), min_size=1, max_size=3, unique=True)
    terms = draw(st.lists(term, min_size=1, max_size=5))
    present = sorted({letter for t in terms for letter in t})
    result = draw(st.lists(st.sampled_from(present), max_size=3, unique=True))
    equation = ",".join("".join(t) for t in terms) + "->" + "".join(result)
    return equation, [tuple(sizes[letter] for letter in t) for t in terms]


@given(networks(), st.sampled_from(sorted(LIBRARIES)))
def test_a_plan_gives_what_einsum_gives(network, library):
    equation, shapes = network
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    plan = plan_contraction(equation, *shapes)
    result = plan(*(LIBRARIES[library](array) for array in arrays))
    expected = np.einsum(equation, *arrays)
    np.testing.assert_allclose(numpy_of(result), expected, rtol=1e-10, atol=1e-10)


@given(networks())
def test_no_step_has_more_than_two_operands(network):
    equation, shapes = network
    assert all(len(positions) <= 2 for positions, _ in plan_contraction(equation, *shapes).steps)


def test_the_order_with_the_fewest_operations_is_chosen():
    assert plan_contraction("ij,jk,k->i", (9, 8), (8, 7), (7,)).flops == 2 * (8 * 7 + 9 * 8)


def test_a_plan_runs_on_another_batch_size():
    plan = plan_contraction("bi,ij,jk->bk", (4, 3), (3, 2), (2, 5))
    x, a, b = torch.ones(9, 3), torch.ones(3, 2), torch.ones(2, 5)
    torch.testing.assert_close(plan(x, a, b), x @ a @ b)


def test_bad_equations():
    with pytest.raises(ValueError, match="must name its result"):
        plan_contraction("ij,jk", (2, 2), (2, 2))
    with pytest.raises(ValueError, match="3"):
        plan_contraction("ij,jk->ik", (2, 3), (2, 2))
    with pytest.raises(TypeError, match="one library"):
        plan_contraction("ij,jk->ik", (2, 2), (2, 2))(np.eye(2), torch.eye(2))
