"""In which dtype a contraction is computed: as by np.einsum, also where constants are folded."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch

from tests.arrays import LIBRARIES
from tests.tnlib.contraction import cases
from tests.tolerances import assert_close
from tnlib import contract, plan_contraction
from tnlib.contraction import kernel

INTEGERS = ("uint8", "int8", "int16", "int32", "int64")
CHAIN = "bi,ij,j->b"


def folded(equation, shape, *constants):
    """A plan whose operands are all constants, but the first."""
    numbers = range(1, len(constants) + 1)
    shapes = [array.shape for array in constants]
    return plan_contraction(equation, shape, *shapes, constants=numbers).folded(*constants)


def test_a_folded_mask_counts_beside_numbers():
    x, mask = np.ones((2, 3)), np.ones((3, 4), bool)
    np.testing.assert_array_equal(folded("bi,ij->b", (2, 3), mask)(x), [12.0, 12.0])


@pytest.mark.parametrize(("dtype", "value"), [("uint8", 100), ("int16", 300), ("int64", 2**40)])
def test_folded_integers_do_not_wrap_beside_floats(dtype, value):
    a, b = np.full((3, 4), value, dtype), np.full(4, value, dtype)
    result = folded(CHAIN, (2, 3), a, b)(np.ones((2, 3)))
    assert_close(result, np.full(2, 12.0 * value * value), operations=16)


@pytest.mark.parametrize(("dtype", "value"), [("float16", 300.0), ("float32", 1e30)])
def test_folded_floats_do_not_overflow_beside_wider_ones(dtype, value):
    a, b = np.full((3, 4), value, dtype), np.full(4, value, dtype)
    plan = folded(CHAIN, (2, 3), a, b)
    wide, product = np.ones((2, 3)), 12 * float(a[0, 0]) * float(b[0])
    assert_close(plan(wide), np.full(2, product), operations=16, dtype="float64")
    # The dtype is the call's, whatever calls there were before.
    with np.errstate(over="ignore"):
        narrow = plan(wide.astype(dtype))
    assert narrow.dtype == dtype
    assert np.isinf(narrow).all()
    assert_close(plan(wide), np.full(2, product), operations=16, dtype="float64")


def test_a_plan_keeps_what_its_constants_were():
    a, b = np.ones((3, 4), np.float32), np.ones(4, np.float32)
    for plan, x in (
        (folded(CHAIN, (2, 3), a, b), np.ones((2, 3))),
        (folded(CHAIN, (2, 3), *map(torch.from_numpy, (a, b))), torch.ones(2, 3)),
    ):
        before = plan(x)
        a[:], b[:] = 7, 7
        assert (plan(x) == before).all()
        a[:], b[:] = 1, 1


def test_half_precision_is_rounded_once_on_numpy():
    x = np.full((2, 3), 300, np.float16)
    a, b = np.full((3, 4), 300, np.float16), np.full(4, 2.0**-10, np.float16)
    result = contract(CHAIN, x, a, b)
    assert result.dtype == np.float16
    assert_close(result, np.einsum(CHAIN, *(v.astype(float) for v in (x, a, b))), operations=2)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_of_torch_are_those_of_numpy(dtype):
    # Diagonals, sums, matrix and batched products, and outer ones.
    rng = np.random.default_rng(0)
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    for equation in (
        "iik,kl->l",
        "ij->i",
        "ii->i",
        "bij,bjk->bik",
        "bi,bi->b",
        "i,j->ij",
        "ij,k->",
        "ijk,jl,kl->il",
    ):
        terms = equation.split("->")[0].split(",")
        arrays = [rng.integers(low, high, (3,) * len(t), dtype, endpoint=True) for t in terms]
        exact = cases.loop(equation, [array.astype(object) for array in arrays])
        shift = np.asarray(low, dtype=object)
        wrapped = np.asarray((exact - shift) % (high - low + 1) + shift)
        for library in LIBRARIES.values():
            result = contract(equation, *map(library, arrays))
            assert str(result.dtype).endswith(dtype)
            assert np.array_equal(np.asarray(result), wrapped.astype(dtype)), equation


def test_integers_without_a_matrix_product_are_multiplied_in_blocks(monkeypatch):
    a = torch.randint(-(2**31), 2**31 - 1, (2, 3, 5), dtype=torch.int32)
    b = torch.randint(-(2**31), 2**31 - 1, (2, 5, 4), dtype=torch.int32)
    monkeypatch.setattr(kernel, "_BLOCK", 40)
    for left, right in ((a, b), (a[0], b[0]), (a[..., :0], b[:, :0]), (a, b[0, :, 0])[:1] * 2):
        if left.shape[-1] == right.shape[-2]:
            made = kernel.in_blocks(left, right)
            assert made.dtype == torch.int32
            assert torch.equal(made, left @ right)


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_booleans_are_joined_by_or_and_and(library):
    rng = np.random.default_rng(0)
    for equation in (
        "iik,kl->l",
        "ij->i",
        "ii->i",
        "bij,bjk->bik",
        "bi,bi->b",
        "i,j->ij",
        "ij,k->",
    ):
        terms = equation.split("->")[0].split(",")
        arrays = [rng.random((3,) * len(term)) < 0.4 for term in terms]
        counts = np.einsum(equation, *(array.astype(int) for array in arrays))
        result = contract(equation, *map(LIBRARIES[library], arrays))
        assert str(result.dtype).endswith("bool")
        assert np.array_equal(np.asarray(result), counts > 0), equation
    many = np.ones((2, 300), bool)
    assert np.asarray(contract("ij,kj->ik", *map(LIBRARIES[library], (many, many)))).all()


def test_pythons_numbers_are_arrays_without_axes():
    a = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    for number in (2, 2.0, 2j, True, np.float64(2), np.array(2)):
        expected = np.einsum(",ij->ji", number, a)
        result = contract(",ij->ji", number, a)
        assert result.dtype == expected.dtype
        assert np.array_equal(result, expected)
        assert np.array_equal(plan_contraction(",ij->ji", (), (2, 3))(number, a), expected)
        plan = plan_contraction(",ij->ji", (), (2, 3), constants=(0,)).folded(number)
        assert np.array_equal(plan(a), expected)
    tensor = torch.from_numpy(a)
    assert torch.equal(contract(",ij->ji", 2, tensor), 2 * tensor.mT)
    known = plan_contraction(",ij->ji", (), (2, 3), constants=(1,)).folded(tensor)
    assert torch.equal(known(2), 2 * tensor.mT)
    result = contract(",,->", np.int8(100), np.int8(100), np.int8(3))
    assert isinstance(result, np.ndarray)
    assert int(result) == 48


class Tagged(np.ndarray):
    """A subclass that refuses what it is not asked for."""

    def __array_ufunc__(self, *_, **__):
        raise AssertionError("a subclass's rules were used")

    __array_function__ = __array_ufunc__


def test_subclasses_are_read_as_arrays(tmp_path):
    values = np.arange(4.0).reshape(2, 2)
    values.tofile(tmp_path / "values")
    mapped = np.memmap(tmp_path / "values", dtype=float, shape=(2, 2), mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        matrix = np.matrix(values)
    for equation in ("ij,ik->ijk", "ij,jk->ik", "ij,ij->ij", "ij,ij->"):
        expected = np.einsum(equation, values, values)
        plan = plan_contraction(equation, (2, 2), (2, 2), constants=(1,))
        for other in (matrix, mapped, values.view(Tagged)):
            for result in (
                contract(equation, other, other),
                contract(equation, values, other),
                plan.folded(other)(values),
                plan.folded(values)(other),
            ):
                assert type(result) is np.ndarray
                assert np.array_equal(result, expected), (equation, type(other))


def test_masked_arrays_are_refused():
    masked = np.ma.masked_array(np.eye(2), mask=np.eye(2))
    plan = plan_contraction("ij,jk->ik", (2, 2), (2, 2), constants=(1,))
    for attempt in (
        lambda: contract("ij,jk->ik", masked, np.eye(2)),
        lambda: plan(np.eye(2), masked),
        lambda: plan.folded(masked),
        lambda: plan.folded(np.eye(2))(masked),
    ):
        with pytest.raises(TypeError, match=r"masked array.*filled"):
            attempt()


def test_other_byte_orders_are_read():
    values = np.arange(4.0).reshape(2, 2)
    result = contract("ij,jk->ik", values.astype(">f8"), values.astype(">f8"))
    assert np.array_equal(result, values @ values)
    assert result.dtype.isnative


@pytest.mark.parametrize("dtype", ["<U3", "O", "M8[s]"])
def test_what_is_no_number_is_refused(dtype):
    array = np.zeros((2, 2)).astype("i8").astype(dtype)
    with pytest.raises(TypeError, match="numeric"):
        plan_contraction("ij,jk->ik", (2, 2), (2, 2))(array, array)
    with pytest.raises(TypeError, match="arrays must be of integers"):
        contract("ij,jk->ik", array, array)


def test_what_underflows_is_zero_also_where_numpy_raises():
    small, half = np.full(3, 1e-30, np.float32), np.full((3, 3), 1e-5, np.float16)
    with np.errstate(all="raise"):
        assert not contract("i,j,k->ijk", small, small, small).any()
        assert float(contract("i,i,i->", small, small, small)) == 0.0
        assert not folded("i,j,k->ijk", (3,), small, small)(small).any()
        assert not contract("ij,jk->ik", half, half).any()
        with pytest.raises(FloatingPointError, match="overflow"):
            contract("i,j->ij", 1 / small, 1 / small)


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_folded_plans_are_copied_and_stored(library):
    x, a, b = (LIBRARIES[library](np.ones(shape)) for shape in ((2, 3), (3, 4), (4,)))
    plan = folded(CHAIN, (2, 3), a, b)
    for other in (pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan)):
        assert (other(x) == plan(x)).all()
        assert (pickle.loads(pickle.dumps(other))(x) == plan(x)).all()


def test_no_operand_is_a_wrong_number_of_them():
    with pytest.raises(ValueError, match="has 1 operands, got 0"):
        contract("ij->ij")
