"""The update of one adapter of a layer: its cores, and what is computed of them beforehand.

How it is applied is the declaration's, see :mod:`tnlib_adapters.networks.weight_update`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tnlib_adapters.execution.base_weight import BaseWeight, DenseWeight
from tnlib_adapters.layers.base_layer import base_weight, fusible_weight, versions_of
from tnlib_adapters.layers.cached_update import CachedUpdate, Versions
from tnlib_adapters.layers.stored_cores import StoredCores
from tnlib_adapters.networks.as_tnlib import UpdateView, view
from tnlib_adapters.networks.core import Cores, Maps
from tnlib_adapters.networks.declaration_kinds import AdditiveDeclaration


class Update(StoredCores):
    """The cores of one declaration, as an update of a layer; arguments as :class:`StoredCores`."""

    _residual: tuple[Versions, Tensor] | None = None
    _cached: CachedUpdate | None = None

    @property
    def additive(self) -> bool:
        """Whether it is an update of the weight, so that it has a dense form and merges."""
        return self.network.additive

    def base_and_anchor(self, base: BaseWeight) -> tuple[BaseWeight, Cores | None]:
        """A weight that stays while the cores train, and the anchor to subtract from them."""
        without = base.without_anchor()
        if without is not None:
            return without, None
        residual = self.network.residual and base.kind == "dense"
        if not residual or torch.compiler.is_compiling():
            return base, self.anchor
        versions = versions_of(base.watched)
        if self._residual is None or self._residual[0] != versions:
            with torch.inference_mode(False), torch.no_grad():
                removed = self.weight_network().bound(self.anchor or {}, None).dense()
                self._residual = versions, base.plus(-removed)
        return DenseWeight(self._residual[1]), None

    def _apply(self, *args: Any, **kwargs: Any) -> Update:
        self.forget()
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def train(self, mode: bool = True) -> Update:
        """Set the mode; training forgets what was cached for inference."""
        if mode:
            self._cached = None
        super().train(mode)
        return self

    @torch.no_grad()
    def compute_cached(self, base: nn.Module) -> None:
        """Compute what depends on the cores alone, for calls without gradients.

        Of an update of the weight the low-rank factors are cached where it has some, else its sum
        with a plain base weight of at least float32, else the dense update in the weight's dtype.
        """
        self.check_initialized()
        cores = self.cores
        device_type = next(iter(cores.values())).device.type
        with torch.inference_mode(False), torch.autocast(device_type, enabled=False):
            made = self.network.maps(cores, self.anchor)
            maps: Maps = tuple([matrix.detach() for matrix in matrices] for matrices in made)
            fused: Tensor | None = None
            versions: Versions = ()
            if self.additive and len(maps[0]) == 1:
                update = maps[0][0]
                weight = fusible_weight(base)
                if isinstance(weight, DenseWeight):
                    fused, versions = weight.plus(update.mT).detach(), versions_of(weight.watched)
                    maps = ()
                else:
                    # A dense copy as wide as the base computes, not as it is trained.
                    maps = ([update.to(_width(base, update.dtype))],)
            made_of = tuple(self.stored.values())
            self._cached = CachedUpdate(maps, fused, versions, made_of, versions_of(made_of))

    @property
    def cached_update(self) -> CachedUpdate | None:
        """What :meth:`compute_cached` made, without gradients and while the cores are the same."""
        cached = self._cached
        return None if cached is None or torch.is_grad_enabled() or not cached.holds else cached

    @property
    def has_cached_update(self) -> bool:
        """Whether :meth:`compute_cached` has made something."""
        return self._cached is not None

    def __getstate__(self) -> dict[str, Any]:
        """Copies compute for themselves."""
        return self.__dict__ | {"_cached": None, "_residual": None}

    def forget(self) -> None:
        """Drop everything that was computed from earlier values."""
        self._residual = self._cached = None

    def weight_network(self) -> AdditiveDeclaration:
        """The declaration, where it is an update of the weight.

        Raises
        ------
        TypeError
            If it is not.
        """
        network = self.network
        if not network.additive:
            instead = f"; set {network.additive_form}" if network.additive_form else ""
            raise TypeError(
                f"a {network.title} is not a change of the weight: "
                f"it has no dense form and cannot be merged or exported{instead}"
            )
        return network  # type: ignore[return-value]

    def delta(self) -> Tensor:
        """The dense update (out_features, in_features); differentiable.

        Raises
        ------
        TypeError
            If the adapter is not an update of the weight.
        """
        network = self.weight_network()
        self.check_initialized()
        return network.delta(self.cores, self.anchor)

    def view(self) -> UpdateView:
        """The update as tnlib objects that share its cores.

        Raises
        ------
        TypeError
            If the adapter is not an update of the weight.
        """
        return view(self.weight_network(), self.cores, self.anchor)


def _width(base: nn.Module, widest: torch.dtype) -> torch.dtype:
    """In which dtype a base layer computes, as far as it says so."""
    weight = base_weight(base)
    if weight.is_floating_point():
        return weight.dtype
    chosen: torch.dtype | None = getattr(base, "compute_dtype", None)
    return chosen or widest
