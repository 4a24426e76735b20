"""LoTR: a Tucker-2 tensor over the layers (arXiv 2402.01376).

    Delta W_l = (alpha / r) U G_l V^T

U (d_out, r) and V (d_in, r) are shared by every adapted matrix of one shape, in the paper by the
query and value projections of all layers; G_l (r, r) belongs to one matrix. Stacked over the
matrices this is a Tucker decomposition whose third factor is the identity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tnlib_adapters.base_model.sites import Site
from tnlib_adapters.checks import choice, flag, positive_int, positive_number
from tnlib_adapters.fitting.tucker import fit_tucker2
from tnlib_adapters.networks.core import Core
from tnlib_adapters.networks.initializers import normal, zeros
from tnlib_adapters.networks.network import Network
from tnlib_adapters.peft_plugin.config import NetworkConfig


@dataclass
class LoTRConfig(NetworkConfig, method="lotr"):
    """Configuration of LoTR.

    The trainable parameters are (d_in + d_out) r + n r^2 for n matrices of one shape; matrices of
    another shape (grouped keys and values, the feed-forward part) form a sharing group of their
    own. U and V of weights of experts are shared by all experts of all layers, each expert has a G.

    Beside these it has the attributes of :class:`NetworkConfig`.

    Attributes
    ----------
    r : int
        Rank of both sides.
    alpha : float
        The update is scaled by alpha / r; the paper's s is 1.
    use_rslora : bool
        Scale by alpha / sqrt(r) instead.
    init : str
        Distribution of U and V: "scaled" is N(0, 1/d) for a side of width d; "normal" is the
        paper's N(0, 1), which needs far smaller learning rates. G starts at zero in both.

    Raises
    ------
    TypeError, ValueError
        If a field has the wrong type or value.

    Examples
    --------
    >>> from tnlib_adapters import Site
    >>> print(LoTRConfig(r=8).network(Site("query", 768, 768)))
    Network 768 x 768, 12,352 parameters
      u(out 768, rank_out 8)  768x768, N(0, 0.0361^2)
      g(rank_out 8, rank_in 8)  this weight, zeros
      v(in 768, rank_in 8)  768x768, N(0, 0.0361^2)
    """

    r: int = 8
    alpha: float = 1.0
    use_rslora: bool = False
    init: str = "scaled"

    survey_sizes = (4, 8, 16, 32, 64, 128)
    fit_updates = staticmethod(fit_tucker2)

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_int("r", self.r)
        positive_number("alpha", self.alpha)
        flag("use_rslora", self.use_rslora)
        choice("init", self.init, ("scaled", "normal"))

    def network(self, site: Site) -> Network:
        """The network of one weight: two shared factors around its own core."""
        out, width = site.out_features, site.in_features
        group = f"experts_{out}x{width}" if site.experts else f"{out}x{width}"
        starts = [normal(d**-0.5 if self.init == "scaled" else 1.0) for d in (out, width)]
        return Network(
            cores=(
                Core("u", ("out", "rank_out"), starts[0], group=group),
                Core("g", ("rank_out", "rank_in"), zeros),
                Core("v", ("in", "rank_in"), starts[1], group=group),
            ),
            sizes={"out": out, "in": width, "rank_out": self.r, "rank_in": self.r},
            out_legs=("out",),
            in_legs=("in",),
            scale=self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r),
        )
