"""What a plan says about itself is what its steps cost, and the least there is."""

from __future__ import annotations

import itertools
import random
import re
import sys
import tracemalloc

import numpy as np
import opt_einsum
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tnlib.contraction.networks import (
    arrays_for,
    inner_product,
    networks,
    operator_and_batch,
    regular,
)
from tests.tnlib.contraction.rates import RATES
from tnlib import plan_contraction


def opt_cost(equation, shapes, path):
    return opt_einsum.contract_path(equation, *shapes, shapes=True, optimize=path)[1].opt_cost


def every_path(count):
    """All sequences of pairs that end with one array."""
    if count == 1:
        yield ()
    for pair in itertools.combinations(range(count), 2):
        for rest in every_path(count - 1):
            yield (pair, *rest)


def simulate(plan):
    """Peak values, values kept for backward and backward operations, from the steps alone."""
    sizes = plan.network.sizes
    count = len(plan.network.terms)
    volume = {count + k: size(step.result, sizes) for k, step in enumerate(plan.steps)}
    wants = {k: k in plan.requires_grad for k in range(count)}
    alive, peak, kept, backward = set(), 0, set(), 0
    for k, step in enumerate(plan.steps):
        alive.add(count + k)
        peak = max(peak, sum(volume[n] for n in alive))
        alive -= set(step.inputs)
        wants[count + k] = any(wants[n] for n in step.inputs)
        if len(step.inputs) == 2:
            for (n, term), (m, other) in itertools.permutations(
                list(zip(step.inputs, step.terms, strict=True))
            ):
                if wants[n]:
                    union = set(step.result) | set(other)
                    backward += size(union, sizes) * (2 if union - set(term) else 1)
                    kept |= {m} & set(volume)
    return peak, sum(volume[n] for n in kept), backward


def size(indices, sizes):
    return int(np.prod([sizes[i] for i in set(indices)], dtype=object)) if indices else 1


@given(networks(), st.data())
def test_recomputed_costs_are_the_reported_ones(network, data):
    equation, shapes = network
    wanted = data.draw(st.sets(st.sampled_from(range(len(shapes)))))
    minimize = data.draw(st.sampled_from(["flops", "memory"]))
    plan = plan_contraction(
        equation, *shapes, requires_grad=wanted, minimize=minimize, dtype="float64"
    )
    assert plan.flops == opt_cost(equation, shapes, plan.path)
    assert (plan.peak_bytes / 8, plan.saved_bytes / 8, plan.backward_flops) == simulate(plan)
    assert all(len(step.inputs) <= 2 for step in plan.steps)


@given(networks(most=4))
def test_no_path_has_fewer_operations(network):
    equation, shapes = network
    best = min(opt_cost(equation, shapes, path or ((0,),)) for path in every_path(len(shapes)))
    assert plan_contraction(equation, *shapes).flops <= best
    auto = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize="auto")[1].opt_cost
    assert plan_contraction(equation, *shapes).flops <= auto


@given(networks(most=4))
def test_the_order_for_memory_has_the_smallest_peak_of_all(network):
    equation, shapes = network
    plan = plan_contraction(equation, *shapes, minimize="memory", requires_grad=())
    fast = plan_contraction(equation, *shapes, requires_grad=())
    assert plan.peak_bytes <= fast.peak_bytes
    limited = plan_contraction(equation, *shapes, requires_grad=(), memory_limit=fast.peak_bytes)
    assert limited.flops == fast.flops
    tight = plan_contraction(equation, *shapes, requires_grad=(), memory_limit=plan.peak_bytes)
    assert tight.peak_bytes == plan.peak_bytes
    with pytest.raises(ValueError, match=f"{plan.peak_bytes} bytes"):
        plan_contraction(equation, *shapes, memory_limit=plan.peak_bytes - 1)


LARGE = {
    "mpo 12": operator_and_batch(12, 64, 2, 8),
    "mpo 9": operator_and_batch(9, 16, 3, 6),
    "mps 20": inner_product(20, 4, 8),
    "regular 16": regular(16, 3, 4, 0),
    "regular 30": regular(30, 3, 2, 1),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_networks_cost_no_more_than_the_peers_find(name):
    equation, shapes = LARGE[name]
    plan = plan_contraction(equation, *shapes, max_repeats=8)
    assert plan.flops == opt_cost(equation, shapes, plan.path)
    for optimize in ("auto", "greedy", "random-greedy"):
        report = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize=optimize)[1]
        assert plan.flops <= report.opt_cost


@pytest.mark.filterwarnings("ignore:Couldn't import `kahypar`")
def test_cotengra_is_asked_and_leaves_no_trace():
    cotengra = pytest.importorskip("cotengra")
    equation, shapes = LARGE["regular 30"]
    terms = equation.removesuffix("->").split(",")
    sizes = dict.fromkeys("".join(terms), 2)
    state = random.getstate()
    plan = plan_contraction(equation, *shapes, max_repeats=16)
    assert random.getstate() == state
    greedy = cotengra.RandomGreedyOptimizer(max_repeats=16, seed=0, parallel=False)
    path = greedy([tuple(term) for term in terms], (), sizes)
    assert plan.flops <= opt_cost(equation, shapes, [tuple(map(int, pair)) for pair in path])


@pytest.mark.parametrize("name", LARGE)
def test_large_networks_keep_a_memory_limit(name):
    equation, shapes = LARGE[name]
    free = plan_contraction(equation, *shapes, max_repeats=8)
    small = plan_contraction(equation, *shapes, minimize="memory", requires_grad=(), max_repeats=8)
    limit = (free.peak_bytes + small.peak_bytes) / 2
    plan = plan_contraction(equation, *shapes, memory_limit=limit, max_repeats=8)
    assert plan.peak_bytes <= limit


def test_rebuilding_the_matrix_is_chosen_for_a_large_batch_at_inference():
    equation, shapes = operator_and_batch(4, 2048, 8, 64)
    plan = plan_contraction(equation, *shapes, requires_grad=())
    matrix = 2 * 2048 * 4096**2
    assert plan.steps[-1].inputs[0] == 0 or plan.steps[-1].inputs[1] == 0
    assert matrix < plan.flops < 1.05 * matrix


def test_training_can_prefer_another_order_than_the_forward_pass():
    equation, shapes = operator_and_batch(4, 2048, 8, 16)
    cores = range(1, 5)
    forward = plan_contraction(equation, *shapes, requires_grad=())
    trained = plan_contraction(equation, *shapes, requires_grad=cores)
    same = plan_contraction(equation, *shapes, requires_grad=cores, minimize="memory")
    assert trained.flops >= forward.flops
    there = forward_plan_in_training(equation, shapes, forward, cores)
    assert trained.flops + trained.backward_flops <= there.flops + there.backward_flops
    assert same.peak_bytes + same.saved_bytes <= trained.peak_bytes + trained.saved_bytes


def forward_plan_in_training(equation, shapes, plan, wanted):
    import dataclasses

    return dataclasses.replace(plan, requires_grad=tuple(wanted))


@pytest.mark.skipif("tests.perturbed" in sys.modules, reason="noise takes memory")
def test_the_peak_is_that_of_the_memory_that_is_used():
    equation, shapes = "ab,bc,cd->ad", [(300, 200), (200, 400), (400, 350)]
    plan = plan_contraction(equation, *shapes, dtype="float64")
    arrays = arrays_for(shapes)
    plan(*arrays)
    tracemalloc.start()
    plan(*arrays)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan.peak_bytes <= peak <= plan.peak_bytes + 20_000


def test_memory_limits_of_ten_operands_and_more():
    for seed in range(3):
        rng = np.random.default_rng(seed)
        count, letters = 12, "abcdefghijklmnop"
        terms = [
            "".join(rng.choice(list(letters), rng.integers(1, 5), False)) for _ in range(count)
        ]
        sizes = {letter: int(rng.integers(2, 6)) for letter in letters}
        shapes = [tuple(sizes[index] for index in term) for term in terms]
        equation = ",".join(terms) + "->"
        small = plan_contraction(
            equation, *shapes, minimize="memory", requires_grad=(), max_repeats=4
        )
        limit = small.peak_bytes
        plan = plan_contraction(
            equation, *shapes, memory_limit=limit, requires_grad=(), max_repeats=4
        )
        assert plan.peak_bytes <= limit


def test_memory_with_constants_counts_bytes_alone():
    shapes = ((64, 256), (256, 256), (256, 16))
    options = {"constants": (1, 2), "requires_grad": (0,)}
    small, fast = (
        plan_contraction("bi,ir,ro->bo", *shapes, minimize=minimize, **options).peak_bytes
        for minimize in ("memory", "flops")
    )
    assert small <= fast


def test_constants_cost_nothing_a_call():
    shapes = [(64, 512), (512, 8), (8, 512)]
    plan = plan_contraction("bi,ir,ro->bo", *shapes, constants=(1, 2))
    assert plan.flops == 2 * 64 * 512 * 8 * 2
    assert plan.folding_flops == 0
    wide = plan_contraction("bi,ir,ro->bo", (64, 512), (512, 400), (400, 512), constants=(1, 2))
    assert wide.flops == 2 * 64 * 512 * 512
    assert wide.folding_flops == 2 * 512 * 400 * 512
    assert wide.requires_grad == (0,)


def test_plans_are_kept():
    equation, shapes = operator_and_batch(4, 32, 8, 4)
    assert plan_contraction(equation, *shapes) is plan_contraction(equation, *map(list, shapes))
    assert plan_contraction(equation, *shapes) is not plan_contraction(
        equation, *shapes, minimize="memory"
    )


def test_a_plan_prints_as_a_table():
    plan = plan_contraction("bi,ij,jk->bk", (4, 30), (30, 2), (2, 5), dtype="float64")
    lines = str(plan).splitlines()
    assert lines[0] == "bi,ij,jk->bk"
    assert [line.split()[0] for line in lines[1:-1]] == ["step", "t0", "t1"]
    assert "flops 560" in lines[-1]
    assert "peak 224 B" in lines[-1]
    assert repr(plan).startswith("Plan('bi,ij,jk->bk', flops=560")


@pytest.mark.parametrize(("count", "digits"), [(2, 400), (3, 400), (10, 120), (2, 3000)])
def test_plans_beyond_the_range_of_floats_can_be_made_printed_and_compared(count, digits):
    # A chain of matrices whose rows and columns are many modes of 10^9.
    modes = digits // 9
    symbols = [opt_einsum.get_symbol(k) for k in range(modes * (count + 1))]
    sides = ["".join(symbols[k * modes : (k + 1) * modes]) for k in range(count + 1)]
    terms = [left + right for left, right in itertools.pairwise(sides)]
    shapes = [(10**9,) * 2 * modes] * count
    equation = f"{','.join(terms)}->{sides[0]}{sides[-1]}"
    every = (
        {"minimize": "time", "roofline": RATES},
        {},
        {"minimize": "memory"},
        {"constants": range(1, count)},
        {"requires_grad": (0,)},
    )
    for options in every[: 1 if count == 10 else None]:
        plan = plan_contraction(equation, *shapes, max_repeats=2, **options)
        assert plan.flops >= 2 * 10 ** (27 * modes)
        assert re.search(r"flops=\d\.\d+e\+\d+, peak_bytes=\d[.\d]*e\+\d+,", repr(plan))
        assert "TiB" in str(plan)
        assert plan.predicted(RATES) == np.inf
        assert plan.resized(*shapes).flops == plan.flops


def test_the_smallest_peak_is_named_however_large():
    shapes, names = [(10**9,) * 40] * 2, "".join(map(opt_einsum.get_symbol, range(60)))
    equation = f"{names[:40]},{names[20:]}->{names[:20]}{names[40:]}"
    with pytest.raises(ValueError, match=r"smallest peak found is 4\.0*e\+360 bytes"):
        plan_contraction(equation, *shapes, memory_limit=1e9)


def test_sizes_that_no_array_has_are_refused():
    with pytest.raises(ValueError, match="at most 9223372036854775807"):
        plan_contraction("i->", (2**63,))
