"""How equations are written: an ellipsis that broadcasts, and the interleaved form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.arrays import LIBRARIES
from tests.tolerances import assert_close
from tnlib import contract, plan_by_size, plan_contraction


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_sizes_of_one_are_broadcast_in_an_ellipsis(library):
    a, b = np.ones((3, 3, 1, 1)), np.arange(720.0).reshape(3, 3, 8, 10)
    result = contract("ij...,ij...->...", *map(LIBRARIES[library], (a, b)))
    assert_close(np.asarray(result), b.sum((0, 1)), operations=10, size=720 * 9)


@given(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3), st.data())
def test_an_ellipsis_is_broadcast_as_by_numpy(full, data):
    shapes = []
    for _ in range(data.draw(st.integers(1, 3))):
        own = full[data.draw(st.integers(0, len(full))) :]
        shapes.append((2, *(n if data.draw(st.booleans()) else 1 for n in own)))
    equation = ",".join(["i..."] * len(shapes)) + data.draw(
        st.sampled_from(["", "->...", "->...i"])
    )
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(0.5, 1.0, shape) for shape in shapes]
    plan = plan_contraction(equation, *shapes)
    expected = np.einsum(equation, *arrays)
    assert_close(plan(*arrays), expected, operations=12)
    # A plan is for sizes, of which a call may have others: broadcast elsewhere, or nowhere.
    other = data.draw(st.permutations(arrays))
    assert_close(plan(*other), np.einsum(equation, *other), operations=12)
    known = plan_contraction(equation, *shapes, constants=range(1, len(shapes)))
    if len(shapes) > 1:
        wide = np.concatenate([arrays[0]] * 2, axis=0)[:2]
        assert_close(known.folded(*arrays[1:])(wide), expected, operations=12)


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_constants_are_folded_for_the_shape_of_the_call(library):
    # Planned for one row, the cores have an axis in common with it; for more they are broadcast.
    equation, x = "...i,...ij,...jk->...k", np.arange(21.0).reshape(7, 3)
    a, b = np.ones((1, 3, 4)), np.ones((1, 4, 5))
    plan = plan_contraction(equation, (1, 3), (1, 3, 4), (1, 4, 5), constants=(1, 2))
    folded = plan.folded(*map(LIBRARIES[library], (a, b)))
    for rows in (x[:1], x, x[:0], x[:1]):
        result = np.asarray(folded(LIBRARIES[library](rows.copy())))
        assert_close(result, rows @ a[0] @ b[0], operations=10)


def test_resized_plans_read_the_ellipsis_anew():
    plan = plan_contraction("...i,...i->...", (1, 3), (5, 3))
    x = np.arange(15.0).reshape(5, 3)
    assert_close(plan.resized((5, 3), (5, 3))(x, x), (x * x).sum(1), operations=5)
    found = plan_by_size("...i,...ij->...j", ("tokens", 3), (1, 3, 4))
    assert_close(found.at(5)(x, np.ones((1, 3, 4))), x @ np.ones((3, 4)), operations=5)


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_named_indices_are_not_broadcast(library):
    a, b = LIBRARIES[library](np.ones((2, 1))), LIBRARIES[library](np.ones((3, 4)))
    with pytest.raises(ValueError, match="named indices are not broadcast"):
        contract("ij,jk->ik", a, b)
    with pytest.raises(ValueError, match="an axis of the ellipsis has size 2 and, in operand 1, 3"):
        contract("...j,...k->...jk", a, b)


def test_the_interleaved_form_is_that_of_einsum():
    rng = np.random.default_rng(0)
    a, b, c = (rng.uniform(0.5, 1, shape) for shape in ((2, 3), (3, 4), (3, 4, 2)))
    for arguments in (
        (a, [0, 1], b, [1, 2], [0, 2]),
        (a, [0, 1], b, [1, 2]),
        (a, [30, 7], b, [7, 2]),
        (a, [0, 1], a, [0, 1], []),
        (c, [1, ..., 0], a, [0, 1], [..., 0]),
        (c, [1, ..., 0], a, [0, 1]),
        (a, (0, 1)),
    ):
        expected = np.einsum(*arguments)
        assert_close(contract(*arguments), expected, operations=10)
        plan = plan_contraction(*arguments)
        assert_close(plan(*(x for x in arguments if isinstance(x, np.ndarray))), expected, 10)
        tensors = [torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in arguments]
        assert_close(contract(*tensors), expected, operations=10)
    for number in (2.0, 3, np.float64(2.0), np.int8(3)):
        assert_close(contract(number, [], a, [0, 1], [1, 0]), number * a.T, operations=2)
        assert_close(contract(a, [0, 1], number, [...], [0, 1]), number * a, operations=2)
    named = plan_contraction((2, 3), ["row", "bond"], (3, 4), ["bond", "column"], ["column", "row"])
    assert_close(named(a, b), (a @ b).T, operations=4)


BAD = {
    "nothing": ((), "equation must be a string"),
    "a number": ((3, [0, 1]), "equation must be a string, got int"),
    "no list": ((np.eye(2), np.eye(2)), "got ndarray where such a list"),
    "a word": ((np.eye(2), "ij"), "got str where such a list"),
    "two kinds": ((np.eye(2), [0, "a"]), "names of one type"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_form_of_einsum_is_refused(name):
    arguments, message = BAD[name]
    with pytest.raises(TypeError, match=message):
        contract(*(arguments or (None,)))
