"""Cores, and what every declaration says of them."""

from __future__ import annotations

import pytest
import torch

from tests.tnlib_adapters.declarations import LORA, random_cores
from tnlib_adapters import Core, Network, normal, ones, uniform, zeros
from tnlib_adapters.networks.core import computing


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a b"}, "core names must be identifiers, got 'a b'"),
        ({"name": "a", "group": "q-v"}, "groups are named by letters, digits and _, got 'q-v'"),
    ],
)
def test_names_become_parameters_and_must_be_fit_for_it(fields, message):
    with pytest.raises(ValueError, match=message):
        Core(**{"legs": ("in",)} | fields)


def test_a_core_of_a_group_has_the_group_in_its_key():
    assert Core("u", ("in",)).key == "u"
    assert Core("u", ("in",), group="48x64").key == "u_48x64"


def test_frozen_cores_are_not_counted():
    cores = Core("a", ("r", "in"), frozen=True), Core("b", ("out", "r"))
    network = Network(cores, {"in": 7, "out": 5, "r": 2}, ("out",), ("in",))
    assert network.n_params == 10


@pytest.mark.parametrize("initializer", [zeros, ones, normal(0.5), uniform(0.5)])
def test_without_zeros_a_core_that_starts_at_zero_is_small_and_others_are_as_declared(initializer):
    core = Core("a", ("out", "r"), initializer)
    drawn = {
        zero: core.initialized((200, 25), torch.Generator().manual_seed(0), zeros=zero)
        for zero in (True, False)
    }
    if initializer == zeros:
        assert not drawn[True].any()
        # N(0, 0.1^2 / r), whose deviation 5000 values tell to a hundredth or so.
        assert 0.9 < float(drawn[False].std()) / 0.02 < 1.1
    else:
        assert torch.equal(drawn[True], drawn[False])
        assert float(drawn[True].abs().max()) > 0.4


def test_the_same_generator_draws_the_same_cores():
    one, other = (LORA.initial(torch.Generator().manual_seed(1)) for _ in range(2))
    assert one.keys() == other.keys() == LORA.shapes.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_widths_that_differ_from_the_layers_are_named():
    with pytest.raises(ValueError, match="the network is 5 x 7, the layer 7 x 5"):
        LORA.check_fits(7, 5)
    LORA.check_fits(5, 7)


def test_tensors_are_combined_in_float32_at_least():
    half, double = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.float64)
    assert computing([half]) == torch.float32
    assert computing([half, double]) == torch.float64


def test_maps_multiply_to_the_update():
    cores = random_cores(LORA)
    ((first, second),) = LORA.maps(cores)
    assert (tuple(first.shape), tuple(second.shape)) == ((7, 2), (2, 5))
    torch.testing.assert_close(first @ second, LORA.delta(cores).mT)
