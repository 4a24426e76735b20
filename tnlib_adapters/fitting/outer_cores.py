"""The cores around the one that starts at zero: orthonormal towards it.

An update is linear in the core of zeros. Of the others only the space matters in which that one can
move it. So what was fitted to gradients is orthonormalised from the ends of the network inwards. It
gets the size that the cores of this network start with.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from tnlib_adapters.networks.initializers import deviation
from tnlib_adapters.networks.network import Network


def centre(network: Network) -> str | None:
    """The key of the one core that starts at zero; None where there are none or several."""
    keys = [core.key for core in network.cores if deviation(core.initializer) == 0]
    return keys[0] if len(keys) == 1 else None


def outer_cores(network: Network, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cores of a network by key: zeros in its centre, the others orthonormal towards it.

    Parameters
    ----------
    network : Network
        With one core that starts at zero.
    values : mapping of str to Tensor
        Cores of an update that is to be near.

    Notes
    -----
    A leg that more than two cores have (the rank of CP) is no bond: slices along it are made
    equally long instead.
    """
    first = centre(network)
    assert first is not None
    legs = {core.key: core.legs for core in network.cores}
    joints = Counter(leg for own in legs.values() for leg in own)
    parents = _parents(network, first)
    found = dict(values)
    for key in reversed(parents):
        parent, shared = parents[key]
        value = found[key]
        if all(joints[leg] == 2 for leg in shared):
            found[key], rest = _orthonormal(value, [legs[key].index(leg) for leg in shared])
            if parent != first and rest is not None:
                axes = [legs[parent].index(leg) for leg in shared]
                found[parent] = _multiplied(found[parent], axes, rest)
        else:
            axes = [k for k, leg in enumerate(legs[key]) if leg not in shared]
            lengths = torch.linalg.vector_norm(value, dim=axes or None, keepdim=True)
            found[key] = value / lengths.clamp_min(1e-300) if axes else value.sign()
    for core in network.cores:
        value = found[core.key]
        size = torch.linalg.vector_norm(value) / math.sqrt(value.numel())
        found[core.key] = value * (deviation(core.initializer) / size.clamp_min(1e-300))
    found[first] = torch.zeros_like(values[first])
    return found


def _parents(network: Network, first: str) -> dict[str, tuple[str, list[str]]]:
    """The next core towards the first and the legs in common, by key, the nearest cores first."""
    legs = {core.key: set(core.legs) - set(network.fixed_indices) for core in network.cores}
    found: dict[str, tuple[str, list[str]]] = {}
    layer = [first]
    while layer:
        following = []
        for near in layer:
            for key in legs:
                common = [leg for leg in network.sizes if leg in legs[near] & legs[key]]
                if common and key != first and key not in found and key not in layer:
                    found[key] = (near, common)
                    following.append(key)
        layer = following
    return found


def _orthonormal(value: Tensor, axes: list[int]) -> tuple[Tensor, Tensor | None]:
    """A core whose matrix to the given axes has orthonormal columns, and the factor left over."""
    rest = [k for k in range(value.ndim) if k not in axes]
    moved = value.permute(*rest, *axes)
    matrix = moved.reshape(math.prod(moved.shape[: len(rest)]), -1)
    if len(matrix) < matrix.shape[1]:
        return value, None
    q, r = torch.linalg.qr(matrix)
    back = [[*rest, *axes].index(k) for k in range(value.ndim)]
    return q.reshape(moved.shape).permute(back), r


def _multiplied(value: Tensor, axes: list[int], matrix: Tensor) -> Tensor:
    """A core with a matrix multiplied to the given axes."""
    rest = [k for k in range(value.ndim) if k not in axes]
    moved = value.permute(*rest, *axes)
    flat = moved.reshape(-1, matrix.shape[1]) @ matrix.mT
    back = [[*rest, *axes].index(k) for k in range(value.ndim)]
    return flat.reshape(moved.shape).permute(back)
