"""Forms of the dense update: sums and gradients are those of the definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tnlib_adapters.declarations import mpo_networks, networks, random_cores
from tests.tolerances import assert_close
from tnlib_adapters import Core, FusedProjection, Network
from tnlib_adapters.execution.dense_forms import Full, Rows, TwoFactor, interleaved
from tnlib_adapters.networks.builders import mpo_network

# Terms of the largest sum: every index of the networks that are drawn, in both terms.
TERMS = 2 * 4**8


def definition(network, cores):
    """The update by one einsum over all indices."""
    symbol = {leg: k for k, leg in enumerate(network.sizes)}
    operands = []
    for core, value in zip(network.cores, network.values(cores), strict=True):
        legs = [leg for leg in core.legs if leg not in network.fixed_indices]
        operands += [value, [symbol[leg] for leg in legs]]
    open_legs = (*network.out_legs, *network.in_legs)
    total = torch.einsum(*operands, [symbol[leg] for leg in open_legs])
    return network.scale * total.reshape(network.out_features, network.in_features)


@settings(max_examples=80)
@given(st.one_of(networks(), mpo_networks()))
def test_every_form_is_the_definition(network):
    cores = random_cores(network)
    anchor = random_cores(network, seed=1) if network.anchored else None
    expected = definition(network, cores)
    if anchor is not None:
        expected = expected - definition(network, anchor)
    assert_close(network.bound(cores, anchor).dense(), expected, TERMS)


@settings(max_examples=80)
@given(st.one_of(networks(), mpo_networks()), st.booleans())
def test_a_sum_with_a_weight_is_formed_in_new_memory_or_in_its_own(network, own):
    cores = random_cores(network)
    anchor = random_cores(network, seed=1) if network.anchored else None
    bound = network.bound(cores, anchor)
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(expected_shape(network), generator=generator, dtype=torch.float64)
    expected = weight + bound.dense()
    before = weight.clone()
    out = weight if own else torch.empty_like(weight)
    operands = bound.form.operands(bound.values)
    fixed = bound.form.operands(bound.anchor) if bound.anchor else None
    found = bound.form.added(operands, fixed, bound.scale, weight, out)
    assert found.data_ptr() == out.data_ptr()
    assert own or torch.equal(weight, before)
    assert_close(found, expected, TERMS)


@settings(max_examples=80)
@given(st.one_of(networks(), mpo_networks()))
def test_gradients_of_the_operands_are_those_of_autograd(network):
    bound = network.bound(random_cores(network), None)
    operands = tuple(o.detach().requires_grad_() for o in bound.form.operands(bound.values))
    update = bound.form.update(operands, None, bound.scale)
    generator = torch.Generator().manual_seed(3)
    grad = torch.randn(update.shape, generator=generator, dtype=torch.float64)
    expected = torch.autograd.grad(update, operands, grad)
    known = tuple(operand.detach() for operand in operands)
    found = bound.form.gradients(grad, known, bound.scale)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, TERMS)


def expected_shape(network):
    return network.out_features, network.in_features


def test_an_operator_is_a_product_of_two_factors_and_a_crossed_network_is_contracted_whole():
    assert isinstance(mpo_network((4, 4), (4, 4), (1, 2, 1)).dense, TwoFactor)
    # Its first core has the last row index and its second the first.
    crossed = Network(
        (Core("a", ("o1", "i0", "r")), Core("b", ("r", "o0", "i1"))),
        {"o0": 2, "o1": 3, "i0": 2, "i1": 2, "r": 2},
        ("o0", "o1"),
        ("i0", "i1"),
    )
    assert isinstance(crossed.dense, Full)


@pytest.mark.parametrize("groups", [1, 2])
def test_parts_are_the_rows_of_a_fused_projection(groups):
    def part(role, rows, scale):
        cores = Core("a", ("r", "in"), group="all"), Core(f"b_{role}", ("out", "r"))
        return Network(cores, {"in": 5, "out": rows, "r": 2}, ("out",), ("in",), scale=scale)

    parts = part("q", 8, 2.0), part("k", 4, -0.5)
    projection = FusedProjection(parts, groups)
    cores = random_cores(projection)
    own = [network.delta(cores) for network in parts]
    rows = [update.reshape(groups, -1, 5) for update in own]
    expected = torch.cat(rows, 1).reshape(12, 5)
    assert isinstance(projection.dense, Rows)
    torch.testing.assert_close(projection.delta(cores), expected, rtol=1e-14, atol=1e-14)
    leaves = {key: core.clone().requires_grad_() for key, core in cores.items()}
    bound = projection.bound(leaves, None)
    operands = bound.form.operands(bound.values)
    grad = torch.randn(12, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = torch.autograd.grad(
        operands,
        [*leaves.values()],
        bound.form.gradients(grad, tuple(o.detach() for o in operands), 1.0),
    )
    expected = torch.autograd.grad(projection.delta(leaves), [*leaves.values()], grad)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_runs_take_turns():
    assert interleaved([torch.tensor([1, 2]), torch.tensor([3, 4])], 2).tolist() == [1, 3, 2, 4]
    assert interleaved([torch.tensor([1, 2]), torch.tensor([3, 4])], 1).tolist() == [1, 2, 3, 4]
