"""Initial cores of an operator from the pretrained weight it stands for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tnlib import mpo_decompose
from tnlib_adapters.networks.core import computing
from tnlib_adapters.networks.initializers import normal
from tnlib_adapters.networks.network import Network


def cores_of_weight(network: Network, weight: Tensor) -> dict[str, Tensor]:
    """Balanced cores of the weight, with every bond as large as declared.

    Where the weight does not fill a bond, its new directions are random in all cores but the last
    and zero there: the operator stays the same, and a gradient reaches them.
    """
    shapes = network.shapes
    mpo = mpo_decompose(
        weight,
        [shape[-1] for shape in shapes.values()][:-1],
        row_dims=[shape[1] for shape in shapes.values()],
        col_dims=[shape[2] for shape in shapes.values()],
        dtype=computing([weight]),
    ).balanced()
    padding = cores_like_weight(network, weight, torch.Generator().manual_seed(0))
    cores = {}
    for k, (name, core) in enumerate(zip(shapes, mpo.cores, strict=True)):
        padded = torch.zeros(shapes[name], dtype=core.dtype, device=core.device)
        left, right = core.shape[0], core.shape[-1]
        if k < len(shapes) - 1:
            first = 0 if k == 0 else left
            padded[first:, :, :, right:] = padding[name][first:, :, :, right:].to(core)
        padded[:left, :, :, :right] = core
        cores[name] = padded
    return cores


def cores_like_weight(
    network: Network, weight: Tensor, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """Normal cores, each with variance s^(2/d) / r, whose product has the weight's deviation s."""
    deviation = float(weight.float().std()) if weight.numel() > 1 else 1.0
    share = max(deviation, 1e-3) ** (1 / len(network.cores))
    return {
        name: normal(share / math.sqrt(shape[-1]))
        .draw(shape, generator)
        .to(weight.device, computing([weight]))
        for name, shape in network.shapes.items()
    }
