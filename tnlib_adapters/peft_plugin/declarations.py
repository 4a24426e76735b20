"""What a configuration declares for a weight: the method's network, with what all methods share.

Patterns of sizes and alphas by name, dropout, and the leg for experts are no business of a method.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tnlib_adapters.base_model.sites import Site
from tnlib_adapters.networks.expert_network import over_experts
from tnlib_adapters.networks.fused_projection import FusedProjection
from tnlib_adapters.networks.network import Network


def declared(config: Any, site: Site) -> Any:
    """The declaration of a weight, or of one of all experts.

    Parameters
    ----------
    config : NetworkConfig
        The method.
    site : Site
        The weight.

    Raises
    ------
    TypeError, ValueError
        If the method declares nothing, or what experts cannot have.
    """
    own = config.for_weight(site.name)
    network = own.network(site)
    if not hasattr(network, "cores"):
        raise TypeError(
            f"{type(config).__name__}.network must return a Network or another declaration, got "
            f"{network!r}"
        )
    size = getattr(own, own.size_field, None)
    if size != getattr(config, config.size_field, None):
        network = _in_groups_of_their_own(network, f"size{size}")
    dropout = getattr(own, "dropout", None)
    if dropout and network.additive and not network.dropout:
        network = _with_dropout(network, dropout)
    return over_experts(network, site.experts) if site.experts else network


def _in_groups_of_their_own(network: Any, ending: str) -> Any:
    """A declaration whose cores are shared by weights of its size only."""
    if isinstance(network, FusedProjection):
        parts = tuple(_in_groups_of_their_own(part, ending) for part in network.parts)
        return replace(network, parts=parts)
    if not isinstance(network, Network):
        return network
    cores = tuple(
        core if core.group is None else replace(core, group=f"{core.group}_{ending}")
        for core in network.cores
    )
    return replace(network, cores=cores)


def _with_dropout(network: Any, dropout: float) -> Any:
    if isinstance(network, FusedProjection):
        return replace(network, parts=tuple(_with_dropout(p, dropout) for p in network.parts))
    return replace(network, dropout=dropout)
