"""One CP tensor for all weights: a coupled CP decomposition of their updates.

The declarations say which factors a weight uses and how its rows or columns are cut into
heads. Weights with the same factors are a family; one tensor is fitted to all families that share
layers and matrices. The fit starts from the CP decomposition of the family with the largest
updates, whose wide side is compressed, and from random factors; the best start is polished.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tnlib import cp_als
from tnlib_adapters.execution.dense_forms import interleaved
from tnlib_adapters.fitting.coupled_cp_als import (
    PICKED,
    ROLES,
    WHOLE,
    Family,
    Values,
    improved,
    polish,
)
from tnlib_adapters.fitting.low_rank_update import LowRankUpdate
from tnlib_adapters.networks.declaration_kinds import AdditiveDeclaration
from tnlib_adapters.networks.initializers import normal
from tnlib_adapters.networks.network import Network

# Values of the compressed tensor that a fit starts from: 256 MB.
_LARGEST = 1 << 25
# Random starts, sweeps before the best start is chosen, and sweeps in all.
_STARTS, _FIRST, _SWEEPS = 2, 15, 200


@dataclass(frozen=True)
class _Part:
    """One network with the rows of the update that are its own."""

    network: Network
    update: LowRankUpdate


def fit_shared_cp(
    networks: Mapping[str, AdditiveDeclaration],
    updates: Mapping[str, LowRankUpdate],
    generator: torch.Generator,
    *,
    show: bool = False,
) -> dict[str, dict[str, Tensor]]:
    """Cores by weight and key, in float64.

    Rows of C_l, C_m and C_e that no given weight uses stay as drawn. Memory goes with the factors
    of the updates times the heads.
    """
    parts = _all_parts(networks, updates)
    groups: dict[str, list[_Part]] = {}
    for part in parts:
        groups.setdefault(_keys(part.network)["c_layer"], []).append(part)
    values: Values = {}
    most = len(groups) * ((1 + _STARTS) * _FIRST + _SWEEPS)
    with tqdm(total=most, desc="fitting", unit="sweep", disable=not show) as bar:
        for group in groups.values():
            values |= _fitted(group, generator, bar.update)
    return {
        name: {key: values[key] for key in network.shapes} for name, network in networks.items()
    }


def lead_shared_cp(
    networks: Mapping[str, AdditiveDeclaration],
    updates: Mapping[str, LowRankUpdate],
    generator: torch.Generator,
    *,
    show: bool = False,
) -> dict[str, dict[str, Tensor]]:
    """Cores by weight and key to start training from, in float64.

    A has the leading directions of all updates on its side, the small factors are drawn, B is the
    best for them. The CP tensor nearest to first gradients is a worse start: it spends its rank on
    the largest of them, so that its columns are alike and most weights have small numbers.
    """
    parts = _all_parts(networks, updates)
    families, values = gathered(parts), _drawn(_distinct(parts), generator)
    for key in dict.fromkeys(family.keys["a"] for family in families):
        sharing = [family for family in families if family.keys["a"] == key]
        leading = _leading(sharing, values[key].shape[1])
        values[key][:, : leading.shape[1]] = leading * torch.linalg.norm(values[key][:, 0])
    values = improved(families, values, "b")
    for key in {family.keys["b"] for family in families}:
        values[key] /= parts[0].network.scale
    return {
        name: {key: values[key] for key in network.shapes} for name, network in networks.items()
    }


def _fitted(
    parts: Sequence[_Part], generator: torch.Generator, swept: Callable[[], object]
) -> Values:
    """The factors of one tensor."""
    networks = _distinct(parts)
    drawn = [_drawn(networks, generator) for _ in range(1 + _STARTS)]
    families = gathered(parts)
    scale = parts[0].network.scale
    if not any(family.energy for family in families):
        return drawn[0]
    main = max(families, key=lambda family: family.energy)
    for start in drawn:
        for key in {family.keys["b"] for family in families}:
            start[key] = normal().draw(start[key].shape, generator).double()
    drawn[0] |= cp_start(main, drawn[0], generator)
    tried = [polish(families, start, sweeps=_FIRST, callback=swept) for start in drawn]
    best, _ = min(tried, key=lambda found: found[1][-1])
    values, _ = polish(families, best, sweeps=_SWEEPS, callback=swept)
    return balanced(networks, families, values, scale)


def gathered(parts: Sequence[_Part]) -> list[Family]:
    """The parts by the factors that they share, without the method's scale."""
    found: dict[tuple[str, ...], list[_Part]] = {}
    for part in parts:
        found.setdefault(tuple(_keys(part.network).values()), []).append(part)
    families = []
    for same in found.values():
        sides = [_sides(part) for part in same]
        most = max(cut.shape[-1] for cut, _ in sides)
        cut, whole = (
            torch.stack([torch.nn.functional.pad(x, (0, most - x.shape[-1])) for x in side])
            for side in zip(*sides, strict=True)
        )
        network = same[0].network
        fixed = [part.network.fixed_indices for part in same]
        keys = _keys(network)
        rows = {r: torch.tensor([f[leg] for f in fixed]) for r, leg in PICKED.items() if r in keys}
        families.append(Family(keys, cut, whole, rows))
    return families


def cp_start(family: Family, like: Values, generator: torch.Generator) -> Values:
    """Factors from the CP decomposition of one family, whose picked factors are one mode."""
    rank = like[family.keys["a"]].shape[1]
    n, heads, width, _ = family.cut.shape
    leading = _leading([family], min(2 * rank, max(_LARGEST // (n * heads * width), 1)))
    inside = torch.einsum("ip,nis->nps", leading, family.whole)
    tensor = torch.einsum("nhws,nps->nphw", family.cut, inside)
    cp = cp_als(tensor, rank, max_iter=30, tol=1e-4, rng=generator)
    numbers, a, head, b = (torch.as_tensor(factor) for factor in cp.factors)
    found = dict(zip(WHOLE, (b * torch.as_tensor(cp.weights), leading @ a, head), strict=True))
    values = {family.keys[role]: factor for role, factor in found.items()}
    return values | _split_numbers(family, like, numbers)


def _split_numbers(family: Family, like: Values, numbers: Tensor) -> Values:
    """Picked factors whose product at the rows of every update is about its number, (n, rank)."""
    roles = [*family.rows]
    sizes = [len(like[family.keys[role]]) for role in roles]
    grid = torch.zeros(*sizes, numbers.shape[1], dtype=torch.float64)
    grid[tuple(family.rows.values())] = numbers
    found, left = {}, grid
    for axis, role in enumerate(roles):
        # The leading vector of every rank along this axis; what the others meet is left.
        flat = grid.movedim(-1, 0).movedim(axis + 1, 1).flatten(2)
        vector = torch.linalg.svd(flat, full_matrices=False)[0][:, :, 0].mT
        left = (left * vector.reshape(-1, *[1] * (left.ndim - 2), vector.shape[1])).sum(0)
        value = like[family.keys[role]].clone()
        rows = family.rows[role]
        value[rows] = vector[rows]
        found[family.keys[role]] = value
    # What is left is one number a rank; all factors get the same part of it.
    share = left.abs() ** (1 / len(roles))
    for number, role in enumerate(roles):
        rows = torch.unique(family.rows[role])
        sign = left.sign() if number == 0 else torch.ones_like(left)
        found[family.keys[role]][rows] *= share * sign
    return found


def _leading(families: Sequence[Family], most: int) -> Tensor:
    """Up to `most` orthonormal directions, a column each, of the largest part on the whole side.

    Nothing is as large as the features squared, unless the updates have as many columns.
    """
    columns = torch.cat([family.whole.permute(1, 0, 2).flatten(1) for family in families], dim=1)
    basis = torch.linalg.qr(columns)[0]
    gram = basis.new_zeros(basis.shape[1], basis.shape[1])
    for family in families:
        inside = torch.einsum("ik,nis->nks", basis, family.whole)
        weights = torch.einsum("nhws,nhwt->nst", family.cut, family.cut)
        gram += torch.einsum("nks,nst,nlt->kl", inside, weights, inside)
    leading: Tensor = basis @ torch.linalg.eigh(gram)[1].flip(-1)[:, :most]
    return leading


def balanced(
    networks: Sequence[Network], families: Sequence[Family], values: Values, scale: float
) -> Values:
    """The same tensor with all factors but B as long as they start, and B divided by `scale`.

    All factors of a role are multiplied by the same numbers, so that every family keeps its value.
    """
    cores = {core.key: core for network in networks for core in network.cores}
    values = dict(values)
    factor = torch.full_like(next(iter(values.values()))[0], 1 / scale)
    for role in [role for role in ROLES[1:] if role in families[0].keys]:
        used: dict[str, Tensor] = {}
        for family in families:
            rows = family.rows.get(role)
            key = family.keys[role]
            used.setdefault(key, torch.zeros(len(values[key]), dtype=torch.bool))
            used[key][slice(None) if rows is None else rows] = True
        picked = torch.cat([values[key][where] for key, where in used.items()])
        # A uniform distribution of half-width h has the deviation h / sqrt(3).
        expected = cores[next(iter(used))].initializer.size * math.sqrt(len(picked) / 3)
        lengths = torch.linalg.norm(picked, dim=0)
        stretch = torch.where(lengths > 0, expected / lengths.clamp_min(1e-300), 1.0)
        for key, where in used.items():
            values[key] = values[key].clone()
            values[key][where] *= stretch
        factor = factor / stretch
    for key in {family.keys["b"] for family in families}:
        values[key] = values[key] * factor
    return values


def _all_parts(
    networks: Mapping[str, AdditiveDeclaration], updates: Mapping[str, LowRankUpdate]
) -> list[_Part]:
    return [part for name, network in networks.items() for part in _parts(network, updates[name])]


def _distinct(parts: Sequence[_Part]) -> list[Network]:
    """One network for every choice of factors."""
    return [*{tuple(_keys(part.network).values()): part.network for part in parts}.values()]


def _drawn(networks: Sequence[Network], generator: torch.Generator) -> Values:
    """All factors as they start; a shared one as the first network draws it."""
    values: Values = {}
    for network in networks:
        values = {key: v.double() for key, v in network.initial(generator).items()} | values
    return values


def _parts(network: AdditiveDeclaration, update: LowRankUpdate) -> list[_Part]:
    """The networks of a weight with the rows of the update that are theirs."""
    parts = [part for _, part in network.networks]
    sizes = [part.out_features for part in parts]
    order = interleaved(torch.split(torch.arange(network.out_features), sizes), network.groups)
    rows = torch.split(order.argsort(), sizes)
    return [
        _Part(part, LowRankUpdate(update.left[row], update.right))
        for part, row in zip(parts, rows, strict=True)
    ]


def _sides(part: _Part) -> tuple[Tensor, Tensor]:
    """Factors of an update on the side of the heads, cut, and on the other one."""
    cut, whole = part.update.left, part.update.right.mT
    if "head" not in part.network.out_legs:
        cut, whole = whole, cut
    sizes = part.network.sizes
    return cut.reshape(sizes["head"], sizes["width"], -1), whole


def _keys(network: Network) -> dict[str, str]:
    """Key of the factor of every role."""
    keys = {core.name: core.key for core in network.cores}
    return {role: keys[role] for role in ROLES if role in keys}
