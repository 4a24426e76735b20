"""Which layers of a model are put into 4 bits, and what takes their place."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tnlib_adapters.base_model.adaptable import uncalled
from tnlib_adapters.base_model.linear_modules import is_transposed, original_modules
from tnlib_adapters.base_model.peft_names import public_name
from tnlib_adapters.base_model.task_heads import ALL_TASK_HEADS
from tnlib_adapters.fourbit.bitsandbytes import is_bitsandbytes
from tnlib_adapters.fourbit.layer import QuantizedLinear, dense_weight_of
from tnlib_adapters.fourbit.packed import Format, check_values
from tnlib_adapters.layers.base_layer import has_hooks
from tnlib_adapters.layers.cached import adapted_layers
from tnlib_adapters.layers.residual_base import ResidualLinear
from tnlib_adapters.layers.update import Update


@dataclass(frozen=True)
class LayerToQuantize:
    """A layer to quantise: where it is, and which updates it has."""

    name: str
    parent: nn.Module
    child: str
    layer: nn.Module
    updates: tuple[Update, ...]
    repeated: bool

    def check(self) -> None:
        """Raise with the layer's name unless it can be quantised."""
        try:
            check_values(dense_weight_of(self.layer))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.name}: {error}") from None
        if has_hooks(self.layer):
            raise ValueError(
                f"{self.name}: the layer has hooks, which would be lost; remove them, or leave the "
                "layer out (skip=...)"
            )
        if self._residual and len(self.updates) > 1:
            raise ValueError(
                f"{self.name}: an adapter with residual=True shares the layer with another; "
                "delete one of them, or quantise before they are added"
            )

    @property
    def _residual(self) -> bool:
        return any(getattr(update.network, "residual", False) for update in self.updates)

    def quantized(self, form: Format, compute_dtype: torch.dtype | None) -> QuantizedLinear:
        """The layer that takes the place."""
        return self._made(form, compute_dtype).train(self.layer.training)

    def _made(self, form: Format, compute_dtype: torch.dtype | None) -> QuantizedLinear:
        if not self._residual:
            return QuantizedLinear.from_linear(
                self.layer,
                quant_type=form.quant_type,
                blocksize=form.blocksize,
                double_quant=form.double_quant,
                compute_dtype=compute_dtype,
            )
        (update,) = self.updates
        update.forget()
        network: Any = update.network
        weight = dense_weight_of(self.layer)
        return ResidualLinear.without(
            self.layer, weight, network.unanchored, update.anchor or {}, form, compute_dtype
        )


def layers_to_quantize(model: nn.Module, skip: Collection[str]) -> Iterator[LayerToQuantize]:
    """The layers to quantise, those below adapters included, and what is trained in full not."""
    passed: tuple[str, ...] = ()
    owners = {
        id(layer.adapted[0]): _updates(layer)
        for layer in (adapted_layers(model).values() if _has_adapted(model) else ())
    }
    everywhere = [*model.named_modules(remove_duplicate=False)]
    # In eval mode torch's encoder reads the weights of these two without calling the layers.
    encoders = [
        module for _, module in everywhere if isinstance(module, nn.TransformerEncoderLayer)
    ]
    read = {id(layer) for module in encoders for layer in (module.linear1, module.linear2)}
    named = dict(original_modules(model))
    read |= {id(named[name]) for name in uncalled(model)}
    counts = Counter(id(module) for _, module in everywhere)
    for name, module in everywhere:
        if passed and name.startswith(passed):
            continue
        if type(module).__name__ in ("ModulesToSaveWrapper", "TrainableTokensWrapper"):
            passed = (*passed, name + ".")
            continue
        if is_tuned(module) and not hasattr(type(module), "adapted"):
            if hasattr(module, "base_layer"):
                raise ValueError(
                    f"{name}: adapted by PEFT's {type(module).__name__}, which would not know of "
                    "the change; quantise the model first, then adapt it"
                )
            passed = (*passed, name + ".")
            continue
        merged = getattr(module, "merged_adapters", ())
        if merged and hasattr(type(module), "adapted"):
            raise ValueError(
                f"{name}: adapter {merged[0]!r} is merged into the weight; unmerge_adapter() "
                "first, or merge_and_unload()"
            )
        quantized = isinstance(module, QuantizedLinear) or is_bitsandbytes(module)
        plain = type(module) is nn.Linear or is_transposed(module) or quantized
        if not name or not plain or id(module) in read or _matches(public_name(name), skip):
            continue
        parent, _, child = name.rpartition(".")
        updates = owners.get(id(module), ())
        again = counts[id(module)] > 1
        yield LayerToQuantize(name, model.get_submodule(parent), child, module, updates, again)


def _has_adapted(model: nn.Module) -> bool:
    return any(isinstance(getattr(type(m), "adapted", None), property) for m in model.modules())


def _updates(layer: Any) -> tuple[Update, ...]:
    """All updates of an adapted layer, active or not."""
    held = layer.held.values() if hasattr(layer, "held") else [layer.update]
    return tuple(held)


def is_tuned(module: nn.Module) -> bool:
    """Whether a module is a layer of PEFT's, or of ours."""
    return hasattr(module, "adapter_layer_names") or hasattr(type(module), "adapted")


def _matches(name: str, entries: Collection[str]) -> bool:
    return any(f".{entry}." in f".{name}." for entry in entries)


def skipped(model: nn.Module, skip: Collection[str] | None) -> list[str]:
    """Names that are left, by default those that :func:`quantize_base` states."""
    if skip is not None:
        many = isinstance(skip, Collection) and not isinstance(skip, str)
        if not many or not all(isinstance(entry, str) for entry in skip):
            raise TypeError(f"skip must be a collection of names, got {skip!r}")
        names = [public_name(name) for name, _ in model.named_modules()]
        for entry in skip:
            if not any(_matches(name, [entry]) for name in names):
                warnings.warn(f"skip entry {entry!r} matches no module", stacklevel=3)
        return list(skip)
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    left = [
        public_name(name)
        for name, module in model.named_modules()
        if module is output or (isinstance(module, nn.Linear) and id(module.weight) in tied)
    ]
    return [*left, *ALL_TASK_HEADS, *(getattr(model, "_keep_in_fp32_modules", None) or ())]
