"""A roofline predicts from its rates, plans by them, and is kept in a file."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from tests.tnlib.contraction.networks import operator_and_batch
from tests.tnlib.contraction.rates import RATES
from tnlib import Roofline, measure_roofline, plan_contraction


def test_one_product_takes_overhead_arithmetic_and_writing():
    plan = plan_contraction(
        "ij,jk->ik", (1000, 1000), (1000, 1000), roofline=RATES, requires_grad=()
    )
    assert plan.seconds == pytest.approx(1e-5 + 2e9 / 1e11 + 4e6 / 1e10)


def test_a_thin_product_takes_the_reading():
    plan = plan_contraction("ij,j->i", (1000, 1000), (1000,), roofline=RATES, requires_grad=())
    assert plan.seconds == pytest.approx(1e-5 + 4 * 1_001_000 / 1e10 + 4e3 / 1e10)


def test_the_backward_pass_takes_a_product_for_each_gradient():
    plans = [
        plan_contraction("ij,jk->ik", (64, 64), (64, 64), roofline=RATES, requires_grad=wanted)
        for wanted in ((), (0,), (0, 1))
    ]
    one = plans[0].seconds
    assert [plan.seconds for plan in plans] == pytest.approx([one, 2 * one, 3 * one])


def test_an_axis_between_costs_a_copy():
    plain, moved = (
        plan_contraction(equation, (64, 64, 64), (64, 9), roofline=RATES, requires_grad=())
        for equation in ("ijk,kl->ijl", "ikj,kl->ijl")
    )
    assert moved.seconds - plain.seconds == pytest.approx(4 * 64**3 / 1e9)


def test_time_trades_operations_for_fewer_steps():
    slow_to_start = dataclasses.replace(RATES, seconds_per_batch=1e-3)
    equation, shapes = "bir,bor,i->bo", [(64, 8, 4), (64, 8, 4), (8,)]
    options = {"requires_grad": (), "roofline": slow_to_start}
    quick = plan_contraction(equation, *shapes, minimize="time", **options)
    for path in itertools.permutations(range(3), 2):
        assert quick.seconds <= 1.0, path
    few = plan_contraction(equation, *shapes, **options)
    assert quick.seconds <= few.seconds


@pytest.mark.parametrize("tokens", [1, 64, 4096])
def test_no_other_objective_is_predicted_to_be_faster(tokens):
    equation, shapes = operator_and_batch(3, tokens, 8, 16)
    plans = {
        minimize: plan_contraction(equation, *shapes, minimize=minimize, roofline=RATES)
        for minimize in ("time", "flops", "memory")
    }
    assert plans["time"].seconds <= min(plan.seconds for plan in plans.values()) * (1 + 1e-12)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_measured_rates_are_kept_in_a_file(library, tmp_path):
    measured = measure_roofline("float64", library=library)
    measured.save(tmp_path / "rates.json")
    assert Roofline.load(tmp_path / "rates.json") == measured
    assert [path.name for path in tmp_path.iterdir()] == ["rates.json"]
    assert plan_contraction("ij,jk->ik", (4, 4), (4, 4), roofline=measured).itemsize == 8


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_rates_must_be_positive(rate):
    with pytest.raises(ValueError, match="flops_per_second must be positive"):
        dataclasses.replace(RATES, flops_per_second=rate)
