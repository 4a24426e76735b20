"""What modules hold of every adapter, and the one that holds the cores that layers share."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tnlib_adapters.layers.shared_cores import SharedCores

# Where the store of shared cores sits in the model; without "_", so that no prefix is in it.
STORE = "corestore"


class AdapterPart(nn.Module):
    """A module that holds something of every adapter, in one dictionary by adapter name.

    Subclasses differ in their prefix only. Values are in float32 at least, also over a
    half-precision base.
    """

    prefix: str
    attribute: str

    def __init_subclass__(cls, *, prefix: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if prefix is not None:
            cls.prefix = prefix

    def __init__(self) -> None:
        super().__init__()
        self.add_module(self.prefix + self.attribute, nn.ModuleDict())

    @property
    def held(self) -> nn.ModuleDict:
        """What is held, by adapter name."""
        return self.get_submodule(self.prefix + self.attribute)  # type: ignore[return-value]


class CoreStore(AdapterPart):
    """The cores that layers share, at the root of the model: one :class:`SharedCores` an adapter.

    Layers refer to it without registering it. PEFT does not see it as a layer: the layers that use
    an adapter's cores switch, freeze and delete them, see :class:`NetworkLayer`.
    """

    attribute = "cores"

    def cores(self, adapter_name: str) -> SharedCores:
        """The shared cores of an adapter, empty at first."""
        if adapter_name not in self.held:
            self.held[adapter_name] = SharedCores()
        return self.held[adapter_name]  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Pass on what comes: a root that is a Sequential calls all its children in turn."""
        return x
