"""What the strategies draw, from a seed, a decay of spectra and a scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from tnlib.arrays.backend import Array
from tnlib.cp.format import CP
from tnlib.testing.oracles import Values, orthogonal, with_spectrum
from tnlib.tucker.format import Tucker

Shape: TypeAlias = Sequence[int]
Converter: TypeAlias = Callable[[Values], Array]


def converter(library: str) -> Converter:
    """What turns a NumPy array into one of `library`."""
    if library not in ("numpy", "torch"):
        raise ValueError(f"library must be numpy or torch, got {library!r}")
    if library == "numpy":
        return lambda values: values
    import torch

    return torch.from_numpy


def falling(size: int, decay: float) -> Values:
    return np.arange(1, size + 1) ** -decay


def tensor(to: Converter, shape: Shape, seed: int, decay: float, scale: float) -> Array:
    rng = np.random.default_rng(seed)
    array = rng.standard_normal(shape)
    for axis, size in enumerate(shape):
        basis = orthogonal(rng, size, size) * falling(size, decay)
        array = np.moveaxis(np.tensordot(basis, array, axes=(1, axis)), 0, axis)
    return to(scale * array)


def matrix(
    to: Converter, modes: Sequence[tuple[int, int]], seed: int, decay: float, scale: float
) -> tuple[Array, tuple[int, ...], tuple[int, ...]]:
    rows, columns = tuple(zip(*modes, strict=True))
    m, n = math.prod(rows), math.prod(columns)
    return to(scale * with_spectrum(falling(min(m, n), decay), m, n, seed)), rows, columns


def cores(
    to: Converter, modes: Sequence[Shape], bonds: Shape, seed: int, decay: float, scale: float
) -> tuple[Array, ...]:
    """Cores whose later bond indices weigh less, as many bonds as there are modes."""
    rng = np.random.default_rng(seed)
    ranks = [1, *bonds[: len(modes) - 1], 1]
    shapes = [(ranks[k], *mode, ranks[k + 1]) for k, mode in enumerate(modes)]
    cores = [rng.standard_normal(shape) * falling(shape[-1], decay) for shape in shapes]
    return tuple(to(core) for core in [scale * cores[0], *cores[1:]])


def tucker(
    to: Converter, modes: Sequence[tuple[int, int]], seed: int, decay: float, scale: float
) -> Tucker[Any]:
    rng = np.random.default_rng(seed)
    factors = [rng.standard_normal(shape) * falling(shape[1], decay) for shape in modes]
    core = scale * rng.standard_normal([rank for _, rank in modes])
    return Tucker(to(core), tuple(to(factor) for factor in factors))


def cp(to: Converter, shape: Shape, rank: int, seed: int, decay: float, scale: float) -> CP[Any]:
    rng = np.random.default_rng(seed)
    factors = [rng.standard_normal((size, rank)) for size in shape]
    weights = scale * rng.standard_normal(rank) * falling(rank, decay)
    return CP(to(weights), tuple(to(factor) for factor in factors))
