"""What ``tnlib-adapters inspect`` tells of adapters whose file does not describe them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tnlib_adapters.base_model.sites import Site
from tnlib_adapters.methods import METHODS
from tnlib_adapters.networks.facts import facts


def described(method: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a method with these fields, for a square weight; empty where they do not fit one."""
    if method not in METHODS:
        return {}
    try:
        return facts([METHODS[method](**fields).network(Site("", 4096, 4096))])
    except (TypeError, ValueError):
        return {}
