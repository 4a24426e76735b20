"""Two tensor trains with a mode for the expert, closest to the updates of all experts.

The updates of all experts are a tensor (experts, out, in), and the trains before and behind the
mode of the expert are its shared factors. So they come from its Tucker-2 decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tnlib import tt_svd
from tnlib_adapters.fitting.low_rank_update import LowRankUpdate
from tnlib_adapters.fitting.train import train_shapes
from tnlib_adapters.fitting.tucker import tucker2
from tnlib_adapters.networks.network import Network


def fit_expert_bottleneck(
    network: Network, updates: Sequence[LowRankUpdate], generator: torch.Generator
) -> dict[str, Tensor]:
    """Cores by key, in float64, of trains ``down_*`` and ``up_*`` with a core ``up_expert``.

    Parameters
    ----------
    network : Network
        With the core of the experts between those of the second train.
    updates : sequence of LowRankUpdate
        One an expert.
    generator : torch.Generator
        Randomness of what is left free.
    """
    initial = {key: value.double() for key, value in network.initial(generator).items()}
    names = [core.key for core in network.cores]
    place = names.index("up_expert")
    down = [name for name in names if name.startswith("down_")]
    before, behind = names[len(down) : place], names[place + 1 :]
    middle = math.prod(shape[1] for shape in train_shapes(network, down)) // network.in_features
    bond = initial["up_expert"].shape[1]
    left, cores, right = tucker2(list(updates), min(bond, middle), generator)
    if not cores.any():
        return initial | {names[-1]: torch.zeros_like(initial[names[-1]])}
    # Directions of the inputs are the first numbers of the bottleneck, and those of the bond.
    found = _chain(_padded(right, len(right), middle), network, down, initial)
    found |= _chain(torch.eye(middle, bond, dtype=torch.float64), network, before, initial)
    found |= _chain(_padded(left.mT, bond, len(left)), network, behind, initial)
    own = torch.zeros_like(initial["up_expert"])
    own[:, : cores.shape[2], : cores.shape[1]] = cores.mT / network.scale
    return found | {"up_expert": own}


def _padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    full = matrix.new_zeros(rows, columns)
    full[: matrix.shape[0], : matrix.shape[1]] = matrix
    return full


def _chain(
    matrix: Tensor, network: Network, keys: Sequence[str], initial: dict[str, Tensor]
) -> dict[str, Tensor]:
    """A matrix as a train over the modes of some cores; their outer bonds are modes of it too."""
    shapes = train_shapes(network, keys)
    first, last = shapes[0][0], shapes[-1][-1]
    sizes = [first, *(shape[1] for shape in shapes), last]
    bonds = [first, *(shape[-1] for shape in shapes[:-1]), last]
    open_start, *cores, open_end = map(torch.as_tensor, tt_svd(matrix.reshape(sizes), bonds).cores)
    cores[0] = torch.tensordot(open_start[0], cores[0], 1)
    cores[-1] = torch.tensordot(cores[-1], open_end[..., 0], 1)
    found = {}
    for key, core, shape in zip(keys, cores, shapes, strict=True):
        full = initial[key].reshape(shape).clone()
        full[core.shape[0] :] = 0
        full[: core.shape[0], :, : core.shape[2]] = core
        found[key] = full.reshape(network.shapes[key])
    return found
