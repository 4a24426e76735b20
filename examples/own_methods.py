"""Methods written as a user would write their own: LoRA, FacT-TT, MetaTT, and LoRA over experts.

Each is a dataclass with a ``network(site)``. Naming the method makes it known to PEFT; counting,
initial values, merging, saving and loading follow from the declaration.
"""

from __future__ import annotations

from dataclasses import dataclass

from tnlib_adapters import Core, Network, NetworkConfig, Site, normal, uniform, zeros


@dataclass
class PlainLoRAConfig(NetworkConfig, method="plain_lora"):
    """LoRA (arXiv 2106.09685): (alpha / r) B A."""

    r: int = 8
    alpha: float = 16.0

    def network(self, site: Site) -> Network:
        return Network(
            cores=(
                Core("b", ("out", "rank"), zeros),
                Core("a", ("rank", "in"), uniform(site.in_features**-0.5)),
            ),
            sizes={"out": site.out_features, "in": site.in_features, "rank": self.r},
            out_legs=("out",),
            in_legs=("in",),
            scale=self.alpha / self.r,
        )


@dataclass
class FacTConfig(NetworkConfig, method="fact_tt"):
    """FacT-TT (arXiv 2212.03145): s U Sigma V^T, U and V shared by all d x d blocks."""

    r: int = 16
    scale: float = 1.0

    def network(self, site: Site) -> Network:
        d = min(site.out_features, site.in_features)
        blocks = max(site.out_features, site.in_features) // d
        tall = site.out_features > site.in_features
        return Network(
            cores=(
                Core("u", ("out", "rank_out"), normal(d**-0.5), group=f"w{d}"),
                Core("sigma", ("block", "rank_out", "rank_in"), zeros),
                Core("v", ("in", "rank_in"), normal(d**-0.5), group=f"w{d}"),
            ),
            sizes={"out": d, "in": d, "block": blocks, "rank_out": self.r, "rank_in": self.r},
            out_legs=("block", "out") if tall else ("out",),
            in_legs=("in",) if tall else ("block", "in"),
            scale=self.scale,
        )


@dataclass
class MetaTTConfig(NetworkConfig, method="metatt"):
    """MetaTT-4D (arXiv 2506.09105): one tensor train G_1 G_2[layer] G_3[matrix] G_4."""

    r: int = 8
    alpha: float = 1.0

    def network(self, site: Site) -> Network:
        out, width, group = (
            site.out_features,
            site.in_features,
            f"{site.out_features}x{site.in_features}",
        )
        deviation = normal(self.r**-0.5)
        return Network(
            cores=(
                Core("g1", ("in", "bond_1"), normal(width**-0.5), group),
                Core("g2", ("layer", "bond_1", "bond_2"), deviation, group),
                Core("g3", ("matrix", "bond_2", "bond_3"), deviation, group),
                Core("g4", ("bond_3", "out"), zeros, group),
            ),
            sizes={
                "in": width,
                "out": out,
                "layer": site.depth,
                "matrix": site.n_matrices,
                **{f"bond_{k}": self.r for k in (1, 2, 3)},
            },
            out_legs=("out",),
            in_legs=("in",),
            fixed_indices={"layer": site.layer, "matrix": site.matrix},
            scale=self.alpha,
        )


@dataclass
class SharedOuterConfig(NetworkConfig, method="shared_outer_lora"):
    """LoRA over the experts of a layer, which share the factor on the side of the hidden states.

    A of the projections into an expert and B of the one out of it are the same for all experts.
    """

    r: int = 8
    alpha: float = 16.0

    def network(self, site: Site) -> Network:
        inward = not site.name.endswith("down_proj")
        b, a = ("out", "rank"), ("rank", "in")
        return Network(
            cores=(
                Core("b", ("expert", *b) if inward else b, zeros),
                Core("a", a if inward else ("expert", *a), uniform(site.in_features**-0.5)),
            ),
            sizes={
                "out": site.out_features,
                "in": site.in_features,
                "rank": self.r,
                "expert": site.experts,
            },
            out_legs=("out",),
            in_legs=("in",),
            fixed_indices={"expert": site.expert},
            scale=self.alpha / self.r,
        )
