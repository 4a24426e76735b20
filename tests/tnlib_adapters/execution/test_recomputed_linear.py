"""One product with a recomputed weight: same values and gradients as autograd, less kept."""

from __future__ import annotations

import weakref

import pytest
import torch

from tests.tnlib_adapters.declarations import random_cores
from tests.tolerances import assert_close
from tnlib_adapters import DoTAConfig, LoTRConfig, NetworkLinear
from tnlib_adapters.execution.base_weight import DenseWeight
from tnlib_adapters.execution.recomputed_linear import recomputed_linear
from tnlib_adapters.networks.builders import mpo_network

NETWORK = mpo_network((3, 4), (5, 2), (1, 3, 1), anchored=True)


def parts(dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 7, 10, generator=generator, dtype=dtype)
    weight = torch.randn(12, 10, generator=generator, dtype=dtype)
    bias = torch.randn(12, generator=generator, dtype=dtype)
    cores = {k: v.to(dtype).requires_grad_() for k, v in random_cores(NETWORK).items()}
    anchor = {k: v.to(dtype) for k, v in random_cores(NETWORK, seed=1).items()}
    return x.requires_grad_(), weight, bias, cores, anchor


def applied(x, weight, bias, cores, anchor):
    base = None if weight is None else DenseWeight(weight)
    return recomputed_linear(x, base, bias, NETWORK.bound(cores, anchor))


@pytest.mark.parametrize("with_weight", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_are_those_of_the_dense_layer(with_weight, with_bias):
    x, weight, bias, cores, anchor = parts()
    weight = weight if with_weight else None
    bias = bias.requires_grad_() if with_bias else None
    y = applied(x, weight, bias, cores, anchor)
    dense = NETWORK.delta(cores, anchor) + (0 if weight is None else weight)
    expected = torch.nn.functional.linear(x, dense, bias)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    wanted = [x, *cores.values()] + ([bias] if with_bias else [])
    seed = torch.randn_like(y)
    for a, b in zip(
        torch.autograd.grad(y, wanted, seed),
        torch.autograd.grad(expected, wanted, seed),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_gradients_pass_gradcheck():
    x, weight, bias, cores, anchor = parts()
    names = list(cores)

    def layer(x, *values):
        chosen = dict(zip(names, values, strict=True))
        return applied(x, weight, bias, chosen, anchor)

    assert torch.autograd.gradcheck(layer, (x, *cores.values()))


def test_no_dense_matrix_is_kept_for_the_backward_pass():
    x, weight, bias, cores, anchor = parts()
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        applied(x, weight, bias, cores, anchor)
    dense = [t for t in kept if t.numel() == weight.numel() and t is not weight]
    assert dense == []
    assert len(kept) == 2 + len(cores) + len(anchor)


def test_frozen_cores_and_inputs_get_no_gradient():
    x, weight, bias, cores, anchor = parts()
    cores["core_0"].requires_grad_(False)
    y = applied(x.detach(), weight, bias, cores, anchor)
    y.sum().backward()
    assert cores["core_0"].grad is None
    assert cores["core_1"].grad is not None


def test_autocast_computes_in_its_dtype_and_returns_gradients_in_float32():
    x, weight, bias, cores, anchor = parts(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = applied(x, weight, bias, cores, anchor)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32
    assert cores["core_0"].grad.dtype == torch.float32
    exact = applied(x, weight, bias, cores, anchor)
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.5)


def test_a_weight_that_only_the_graph_has_is_free_after_the_backward_pass():
    x, weight, bias, cores, anchor = parts()
    y = applied(x, weight, bias, cores, anchor)
    known = weakref.ref(weight)
    del weight
    assert known() is not None
    y.sum().backward()
    assert known() is None


def test_a_weight_that_changed_before_the_backward_pass_is_noticed():
    x, weight, bias, cores, anchor = parts()
    y = applied(x, weight, bias, cores, anchor)
    weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("config", [DoTAConfig(r=5), LoTRConfig(r=8)])
def test_a_traced_layer_gives_the_same(config):
    layer = NetworkLinear.from_linear(torch.nn.Linear(64, 48), config).eval()
    x = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    traced = torch.jit.trace(layer, x, check_trace=False)
    assert_close(traced(x).detach(), layer(x).detach(), operations=64)
