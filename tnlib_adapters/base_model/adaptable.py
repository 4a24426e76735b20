"""Which linear layers can be adapted, and why others cannot.

An adapter changes what a layer does when it is called. Some modules take the weight of a child
instead and compute by themselves, always or where a fused kernel is at hand: torch's multi-head
attention, Mamba's mixers on a GPU. There an adapter would never train, and nobody would notice.
Such children are found in the source of their parents' classes, so that the answer does not depend
on the machine. A layer that is registered at several places would be adapted at one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from tnlib_adapters.base_model.linear_modules import features, inner_layer, original_modules
from tnlib_adapters.base_model.weight_reads import reads

# Weights that are read only where a user asks for another way to compute. torch's encoder reads
# these two in evaluation, but for layers with hooks, and adapted ones get one.
_CALLED = {
    "BloomAttention": {"dense"},
    "BloomMLP": {"dense_4h_to_h"},
    "DisentangledSelfAttention": {"in_proj"},
    "TransformerEncoderLayer": {"linear1", "linear2"},
}


def linear_layers(model: nn.Module) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names and (output, input) widths of all linear layers that can be adapted.

    Adapted ones are looked through; those that an adapter cannot change as a whole are left out.
    """
    left = unusable(model)
    inner: tuple[str, ...] = ()
    for name, module in original_modules(model):
        if name in left or (inner and name.startswith(inner)):
            continue
        widths = features(module)
        if widths is not None:
            inner = inner if inner_layer(module) is None else (*inner, name + ".")
            yield name, widths


def unusable(model: nn.Module) -> dict[str, str]:
    """Names of the modules that an adapter must leave alone, each with the reason.

    Names are those of a model without adapters, see
    :func:`~tnlib_adapters.base_model.linear_modules.original_modules`.

    Examples
    --------
    >>> model = nn.TransformerDecoderLayer(16, 2)
    >>> for name, reason in unusable(model).items():
    ...     print(f"{name}: {reason}")
    self_attn.out_proj: MultiheadAttention uses the weight by itself
    multihead_attn.out_proj: MultiheadAttention uses the weight by itself
    """
    found = {name: f"{kind} uses the weight by itself" for name, kind in uncalled(model).items()}
    return found | _repeated(dict(original_modules(model)))


def uncalled(model: nn.Module) -> dict[str, str]:
    """Names of the modules whose weight an outer module uses by itself, with that one's class.

    Adapted layers, which add to the weight that they hold, are no such outer modules.
    """
    named = dict(original_modules(model))
    found: dict[str, str] = {}
    open_ = [(name, "forward") for name in named]
    seen = set(open_)
    while open_:
        name, method = open_.pop()
        module = named[name]
        if inner_layer(module) is not None:
            continue
        kind: Any = type(module)
        read = reads(kind, method)
        for path in read.weights - _CALLED.get(kind.__name__, set()):
            for inner in _resolved(module, path.split(".")):
                found[f"{name}.{inner}".removeprefix(".")] = kind.__name__
        for path, called in read.methods:
            for inner in _resolved(module, path.split(".")):
                entry = f"{name}.{inner}".removeprefix("."), called
                if entry not in seen and entry[0] in named:
                    seen.add(entry)
                    open_.append(entry)
    return {n: found[n] for n, module in named.items() if n in found and hasattr(module, "weight")}


def _repeated(named: Mapping[str, nn.Module]) -> dict[str, str]:
    """Names of modules without children that have several places, with the other places."""
    places: dict[int, list[str]] = {}
    for name, module in named.items():
        for key, child in module._modules.items():
            if child is not None and not child._modules:
                places.setdefault(id(child), []).append(f"{name}.{key}".removeprefix("."))
    found = {}
    for name, module in named.items():
        others = [place for place in places.get(id(module), ()) if place != name]
        if others:
            found[name] = f"the layer is also {others[0]}"
    return found


def _resolved(module: nn.Module, path: list[str]) -> Iterator[str]:
    """Names of the submodules that a path stands for."""
    if not path:
        yield ""
        return
    first, *rest = path
    children = dict(module.named_children())
    for name in children if first == "*" else [first] if first in children else []:
        for inner in _resolved(children[name], rest):
            yield f"{name}.{inner}".removesuffix(".")
