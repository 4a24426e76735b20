"""Which tensor of a checkpoint is which parameter of a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def names_in_checkpoint(
    model: nn.Module, parameters: Iterable[str], stored: Iterable[str]
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Names in a checkpoint by the names in the model, and what has no tensor of its own there.

    A checkpoint may have the prefix of the base model where the model has none, or the other way
    round, and names of earlier days, which transformers translates while it loads. What
    it cuts or joins then has no tensor of its own.

    Parameters
    ----------
    model : torch.nn.Module
        The model, adapted or not.
    parameters : iterable of str
        Names of its parameters and buffers without adapters.
    stored : iterable of str
        Names in the checkpoint.

    Returns
    -------
    dict of str to str
        Parameters that the checkpoint has as they are.
    dict of str to list of str
        Of parameters that are made of tensors of another layout the names of those.
    """
    names = dict.fromkeys(parameters, True)
    renamings, converters = _conversions(model)
    prefix: Any = getattr(model, "base_model_prefix", None) or None
    found: dict[str, str] = {}
    made: dict[str, list[str]] = {}
    # Sorted, as transformers reads them: some of its renamings count on it.
    for key in sorted(stored):
        name, converter = _renamed(key, renamings, converters, prefix, names)
        if name in names and converter is None:
            found[name] = key
        elif name in names:
            made.setdefault(name, []).append(key)
    return found, made


def _conversions(model: nn.Module) -> tuple[list[Any], list[Any]]:
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    if not isinstance(model, PreTrainedModel):
        return [], []
    all_of_them = get_model_conversion_mapping(model)
    return (
        [entry for entry in all_of_them if isinstance(entry, WeightRenaming)],
        [entry for entry in all_of_them if isinstance(entry, WeightConverter)],
    )


def _renamed(
    key: str,
    renamings: list[Any],
    converters: list[Any],
    prefix: str | None,
    names: dict[str, bool],
) -> tuple[str, str | None]:
    from transformers.core_model_loading import rename_source_key

    name, converter = rename_source_key(key, renamings, converters, prefix, names)
    return name, converter
