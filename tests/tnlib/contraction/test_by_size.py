"""The break-even sizes are where the best plan changes, for every size between."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tnlib.contraction.networks import networks, operator_and_batch
from tests.tnlib.contraction.rates import RATES
from tnlib import plan_by_size, plan_contraction
from tnlib.contraction.network import parsed


@given(networks(most=4), st.data())
def test_the_plan_for_a_size_costs_what_planning_for_it_costs(network, data):
    equation, shapes = network
    letters = sorted(set(equation) - set(",->"))
    if not letters:
        return
    named = data.draw(st.sampled_from(letters))
    wanted = data.draw(st.none() | st.sets(st.sampled_from(range(len(shapes)))))
    terms = equation.split("->")[0].split(",")

    def sized(size):
        return [
            tuple(size if index == named else n for index, n in zip(term, shape, strict=True))
            for term, shape in zip(terms, shapes, strict=True)
        ]

    found = plan_by_size(equation, *sized("n"), largest=200, requires_grad=wanted)
    assert list(found.breakeven) == sorted(set(found.breakeven))
    sizes = {1, 2, 3, 5, 8, 50, 200, *found.breakeven, *(n - 1 for n in found.breakeven)}
    for size in sorted(sizes - {0}):
        best = plan_contraction(equation, *sized(size), requires_grad=wanted)
        arrays_cost = total(found.at(size), equation, sized(size), wanted)
        assert arrays_cost == best.flops + (wanted is not None) * best.backward_flops


def total(plan, equation, shapes, wanted):
    """Operations of the plan's steps at other shapes, by opt_einsum's count of each step."""
    moved = dataclasses.replace(plan, network=parsed(equation, shapes))
    return moved.flops + (wanted is not None) * moved.backward_flops


def test_low_rank_layer_changes_where_rebuilding_pays():
    # Through the factors: 2 n r (i + o); rebuilt: 2 r i o + 2 n i o.
    rows, columns, rank = 96, 64, 48
    shapes = (("tokens", columns), (columns, rank), (rank, rows))
    found = plan_by_size("bi,ir,ro->bo", *shapes)
    through = rank * (rows + columns)
    first = rank * rows * columns / (through - rows * columns)
    assert found.breakeven == (int(first) + 1,)
    assert found.at(found.breakeven[0] - 1).steps[0].inputs == (0, 1)
    assert found.at(found.breakeven[0]).steps[0].inputs == (1, 2)


def test_gradients_move_the_break_even_size():
    equation, shapes = operator_and_batch(3, 1, 8, 24)
    named = [("tokens", *shapes[0][1:]), *shapes[1:]]
    forward = plan_by_size(equation, *named, requires_grad=())
    training = plan_by_size(equation, *named, requires_grad=(1, 2, 3))
    assert forward.breakeven
    assert forward.breakeven != training.breakeven
    last = training.plans[-1]
    assert last.backward_flops > 0
    assert all(plan.backward_flops == 0 for plan in forward.plans)


@pytest.mark.parametrize("minimize", ["memory", "time"])
def test_every_objective_has_break_even_sizes(minimize):
    equation, shapes = operator_and_batch(3, 1, 8, 24)
    named = [("tokens", *shapes[0][1:]), *shapes[1:]]
    found = plan_by_size(
        equation, *named, minimize=minimize, roofline=RATES, requires_grad=(), largest=4096
    )
    assert len(found.plans) > 1
    for size in (1, 4096):
        best = plan_contraction(
            equation,
            (size, *shapes[0][1:]),
            *shapes[1:],
            minimize=minimize,
            roofline=RATES,
            requires_grad=(),
        )
        assert found.at(size).path == best.path


BAD = {
    "no name": (ValueError, "got none", ((2, 2), (2, 2)), {}),
    "two names": (ValueError, "'a', 'b'", (("a", 2), (2, "b")), {}),
    "array": (TypeError, "operand 1 must be a shape, got int", (("a", 2), 3), {}),
    "largest": (ValueError, "largest must be at least 1", (("a", 2), (2, 2)), {"largest": 0}),
    "two indices": (ValueError, "one index can have a name, got i, j", (("a", "a"), ("a", 2)), {}),
    "no fit": (ValueError, "index 'j' has size", (("a", 3), (2, 2)), {"largest": 3}),
    "limit": (ValueError, "cannot be kept for all sizes", (("a", 2), (2, 2)), {"memory_limit": 9}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_sizes(name):
    error, message, shapes, options = BAD[name]
    with pytest.raises(error, match=message):
        plan_by_size("ij,jk->ik", *shapes, **options)
