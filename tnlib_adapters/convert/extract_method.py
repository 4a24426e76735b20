"""The change of a model in the form of one of the methods, fitted as a LoRA is converted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tnlib_adapters.convert.extraction import Extraction
from tnlib_adapters.convert.finetuned_change import FinetunedChange
from tnlib_adapters.convert.fitted import Fitted, check_cores, check_networks, smallest
from tnlib_adapters.convert.stored_updates import StoredUpdates
from tnlib_adapters.convert.write_adapter import extracted_text, write_adapter
from tnlib_adapters.networks.expert_network import expert_by_expert
from tnlib_adapters.networks.facts import total_parameters
from tnlib_adapters.peft_plugin.config import NetworkConfig
from tnlib_adapters.peft_plugin.declarations import declared

# Leading directions of every update that a method is fitted to, at least.
_KEPT = 64


def extract_method(
    change: FinetunedChange,
    folder: Path,
    *,
    base: str | None,
    eps: float | None,
    max_params: int | None,
    generator: torch.Generator,
    show: bool,
) -> Extraction:
    """Write the adapter of a change; see :func:`extract`.

    Raises
    ------
    TypeError
        If the method does not say how it is fitted.
    ValueError
        If `eps` or `max_params` cannot be met.
    """
    given = change.config
    modules = [name for name in change.saved if name != "biases"]
    config: Any = given.for_fitting(
        inference_mode=True,
        target_modules=[name for name, site in change.sites.items() if not site.experts],
        target_parameters=[name for name, site in change.sites.items() if site.experts] or None,
        modules_to_save=modules or None,
        bias="all" if change.bias else "none",
    )
    config.base_model_name_or_path = given.base_model_name_or_path or base
    most = max(_KEPT, 2 * getattr(config, config.size_field))
    updates = StoredUpdates(change.pair, change.keys, most)

    def fitted(config: NetworkConfig) -> Fitted:
        networks = _networks(config, change)
        single = expert_by_expert(networks)
        fit = config.fit_updates or config.fit_gradients
        assert fit is not None
        cores = fit(single, updates, generator, show=show)
        check_cores(single, cores, config)
        strengths = {name: config.strength(site) for name, site in change.sites.items()}
        return Fitted(config, networks, cores, updates, dict(change.full), strengths)

    check_networks(_networks(config, change))
    if max_params is not None:
        config = largest_within(config, max_params, lambda c: _n_params(c, change))
    found = fitted(config) if eps is None else smallest(fitted, config, eps, show=show)
    result = _result(found, change, 0)
    labels = change.pair.finetuned.weights.label, change.pair.base.weights.label
    card = extracted_text(*labels, str(result), needs_import=True)
    size = write_adapter(folder, found, change.pair.model, card)
    return result.of_size(size)


def _networks(config: NetworkConfig, change: FinetunedChange) -> dict[str, Any]:
    return {name: declared(config, site) for name, site in change.sites.items()}


def _n_params(config: NetworkConfig, change: FinetunedChange) -> int:
    """Parameters of a method of one size, those that are shared counted once."""
    return total_parameters(_networks(config, change))


def largest_within(
    config: Any, max_params: int, counted: Callable[[NetworkConfig], int]
) -> NetworkConfig:
    """The configuration with the largest size, up to its own, that keeps a budget.

    Raises
    ------
    ValueError
        If even a size of one has more parameters.
    """
    least = counted(config.resized(1))
    if least > max_params:
        raise ValueError(
            f"max_params={max_params} is too small: {config.size_field}=1 has {least:,} parameters"
        )
    low, high = 1, getattr(config, config.size_field)
    if counted(config) <= max_params:
        return config  # type: ignore[no-any-return]
    while high - low > 1:
        middle = (low + high) // 2
        fits = counted(config.resized(middle)) <= max_params
        low, high = (middle, high) if fits else (low, middle)
    return config.resized(low)  # type: ignore[no-any-return]


def _result(found: Fitted, change: FinetunedChange, size: int) -> Extraction:
    conversion = found.conversion(size)
    return Extraction(
        conversion.weights,
        conversion.shared,
        size,
        change.saved,
        change.left_out,
        change.unchanged,
    )
