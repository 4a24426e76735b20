"""bitsandbytes' own 4-bit layers, as transformers loads them.

On CPUs with AVX512-BF16 one forward pass in eval mode rewrites such a layer's bytes in another
order, after which gradients no longer pass and its values cannot be read back. The layer has a
switch against that, which :func:`prevent_repacking` sets.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from tnlib_adapters.fourbit.packed import Format, Nested, PackedWeight


def is_bitsandbytes(module: nn.Module) -> bool:
    """Whether a module is a ``bitsandbytes.nn.Linear4bit``."""
    library = sys.modules.get("bitsandbytes")
    return library is not None and isinstance(module, library.nn.Linear4bit)


def packed_of(module: Any) -> PackedWeight:
    """The weight of such a layer; no copy.

    Raises
    ------
    ValueError
        If the layer was repacked, or is not quantised yet.
    """
    check_order(module)
    state = module.weight.quant_state
    if state is None:
        raise ValueError(
            "this bitsandbytes layer is not quantised yet; move it to its device first: "
            "layer.to('cpu') or layer.to('cuda')"
        )
    second = state.state2
    nested = Nested(second.absmax, state.offset, second.code) if state.nested else None
    form = Format(state.quant_type, state.blocksize, state.nested)
    rows, columns = state.shape
    return PackedWeight(
        module.weight.data,
        state.absmax,
        nested,
        form,
        (rows, columns),
        state.dtype,
        "bitsandbytes",
        rowwise=True,
    )


def is_repacked(module: Any) -> bool:
    """Whether the layer's bytes were rewritten for inference."""
    state = getattr(module.weight, "quant_state", None)
    return bool(getattr(state, "packing_format_for_cpu", False))


def check_order(module: nn.Module) -> None:
    """Raise ValueError if the layer's bytes were rewritten for inference."""
    if is_repacked(module):
        raise ValueError(
            "bitsandbytes has rewritten this 4-bit layer for inference (a forward pass in eval "
            "mode on a CPU with AVX512-BF16): it cannot be trained, merged or dequantised any "
            "more. Load the model again, and call tnlib_adapters.quantization.prevent_repacking"
            "(model) or adapt it before the first evaluation"
        )


def made_from_conv1d(module: nn.Module) -> bool:
    """Whether transformers has put such a layer in the place of a ``Conv1D``."""
    source = getattr(module, "source_cls", None)
    return source is not None and source.__name__ == "Conv1D"


def prevent_repacking(model: nn.Module) -> None:
    """Keep bitsandbytes from rewriting 4-bit layers in eval mode; safe to call on any model.

    Adapting a model does this by itself.

    Parameters
    ----------
    model : torch.nn.Module
        With ``bitsandbytes.nn.Linear4bit`` layers, or without.

    Raises
    ------
    ValueError
        If a layer was rewritten already, naming it.

    Examples
    --------
    >>> import bitsandbytes
    >>> layer = bitsandbytes.nn.Linear4bit(64, 48)
    >>> prevent_repacking(layer)
    >>> layer.support_avx512bf16_for_cpu
    False
    """
    for name, module in model.named_modules():
        if is_bitsandbytes(module):
            try:
                check_order(module)
            except ValueError as error:
                raise ValueError(f"{name or type(module).__name__}: {error}") from None
            module.support_avx512bf16_for_cpu = False
