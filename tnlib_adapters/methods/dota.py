"""DoTA: train the MPO cores of the pretrained weight (arXiv 2412.20891).

W_0 is decomposed into a matrix product operator MPO(theta_0) of bond rank at most r, W_res = W_0 -
MPO(theta_0) stays frozen and theta is trained from theta_0: W = W_res + MPO(theta). Here W_0 itself
stays in place and the update is written as

    Delta W = MPO(theta) - MPO(theta_0),

the same function of theta with theta_0 kept beside it. So the base model is never changed: a
disabled adapter is the original model bit for bit, several adapters share one base, and a saved
adapter loads onto a fresh base without another decomposition.

theta_0 is in the balanced gauge: the singular values of every bond are shared by both sides. With
two modes per side and one bond this is PiSSA's A = U S^(1/2), B = S^(1/2) V^T.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnlib_adapters.base_model.sites import Site
from tnlib_adapters.checks import check_dims, positive_int
from tnlib_adapters.fitting.operator import fit_operator
from tnlib_adapters.layers.stored_cores import ANCHOR
from tnlib_adapters.networks.builders import clipped, mpo_network
from tnlib_adapters.networks.default_modes import matrix_modes
from tnlib_adapters.networks.network import Network
from tnlib_adapters.networks.pretrained import cores_like_weight, cores_of_weight
from tnlib_adapters.peft_plugin.config import NetworkConfig
from tnlib_adapters.peft_plugin.method import Fit


@dataclass
class DoTAConfig(NetworkConfig, method="dota"):
    """Configuration of DoTA.

    The public sources do not give the paper's ranks, targets or learning rates; the defaults are
    ours.

    Beside these it has the attributes of :class:`NetworkConfig`.

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

    r: int = 8
    dims: int | tuple[Sequence[int], Sequence[int]] | list[list[int]] = 3
    residual: bool = False

    starts: ClassVar[tuple[bool | str, ...]] = (True, False, "random", "saved")
    uses_weight: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_int("r", self.r)
        check_dims(self.dims, same_length=True)

    @property
    def fit_gradients(self) -> Fit:
        """Operators near the gradients."""
        return fit_operator

    def for_loading(self) -> DoTAConfig:
        """As it is, but an adapter that has theta_0 finds it in the file."""
        config = copy.copy(self)
        if self.init_weights != "random":
            config.init_weights = "saved"
        return config

    def for_fitting(self, **fields: Any) -> DoTAConfig:
        """A copy with other fields: one operator for the update, without theta_0."""
        return dataclasses.replace(self, init_weights="random", residual=False, **fields)

    def fields_of_sum(self, configs: Sequence[Any], *, exact: bool) -> dict[str, Any]:
        """One operator without theta_0, in which a difference of two has twice their rank."""
        fields: dict[str, Any] = {"init_weights": "random", "residual": False}
        ranks = [(1 + (config.init_weights != "random")) * config.r for config in configs]
        return fields | ({"r": sum(ranks)} if exact else {})

    def network(self, site: Site) -> Network:
        """The operator for one weight, with bonds clipped to what they can hold."""
        rows, columns = matrix_modes(self.dims, site)
        ranks = clipped([i * j for i, j in zip(rows, columns, strict=True)], self.r)
        anchored = self.init_weights != "random"
        residual = self.residual and anchored
        return mpo_network(rows, columns, ranks, anchored=anchored, residual=residual)

    def initial_cores(
        self, network: Any, weight: Tensor | None = None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Cores of the decomposed `weight`, or random ones, by ``init_weights``."""
        if self.init_weights == "random":
            cores: dict[str, Tensor] = network.initial(generator)
            return cores
        assert weight is not None
        if self.init_weights is True and weight.any():
            return cores_of_weight(network, weight)
        cores = cores_like_weight(network, weight, generator)
        if self.init_weights is True:
            cores[network.cores[-1].name].zero_()
            return cores
        anchor = cores_like_weight(network, weight, generator)
        return cores | {ANCHOR + name: core for name, core in anchor.items()}
