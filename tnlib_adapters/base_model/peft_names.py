"""Names that PEFT gives and expects."""

from __future__ import annotations

# What PEFT's wrapper puts before the names of the model it wraps.
PREFIX = "base_model.model."


def public_name(name: str) -> str:
    """The name of a layer in the model without adapters."""
    return name.removeprefix(PREFIX).removesuffix(".base_layer").removesuffix(".base")
