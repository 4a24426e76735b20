"""Names that PEFT gives and expects."""

from __future__ import annotations

import peft

# What PEFT's wrapper puts before the names of the model it wraps.
PREFIX = "base_model.model."


def public_name(name: str) -> str:
    """The name of a layer in the model without adapters."""
    return name.removeprefix(PREFIX).removesuffix(".base_layer").removesuffix(".base")


def is_named(name: str, entry: str) -> bool:
    """Whether an entry of a configuration is a name, or its end after a dot."""
    return name == entry or name.endswith(f".{entry}")


def chosen_adapter(model: peft.PeftModel, name: str | None) -> str:
    """The adapter of this name, by default the active one; ValueError unless there is one such."""
    active: list[str] = model.active_adapters if name is None else [name]
    if len(active) != 1 or active[0] not in model.peft_config:
        raise ValueError(f"give adapter_name=, one of {sorted(model.peft_config)}; got {active}")
    return active[0]
