"""The values of a declaration's cores: how they are stored, set and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tnlib_adapters.base_model.offloaded import settle
from tnlib_adapters.layers.multipliers import MULTIPLIERS, MultipliedCores
from tnlib_adapters.layers.shared_cores import SharedCores, empty, hold
from tnlib_adapters.networks.declaration_kinds import Declaration
from tnlib_adapters.networks.rate_scaling import declared_multipliers, started_multipliers

# Before the names of cores: what they start from, and how far they are from there.
ANCHOR, DEVIATION = "anchor_", "deviation_"


class StoredCores(MultipliedCores):
    """The cores of one declaration, with the frozen initial ones where it is anchored.

    Cores of one weight are parameters under their own names (buffers, if frozen), anchors
    persistent buffers ``anchor_<name>``; all in `dtype`, whatever the base layer has. Cores of a
    sharing group live in `shared`, which this module refers to and does not register.

    With `strength` the values are stored divided by multipliers, a persistent buffer. Those of an
    anchored network are stored as their distance from the anchor, ``deviation_<name>``, so that
    weight decay pulls them back to it.

    Parameters
    ----------
    network : Network, FusedProjection, BottleneckAdapter or ReplacedLinear
        Declaration.
    shared : SharedCores, optional
        Where the cores of groups are; needed if the declaration has some.
    device : torch.device, optional
        Where to allocate.
    dtype : torch.dtype
        Precision of the cores.
    strength : float, optional
        How many times as far as LoRA's a step of the learning rate moves the update; None stores
        the values as they are.

    Attributes
    ----------
    declared : Network, FusedProjection, BottleneckAdapter or ReplacedLinear
        The declaration of the values.
    network : Network, FusedProjection, BottleneckAdapter or ReplacedLinear
        The declaration of :attr:`cores`: with the multipliers in its scale.

    Raises
    ------
    ValueError
        If the declaration shares cores and there is no `shared`, or one of another shape there.
    """

    def __init__(
        self,
        network: Declaration,
        shared: SharedCores | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        strength: float | None = None,
    ) -> None:
        super().__init__()
        self.declared = self.network = network
        self._strength = strength
        factors = {} if strength is None else declared_multipliers(network, strength)
        self._distances = network.anchored and strength is not None
        # Not a submodule: the container is registered once, for all layers.
        object.__setattr__(self, "_shared", shared)
        # Whether no value is missing.
        self._initialized = False
        for core, shape in zip(network.cores, network.shapes.values(), strict=True):
            taken = hasattr(type(self), core.key) or core.key in self.__dict__
            if taken or core.key == MULTIPLIERS:
                raise ValueError(f"a core cannot be called {core.key!r}; choose another name")
            if core.group is not None:
                if shared is None:
                    raise ValueError(f"core {core.name!r} is shared; pass shared=SharedCores()")
                shared.allocate(core, shape, device, dtype, factors.get(core.key))
                continue
            hold(self, core, shape, device, dtype, name=self._name(core.key))
            # On the device of the core, which is meta inside accelerate's context.
            place = self._own(core.key).device
            if network.anchored:
                self.register_buffer(ANCHOR + core.key, empty(shape, place, dtype))
        own = [core.key for core in network.cores if core.group is None]
        self._factors = {key: factors[key] for key in own if key in factors}
        if self._factors:
            self._hold_multipliers(place)
        if shared is not None:
            factors |= shared._factors
        # What is added to an anchor is multiplied before.
        self.network = network if network.anchored else network.rescaled(factors)
        self.network.plan_strategies()

    def _name(self, key: str) -> str:
        """The name under which a core of its own is stored."""
        return DEVIATION + key if self._distances else key

    def _own(self, key: str) -> Tensor:
        value: Tensor = getattr(self, self._name(key))
        return value

    @property
    def shared(self) -> SharedCores | None:
        """Where its cores of groups are; None where it has none."""
        return self._shared  # type: ignore[return-value]

    @property
    def cores(self) -> dict[str, Tensor]:
        """Its cores by key, as :attr:`network` takes them.

        Shared ones are on the device of its own, where it has any.
        """
        found = self.stored
        own = next(iter(self.parameters(recurse=False)), None)
        if own is not None:
            found = {key: value.to(own.device) for key, value in found.items()}
        if self._distances:
            factors: Tensor = self.multipliers  # type: ignore[assignment]
            anchor = self.anchor or {}
            for (key, value), factor in zip(found.items(), factors.unbind(), strict=True):
                found[key] = torch.addcmul(anchor[key], value, factor)
        return found

    @property
    def stored(self) -> dict[str, Tensor]:
        """What is stored of its cores, by key."""
        settle(self)
        if self._shared is not None:
            settle(self._shared)  # type: ignore[arg-type]
        return {
            core.key: self._own(core.key) if core.group is None else self._of_group(core.key)
            for core in self.declared.cores
        }

    def _of_group(self, key: str) -> Tensor:
        shared: SharedCores = self._shared  # type: ignore[assignment]
        return shared.get(key)

    @property
    def anchor(self) -> dict[str, Tensor] | None:
        """Frozen initial cores by key, in the dtype of the cores; None where not anchored."""
        if not self.declared.anchored:
            return None
        # FSDP's mixed precision casts parameters for the forward pass, and no buffers.
        return {
            core.key: getattr(self, ANCHOR + core.key).to(self._own(core.key).dtype)
            for core in self.declared.cores
        }

    @torch.no_grad()
    def set_initial(self, values: Mapping[str, Tensor], *, again: bool = False) -> None:
        """Set the cores to initial `values`, and the anchor to the same.

        Values and anchor are not divided by multipliers yet. An anchor that starts elsewhere is
        given as ``anchor_<name>``. Shared cores that another update has started are left, unless
        they are set `again`.
        """
        expected = self.declared.shapes
        given = {name: tuple(values[name].shape) for name in expected if name in values}
        if given != expected:
            raise ValueError(f"initial cores have shapes {given}, the network needs {expected}")
        if self.declared.anchored:
            for key, value in values.items():
                if not key.startswith(ANCHOR):
                    getattr(self, ANCHOR + key).copy_(values.get(ANCHOR + key, value))
        self._set_multipliers()
        for core in self.declared.cores:
            key, value = core.key, values[core.key]
            if core.group is not None:
                self._shared.initialize(key, value, again=again)  # type: ignore[union-attr,operator]
                continue
            if self._distances:
                value = value.to(self._own(key)) - getattr(self, ANCHOR + key)
            self._own(key).copy_(value / self._factors.get(key, 1.0))
        self._initialized = True
        self.forget()

    def _set_multipliers(self) -> None:
        """Choose those of distances by the anchor, and write all into the buffer."""
        if self._distances:
            ((_, network),) = self.declared.networks
            self._factors = started_multipliers(network, self.anchor or {}, self._strength or 1.0)
        if self._factors:
            place: Tensor = self.multipliers  # type: ignore[assignment]
            place.copy_(torch.tensor([*self._factors.values()]))

    def _convert(self) -> None:
        """Take values that were stored with other multipliers; distances bring theirs."""
        if self._shared is not None:
            self._shared._convert()  # type: ignore[operator,union-attr]
        if not self._distances:
            super()._convert()

    def check_initialized(self) -> None:
        """Raise RuntimeError if a core was allocated and never set or loaded."""
        if self._initialized or torch.compiler.is_compiling():
            return
        anchor = {ANCHOR + key: value for key, value in (self.anchor or {}).items()}
        own = {core.key for core in self.declared.cores if core.group is None}
        values = {self._name(k) if k in own else k: v for k, v in self.stored.items()} | anchor
        known = self._set_keys | (set() if self.shared is None else self.shared._set_keys)
        missing = [
            key
            for key, core in values.items()
            if core.is_meta or (key not in known and core.isnan().all())
        ]
        if missing:
            raise RuntimeError(
                f"the cores {', '.join(missing)} were allocated but never loaded. Either the file "
                "has none for this layer, being of another model; or a new adapter was made with "
                "init_weights='saved', which saved configurations say: set init_weights=True"
            )
        # Loaders that write values in place do not say so.
        self._convert()
        self._initialized = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._initialized = False
        self.forget()

    def take_over(self) -> None:
        """Use values that were written in place, with their multipliers."""
        super().take_over()
        self.forget()

    def forget(self) -> None:
        """Drop what was computed from earlier values: nothing here."""

    def extra_repr(self) -> str:
        """Cores with their shapes, and the number of trainable parameters."""
        shapes = ", ".join(
            f"{name}: {'x'.join(map(str, shape))}" for name, shape in self.network.shapes.items()
        )
        anchored = ", anchored" if self.network.anchored else ""
        shared = ", shared in part" if any(c.group for c in self.network.cores) else ""
        return f"{shapes}, trainable={self.network.n_params}{shared}{anchored}"
