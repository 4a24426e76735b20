"""Exact low-rank factors of an update, read off its network.

A network whose cores fall into an output side and an input side is a product of two matrices: each
side contracted by itself, joined by the legs that cross the cut. The rank is the product of those
legs' sizes, and the cut with the smallest one is taken. LoTR, LoRTA and LoRETTA's rep have such
cuts; an operator (DoTA) has none, since each of its cores holds rows and columns.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import opt_einsum
import torch
from torch import Tensor

from tnlib import plan_contraction
from tnlib_adapters.execution.dense_forms import interleaved
from tnlib_adapters.networks.core import Core, Cores, Factors


class Contraction(Protocol):
    """What is read of a network: its cores with their legs, and their values."""

    @property
    def cores(self) -> tuple[Core, ...]:
        """All cores."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Size of every leg."""

    @property
    def out_legs(self) -> tuple[str, ...]:
        """Open legs of the rows."""

    @property
    def in_legs(self) -> tuple[str, ...]:
        """Open legs of the columns."""

    @property
    def fixed_indices(self) -> Mapping[str, int]:
        """Indices of the legs that are fixed."""

    @property
    def scale(self) -> float:
        """Factor of the update."""

    def values(self, cores: Cores) -> list[Tensor]:
        """The cores in order, those with a fixed leg at its index."""


@dataclass(frozen=True)
class _Cut:
    """Numbers of the cores on the output side, and the legs that cross to the input side."""

    outer: frozenset[int]
    crossing: tuple[str, ...]
    rank: int


def cut_factors(network: Contraction, cores: Cores, anchor: Cores | None = None) -> Factors | None:
    """B (out_features, r) with the scale and A (r, in_features) of the smallest cut, or None.

    All ways to give the cores without open legs to a side are tried, so networks with dozens of
    such cores are out of reach. The rank of an anchored network is twice the cut's.
    """
    cut = _smallest_cut(network)
    if cut is None:
        return None
    if anchor is None:
        return _contracted(network, cut, cores)
    (outer, inner), (outer_0, inner_0) = (_contracted(network, cut, c) for c in (cores, anchor))
    return torch.cat([outer, -outer_0], 1), torch.cat([inner, inner_0])


def has_rank(network: Contraction, most: int) -> bool:
    """Whether a cut has a rank up to `most`; in most networks the first that is tried."""
    return any(cut.rank <= most for cut in _cuts(network))


def _open_and_joining(network: Contraction) -> list[tuple[str, ...]]:
    """Legs of every core that count: neither fixed nor of size 1."""
    return [
        tuple(
            leg for leg in core.legs if leg not in network.fixed_indices and network.sizes[leg] > 1
        )
        for core in network.cores
    ]


def _smallest_cut(network: Contraction) -> _Cut | None:
    """Of equal cuts the first."""
    return min(_cuts(network), key=lambda cut: cut.rank, default=None)


def _cuts(network: Contraction) -> Iterator[_Cut]:
    """All cuts, first the one in which everything that is free goes with the output."""
    legs = _open_and_joining(network)
    numbers = range(len(legs))
    outer = {k for k in numbers if set(legs[k]) & set(network.out_legs)}
    inner = {k for k in numbers if set(legs[k]) & set(network.in_legs)}
    if outer & inner:
        return
    free = [k for k in numbers if k not in outer | inner]
    for picks in itertools.product((True, False), repeat=len(free)):
        left = frozenset(outer | {k for k, picked in zip(free, picks, strict=True) if picked})
        ours = {leg for k in left for leg in legs[k]}
        theirs = {leg for k in numbers if k not in left for leg in legs[k]}
        crossing = tuple(leg for leg in network.sizes if leg in ours & theirs)
        yield _Cut(left, crossing, math.prod(network.sizes[leg] for leg in crossing))


def _contracted(network: Contraction, cut: _Cut, cores: Cores) -> Factors:
    inner = [k for k in range(len(network.cores)) if k not in cut.outer]
    columns = _side(network, cut, cores, sorted(cut.outer), network.out_legs)
    rows = _side(network, cut, cores, inner, network.in_legs)
    return columns * network.scale, rows.mT


def _side(
    network: Contraction,
    cut: _Cut,
    cores: Cores,
    members: Sequence[int],
    open_legs: Collection[str],
) -> Tensor:
    """One side's cores contracted, of shape (open width, rank)."""
    values, legs = network.values(cores), _open_and_joining(network)
    if not members:
        return values[0].new_ones(1, cut.rank)
    symbol = {leg: opt_einsum.get_symbol(k) for k, leg in enumerate(network.sizes)}
    kept = [leg for leg in (*open_legs, *cut.crossing) if network.sizes[leg] > 1]
    terms = ",".join("".join(symbol[leg] for leg in legs[k]) for k in members)
    operands = [values[k].reshape([network.sizes[leg] for leg in legs[k]]) for k in members]
    plan = plan_contraction(
        f"{terms}->{''.join(symbol[leg] for leg in kept)}", *(tuple(v.shape) for v in operands)
    )
    result: Tensor = plan(*operands)
    return result.reshape(-1, cut.rank)


def stacked_factors(parts: Sequence[Factors], groups: int) -> Factors:
    """Factors of updates one below another, their rows taking turns in `groups` runs.

    Of A's that are equal one is taken.
    """
    bottoms: list[Tensor] = []
    positions = []
    for _, inner in parts:
        equal = [k for k, known in enumerate(bottoms) if torch.equal(known, inner)]
        positions.append(equal[0] if equal else len(bottoms))
        bottoms += [] if equal else [inner]
    starts = [0, *itertools.accumulate(map(len, bottoms))]
    tops = []
    for (outer, _), k in zip(parts, positions, strict=True):
        top = outer.new_zeros(len(outer), starts[-1])
        top[:, starts[k] : starts[k + 1]] = outer
        tops.append(top.mT)
    return interleaved(tops, groups).mT, torch.cat(bottoms)
