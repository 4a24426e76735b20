"""Whole models put into 4 bits, and back."""

from __future__ import annotations

import warnings
from collections.abc import Collection

import torch
from torch import nn
from tqdm.auto import tqdm

from tnlib_adapters.base_model.linear_modules import bare_experts, features, is_transposed
from tnlib_adapters.fourbit.bitsandbytes import prevent_repacking
from tnlib_adapters.fourbit.dense_layers import DenseConv1D, DenseLinear, plain_layer
from tnlib_adapters.fourbit.layer import QuantizedLinear, check_compute_dtype, packed_weight
from tnlib_adapters.fourbit.packed import Format
from tnlib_adapters.layers.base_layer import dense_weight
from tnlib_adapters.layers.residual_base import ResidualLinear
from tnlib_adapters.progress import is_shown
from tnlib_adapters.quantization.metadata import forget, record
from tnlib_adapters.quantization.selection import is_tuned, layers_to_quantize, skipped


def quantize_base(
    model: nn.Module,
    skip: Collection[str] | None = None,
    *,
    quant_type: str = "nf4",
    blocksize: int = 64,
    double_quant: bool = True,
    compute_dtype: torch.dtype | None = None,
    progressbar: bool | None = None,
) -> nn.Module:
    """Put the linear layers of a model into 4 bits, one after another, in place.

    Every ``torch.nn.Linear`` and transformers' ``Conv1D`` becomes a :class:`QuantizedLinear`;
    embeddings, norms, biases, subclasses of these layers and the two of a
    ``torch.nn.TransformerEncoderLayer`` stay. A model that was adapted before
    keeps its adapters: the layers below them are quantised, and where an adapter declares
    ``residual`` (``DoTAConfig(residual=True)``), W - N(theta_0) is quantised and the layer computes
    Q(W - N(theta_0)) + N(theta_0) without its adapter. A model of transformers that has no adapters
    gets a ``quantization_config``, with which ``save_pretrained`` writes what transformers and
    bitsandbytes read.

    Parameters
    ----------
    model : torch.nn.Module
        With its weights in memory; any floating dtype.
    skip : collection of str, optional
        Layers to leave, by name, end of the name, or name of a module around them. By default the
        output embedding, layers that share a weight with an embedding, heads of PEFT's tasks
        (classifier, score, qa_outputs), and what the model asks to keep in float32.
    quant_type : str
        "nf4" or "fp4".
    blocksize : int
        Values that share a scale: 32, 64, 128, ..., 4096.
    double_quant : bool
        Store the scales in 8 bits: 4.13 bits per weight instead of 4.5 at blocks of 64.
    compute_dtype : torch.dtype, optional
        In which activations and weights are multiplied; by default that of the activations.
    progressbar : bool, optional
        Show progress; by default for large models only.

    Returns
    -------
    torch.nn.Module
        `model`.

    Raises
    ------
    TypeError
        If `model` is no module, or `skip` or `compute_dtype` is of another type.
    ValueError
        If a layer is quantised already, on the meta device or not finite, if there is none to
        quantise, if a layer has hooks or a merged adapter, or the model has adapters of PEFT's own
        methods. Nothing is changed then.

    Examples
    --------
    >>> import torch
    >>> from tnlib_adapters.quantization import quantize_base
    >>> model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU())
    >>> quantize_base(model)[0]
    QuantizedLinear(in_features=256, out_features=256, bias=True, nf4, blocks of 64, double \
quantisation, 4.13 bits per weight)
    """
    form = Format(quant_type, blocksize, double_quant)
    check_compute_dtype(compute_dtype)
    found = list(layers_to_quantize(_module(model), skipped(model, skip)))
    if not found:
        raise ValueError(f"this {type(model).__name__} has no linear layer that can be quantised")
    for chosen in found:
        chosen.check()
    prevent_repacking(model)
    bare = bare_experts(model)
    if bare:
        warnings.warn(
            f"held as bare parameters, which are not quantised: {', '.join(bare[:3])}"
            f"{' and others' if len(bare) > 3 else ''}",
            stacklevel=2,
        )
    work = sum(chosen.layer.weight.numel() for chosen in found)  # type: ignore[operator,misc]
    shown = is_shown(progressbar, work)
    moved = []
    # A layer that stands at several places stays one layer.
    made: dict[nn.Module, QuantizedLinear] = {}
    with tqdm(total=len(found), desc="quantising", disable=not shown, unit="layer") as bar:
        while found:
            # Nothing may refer to a layer that was replaced, or its weight would stay in memory.
            chosen = found.pop()
            layer = made.get(chosen.layer) or chosen.quantized(form, compute_dtype)
            if isinstance(layer, ResidualLinear):
                moved.append(layer.deviation)
            if chosen.repeated:
                made[chosen.layer] = layer
            setattr(chosen.parent, chosen.child, layer)
            bar.update()
    record(model, form, residual=bool(moved))
    if moved:
        warnings.warn(
            "the weights were quantised without their initial operators: disabled, the model is "
            f"Q(W - N(theta_0)) + N(theta_0), {sorted(moved)[len(moved) // 2]:.1%} away from W in "
            f"the median layer and {max(moved):.1%} in the worst (relative Frobenius norm; "
            "layer.deviation has each), and takes no second adapter",
            stacklevel=2,
        )
    return model


def dequantize_base(
    model: nn.Module, dtype: torch.dtype = torch.bfloat16, *, progressbar: bool | None = None
) -> nn.Module:
    """Make every layer in 4 bits a plain layer again, ours and bitsandbytes', in place.

    The way to one plain checkpoint after ``merge_and_unload()``. What the quantiser took does not
    come back. All parameters are cast to `dtype`, buffers are left; the weights of these layers
    stay frozen.

    Parameters
    ----------
    model : torch.nn.Module
        Without adapters.
    dtype : torch.dtype
        Of the result.
    progressbar : bool, optional
        Show progress; by default for large models only.

    Returns
    -------
    torch.nn.Module
        `model`.

    Raises
    ------
    TypeError
        If `model` is no module, or `dtype` is not a floating dtype.
    ValueError
        If the model has adapters, no layer in 4 bits, or one that bitsandbytes has rewritten.

    Examples
    --------
    >>> import torch
    >>> from tnlib_adapters.quantization import dequantize_base, quantize_base
    >>> model = quantize_base(torch.nn.Sequential(torch.nn.Linear(128, 128)))
    >>> dequantize_base(model, torch.float16)[0].weight.dtype
    torch.float16
    """
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating torch.dtype, got {dtype!r}")
    prevent_repacking(_module(model))
    if any(is_tuned(module) for module in model.modules()):
        raise ValueError("the model has adapters: merge_and_unload() or unload() first")
    merged = DenseLinear | DenseConv1D
    names = [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, merged) or packed_weight(module) is not None
    ]
    if not names or names == [""]:
        raise ValueError(f"this {type(model).__name__} holds no layer in 4 bits")
    sizes = [features(model.get_submodule(name)) or (0, 0) for name in names]
    work = sum(rows * columns for rows, columns in sizes)
    shown = is_shown(progressbar, work)
    made: dict[nn.Module, nn.Module] = {}
    for name in tqdm(names, desc="dequantising", disable=not shown, unit="layer"):
        parent, _, child = name.rpartition(".")
        layer = model.get_submodule(name)
        if layer not in made:
            dense = plain_layer(layer, dense_weight(layer).to(dtype))
            made[layer] = dense.train(layer.training)
        setattr(model.get_submodule(parent), child, made[layer])
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    forget(model)
    return model


def _module(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, nn.Linear) or is_transposed(model):
        raise ValueError(
            "the model is itself one linear layer, which cannot be replaced in place; use "
            "QuantizedLinear.from_linear(layer)"
        )
    return model
