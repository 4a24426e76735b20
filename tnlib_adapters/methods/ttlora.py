"""TT-LoRA: a tensor train for the update of every weight (arXiv 2408.01008).

Delta W = alpha TT(out modes, in modes); the bond between the two sides makes it a LoRA of rank r.
"""

from __future__ import annotations

from dataclasses import dataclass

from tnlib_adapters.base_model.sites import Site
from tnlib_adapters.checks import check_dims, positive_int, positive_number
from tnlib_adapters.fitting.train import fit_train
from tnlib_adapters.networks.builders import matrix_train
from tnlib_adapters.networks.declaration_kinds import AdditiveDeclaration
from tnlib_adapters.networks.default_modes import matrix_modes
from tnlib_adapters.networks.network import Network
from tnlib_adapters.peft_plugin.config import NetworkConfig


@dataclass
class TTLoRAConfig(NetworkConfig, method="ttlora"):
    """Configuration of TT-LoRA; beside these it has the attributes of :class:`NetworkConfig`.

    Attributes
    ----------
    r : int
        Rank of every bond, or what the bond can hold if that is less.
    alpha : float
        The update is scaled by alpha.
    dims : int or (row modes, column modes)
        Number of balanced modes per side, the largest ones at the ends of the train; or the modes.

    Examples
    --------
    >>> from tnlib_adapters import Site
    >>> TTLoRAConfig(r=5, dims=[[64, 4, 3], [3, 4, 64]]).network(Site("query", 768, 768)).n_params
    990
    """

    r: int = 8
    alpha: float = 1.0
    dims: int | list[list[int]] = 3
    fit_updates = staticmethod(fit_train)

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_int("r", self.r)
        positive_number("alpha", self.alpha)
        check_dims(self.dims)

    def weight_ranks(self, network: AdditiveDeclaration) -> tuple[int, ...]:
        """The bonds of a train."""
        return tuple(shape[-1] for shape in network.shapes.values())[:-1]

    def network(self, site: Site) -> Network:
        """The train of one weight; its first core starts at zero."""
        modes = matrix_modes(self.dims, site, ascending=False)
        return matrix_train(*modes, self.r, scale=self.alpha)
