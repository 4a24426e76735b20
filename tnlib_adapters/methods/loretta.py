"""LoRETTA: tensor trains in the place of small dense matrices (arXiv 2402.11417).

A tensor-train layer from n to m features is a train over the modes of n and then of m. Two
variants use pairs of them, down to a bottleneck of b features and up again:

rep   Delta W = (alpha / b) up down, an update of the weight; over the experts of a layer its second
      train has a mode for the expert, and its other cores are shared by all;
adp   h + (alpha / b) up(relu(down(h))), a series adapter with biases on a module's output, or on
      the inputs of a gated feed-forward part.

The layer and RMS norms train beside them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from tnlib_adapters.base_model.sites import Site, find_sites
from tnlib_adapters.checks import choice, flag, fraction, mode_lists, positive_int, positive_number
from tnlib_adapters.fitting.bottleneck import fit_bottleneck
from tnlib_adapters.networks.builders import clipped, middle_cuts, nominal, tt_layer
from tnlib_adapters.networks.core import Core
from tnlib_adapters.networks.declaration_kinds import AdditiveDeclaration, Declaration
from tnlib_adapters.networks.default_modes import tt_modes
from tnlib_adapters.networks.initializers import normal
from tnlib_adapters.networks.network import Network
from tnlib_adapters.networks.nonlinear import BottleneckAdapter, ReplacedLinear
from tnlib_adapters.peft_plugin.config import NetworkConfig
from tnlib_adapters.peft_plugin.modules_to_save import norm_names, save_parts
from tnlib_adapters.peft_plugin.targets import adapted_part

_HEAD = re.compile(r"(?:.*\.)?(?:pooler|classifier)\.dense")
_GATED = ("gate_proj", "up_proj", "gate_up_proj")


@dataclass
class LoRETTAConfig(NetworkConfig, method="loretta"):
    """Configuration of LoRETTA.

    Beside these it has the attributes of :class:`NetworkConfig`.

    Attributes
    ----------
    variant : str
        "rep", an update of the weight (merges), or "adp", a series adapter (does not).
    tt_rank : int
        Bond rank of the tensor trains.
    bottleneck : int, optional
        Width b between the two layers; by default 8 for rep and 64 for adp.
    alpha : float, optional
        What is added is scaled by alpha / b; by default 16 for rep and b for adp.
    use_rslora : bool
        Scale by alpha / sqrt(b) instead.
    dropout : float, optional
        On what enters the adapter; by default 0.05 for rep and 0 for adp.
    shapes : pair of sequences of int, optional
        Modes of the two trains, with products d_in * b and b * d_out, each bond of rank `tt_rank`.
        By default one mode for a width up to 16, two up to 256 and three above, in-modes ascending
        and out-modes descending, with bonds clipped to what they can hold.
    init : str
        "identity" starts the last core at zero, so that the first step is the base model's.
        "gaussian" is the published start, which moves it.
    train_norms : bool
        Train and save the norms of the model.
    tt_head : bool
        Put a tensor-train layer in the place of the dense layer of a classification head (never
        the identity at the start).

    Raises
    ------
    TypeError, ValueError
        If a field has the wrong type or value, or `shapes` do not fit a target.

    Examples
    --------
    >>> from tnlib_adapters import Site
    >>> LoRETTAConfig().network(Site("query", 768, 768)).n_params
    1160
    """

    variant: str = "rep"
    tt_rank: int = 5
    bottleneck: int | None = None
    alpha: float | None = None
    use_rslora: bool = False
    dropout: float | None = None  # type: ignore[assignment]
    shapes: Sequence[Sequence[int]] | None = None
    init: str = "identity"
    train_norms: bool = True
    tt_head: bool = False

    size_field: ClassVar[str] = "tt_rank"
    additive_form: ClassVar[str] = "variant='rep' without tt_head"
    fit_updates = staticmethod(fit_bottleneck)

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("variant", self.variant, ("rep", "adp"))
        choice("init", self.init, ("identity", "gaussian"))
        rep = self.variant == "rep"
        self.bottleneck = (8 if rep else 64) if self.bottleneck is None else self.bottleneck
        positive_int("tt_rank", self.tt_rank)
        positive_int("bottleneck", self.bottleneck)
        self.alpha = (16.0 if rep else self.bottleneck) if self.alpha is None else self.alpha
        self.dropout = (0.05 if rep else 0.0) if self.dropout is None else self.dropout
        positive_number("alpha", self.alpha)
        flag("use_rslora", self.use_rslora)
        fraction("dropout", self.dropout)
        flag("train_norms", self.train_norms)
        flag("tt_head", self.tt_head)
        if self.shapes is not None:
            mode_lists("shapes", self.shapes, "modes down, modes up")

    def default_targets(
        self, sites: Mapping[str, Site], usual: set[str] | str | None
    ) -> set[str] | str:
        """Q and v for rep; for adp the paper's two places of BERT, three of Llama."""
        if self.variant == "rep":
            return super().default_targets(sites, usual)
        inner = [site for site in sites.values() if site.container]
        down = {s.path for s in inner if not s.role and s.in_features > s.out_features}
        gated = {s.path for s in inner if s.path.split(".")[-1] in _GATED}
        return down | (gated or {s.path for s in inner if s.role == "o"})

    def prepare(self, model: nn.Module) -> None:
        """Add the norms to what is saved, and the head's dense layer to the targets."""
        if self.train_norms:
            save_parts(self, norm_names(model, adapted_part(self, model)))
        if self.tt_head:
            heads = [name for name in find_sites(model) if _HEAD.fullmatch(name)]
            if not heads:
                raise ValueError(
                    "tt_head=True, but the model has no pooler.dense or classifier.dense; leave "
                    "it out"
                )
            save_parts(self, [], instead=heads, model=model)

    def resized(self, size: int) -> LoRETTAConfig:
        """The same configuration with another rank of the trains."""
        bottleneck = self.bottleneck
        if self.shapes is None:
            # A wider bottleneck cannot be filled through bonds of this rank; beyond 16 it is folded
            # into modes, which not every width has.
            narrow = min(bottleneck or size, size)
            bottleneck = narrow if narrow <= 16 else bottleneck
        return replace(self, tt_rank=size, bottleneck=bottleneck)

    def fields_of_sum(self, configs: Sequence[Any], *, exact: bool) -> dict[str, Any]:
        """Without norms, which cannot be added; the bottleneck is as wide as all together."""
        fields = super().fields_of_sum(configs, exact=exact) | {"train_norms": False}
        widths = [config.bottleneck or 1 for config in configs]
        return fields | ({"bottleneck": sum(widths)} if exact else {})

    @classmethod
    def for_survey(cls, size: int) -> LoRETTAConfig:
        """The variant rep, with a bottleneck as wide as its rank up to 16."""
        return cls(bottleneck=16).resized(size)

    def for_fitting(self, **fields: Any) -> LoRETTAConfig:
        """A copy with other fields, of an adapter that is fitted to a LoRA: without norms."""
        if self.variant != "rep" or self.tt_head:
            raise ValueError(
                f"LoRETTAConfig(variant={self.variant!r}, tt_head={self.tt_head}) is not a change "
                f"of weights; a LoRA can become {self.additive_form}"
            )
        return replace(self, train_norms=False, **fields)

    def weight_ranks(self, network: AdditiveDeclaration) -> tuple[int, ...]:
        """The first bond of every core but the first of a train."""
        shapes = {k: shape for k, shape in network.shapes.items() if k != "up_expert"}
        return tuple(shape[0] for key, shape in shapes.items() if not key.endswith("_0"))

    def network(self, site: Site) -> Declaration:
        """Two trains for one weight, or one in its place."""
        width, out, b = site.in_features, site.out_features, self.bottleneck or 1
        if self.tt_head and _HEAD.fullmatch(site.name):
            modes = tt_modes(width, out, site.name)
            train = tt_layer("head", width, out, modes, clipped(modes, self.tt_rank))
            return ReplacedLinear(train, self.additive_form)
        before = site.name.split(".")[-1] in _GATED
        if self.variant == "adp":
            width = out = width if before else out
        shapes = self.shapes or (tt_modes(width, b, site.name), tt_modes(b, out, site.name))
        clip = clipped if self.shapes is None else nominal
        cuts = middle_cuts(shapes[0], width, shapes[1], b) if self.variant == "rep" else ()
        ranks = [clip(modes, self.tt_rank) for modes in shapes]
        down = tt_layer("down", width, b, shapes[0], ranks[0], ("in", "mid"), cuts)
        zero = self.init == "identity"
        up = tt_layer("up", b, out, shapes[1], ranks[1], ("mid", "out"), cuts, last_zero=zero)
        scale = (self.alpha or 1.0) / (math.sqrt(b) if self.use_rslora else b)
        dropout = self.dropout or 0.0
        if self.variant == "adp":
            side = "input" if before else "output"
            return BottleneckAdapter(down, up, side, scale, dropout, self.additive_form)
        if site.experts:
            up = _with_experts(up, site)
        cores, sizes = (*down.cores, *up.cores), {**down.sizes, **up.sizes}
        return Network(
            cores, sizes, up.out_legs, down.in_legs, up.fixed_indices, scale=scale, dropout=dropout
        )


def _with_experts(up: Network, site: Site) -> Network:
    """The train from the bottleneck with a mode for the expert, before the modes of the output.

    All experts share its other cores.
    """
    outward = [any(leg in up.out_legs for leg in core.legs) for core in up.cores]
    place = max(outward.index(True), 1)
    bond = up.cores[place].legs[0]
    rank, split = up.sizes[bond], f"{bond}_split"
    mode = Core("up_expert", ("expert", bond, split), normal(rank**-0.5))
    after = replace(up.cores[place], legs=(split, *up.cores[place].legs[1:]))
    return replace(
        up,
        cores=(*up.cores[:place], mode, after, *up.cores[place + 1 :]),
        sizes={**up.sizes, split: rank, "expert": site.experts},
        fixed_indices={"expert": site.expert},
    )
