"""Networks of every kind, and values for their cores."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from tnlib_adapters import Core, DoTAConfig, LoRETTAConfig, LoRTAConfig, LoTRConfig, Network, Site
from tnlib_adapters.networks.builders import mpo_network

LORA = Network(
    (Core("a", ("bond", "in")), Core("b", ("out", "bond"))),
    {"in": 7, "out": 5, "bond": 2},
    out_legs=("out",),
    in_legs=("in",),
    scale=0.5,
)


# Terms of the largest sum of four cores: 4^4 inputs and three bonds of 4.
TERMS = 4**7


def random_cores(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in network.shapes.items()
    }


@st.composite
def mpo_networks(draw):
    order = draw(st.integers(1, 4))
    sizes = st.lists(st.integers(1, 4), min_size=order, max_size=order)
    bonds = draw(st.lists(st.integers(1, 4), min_size=order - 1, max_size=order - 1))
    anchored = draw(st.booleans())
    return mpo_network(draw(sizes), draw(sizes), (1, *bonds, 1), anchored=anchored)


ONES = st.integers(1, 4)


@st.composite
def networks(draw):
    """Any network: cores with random open legs, random bonds, of two cores or of more."""
    count = draw(st.integers(1, 4))
    legs: list[list[str]] = [[] for _ in range(count)]
    sizes, sides = {}, {"out": [], "in": []}
    for side, names in sides.items():
        for k in range(draw(st.integers(1, 3))):
            leg = f"{side}_{k}"
            names.append(leg)
            sizes[leg] = draw(ONES)
            legs[draw(st.integers(0, count - 1))].append(leg)
    for k in range(draw(st.integers(0, 4)) if count > 1 else 0):
        owners = draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=3, unique=True))
        sizes[f"bond_{k}"] = draw(ONES)
        for owner in owners:
            legs[owner].append(f"bond_{k}")
    at = {}
    if draw(st.booleans()):
        sizes["layer"] = 3
        legs[draw(st.integers(0, count - 1))].append("layer")
        at = {"layer": draw(st.integers(0, 2))}
    for names in legs:
        draw(st.randoms(use_true_random=False)).shuffle(names)
    used = [k for k in range(count) if legs[k]]
    return Network(
        tuple(Core(f"core_{k}", tuple(legs[k])) for k in used),
        sizes,
        tuple(sides["out"]),
        tuple(sides["in"]),
        fixed_indices=at,
        scale=draw(st.sampled_from([1.0, -0.5])),
        anchored=draw(st.booleans()),
    )


@st.composite
def method_networks(draw):
    """The networks of the methods, for widths and ranks of any size."""
    heads, width, rank = draw(ONES), draw(st.integers(1, 24)), draw(st.integers(1, 6))
    out = heads * draw(st.integers(1, 6))
    site = Site(
        "q", out, width, depth=3, layer=1, role="q", n_matrices=4, heads=heads, kv_heads=heads
    )
    config = draw(
        st.sampled_from(
            [
                LoTRConfig(r=rank, alpha=2.0),
                LoRTAConfig(r=rank),
                LoRETTAConfig(variant="rep", tt_rank=rank, dropout=0.0),
                DoTAConfig(r=rank),
                DoTAConfig(r=rank, dims=2, init_weights="random"),
            ]
        )
    )
    return config.network(site)
