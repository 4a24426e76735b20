"""LoRTA: one CP tensor for the whole model (arXiv 2410.04060).

The updates of all attention matrices form one tensor over (width, width in a head, heads, layers,
matrices), as a CP decomposition of rank r with the factors A (d, r), B (d_h, r), C_h (H, r),
C_l (L, r) and C_m (4, r), in the order q, k, v, o. The block of head h in matrix m of layer l is

    (alpha / r) A diag(C_h[h] * C_m[m] * C_l[l]) B^T,

and the blocks of the heads side by side make the update. A factor is shared by all matrices that
need it in one size: with grouped queries, k and v have a C_h of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tnlib_adapters.base_model.sites import ROLES, Site
from tnlib_adapters.checks import choice, flag, positive_int, positive_number
from tnlib_adapters.fitting.shared_cp import fit_shared_cp, lead_shared_cp
from tnlib_adapters.networks.core import Core
from tnlib_adapters.networks.fused_projection import FusedProjection
from tnlib_adapters.networks.initializers import uniform, zeros
from tnlib_adapters.networks.network import Network
from tnlib_adapters.peft_plugin.config import NetworkConfig


@dataclass
class LoRTAConfig(NetworkConfig, method="lorta"):
    """Configuration of LoRTA.

    With plain attention the trainable parameters are r (d + d/H + H + L + 4), whichever of q, k, v
    and o are targeted. Other matrices of a layer form one CP tensor for every pair of widths, with
    H = 1. Fused projections are split into q, k and v as the architecture lays them out. Weights of
    experts form tensors of their own, with a factor C_e (E, r) for the expert.

    Beside these it has the attributes of :class:`NetworkConfig`.

    Attributes
    ----------
    r : int
        Rank of the CP tensor.
    alpha : float
        The update is scaled by alpha / r.
    use_rslora : bool
        Scale by alpha / sqrt(r) instead.
    heads : str
        Which side of a matrix is cut into heads: "output", "input", or "auto", the outputs of q,
        k, v and the inputs of o. The two official codes use one and the other.
    num_heads, num_kv_heads : int, optional
        Numbers of heads, where the model's configuration does not say.

    Raises
    ------
    TypeError, ValueError
        If a field has the wrong type or value, or the heads do not divide a width.

    Examples
    --------
    >>> from tnlib_adapters import Site
    >>> site = Site("0.query", 768, 768, depth=12, role="q", n_matrices=4, heads=12, kv_heads=12)
    >>> LoRTAConfig(r=4).network(site).n_params
    3440
    """

    r: int = 8
    alpha: float = 16.0
    use_rslora: bool = False
    heads: str = "auto"
    num_heads: int | None = None
    num_kv_heads: int | None = None

    survey_sizes = (4, 16, 32)
    fit_updates = staticmethod(fit_shared_cp)
    fit_gradients = staticmethod(lead_shared_cp)

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_int("r", self.r)
        positive_number("alpha", self.alpha)
        flag("use_rslora", self.use_rslora)
        choice("heads", self.heads, ("auto", "output", "input"))
        for name in ("num_heads", "num_kv_heads"):
            if getattr(self, name) is not None:
                positive_int(name, getattr(self, name))
        if self.num_kv_heads is not None and self.num_heads is None:
            raise ValueError("num_kv_heads is given without num_heads; give both")

    @staticmethod
    def survey_directions(size: int) -> int:
        """Few: more take longer, and the terms that are found hold no more."""
        return max(8, size // 2)

    def default_targets(
        self, sites: Mapping[str, Site], usual: set[str] | str | None
    ) -> set[str] | str:
        """The paper's: q, k, v and o."""
        roles = {site.path for site in sites.values() if site.role}
        return roles or super().default_targets(sites, usual)

    def network(self, site: Site) -> Network | FusedProjection:
        """The network of one weight: five shared factors, fixed at its layer and matrix."""
        if self.num_heads is not None:
            stated = site.kv_heads if site.heads > 1 else self.num_heads
            kv_heads = self.num_kv_heads or stated
            site = replace(site, heads=self.num_heads, kv_heads=kv_heads)
        if not site.role:
            return self._other(site)
        if site.role != "qkv":
            return self._attention(site, site.role, site.out_features, site.matrix)
        head = site.out_features // (site.heads + 2 * site.kv_heads)
        counts = (site.heads, site.kv_heads, site.kv_heads)
        parts = tuple(
            self._attention(site, role, count * head, site.matrix + ROLES.index(role))
            for role, count in zip("qkv", counts, strict=True)
        )
        return FusedProjection(parts, groups=site.kv_heads if site.interleaved else 1)

    def _attention(self, site: Site, role: str, out: int, matrix: int) -> Network:
        on_output = self.heads == "output" or (self.heads == "auto" and role != "o")
        heads = site.kv_heads if on_output and role in "kv" else site.heads
        cut, whole = (out, site.in_features) if on_output else (site.in_features, out)
        if cut % heads:
            raise ValueError(
                f"{heads} heads do not divide the {'output' if on_output else 'input'} width {cut}"
                "; set num_heads, or heads='input' or 'output'"
            )
        return self._cp(site, "attention", matrix, whole, cut, heads, on_output)

    def _other(self, site: Site) -> Network:
        narrow, wide = sorted((site.out_features, site.in_features))
        kind = "experts" if site.experts else "layers" if site.container else "outside"
        group = f"{kind}_{narrow}x{wide}"
        return self._cp(site, group, site.matrix, narrow, wide, 1, site.out_features == wide)

    def _cp(
        self, site: Site, group: str, matrix: int, whole: int, cut: int, heads: int, on_output: bool
    ) -> Network:
        c, legs = uniform(math.sqrt(6 / self.r)), (("head", "width"), ("whole",))
        cores: tuple[Core, ...] = (
            Core("a", ("whole", "rank"), uniform(self.r**-0.5), f"{group}_{whole}"),
            Core("b", ("width", "rank"), zeros, f"{group}_{cut // heads}"),
            Core("c_head", ("head", "rank"), c, f"{group}_{heads}"),
            Core("c_layer", ("layer", "rank"), c, group),
            Core("c_matrix", ("matrix", "rank"), c, group),
        )
        sizes = {"whole": whole, "width": cut // heads, "head": heads, "rank": self.r}
        sizes |= {"layer": site.depth, "matrix": site.n_matrices}
        fixed = {"layer": site.layer, "matrix": matrix}
        if site.experts:
            cores += (Core("c_expert", ("expert", "rank"), c, f"{group}_{site.experts}"),)
            sizes |= {"expert": site.experts}
            fixed |= {"expert": site.expert}
        return Network(
            cores,
            sizes,
            out_legs=legs[not on_output],
            in_legs=legs[on_output],
            fixed_indices=fixed,
            scale=self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r),
        )
