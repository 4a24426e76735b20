"""What cannot be planned or called is refused, with what came and what is expected."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from tnlib import Roofline, contract, measure_roofline, plan_contraction

RATES = Roofline("torch", "cpu", "float32", 4, *[1.0] * 7)
SQUARE = ((2, 2), (2, 2))
MATMUL = "ij,jk->ik"

BAD_PLANS = {
    "equation": (TypeError, "equation must be a string", (3, *SQUARE), {}),
    "count": (ValueError, "has 2 operands, got 3", (MATMUL, *SQUARE, (2,)), {}),
    "sizes": (ValueError, "index 'j' has size 3", (MATMUL, (2, 3), (2, 2)), {}),
    "axes": (ValueError, "shape .2, 2, 2., 3 axes", (MATMUL, (2, 2, 2), (2, 2)), {}),
    "broadcast": (ValueError, "not broadcast", (MATMUL, (2, 1), (2, 2)), {}),
    "unknown index": (ValueError, "not an einsum equation", ("ij,jk->ix", *SQUARE), {}),
    "twice": (ValueError, "twice|not an einsum", ("ij,jk->ii", *SQUARE), {}),
    "symbols": (ValueError, "not an einsum equation", ("i-j,jk->ik", *SQUARE), {}),
    "shape": (TypeError, "operand 1 must be a shape or an array, got int", (MATMUL, (2, 2), 3), {}),
    "negative": (ValueError, "at least 0, got -2", (MATMUL, (2, 2), (2, -2)), {}),
    "float size": (TypeError, "must be an integer", (MATMUL, (2, 2), (2, 2.0)), {}),
    "minimize": (ValueError, "one of flops, memory, time", (MATMUL, *SQUARE), {"minimize": "x"}),
    "no roofline": (ValueError, "measure_roofline", (MATMUL, *SQUARE), {"minimize": "time"}),
    "roofline": (TypeError, "must be a Roofline, got int", (MATMUL, *SQUARE), {"roofline": 3}),
    "limit": (ValueError, "positive", (MATMUL, *SQUARE), {"memory_limit": 0}),
    "limit type": (TypeError, "number of bytes", (MATMUL, *SQUARE), {"memory_limit": "1 GB"}),
    "complex limit": (TypeError, "number of bytes", (MATMUL, *SQUARE), {"memory_limit": 1j}),
    "no type": (TypeError, "numeric type", (MATMUL, *SQUARE), {"dtype": 1e-12}),
    "one number": (
        TypeError,
        "collection of positions",
        (MATMUL, *SQUARE),
        {"constants": torch.tensor(1)},
    ),
    "infeasible": (ValueError, "smallest peak found is 16", (MATMUL, *SQUARE), {"memory_limit": 8}),
    "grad": (ValueError, "from -2 to 1, got 2", (MATMUL, *SQUARE), {"requires_grad": (2,)}),
    "grad type": (TypeError, "collection of positions", (MATMUL, *SQUARE), {"requires_grad": 1}),
    "both": (
        ValueError,
        "constants and require",
        (MATMUL, *SQUARE),
        {"requires_grad": (1,), "constants": (1,)},
    ),
    "half folded": (
        ValueError,
        "all constants as arrays",
        (MATMUL, np.eye(2), (2, 2)),
        {"constants": (0, 1)},
    ),
    "dtype": (TypeError, "numeric type", (MATMUL, *SQUARE), {"dtype": "float31"}),
    "dtype list": (TypeError, "numeric type", (MATMUL, *SQUARE), {"dtype": [1]}),
    "dtype object": (TypeError, "numeric type", (MATMUL, *SQUARE), {"dtype": dict}),
    "huge limit": (ValueError, "positive", (MATMUL, *SQUARE), {"memory_limit": 10**400}),
    "slices": (
        ValueError,
        "cannot be combined",
        (MATMUL, *SQUARE),
        {"constants": (1,), "slices": True},
    ),
    "other size": (
        ValueError,
        "another size",
        (MATMUL, *SQUARE),
        {"roofline": RATES, "dtype": "float64"},
    ),
    "repeats": (
        ValueError,
        "max_repeats must be at least 1",
        (MATMUL, *SQUARE),
        {"max_repeats": 0},
    ),
}


@pytest.mark.parametrize("name", BAD_PLANS)
def test_bad_plans(name):
    error, message, arguments, options = BAD_PLANS[name]
    with pytest.raises(error, match=message):
        plan_contraction(*arguments, **options)


BAD_CALLS = {
    "two libraries": (TypeError, "of one library", (np.eye(2), torch.eye(2))),
    "two dtypes": (TypeError, "float32, float64", (torch.eye(2), torch.eye(2).double())),
    "lists": (TypeError, "NumPy", ([[1.0]], np.eye(2))),
    "count": (ValueError, "takes 2 arrays, got 1", (np.eye(2),)),
    "sizes": (ValueError, "index 'j' has size 3", (np.ones((2, 3)), np.eye(2))),
    "axes": (ValueError, "1 axes", (np.ones(2), np.eye(2))),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name):
    error, message, arrays = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        plan_contraction(MATMUL, *SQUARE)(*arrays)


def test_contract_takes_arrays_only():
    with pytest.raises(TypeError, match="NumPy array or a torch tensor"):
        contract(MATMUL, (2, 2), (2, 2))


def test_contract_does_not_plan_by_time():
    with pytest.raises(ValueError, match="for 'time' make a plan"):
        contract(MATMUL, np.eye(2), np.eye(2), minimize="time")


def test_folding_another_dtype():
    plan = plan_contraction(MATMUL, *SQUARE, constants=(1,))
    folded = plan.folded(torch.eye(2).double())
    with pytest.raises(TypeError, match="float32, float64"):
        folded(torch.eye(2))


def test_folding_twice_or_too_little():
    plan = plan_contraction(MATMUL, *SQUARE, constants=(1,))
    with pytest.raises(ValueError, match="1 constants, got 2"):
        plan.folded(np.eye(2), np.eye(2))
    with pytest.raises(ValueError, match="folded already"):
        plan.folded(np.eye(2)).folded(np.eye(2))
    with pytest.raises(ValueError, match="takes 1 arrays, got 2"):
        plan.folded(np.eye(2))(np.eye(2), np.eye(2))


BAD_SIZES = {
    "a fraction": (TypeError, "every size of operand 0", ((2.5, 2), (2, 2)), None),
    "a negative size": (ValueError, "at least 0", ((-2, 2), (2, 2)), None),
    "one shape": (ValueError, "operands", ((2, 2),), None),
    "a word": (TypeError, "integer", SQUARE, ("a",)),
    "a third operand": (ValueError, "2", SQUARE, (2,)),
}


@pytest.mark.parametrize("name", BAD_SIZES)
def test_other_shapes_are_checked_as_those_of_a_plan(name):
    error, message, shapes, wanted = BAD_SIZES[name]
    plan = plan_contraction(MATMUL, *SQUARE)
    with pytest.raises(error, match=message):
        plan.resized(*shapes, requires_grad=wanted)
    with pytest.raises(error, match=message):
        plan.predicted(RATES, *shapes, requires_grad=wanted)


def test_the_last_operand_of_a_resized_plan_may_be_counted_from_the_end():
    plan = plan_contraction(MATMUL, (2, 3), (3, 4))
    again = plan.resized((2, 3), (3, 4), requires_grad=(-1,))
    assert again.requires_grad == (1,)
    assert again.backward_flops == 48
    with pytest.raises(TypeError, match="must be a Roofline"):
        plan.predicted(1)


def test_a_plan_is_immutable():
    plan = plan_contraction(MATMUL, *SQUARE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.sliced = ("i",)


BAD_ROOFLINES = {
    "library": (ValueError, "must be 'numpy' or 'torch'", {"library": "jax"}),
    "device": (ValueError, "live on the CPU", {"library": "numpy", "device": "cuda"}),
    "meta": (ValueError, "holds no data", {"device": torch.device("meta")}),
    "no device": (ValueError, "is not a torch device here", {"device": "nowhere"}),
    "dtype": (TypeError, "dtype must be one of", {"library": "numpy", "dtype": "bfloat16"}),
}


@pytest.mark.parametrize("name", BAD_ROOFLINES)
def test_bad_rooflines(name):
    error, message, options = BAD_ROOFLINES[name]
    with pytest.raises(error, match=message):
        measure_roofline(**options)


def test_a_roofline_file_is_checked(tmp_path):
    path = tmp_path / "rates.json"
    good = dataclasses.asdict(RATES)
    wrong = [json.dumps(good | change) for change in ({"device": ["x"]}, {"itemsize": 2.5})]
    for text in (*wrong, "{", "[]", "{}", '{"library": "torch", "speed": 3}', "null"):
        path.write_text(text)
        with pytest.raises(ValueError, match="does not hold a roofline"):
            Roofline.load(path)


@pytest.mark.parametrize("limit", [np.float16(64), np.float32(64), np.int8(64), 64, 64.0])
def test_numbers_of_numpy_are_limits(limit):
    with np.errstate(all="raise"):
        assert plan_contraction(MATMUL, *SQUARE, memory_limit=limit).peak_bytes <= 64
