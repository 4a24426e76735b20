"""What a linear layer is, and how its weight lies."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear


def original_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules by name, as if none was trained in full by PEFT or compiled by torch."""
    seen: set[int] = set()
    open_ = [("", model)]
    while open_:
        name, module = open_.pop()
        while (inside := _original(module)) is not None:
            module = inside
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        children = [(f"{name}.{key}".removeprefix("."), m) for key, m in module.named_children()]
        open_ += reversed(children)


def _original(module: nn.Module) -> nn.Module | None:
    """The module of which PEFT trains a copy, or that torch has compiled."""
    if hasattr(module, "adapter_layer_names") and "original_module" in module._modules:
        return module._modules["original_module"]
    return module._modules.get("_orig_mod")


def check_output(layer: nn.Module) -> None:
    """Raise TypeError if a layer that is called linear does something else with activations.

    Layers of torch and transformers are known, and quantised ones cannot be tried everywhere; of
    any other a copy without values is given one row. What fails there is believed.
    """
    known = type(layer) is nn.Linear or is_transposed(layer)
    weight = getattr(layer, "weight", None)
    hooked = hasattr(layer, "_hf_hook") or "forward" in layer.__dict__
    if known or hooked or not isinstance(weight, Tensor) or not weight.is_floating_point():
        return
    widths = features(layer) or (0, 0)
    row = torch.zeros(1, widths[1], dtype=weight.dtype, device="meta")
    try:
        with torch.no_grad():
            result = without_values(layer).forward(row)
    except Exception:  # whatever a foreign layer raises here, it may not elsewhere
        return
    if not isinstance(result, Tensor) or tuple(result.shape) != (1, widths[0]):
        found = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise TypeError(
            f"cannot adapt a {type(layer).__name__}: for a row of {widths[1]} activations it gives "
            f"{found} instead of a tensor of shape {(1, widths[0])}; leave it out of target_modules"
        )


def without_values(module: nn.Module) -> nn.Module:
    """A copy of a module on the meta device, without hooks; the module's values are not copied."""
    # What accelerate keeps off-loaded is in its hooks.
    memo: dict[int, Any] = {}
    for inner in module.modules():
        hook = inner.__dict__.get("_hf_hook")
        memo[id(hook)] = hook
        for name, value in (*inner._parameters.items(), *inner._buffers.items()):
            if value is not None:
                empty: Tensor = torch.empty_like(value, device="meta")
                memo[id(value)] = nn.Parameter(empty, False) if name in inner._parameters else empty
        for value in inner.__dict__.values():
            if isinstance(value, Tensor):  # what hooks compute before a call
                memo[id(value)] = torch.empty_like(value, device="meta", requires_grad=False)
    made = copy.deepcopy(module, memo)
    for inner in made.modules():
        inner.__dict__.pop("_hf_hook", None)
        if "_old_forward" in inner.__dict__:
            del inner.__dict__["_old_forward"], inner.__dict__["forward"]
    return made


def features(module: nn.Module) -> tuple[int, int] | None:
    """Output and input width of a linear layer, plain, transposed, quantised or adapted."""
    inside = inner_layer(module)
    if inside is not None:
        return features(inside)
    if is_transposed(module):
        width, out = module.weight.shape  # type: ignore[misc]
        return int(out), int(width)
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return None
    named = "Linear" in type(module).__name__ and hasattr(module, "in_features")
    if isinstance(module, nn.Linear) or named:
        return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
    return None


def inner_layer(module: nn.Module) -> nn.Module | None:
    """The layer inside an adapted one, of PEFT's or in plain torch."""
    name = "base" if type(module).__name__ == "NetworkLinear" else "base_layer"
    inner: nn.Module | None = getattr(module, name, None)
    return inner


def is_transposed(module: nn.Module) -> bool:
    """Whether the layer keeps its weight as (in_features, out_features), as GPT-2 does."""
    return type(module).__name__ in ("Conv1D", "DenseConv1D") and hasattr(module, "nf")


def bare_experts(model: nn.Module) -> list[str]:
    """Names of stacked weights held as parameters of their own, as experts often are."""
    return [
        f"{name}.{key}".removeprefix(".")
        for name, module in model.named_modules()
        if not hasattr(module, "kernel_size")
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and "expert" in f"{name}.{key}".lower()
    ]
