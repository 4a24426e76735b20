"""Which tensor of a checkpoint is which parameter of a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def names_in_checkpoint(
    model: nn.Module, parameters: Iterable[str], stored: Iterable[str]
) -> dict[str, str]:
    """Names in a checkpoint by the names in the model.

    A checkpoint may have the prefix of the base model where the model has none, or the other way
    round, and names of earlier days, which transformers translates while it loads. Tensors that
    it would cut or join are left out.

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
        Parameters that the checkpoint has.
    """
    names = dict.fromkeys(parameters, True)
    renamings, converters = _conversions(model)
    prefix: Any = getattr(model, "base_model_prefix", None) or None
    found = {}
    # Sorted, as transformers reads them: some of its renamings count on it.
    for key in sorted(stored):
        name, converter = _renamed(key, renamings, converters, prefix, names)
        if converter is None and name in names:
            found[name] = key
    return found


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
