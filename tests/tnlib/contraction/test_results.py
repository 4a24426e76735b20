"""Planned contractions equal one einsum over all indices, however they are planned."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.arrays import LIBRARIES, numpy_of
from tests.tnlib.contraction.networks import arrays_for, exact, networks, operator_and_batch
from tnlib import contract, plan_contraction

OBJECTIVES = ("flops", "memory")


def close(result, expected):
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    np.testing.assert_allclose(numpy_of(result), expected, rtol=0, atol=1e-10 * scale)


@given(networks(), st.sampled_from(sorted(LIBRARIES)), st.sampled_from(OBJECTIVES))
def test_a_plan_gives_what_einsum_gives(network, library, minimize):
    equation, shapes = network
    arrays = arrays_for(shapes)
    plan = plan_contraction(equation, *shapes, minimize=minimize)
    result = plan(*(LIBRARIES[library](array) for array in arrays))
    assert result.shape == exact(equation, arrays).shape
    close(result, exact(equation, arrays))


@given(networks(), st.data())
def test_constants_are_folded_into_the_plan(network, data):
    equation, shapes = network
    positions = range(len(shapes))
    constants = data.draw(st.sets(st.sampled_from(positions), min_size=1))
    arrays = arrays_for(shapes)
    operands = [arrays[k] if k in constants else shapes[k] for k in positions]
    plan = plan_contraction(equation, *operands, constants=constants)
    rest = [array for k, array in enumerate(arrays) if k not in constants]
    close(plan(*rest), exact(equation, arrays))
    unfolded = plan_contraction(equation, *shapes, constants=constants)
    assert unfolded.flops == plan.flops
    close(unfolded(*arrays), exact(equation, arrays))


@given(networks(), st.data())
def test_order_of_operands_and_names_of_indices_change_nothing(network, data):
    equation, shapes = network
    terms, output = equation.split("->")
    order = data.draw(st.permutations(range(len(shapes))))
    renamed = dict(zip("abcdefg", data.draw(st.permutations("tuvwxyz")), strict=True))
    moved = ",".join(terms.split(",")[k] for k in order) + "->" + output
    other = "".join(renamed.get(symbol, symbol) for symbol in moved)
    arrays = arrays_for(shapes)
    plan = plan_contraction(other, *(shapes[k] for k in order))
    close(plan(*(arrays[k] for k in order)), exact(equation, arrays))
    assert plan.flops == plan_contraction(equation, *shapes).flops


@given(networks(most=4), st.data())
def test_gradients_are_those_of_dense_autograd(network, data):
    equation, shapes = network
    wanted = data.draw(st.sets(st.sampled_from(range(len(shapes))), min_size=1))
    values = [torch.from_numpy(array) for array in arrays_for(shapes)]
    mine = [v.clone().requires_grad_(k in wanted) for k, v in enumerate(values)]
    dense = [v.clone().requires_grad_(k in wanted) for k, v in enumerate(values)]
    plan = plan_contraction(equation, *shapes, requires_grad=wanted)
    weight = torch.from_numpy(arrays_for([tuple(plan(*values).shape)], seed=1)[0])
    (plan(*mine) * weight).sum().backward()
    (dense_einsum(equation, dense) * weight).sum().backward()
    for k in wanted:
        close(mine[k].grad, dense[k].grad.numpy())


def dense_einsum(equation, tensors):
    """The sum over all indices of the product of all operands, broadcast to one array."""
    terms, output = equation.split("->")
    indices = sorted(set(terms) - {","})
    product = 1.0
    for term, tensor in zip(terms.split(","), tensors, strict=True):
        once = "".join(dict.fromkeys(term))
        diagonal = torch.einsum(f"{term}->{''.join(sorted(once))}", tensor)
        shape = [tensor.shape[term.index(i)] if i in term else 1 for i in indices]
        product = product * diagonal.reshape(shape)
    closed = [k for k, index in enumerate(indices) if index not in output]
    summed = product.sum(closed) if closed else product
    kept = [index for index in indices if index in output]
    return summed.permute([kept.index(index) for index in output])


@given(networks())
def test_contract_is_plan_and_call(network):
    equation, shapes = network
    arrays = arrays_for(shapes)
    close(contract(equation, *arrays), exact(equation, arrays))


@given(networks(), st.data())
def test_slices_keep_a_limit_and_the_result(network, data):
    equation, shapes = network
    arrays = arrays_for(shapes)
    expected = exact(equation, arrays)
    smallest = plan_contraction(equation, *shapes, minimize="memory", requires_grad=()).peak_bytes
    limit = max(12 * expected.size, data.draw(st.integers(1, max(smallest, 1))))
    try:
        plan = plan_contraction(equation, *shapes, memory_limit=limit, slices=True)
    except ValueError as refusal:
        plan, message = None, str(refusal)
    if plan is None:
        assert f"smallest peak found is {smallest} bytes" in message
    else:
        assert plan.peak_bytes <= limit
        close(plan(*arrays), expected)


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_slices_where_no_order_is_small_enough(library):
    equation, shapes = operator_and_batch(3, 64, 8, 16)
    free = plan_contraction(equation, *shapes, minimize="memory", requires_grad=())
    limit = free.peak_bytes // 2
    with pytest.raises(ValueError, match=rf"smallest peak found is {free.peak_bytes} bytes"):
        plan_contraction(equation, *shapes, memory_limit=limit)
    result_bytes = 4 * 64 * 8**3
    plan = plan_contraction(equation, *shapes, memory_limit=3 * result_bytes, slices=True)
    arrays = arrays_for(shapes)
    result = plan(*(LIBRARIES[library](array) for array in arrays))
    np.testing.assert_allclose(numpy_of(result), free(*arrays), rtol=1e-10, atol=1e-10)


def test_ellipsis_and_implicit_result_mean_what_they_mean_in_numpy():
    x, w = arrays_for([(2, 3, 4), (4, 5)])
    close(contract("...i,ij->...j", x, w), x @ w)
    close(contract("ij,jk", x[0], w), x[0] @ w)
    assert plan_contraction("...i,ij", (2, 3, 4), (4, 5)).equation.endswith("j")


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_a_plan_runs_on_other_sizes_and_on_none(library):
    plan = plan_contraction("bi,ij,jk->bk", (4, 3), (3, 2), (2, 5))
    for batch in (9, 1, 0):
        x, a, b = arrays_for([(batch, 3), (3, 2), (2, 5)])
        close(plan(*(LIBRARIES[library](array) for array in (x, a, b))), x @ a @ b)


def test_a_plan_takes_arrays_with_any_strides():
    plan = plan_contraction("bij,bjk->bik", (3, 4, 5), (3, 5, 6))
    for a_axes in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        a = arrays_for([tuple(np.array((3, 4, 5))[list(a_axes)])])[0].transpose(np.argsort(a_axes))
        b = arrays_for([(6, 5, 3)], seed=1)[0].transpose(2, 1, 0)
        close(plan(a, b), a @ b)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int64", "complex128"])
def test_dtypes_are_kept(dtype):
    x, a, b = (10 * array for array in arrays_for([(4, 3), (3, 2), (2, 5)]))
    operands = [array.astype(dtype) for array in (x, a, b)]
    result = contract("bi,ij,jk->bk", *operands)
    assert result.dtype == np.dtype(dtype)
    tensors = [torch.from_numpy(array) for array in operands]
    assert contract("bi,ij,jk->bk", *tensors).dtype == tensors[0].dtype


def test_numpy_arrays_are_cast_to_their_common_dtype():
    a, b = np.full((3, 4), 100, np.int8), np.full((4, 5), 100, np.int8)
    c = np.ones((5, 50))
    close(contract("ij,jk,kl->il", a, b, c), np.einsum("ij,jk,kl->il", a, b, c))


def test_sizes_of_zero_are_planned_and_run():
    equation = "f,id,kld,caa,,fgj,i,hh,fhdc,kii->l"
    terms = equation.split("->")[0].split(",")
    sizes = dict.fromkeys("abcdefghijkl", 1) | {"a": 0, "l": 2}
    shapes = [tuple(sizes[index] for index in term) for term in terms]
    assert not contract(equation, *(np.ones(shape) for shape in shapes)).any()
    sliced = plan_contraction(
        "ij,jk,kl->il", (8, 32), (32, 32), (32, 8), memory_limit=1000, slices=True
    )
    for rows in (0, 3):
        x = np.ones((rows, 32))
        close(sliced(x, np.eye(32), np.ones((32, 8))), x @ np.ones((32, 8)))
    assert not sliced(np.ones((3, 0)), np.ones((0, 0)), np.ones((0, 8))).any()


def test_a_folded_result_is_not_shared():
    plan = plan_contraction("ij,jk->ik", np.eye(2), np.eye(2), constants=(0, 1))
    plan()[:] = 7
    close(plan(), np.eye(2))


@pytest.mark.parametrize("library", sorted(LIBRARIES))
@pytest.mark.parametrize(
    "equation", ["ij->ji", "ij->ij", "ii->i", "iij->ji", "ijk->ki", "i...->...i"]
)
def test_a_result_shares_no_memory_with_an_operand(library, equation):
    for size in (1, 3):
        shape = [1 if index == "j" and equation == "ijk->ki" else size for index in equation]
        shape = shape[: len(equation.split("->")[0].replace("...", "k"))]
        array = LIBRARIES[library](np.arange(1.0, 1 + np.prod(shape)).reshape(shape))
        plan = plan_contraction(equation, array)
        for result in (contract(equation, array), plan(array)):
            result[...] = 0
            assert numpy_of(array).all()
        known = plan_contraction(equation, array, constants=(0,))
        known()[...] = 0
        assert numpy_of(known()).all()


def test_arrays_are_not_changed():
    arrays = arrays_for([(4, 3), (3, 2), (2, 5)])
    before = [array.copy() for array in arrays]
    contract("bi,ij,jk->kb", *arrays)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))


def test_folded_arrays_are_let_go():
    plan = plan_contraction("ij,jk->ik", (2, 3), (3, 4), constants=(1,))
    array = arrays_for([(3, 4)])[0]
    folded = plan.folded(array)
    close(folded(np.ones((2, 3))), np.ones((2, 3)) @ array)
    alive = weakref.ref(array)
    del array, folded
    gc.collect()
    assert alive() is None
