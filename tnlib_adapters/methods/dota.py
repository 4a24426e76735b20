"""DoTA: train the MPO cores of the pretrained weight (arXiv 2412.20891).

W_0 is decomposed into a matrix product operator MPO(theta_0) of bond rank at most r, W_res = W_0 -
MPO(theta_0) stays frozen and theta is trained from theta_0: W = W_res + MPO(theta). Here W_0 itself
stays in place and the update is written as

    Delta W = MPO(theta) - MPO(theta_0),

the same function of theta with theta_0 kept beside it. So the base model is never changed: a
disabled adapter is the original model bit for bit, several adapters share one base, and a saved
adapter loads onto a fresh base without another decomposition.

theta_0 is in the balanced gauge: the singular values of every bond are shared by both sides. With
two modes a side and one bond this is PiSSA's A = U S^(1/2), B = S^(1/2) V^T.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tnlib import factorize, mpo_decompose
from tnlib_adapters.network import Network, Site, computing, mpo_network
from tnlib_adapters.plugin.config import NetworkConfig, choice
from tnlib_adapters.plugin.layer import NetworkLayer
from tnlib_adapters.plugin.registry import peft_type, register
from tnlib_adapters.plugin.tuner import NetworkTuner
from tnlib_adapters.update import ANCHOR


@dataclass
class DoTAConfig(NetworkConfig):
    """Configuration of DoTA.

    The public sources do not give the paper's ranks, targets or learning rates; the defaults are
    ours.

    Attributes
    ----------
    r : int
        Largest bond rank of the operator.
    dims : int or (row modes, column modes)
        Number of balanced mode pairs (:func:`tnlib.factorize`), or the modes themselves: two
        sequences of equal length whose products are the output and the input width of every
        target.
    residual : bool
        Keep W_res = W_0 - MPO(theta_0) as well: a step forms one dense product less, every target
        holds one more copy of its weight, and the start equals the base to rounding only.
    init_weights : True, "random", "saved" or False
        True starts from the decomposed weight, with an update of exactly zero. "random" is the
        paper's baseline: the same cores at random, the last one zero, no theta_0. "saved" only
        allocates (what a saved configuration says, so that loading decomposes nothing). False
        draws theta and theta_0 at random, for debugging: the update is then not zero.

    Other attributes are those of :class:`NetworkConfig` and of PEFT's configurations.

    Raises
    ------
    TypeError, ValueError
        If a field has the wrong type or value.

    Examples
    --------
    >>> config = DoTAConfig(r=16, target_modules=["q_proj", "v_proj"])
    >>> from tnlib_adapters import Site
    >>> config.network(Site("q_proj", 576, 576)).n_params
    18704
    """

    r: int = field(default=8)
    dims: int | tuple[Sequence[int], Sequence[int]] | list[list[int]] = field(default=3)
    residual: bool = field(default=False)

    def __post_init__(self) -> None:
        self.peft_type = peft_type("dota")
        super().__post_init__()
        choice("bias", self.bias, ("none", "all", "dota_only"))
        choice("init_weights", self.init_weights, (True, False, "random", "saved"))
        _positive("r", self.r)
        if isinstance(self.dims, Sequence) and not isinstance(self.dims, str):
            _mode_pair(self.dims)
        else:
            _positive("dims", self.dims)

    def for_loading(self) -> DoTAConfig:
        """As it is, but an adapter that has theta_0 finds it in the file."""
        config = copy.copy(self)
        if self.init_weights != "random":
            config.init_weights = "saved"
        return config

    def network(self, site: Site) -> Network:
        """The operator for one weight, with bonds clipped to what they can hold."""
        rows, columns = self._modes(site)
        sizes = [i * j for i, j in zip(rows, columns, strict=True)]
        bonds = [
            min(self.r, math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, len(sizes))
        ]
        anchored = self.init_weights != "random"
        residual = self.residual and anchored
        return mpo_network(rows, columns, (1, *bonds, 1), anchored=anchored, residual=residual)

    def initial_cores(
        self, network: Network, weight: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Cores of the decomposed `weight`, or random ones, by ``init_weights``."""
        if self.init_weights is True and weight.any():
            return _decomposed(network, weight)
        cores = _random(network, weight, generator)
        if self.init_weights in (True, "random"):
            cores[network.cores[-1].name].zero_()
            return cores
        anchor = _random(network, weight, generator)
        return cores | {ANCHOR + name: core for name, core in anchor.items()}

    def _modes(self, site: Site) -> tuple[Sequence[int], Sequence[int]]:
        widths = (site.out_features, site.in_features)
        if isinstance(self.dims, Sequence):
            products = tuple(map(math.prod, self.dims))
            if products != widths:
                raise ValueError(
                    f"dims={self.dims!r} make a {products[0]} x {products[1]} matrix, but "
                    f"{site.name or 'the weight'} is {widths[0]} x {widths[1]}; use an int, or "
                    "target weights of one shape"
                )
            return tuple(self.dims[0]), tuple(self.dims[1])
        rows, columns = (factorize(width, self.dims) for width in widths)
        for width, modes in zip(widths, (rows, columns), strict=True):
            if self.dims > 1 and width > 16 and modes[-1] == width:
                warnings.warn(
                    f"{site.name or 'a weight'}: {width} has no factors, so its modes are {modes} "
                    "and nothing is gained by a network there",
                    stacklevel=2,
                )
        return rows, columns


def _decomposed(network: Network, weight: Tensor) -> dict[str, Tensor]:
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
    padding = _random(network, weight, torch.Generator().manual_seed(0))
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


def _random(
    network: Network, weight: Tensor, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """Normal cores, each with variance s^(2/d) / r, whose product has the weight's deviation s."""
    deviation = float(weight.float().std()) if weight.numel() > 1 else 1.0
    share = max(deviation, 1e-3) ** (1 / len(network.cores))
    device = "cpu" if generator is None else generator.device
    return {
        name: (
            torch.randn(shape, generator=generator, device=device, dtype=computing([weight]))
            * (share / math.sqrt(shape[-1]))
        ).to(weight.device)
        for name, shape in network.shapes.items()
    }


def _mode_pair(dims: Sequence[Any]) -> None:
    """Check that dims are two equally long sequences of modes."""
    if not all(isinstance(side, Sequence) and not isinstance(side, str) for side in dims):
        raise TypeError(f"dims must be an int or two sequences of ints, got {dims!r}")
    if len(dims) != 2 or len(dims[0]) != len(dims[1]):
        raise ValueError(
            "dims must be a number of mode pairs or (row modes, column modes) of equal length, "
            f"got {dims!r}"
        )
    for size in (*dims[0], *dims[1]):
        _positive("every mode of dims", size)


def _positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r} ({type(value).__name__})")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


class DoTALinear(NetworkLayer, prefix="dota_"):
    """A linear layer adapted by DoTA."""


class DoTAModel(NetworkTuner):
    """A model adapted by DoTA."""

    prefix = "dota_"
    tuner_layer_cls = DoTALinear


register("dota", DoTAConfig, DoTAModel)
