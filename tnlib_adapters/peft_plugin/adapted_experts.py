"""What takes the place of a module of experts some of whose weights are adapted."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tnlib_adapters.base_model.offloaded import onloaded
from tnlib_adapters.layers.expert_forward import Part, experts_forward
from tnlib_adapters.layers.forward import in_order
from tnlib_adapters.peft_plugin.expert_layer import ExpertLayer


def put_experts_back(model: nn.Module, *, all: bool = False) -> None:
    """Put the modules of experts back in their places, where nothing of them is adapted."""
    for name, module in list(model.named_modules()):
        if isinstance(module, AdaptedExperts) and (all or not module.layers):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.base_layer)


class AdaptedExperts(nn.Module):
    """A module of experts some of whose weights are adapted.

    Attributes
    ----------
    base_layer : torch.nn.Module
        The module.
    """

    of_experts = True

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    def __getattr__(self, name: str) -> Any:
        """What the module has besides its weights."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = self.__dict__.get("_modules", {}).get("base_layer")
            if base is None or name.startswith("_"):
                raise
            return getattr(base, name)

    @property
    def layers(self) -> dict[str, ExpertLayer]:
        """The adapted weights by name."""
        return {n: m for n, m in self._modules.items() if isinstance(m, ExpertLayer)}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The experts, with the active updates unless disabled or merged."""
        parts: dict[str, list[Part]] = {}
        rows = None
        for layer in self.layers.values():
            if layer.disable_adapters and layer.merged:
                layer.unmerge()
            rows = None if layer.disable_adapters else layer.rows
            for update in layer.active_updates():
                found = parts.setdefault(layer.parameter.parameter, [])
                found.append((layer.parameter.rows, update))
        if rows is not None:
            return self._mixed(rows, *args, **kwargs)
        return self._with(parts, *args, **kwargs)

    def _with(self, parts: dict[str, list[Part]], *args: Any, **kwargs: Any) -> Any:
        if not parts:
            return self.base_layer(*args, **kwargs)
        with onloaded(self.base_layer):
            return experts_forward(self.base_layer, parts, *args, **kwargs)

    def _mixed(self, rows: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The same for tokens that have an adapter each."""
        named = [*args, *kwargs.values()]
        index: Any = named[0] if named else None
        routed = isinstance(index, Tensor) and not index.is_floating_point()
        if not routed or len(index) != len(hidden_states):
            raise ValueError(
                f"a {type(self.base_layer).__name__} sees tokens as they are sent to experts, and "
                "not the batch; call the model once per adapter"
            )
        outputs, groups = [], rows.groups(hidden_states)
        for name, index in groups:
            parts: dict[str, list[Part]] = {}
            for layer in self.layers.values():
                if name in layer.held:
                    found = parts.setdefault(layer.parameter.parameter, [])
                    found.append((layer.parameter.rows, layer.update(name)))
            given = [arg.index_select(0, index) for arg in (hidden_states, *args)]
            others = {key: value.index_select(0, index) for key, value in kwargs.items()}
            outputs.append(self._with(parts, *given, **others))
        return in_order(outputs, [index for _, index in groups])
