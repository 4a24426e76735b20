"""A model as every method holds it, dense or in 4 bits, with its adapter, and the bytes of both.

QLoRA is what the ecosystem has: PEFT's LoRA over bitsandbytes' own layers.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
from peft import PeftConfig
from step_memory import optimizer_bytes, saved_bytes
from step_models import held, shared_copy, trained, with_adapters
from torch import Tensor, nn

from tnlib_adapters import DoTAConfig, count
from tnlib_adapters.quantization import prevent_repacking, quantize_base

FULL, QLORA, EQUAL = "full fine-tuning", "QLoRA", "QDoTA, QLoRA's size"
# What stands below a layer's adapter, or in the place of a module that is trained in full.
_BELOW = ("base_layer", "original_module")


@dataclass(frozen=True)
class Method:
    """An adapter, None where all weights are trained, and how the base below it is held.

    `base` is "dense", "bitsandbytes", "quantised" by :func:`quantize_base` and then adapted, or
    "residual": adapted and then quantised, without the initial operators.
    """

    adapter: str | None
    base: str = "dense"


METHODS = {
    FULL: Method(None),
    "LoRA": Method("LoRA"),
    QLORA: Method("LoRA", "bitsandbytes"),
    "DoTA": Method("DoTA"),
    "QDoTA": Method("DoTA", "quantised"),
    "QDoTA, residual": Method("DoTA", "residual"),
    EQUAL: Method("DoTA", "quantised"),
    "QLoTR": Method("LoTR", "quantised"),
    "QLoRTA": Method("LoRTA", "quantised"),
    "QLoRETTA rep": Method("LoRETTA rep", "quantised"),
}


def built(base: nn.Module, method: str, config: PeftConfig | None, seed: int) -> nn.Module:
    """The model of a method; dense weights are those of `base`, unless they are trained."""
    kind = METHODS[method].base
    if config is None:
        return copy.deepcopy(base).requires_grad_(True)
    model = shared_copy(base)
    if kind == "bitsandbytes":
        model = in_bitsandbytes(model)
    elif kind == "quantised":
        quantize_base(model, progressbar=False)
    elif kind == "residual":
        config.residual = True  # type: ignore[attr-defined]
    model = with_adapters(model, config, seed)
    if kind == "residual":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the weights were quantised without", UserWarning)
            quantize_base(model, progressbar=False)
    return model


def in_bitsandbytes(model: nn.Module) -> nn.Module:
    """Put the layers that `quantize_base` takes into bitsandbytes' own, in place."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    for name, linear in [*model.named_modules()]:
        if type(linear) is not nn.Linear or linear is output:
            continue
        layer = bnb.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            quant_type="nf4",
            device="meta",
        )
        layer.weight = bnb.nn.Params4bit(
            linear.weight.detach(), requires_grad=False, quant_type="nf4", module=layer
        )
        layer.bias = linear.bias
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.to(linear.weight.device))
    prevent_repacking(model)
    model.is_loaded_in_4bit = True  # what PEFT goes by
    return model


def equal_rank(base: nn.Module, values: int, **options: Any) -> int:
    """The rank at which DoTA trains nearest to so many values."""
    counts = {1: 0}
    while counts[rank := max(counts)] < values:
        counts[rank + 1] = count(base, DoTAConfig(r=rank + 1, **options)).total
    return min(counts, key=lambda rank: abs(counts[rank] - values))


def trained_values(model: nn.Module) -> int:
    return sum(weight.numel() for weight in trained(model))


def base_and_adapter(model: nn.Module) -> tuple[int, int]:
    """Bytes that a model holds in its own weights, and in what adapters add."""
    added: dict[int, int] = {}
    for module in model.modules():
        if hasattr(module, "adapter_layer_names"):
            for name, child in module.named_children():
                added |= {} if name in _BELOW else held(child)
    total = sum(held(model).values())
    return total - sum(added.values()), sum(added.values())


def byte_counts(model: nn.Module, forward: Callable[[], Tensor]) -> dict[str, int]:
    """Trained parameters and bytes of the parts of a model; `forward` ends with what is derived."""
    base, adapter = base_and_adapter(model)
    counts = {
        "trained": trained_values(model),
        "base": base,
        "adapter": adapter,
        "saved": saved_bytes(model, forward),
        # The largest adapted weight, as it is when it is dense for a product.
        "layer": 4 * max(map(_entries, model.modules())),
    }
    output = forward()
    output.backward(torch.ones_like(output))
    counts["optimizer"] = optimizer_bytes(model)
    model.zero_grad(set_to_none=True)
    return counts


def _entries(module: nn.Module) -> int:
    adapted = hasattr(module, "base_layer") and hasattr(module, "in_features")
    return module.in_features * module.out_features if adapted else 0  # type: ignore[operator]


def model_name(options: argparse.Namespace) -> str:
    """How a result calls the model of a folder."""
    return f"{options.model.name} ({options.note})" if options.note else options.model.name
