"""Networks of all experts: that of each, in one chain of products."""

from __future__ import annotations

import dataclasses

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from tests.tnlib_adapters.forms import MERGEABLE, METHODS
from tests.tolerances import assert_close
from tnlib_adapters import Core, Network, NetworkConfig, Site, normal, zeros
from tnlib_adapters.execution.expert_products import Routing
from tnlib_adapters.networks.expert_network import expert_by_expert, over_experts

EXPERTS, OUT, WIDTH = 5, 24, 36
SITE = Site("experts.down_proj", OUT, WIDTH, depth=3, layer=1, experts=EXPERTS)


@dataclasses.dataclass
class SharedOuter(NetworkConfig, method="shared_outer"):
    """One A for all experts of an input projection, one B for those of an output projection."""

    r: int = 4

    def network(self, site):
        first = "down" not in site.name
        a = ("r", "in") if first else ("expert", "r", "in")
        b = ("expert", "out", "r") if first else ("out", "r")
        cores = Core("A", a, normal(site.in_features**-0.5)), Core("B", b, zeros)
        sizes = {"in": site.in_features, "out": site.out_features, "r": self.r}
        sizes |= {"expert": site.experts}
        return Network(cores, sizes, ("out",), ("in",), {"expert": site.expert})


@dataclasses.dataclass
class Hyper(NetworkConfig, method="hyper_experts"):
    """A leg that meets factors on both sides and in the middle, so that it cannot be passed on."""

    def network(self, site):
        legs = ("in", "s"), ("expert", "s", "t"), ("out", "s", "t")
        cores = tuple(Core(f"c{k}", own, normal(0.3)) for k, own in enumerate(legs))
        sizes = {"in": site.in_features, "out": site.out_features, "expert": site.experts}
        return Network(cores, sizes | {"s": 3, "t": 2}, ("out",), ("in",), {"expert": 0})


KINDS = [METHODS[form]() for form in MERGEABLE]
KINDS += [METHODS["dota"](init_weights="random"), SharedOuter(), Hyper()]
named = pytest.mark.parametrize("config", KINDS, ids=lambda config: type(config).__name__)


def drawn(network, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64) / 2

    cores = {key: random(shape) for key, shape in network.shapes.items()}
    return cores, {k: random(v.shape) for k, v in cores.items()} if network.anchored else None


@named
@hypothesis.given(
    st.lists(st.integers(0, EXPERTS), max_size=20), st.booleans(), st.booleans(), st.integers(0, 99)
)
def test_rows_go_through_the_network_of_their_expert(config, slots, in_order, gathered, seed):
    network = over_experts(config.network(SITE), EXPERTS)
    cores, anchor = drawn(network, seed)
    slots = torch.tensor(sorted(slots) if in_order else slots, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(7, WIDTH, generator=generator, dtype=torch.float64)
    source = torch.randint(0, 7, (len(slots),), generator=generator)
    deltas = [network.delta(cores, anchor, e) for e in range(EXPERTS)]
    deltas = torch.stack([*deltas, torch.zeros_like(deltas[0])])
    expected = torch.einsum("soi,si->so", deltas[slots], x[source])
    given = (x, source) if gathered else (x[source], None)
    sorts = Routing.sorted(slots, EXPERTS, partial=True) if in_order else None
    for routing in filter(None, (Routing(slots, partial=True), sorts)):
        found = network.apply(given[0], cores, anchor, routing, given[1])
        assert_close(found, expected, 1000, size=1 + float(deltas.abs().max()))


@named
def test_the_update_of_an_expert_is_that_of_its_network(config):
    network = over_experts(config.network(SITE), EXPERTS)
    cores, anchor = drawn(network)
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    single = expert_by_expert({"w": network})
    for expert in range(EXPERTS):
        delta = network.delta(cores, anchor, expert)
        assert_close(network.apply_one(x, cores, anchor, expert), x @ delta.mT, 1000, size=50.0)
        factors = network.cut_factors(cores, anchor, expert)
        if factors is not None:
            assert_close(factors[0] @ factors[1], delta, 1000)
        own = single[f"w[{expert}]"]
        values = cores if network.single is None else _own(network, cores, expert)
        start = (
            anchor if anchor is None or network.single is None else _own(network, anchor, expert)
        )
        assert_close(own.delta(values, start), delta, 1000)


def _own(network, cores, expert):
    return {
        core.key: cores[core.key][expert] if "expert" in core.legs else cores[core.key]
        for core in network.cores
    }


@named
def test_the_update_of_all_experts_is_never_formed(config):
    """No array on the way is as large as the updates of all experts."""
    site = dataclasses.replace(SITE, out_features=96, in_features=144, experts=64)
    network = over_experts(config.network(site), 64)
    cores = {key: torch.randn(shape, requires_grad=True) for key, shape in network.shapes.items()}
    anchor = {k: v.detach() * 0 for k, v in cores.items()} if network.anchored else None
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(v.numel() for v in _tensors(result))
            return result

    x = torch.randn(10, 144)
    routing = Routing.sorted(torch.arange(10) * 6, 64)
    with Watch():
        network.apply(x, cores, anchor, routing).sum().backward()
    assert 0 < max(sizes) < 64 * 96 * 144


def _tensors(result):
    results = result if isinstance(result, tuple | list) else (result,)
    return [value for value in results if isinstance(value, torch.Tensor)]


def test_cores_of_one_weight_become_those_of_experts_and_groups_are_shared():
    network = over_experts(METHODS["lotr"]().network(SITE), EXPERTS)
    assert [(core.group is None, "expert" in core.legs) for core in network.cores] == [
        (False, False),
        (True, True),
        (False, False),
    ]


@pytest.mark.parametrize("fixed", [{}, {"expert": 1}])
def test_a_leg_of_the_experts_that_does_not_fit_is_refused(fixed):
    cores = Core("A", ("r", "in")), Core("B", ("expert", "out", "r"))
    sizes = {"in": 4, "out": 3, "r": 2, "expert": 5}
    if not fixed:
        with pytest.raises(ValueError, match="nothing joins them"):
            Network(cores, sizes, ("out",), ("in",))
        return
    with pytest.raises(ValueError, match=r"fixed_indices=\{'expert': 0\}"):
        over_experts(Network(cores, sizes, ("out",), ("in",), fixed), 5)
    with pytest.raises(ValueError, match=r"of size site\.experts = 4"):
        over_experts(Network(cores, sizes, ("out",), ("in",), {"expert": 0}), 4)
