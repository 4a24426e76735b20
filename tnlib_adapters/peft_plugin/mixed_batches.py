"""Batches whose rows have an adapter each, by PEFT's ``adapter_names=``.

While such a batch is computed, every adapted layer knows the rows of every adapter. Layers that see
more rows than the batch has (the beams of a search, tokens in one axis) see equally many for each
row of the batch, one after another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from tnlib_adapters.layers.forward import in_order
from tnlib_adapters.peft_plugin.weight_layer import WeightLayer

# PEFT's name of the model without adapters.
BASE = "__base__"
# Names of arguments whose first axis is the batch, and of layers that belong to an expert each.
_INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features", "inputs")
_EXPERT = re.compile(r"(^|\.)experts?\.\d+(\.|$)")


@dataclass(frozen=True)
class Rows:
    """The adapter of every row.

    Attributes
    ----------
    names : tuple of str
        One a row of the batch.
    lengths : set of int
        How many rows an array can have that has tokens of all rows in one axis: filled by the
        calls of the model.
    """

    names: tuple[str, ...]
    lengths: set[int] = field(default_factory=set)

    def groups(self, x: Tensor) -> list[tuple[str, Tensor]]:
        """Adapters with the rows of ``x`` that are theirs.

        Raises
        ------
        ValueError
            If ``x`` has no whole number of rows for each of the batch.
        """
        times, left = divmod(len(x), len(self.names))
        # An array of rows has some for each row of the batch; which, is known of whole calls only.
        odd = x.ndim == 2 and times > 1 and self.lengths and len(x) not in self.lengths
        if left or not times or odd:
            raise ValueError(
                f"a layer is called with {len(x)} rows for a batch of {len(self.names)}, so it is "
                "not known which adapter they belong to; call the model once per adapter"
            )
        found: dict[str, list[int]] = {}
        for row, name in enumerate(self.names):
            found.setdefault(name, []).extend(range(row * times, (row + 1) * times))
        return [(name, torch.tensor(rows, device=x.device)) for name, rows in found.items()]


@contextmanager
def mixed_batch(
    model: nn.Module, names: Sequence[str], known: Sequence[str], *args: Any, **kwargs: Any
) -> Iterator[None]:
    """Compute calls inside with an adapter for every row.

    Parameters
    ----------
    model : torch.nn.Module
        The adapted model.
    names : sequence of str
        Names of adapters, ``"__base__"`` for none.
    known : sequence of str
        Adapters that there are.
    *args, **kwargs
        What the model is called with.

    Raises
    ------
    ValueError
        If there is no such adapter, not one a row, an adapter is merged, or the model trains with
        activation checkpointing.
    """
    rows = Rows(tuple(names))
    _check(model, rows, known, args, kwargs)
    handle = model.register_forward_pre_hook(_count(rows), with_kwargs=True, prepend=True)
    layers = [module for module in model.modules() if isinstance(module, WeightLayer)]
    trained = [m for m in model.modules() if isinstance(m, AuxiliaryTrainingWrapper)]
    try:
        for layer in layers:
            layer.rows = rows
        for wrapper in trained:
            wrapper.__dict__["forward"] = _Forward(wrapper, rows)
        yield
    finally:
        handle.remove()
        for layer in layers:
            layer.rows = None
        for wrapper in trained:
            wrapper.__dict__.pop("forward", None)


class _Forward:
    """The forward pass of a module that is trained in full, each row by its adapter's copy."""

    def __init__(self, wrapper: AuxiliaryTrainingWrapper, rows: Rows) -> None:
        self.wrapper = wrapper
        self.rows = rows

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        wrapper, parts = self.wrapper, []
        groups = self.rows.groups(x)
        for name, index in groups:
            own = x.index_select(0, index)
            if wrapper.disable_adapters or name not in wrapper._adapters:
                parts.append(wrapper.original_module(own, *args, **kwargs))
            else:
                parts.append(wrapper._forward_wrapped_mixed_batch(own, name, *args, **kwargs))
        return in_order(parts, [index for _, index in groups])


def _inputs(args: Sequence[Any], kwargs: Any) -> Tensor | None:
    """What a model is called with, a row for every one of the batch."""
    named = [kwargs[name] for name in _INPUTS if kwargs.get(name) is not None]
    return next((v for v in (*named, *args) if isinstance(v, Tensor) and v.ndim), None)


def _count(rows: Rows) -> Any:
    """A hook that notes how many tokens a call of the model has."""

    def note(_: nn.Module, args: Any, kwargs: Any) -> None:
        for given in (_inputs(args, kwargs), kwargs.get("decoder_input_ids")):
            # Tokens are numbers, or have one more axis.
            if given is not None and given.ndim == 2 + given.is_floating_point():
                rows.lengths.update({len(given), given.shape[0] * given.shape[1]})

    return note


def _check(
    model: nn.Module, rows: Rows, known: Sequence[str], args: Sequence[Any], kwargs: Any
) -> None:
    unknown = sorted({*rows.names} - {*known, BASE})
    if unknown:
        raise ValueError(
            f"adapter_names has {unknown}, which are not there; there are {[*known]} and "
            f"{BASE!r} for the base model"
        )
    first = _inputs(args, kwargs)
    if first is not None and len(first) != len(rows.names):
        raise ValueError(
            f"adapter_names has {len(rows.names)} entries for a batch of {len(first)} rows; give "
            "one for every row"
        )
    for name, module in model.named_modules():
        if isinstance(module, WeightLayer) and _EXPERT.search(name):
            raise ValueError(
                f"{name} is a layer of one expert, which sees the tokens that are sent to it and "
                "not the batch; call the model once per adapter"
            )
        if isinstance(module, WeightLayer) and module.merged:
            raise ValueError(f"{name} has merged adapters; call unmerge_adapter() first")
        if model.training and getattr(module, "gradient_checkpointing", False) is True:
            raise ValueError(
                "adapter_names do not go with activation checkpointing, which computes layers "
                "again when the names are not known any more; turn it off, or train one adapter "
                "at a time"
            )
