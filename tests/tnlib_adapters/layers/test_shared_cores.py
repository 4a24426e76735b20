"""Cores that several weights use are held once, whoever asks for them."""

from __future__ import annotations

import pytest
import torch

from tnlib_adapters import Core, LoTRConfig, NetworkLinear, SharedCores

CORE = Core("u", ("out", "r"), group="all")


def test_a_core_is_allocated_once_and_keeps_its_shape():
    shared = SharedCores()
    shared.allocate(CORE, (4, 2), None, torch.float32)
    first = shared.get("u_all")
    shared.allocate(CORE, (4, 2), None, torch.float32)
    assert shared.get("u_all") is first
    with pytest.raises(ValueError, match=r"core 'u' of group 'all' is \(4, 2\) already and cannot"):
        shared.allocate(CORE, (4, 3), None, torch.float32)


def test_values_that_were_never_set_are_known_by_being_nan():
    shared = SharedCores()
    shared.allocate(CORE, (4, 2), None, torch.float32)
    assert shared.get("u_all").isnan().all()
    assert shared._set_keys == set()


def test_the_first_layer_sets_the_values_and_later_ones_find_them():
    shared = SharedCores()
    shared.allocate(CORE, (4, 2), None, torch.float32)
    shared.initialize("u_all", torch.ones(4, 2))
    shared.initialize("u_all", torch.zeros(4, 2))
    assert torch.equal(shared.get("u_all"), torch.ones(4, 2))


def test_values_that_are_loaded_are_set():
    full, empty = SharedCores(), SharedCores()
    for shared in (full, empty):
        shared.allocate(CORE, (4, 2), None, torch.float32)
    full.initialize("u_all", torch.ones(4, 2))
    empty.load_state_dict(full.state_dict())
    empty.initialize("u_all", torch.zeros(4, 2))
    assert torch.equal(empty.get("u_all"), torch.ones(4, 2))


def test_a_frozen_core_is_a_buffer_and_a_trained_one_a_parameter():
    shared = SharedCores()
    shared.allocate(CORE, (4, 2), None, torch.float32)
    shared.allocate(Core("v", ("in", "r"), group="all", frozen=True), (3, 2), None, torch.float32)
    assert [name for name, _ in shared.named_parameters()] == ["u_all"]
    assert [name for name, _ in shared.named_buffers()] == ["v_all"]


def test_layers_that_share_train_one_tensor():
    shared = SharedCores()
    config = LoTRConfig(r=2, init_weights=False)
    linears = [torch.nn.Linear(6, 4) for _ in range(2)]
    one, other = (NetworkLinear.from_linear(x, config, shared=shared) for x in linears)
    assert one.update.cores["u_4x6"] is other.update.cores["u_4x6"]
    (one(torch.ones(1, 6)).sum() + other(torch.ones(1, 6)).sum()).backward()
    alone = [torch.autograd.grad(x(torch.ones(1, 6)).sum(), shared.u_4x6)[0] for x in (one, other)]
    torch.testing.assert_close(shared.u_4x6.grad, sum(alone))
