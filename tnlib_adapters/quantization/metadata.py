"""What says that a base is quantised: adapters' configurations, and that of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tnlib_adapters.base_model.linear_modules import is_transposed
from tnlib_adapters.base_model.peft_names import public_name
from tnlib_adapters.fourbit.dense_layers import DenseConv1D, DenseLinear
from tnlib_adapters.fourbit.layer import QuantizedLinear, packed_weight
from tnlib_adapters.fourbit.packed import Format
from tnlib_adapters.layers.residual_base import ResidualLinear


def described(layer: nn.Module) -> dict[str, Any] | None:
    """How a layer's weight is in 4 bits, as arguments of :func:`quantize_base`; None if dense."""
    packed = packed_weight(layer)
    if packed is None:
        return None
    form = packed.format
    return {
        "quant_type": form.quant_type,
        "blocksize": form.blocksize,
        "double_quant": form.double_quant,
        "residual": isinstance(layer, ResidualLinear),
    }


def difference(saved: dict[str, Any] | None, base: dict[str, Any] | None) -> str:
    """What it means that an adapter trained over one base is loaded over another; or nothing."""
    if saved == base:
        return ""
    if saved is None:
        assert base is not None
        form = Format(**{key: value for key, value in base.items() if key != "residual"})
        return (
            f"this adapter was trained over a base in full precision, and is loaded over one in 4 "
            f"bits ({form}): the outputs differ by what the quantiser takes. For the function that "
            "was trained load the base in full precision"
        )
    options = {key: value for key, value in saved.items() if key != "residual"}
    form = Format(**options)
    call = ", ".join(f"{key}={value!r}" for key, value in options.items())
    trained = f"a base in 4 bits ({form}"
    trained += "; Q(W - N(theta_0)))" if saved.get("residual") else ")"
    if base is None:
        return (
            f"this adapter was trained over {trained}, and is loaded over one that is not: the "
            "outputs differ by what the quantiser takes. For the function that was trained call "
            f"tnlib_adapters.quantization.quantize_base(model, {call}) now"
        )
    found = f"one in {Format(**{key: base[key] for key in options})}"
    found += "; Q(W - N(theta_0))" if base["residual"] else ""
    return (
        f"this adapter was trained over {trained}, and is loaded over {found}: the outputs differ "
        "by the difference of both quantisations. For the function that was trained load the "
        "base in full precision, then the adapter, and call tnlib_adapters.quantization."
        f"quantize_base(model, {call})"
    )


def record(
    model: nn.Module,
    form: Format,
    *,
    residual: bool,
) -> None:
    """Write into the adapters' configurations, or the model's, how the base is quantised now."""
    adapters = _configurations(model)
    for config in adapters:
        if hasattr(config, "base_quantization"):
            config.base_quantization = {
                "quant_type": form.quant_type,
                "blocksize": form.blocksize,
                "double_quant": form.double_quant,
                "residual": residual,
            }
    if not adapters:
        refresh(model)


def refresh(model: nn.Module) -> None:
    """Make a transformers model's ``quantization_config`` say what its layers are.

    It is taken away where bitsandbytes could not read the layers: residual ones.
    """
    config = getattr(model, "config", None)
    layers = [*model.modules()]
    packed = [layer for layer in layers if packed_weight(layer) is not None]
    ours = any(isinstance(layer, QuantizedLinear | DenseLinear | DenseConv1D) for layer in layers)
    if not ours or not hasattr(config, "to_json_file"):
        return
    if not packed or any(isinstance(layer, ResidualLinear) for layer in layers):
        forget(model)
        return
    from transformers import BitsAndBytesConfig

    found: Any = packed_weight(packed[0])
    config.quantization_config = BitsAndBytesConfig(  # type: ignore[union-attr,no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type=found.format.quant_type,
        bnb_4bit_use_double_quant=found.format.double_quant,
        bnb_4bit_compute_dtype=getattr(packed[0], "compute_dtype", None) or _floating(model),
        llm_int8_skip_modules=[*_dense(model)],
    )


def _configurations(model: nn.Module) -> list[Any]:
    """The configurations of all adapters."""
    found: dict[int, Any] = {}
    for module in model.modules():
        configs = getattr(module, "peft_config", None)
        if isinstance(configs, dict):
            found |= {id(config): config for config in configs.values()}
    return list(found.values())


def forget(model: nn.Module) -> None:
    """Take from a model of transformers what says that it is quantised."""
    config = getattr(model, "config", None)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # type: ignore[union-attr]
    # What transformers would undo while it saves.
    conversions = getattr(model, "_weight_conversions", None)
    if conversions:
        model._weight_conversions = [  # type: ignore[assignment]
            conversion
            for conversion in conversions
            if not any("Bnb" in type(step).__name__ for step in conversion.operations)
        ]
    for name in ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_quantized"):
        model.__dict__.pop(name, None)


def _dense(model: nn.Module) -> Iterator[str]:
    """Names of the linear layers that are not in 4 bits."""
    for name, module in model.named_modules():
        if type(module) in (nn.Linear, DenseLinear) or is_transposed(module):
            yield public_name(name)


def _floating(model: nn.Module) -> torch.dtype:
    """The dtype of a model's first floating parameter."""
    found = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(found, torch.float32)
