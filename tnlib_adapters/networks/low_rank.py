"""Exact low-rank factors of an update, read off its network.

A network whose cores fall into an output side and an input side is a product of two matrices: each
side contracted by itself, joined by the legs that cross the cut. The rank is the product of those
legs' sizes, and the cut with the smallest one is taken. LoTR, LoRTA and LoRETTA's rep have such
cuts; an operator (DoTA) has none, since each of its cores holds rows and columns.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import opt_einsum
import torch
from torch import Tensor

from tnlib import plan_contraction
from tnlib_adapters.networks.core import Cores
from tnlib_adapters.networks.fused_projection import Stacked, interleaved
from tnlib_adapters.networks.network import Network

Factors = tuple[Tensor, Tensor]


def low_rank_factors(
    network: Network | Stacked, cores: Cores, anchor: Cores | None = None
) -> Factors | None:
    """B and A with ``B @ A`` the dense update, never formed.

    All ways to give the cores without open legs to a side are tried, so networks with dozens of
    such cores are out of reach.

    Parameters
    ----------
    network : Network or Stacked
        The declaration. Of stacked parts, A's that are equal are kept once.
    cores : mapping of str to Tensor
        Values by key.
    anchor : mapping of str to Tensor, optional
        Initial values, where the network is anchored; its rank is then twice the cut's.

    Returns
    -------
    (Tensor, Tensor) or None
        B (out_features, r) with the scale and A (r, in_features), in the dtype of the cores. None
        if the network has no cut, or none with r up to both widths.

    Examples
    --------
    >>> from tnlib_adapters import LoTRConfig, Site
    >>> network = LoTRConfig(r=2).network(Site("query", 6, 4))
    >>> cores = {key: core.double() for key, core in network.initial(zeros=False).items()}
    >>> B, A = low_rank_factors(network, cores)
    >>> B.shape, A.shape, torch.allclose(B @ A, network.delta(cores))
    (torch.Size([6, 2]), torch.Size([2, 4]), True)
    """
    if isinstance(network, Stacked):
        parts = [_of_network(part, cores, None) for part in network.parts]
        found = [part for part in parts if part is not None]
        factors = _stacked(found, network.groups) if len(found) == len(parts) else None
    else:
        factors = _of_network(network, cores, anchor)
    if factors is None or len(factors[1]) > min(network.out_features, network.in_features):
        return None
    return factors


def folded(network: Network | Stacked, cores: Cores, anchor: Cores | None = None) -> list[Tensor]:
    """Matrices whose product is the update, transposed: two thin ones, or the update itself."""
    factors = low_rank_factors(network, cores, anchor)
    entries = network.out_features * network.in_features
    if factors is None or factors[0].numel() + factors[1].numel() >= entries:
        return [network.delta(cores, anchor).mT]
    return [factors[1].mT, factors[0].mT]


@dataclass(frozen=True)
class _Cut:
    """Numbers of the cores on the output side, and the legs that cross to the input side."""

    outer: frozenset[int]
    joint: tuple[str, ...]
    rank: int


def _of_network(network: Network, cores: Cores, anchor: Cores | None) -> Factors | None:
    cut = _smallest_cut(network)
    if cut is None:
        return None
    if anchor is None:
        return _contracted(network, cut, cores)
    (outer, inner), (outer_0, inner_0) = (_contracted(network, cut, c) for c in (cores, anchor))
    return torch.cat([outer, -outer_0], 1), torch.cat([inner, inner_0])


def _open_and_joining(network: Network) -> list[tuple[str, ...]]:
    """Legs of every core that count: neither fixed nor of size 1."""
    return [
        tuple(leg for leg in core.legs if leg not in network.at and network.sizes[leg] > 1)
        for core in network.cores
    ]


def _smallest_cut(network: Network) -> _Cut | None:
    legs = _open_and_joining(network)
    numbers = range(len(legs))
    outer = {k for k in numbers if set(legs[k]) & set(network.out_legs)}
    inner = {k for k in numbers if set(legs[k]) & set(network.in_legs)}
    if outer & inner:
        return None
    free = [k for k in numbers if k not in outer | inner]
    best: _Cut | None = None
    # Of equal cuts the first: everything that is free goes with the output.
    for picks in itertools.product((True, False), repeat=len(free)):
        left = frozenset(outer | {k for k, picked in zip(free, picks, strict=True) if picked})
        ours = {leg for k in left for leg in legs[k]}
        theirs = {leg for k in numbers if k not in left for leg in legs[k]}
        joint = tuple(leg for leg in network.sizes if leg in ours & theirs)
        rank = math.prod(network.sizes[leg] for leg in joint)
        if best is None or rank < best.rank:
            best = _Cut(left, joint, rank)
    return best


def _contracted(network: Network, cut: _Cut, cores: Cores) -> Factors:
    inner = [k for k in range(len(network.cores)) if k not in cut.outer]
    columns = _side(network, cut, cores, sorted(cut.outer), network.out_legs)
    rows = _side(network, cut, cores, inner, network.in_legs)
    return columns * network.scale, rows.mT


def _side(
    network: Network, cut: _Cut, cores: Cores, members: Sequence[int], open_legs: Collection[str]
) -> Tensor:
    """One side's cores contracted, of shape (open width, rank)."""
    values, legs = network.values(cores), _open_and_joining(network)
    if not members:
        return values[0].new_ones(1, cut.rank)
    symbol = {leg: opt_einsum.get_symbol(k) for k, leg in enumerate(network.sizes)}
    kept = [leg for leg in (*open_legs, *cut.joint) if network.sizes[leg] > 1]
    terms = ",".join("".join(symbol[leg] for leg in legs[k]) for k in members)
    operands = [values[k].reshape([network.sizes[leg] for leg in legs[k]]) for k in members]
    plan = plan_contraction(
        f"{terms}->{''.join(symbol[leg] for leg in kept)}", *(tuple(v.shape) for v in operands)
    )
    result: Tensor = plan(*operands)
    return result.reshape(-1, cut.rank)


def _stacked(parts: Sequence[Factors], groups: int) -> Factors:
    """Factors of updates one below another, their rows taking turns in `groups` runs."""
    bottoms: list[Tensor] = []
    places = []
    for _, inner in parts:
        equal = [k for k, known in enumerate(bottoms) if torch.equal(known, inner)]
        places.append(equal[0] if equal else len(bottoms))
        bottoms += [] if equal else [inner]
    starts = [0, *itertools.accumulate(map(len, bottoms))]
    tops = []
    for (outer, _), place in zip(parts, places, strict=True):
        top = outer.new_zeros(len(outer), starts[-1])
        top[:, starts[place] : starts[place + 1]] = outer
        tops.append(top.mT)
    return interleaved(tops, groups).mT, torch.cat(bottoms)
