"""An update as tnlib objects: its operator, train, CP or Tucker decomposition.

The form is read from the declaration's legs. Cores that appear in the form as they are share their
storage with the parameters; what has to be formed (a core scaled by alpha / r, the difference of
theta and theta_0, cores between the two trains of a bottleneck) is computed from them, so that
gradients reach the parameters from everything done with the objects.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tnlib import CP, MPO, TT, Tucker, contract
from tnlib_adapters.execution.dense_forms import interleaved
from tnlib_adapters.networks.core import Cores
from tnlib_adapters.networks.declaration_kinds import AdditiveDeclaration
from tnlib_adapters.networks.network import Network

Node = tuple[tuple[str, ...], Tensor]


@dataclass(frozen=True, eq=False)
class Block:
    """One network of an update.

    Attributes
    ----------
    tensor : MPO, TT, CP or Tucker
        The decomposition, in the update's dtype and with its scale.
    legs : tuple of str
        The network's open legs in the order of the entries of ``tensor.to_dense()``.
    network : Network
        Its declaration.
    """

    tensor: MPO[Tensor] | TT[Tensor] | CP[Tensor] | Tucker[Tensor]
    legs: tuple[str, ...]
    network: Network

    def to_matrix(self) -> Tensor:
        """The dense update of shape (out_features, in_features)."""
        sizes = self.network.sizes
        dense: Tensor = self.tensor.to_dense().reshape([sizes[leg] for leg in self.legs])
        order = (*self.network.out_legs, *self.network.in_legs)
        dense = dense.permute([self.legs.index(leg) for leg in order])
        return dense.reshape(self.network.out_features, self.network.in_features)


@dataclass(frozen=True, eq=False)
class UpdateView:
    """The update of a layer as tnlib objects.

    Attributes
    ----------
    blocks : tuple of Block
        One a network: the roles of a fused projection, otherwise a single one.
    groups : int
        How the rows of several blocks take turns; see :class:`FusedProjection`.

    Examples
    --------
    >>> import torch
    >>> from tnlib_adapters import LoTRConfig, NetworkLinear
    >>> layer = NetworkLinear.from_linear(torch.nn.Linear(64, 48), LoTRConfig(r=4))
    >>> layer.as_tnlib().tensor
    Tucker(shape=(48, 64), ranks=(4, 4), n_params=464, error=None)
    """

    blocks: tuple[Block, ...]
    groups: int = 1

    @property
    def tensor(self) -> MPO[Tensor] | TT[Tensor] | CP[Tensor] | Tucker[Tensor]:
        """The decomposition of an update that has one block.

        Raises
        ------
        ValueError
            If there are several.
        """
        if len(self.blocks) > 1:
            raise ValueError(f"the update has {len(self.blocks)} blocks; see .blocks")
        return self.blocks[0].tensor

    def to_dense(self) -> Tensor:
        """The dense update of shape (out_features, in_features).

        Examples
        --------
        >>> import torch
        >>> from tnlib_adapters import LoTRConfig, NetworkLinear
        >>> config = LoTRConfig(r=4, init_weights=False)
        >>> layer = NetworkLinear.from_linear(torch.nn.Linear(64, 48).double(), config)
        >>> torch.allclose(layer.as_tnlib().to_dense(), layer.delta_weight())
        True
        """
        return interleaved([block.to_matrix().mT for block in self.blocks], self.groups).mT


def view(network: AdditiveDeclaration, cores: Cores, anchor: Cores | None = None) -> UpdateView:
    """An update of a weight as tnlib objects.

    Parameters
    ----------
    network : Network or FusedProjection
        Its declaration.
    cores, anchor : mapping of str to Tensor
        Values by key, and the initial ones of an anchored network.
    """
    blocks = tuple(_block(part, cores, anchor) for _, part in network.networks)
    return UpdateView(blocks, network.groups)


def _block(network: Network, cores: Cores, anchor: Cores | None) -> Block:
    counts = Counter(leg for k in range(len(network.cores)) for leg in _legs(network, k))
    simple = all(counts[leg] == 1 for leg in _open(network))
    for form in (_operator, _cp, _tucker, _train) if simple else (_train,):
        found = form(network, network.values(cores))
        if found is None or (anchor is not None and not isinstance(found[0], TT | MPO)):
            continue
        tensor, legs = found
        if anchor is not None:
            start = form(network, network.values(anchor))
            assert start is not None
            tensor = tensor - start[0]  # type: ignore[operator]
        return Block(tensor, legs, network)
    raise AssertionError("a train is found for every network")


Form = tuple[MPO[Tensor] | TT[Tensor] | CP[Tensor] | Tucker[Tensor], tuple[str, ...]]


def _operator(network: Network, values: list[Tensor]) -> Form | None:
    """An MPO: core k has the legs (bond_k, out, in, bond_{k+1})."""
    legs = [_legs(network, k) for k in range(len(values))]
    if any(len(own) != 4 for own in legs):
        return None
    joined = all(a[3] == b[0] for a, b in itertools.pairwise(legs))
    ends = network.sizes[legs[0][0]] == 1 == network.sizes[legs[-1][3]]
    rows, columns = tuple(own[1] for own in legs), tuple(own[2] for own in legs)
    if not (joined and ends and rows == network.out_legs and columns == network.in_legs):
        return None
    mpo = MPO((_scaled(values[0], network.scale), *values[1:]))
    return mpo, (*rows, *columns)


def _cp(network: Network, values: list[Tensor]) -> Form | None:
    """A CP decomposition: one leg is in all cores, three at least, beside one open leg or none."""
    legs = [_legs(network, k) for k in range(len(values))]
    common = set.intersection(*map(set, legs)) if len(legs) > 2 else set()
    if len(common) != 1 or any(len(own) > 2 for own in legs):
        return None
    (rank,) = common
    factors: dict[str, Tensor] = {}
    weights: Tensor | None = None
    for own, value in zip(legs, values, strict=True):
        if len(own) == 1:
            weights = value if weights is None else weights * value
        else:
            (leg,) = set(own) - common
            factors[leg] = value if own[1] == rank else value.mT
    first = next(iter(factors.values()))
    weights = first.new_ones(network.sizes[rank]) if weights is None else weights
    order = tuple(leg for leg in (*network.out_legs, *network.in_legs))
    if set(order) != set(factors):
        return None
    return CP(_scaled(weights, network.scale), tuple(factors[leg] for leg in order)), order


def _tucker(network: Network, values: list[Tensor]) -> Form | None:
    """A Tucker decomposition: one core without open legs, and a factor on each of its legs."""
    legs = [_legs(network, k) for k in range(len(values))]
    closed = [k for k, own in enumerate(legs) if not set(own) & _open(network)]
    if len(closed) != 1:
        return None
    core = legs[closed[0]]
    factors: dict[str, tuple[str, Tensor]] = {}
    for k, (own, value) in enumerate(zip(legs, values, strict=True)):
        if k != closed[0]:
            inner = [leg for leg in own if leg in core]
            if len(own) != 2 or len(inner) != 1:
                return None
            outer = own[0] if own[1] == inner[0] else own[1]
            factors[inner[0]] = (outer, value if own[1] == inner[0] else value.mT)
    if len(factors) != len(values) - 1 or set(factors) != set(core):
        return None
    pairs = [factors[leg] for leg in core]
    tensor = Tucker(_scaled(values[closed[0]], network.scale), tuple(value for _, value in pairs))
    return tensor, tuple(outer for outer, _ in pairs)


def _train(network: Network, values: list[Tensor]) -> Form:
    """A tensor train; cores without open legs are multiplied into a neighbour."""
    nodes: list[Node] = []
    for k, value in enumerate(values):
        own = _legs(network, k)
        kept = tuple(leg for leg in own if network.sizes[leg] > 1 or leg in _open(network))
        nodes.append((kept, value.reshape([network.sizes[leg] for leg in kept])))
    open_legs = _open(network)
    while True:
        # Cores without open legs go into a neighbour, cores with the same open leg together.
        counts = Counter(leg for legs, _ in nodes for leg in legs if leg in open_legs)
        twice = {leg for leg, n in counts.items() if n > 1}
        odd = [n for n in nodes if set(n[0]) & twice or not set(n[0]) & open_legs]
        if len(nodes) == 1 or (not odd and _is_chain(nodes)):
            break
        first = (odd or nodes)[0]
        rest = [node for node in nodes if node is not first]
        ties = set(first[0]) & twice or set(first[0])
        second = max(rest, key=lambda node: len(set(node[0]) & ties))
        others = [node for node in rest if node is not second]
        nodes = [_merged(first, second, others, open_legs), *others]
    ordered = _in_order(nodes)
    cores: list[Tensor] = []
    order: list[str] = []
    bonds: list[str] = []
    for (own, value), (following, _) in itertools.pairwise([*ordered, ((), values[0])]):
        mine = [leg for leg in own if leg in open_legs]
        after = [leg for leg in own if leg in following]
        left, right = (math.prod(network.sizes[leg] for leg in some) for some in (bonds, after))
        axes = [own.index(leg) for leg in (*bonds, *mine, *after)]
        cores.append(value.permute(axes).reshape(left, -1, right))
        order += mine
        bonds = after
    return TT((_scaled(cores[0], network.scale), *cores[1:])), tuple(order)


def _merged(a: Node, b: Node, others: Sequence[Node], open_legs: set[str]) -> Node:
    """Two nodes as one; legs that no other node has and that are not open are summed."""
    needed = open_legs.union(*(node[0] for node in others))
    result = tuple(dict.fromkeys(leg for leg in (*a[0], *b[0]) if leg in needed))
    letter = {leg: chr(97 + k) for k, leg in enumerate(dict.fromkeys((*a[0], *b[0])))}
    spelled = ["".join(letter[leg] for leg in legs) for legs in (a[0], b[0], result)]
    value: Tensor = contract(f"{spelled[0]},{spelled[1]}->{spelled[2]}", a[1], b[1])
    return result, value


def _is_chain(nodes: Sequence[Node]) -> bool:
    """Whether every leg joins two nodes at most, and the nodes form one line."""
    counts = Counter(leg for legs, _ in nodes for leg in legs)
    degrees = [_neighbours(node, nodes) for node in nodes]
    line = sorted(degrees) == [1, 1, *[2] * (len(nodes) - 2)] or len(nodes) == 1
    return line and max(counts.values(), default=1) <= 2 and len(_in_order(nodes)) == len(nodes)


def _neighbours(node: Node, nodes: Sequence[Node]) -> int:
    return sum(other is not node and bool(set(other[0]) & set(node[0])) for other in nodes)


def _in_order(nodes: Sequence[Node]) -> list[Node]:
    """The nodes along the line, from its first end."""
    line = [next((node for node in nodes if _neighbours(node, nodes) <= 1), nodes[0])]
    while True:
        seen = {id(node) for node in line}
        following = [n for n in nodes if id(n) not in seen and set(n[0]) & set(line[-1][0])]
        if not following:
            return line
        line.append(following[0])


def _legs(network: Network, k: int) -> tuple[str, ...]:
    return tuple(leg for leg in network.cores[k].legs if leg not in network.fixed_indices)


def _open(network: Network) -> set[str]:
    return {*network.out_legs, *network.in_legs}


def _scaled(value: Tensor, scale: float) -> Tensor:
    return value if scale == 1.0 else value * scale
