"""The places of a model that can be adapted: what a method may know about a weight.

Layers are the numbered containers of the model (``model.layers.3``), roles are read from names,
heads from the model's configuration. Nothing here needs weights: a model on the meta device will
do.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

ROLES = ("q", "k", "v", "o")
_PATTERNS = {
    "q": r"(q|q_proj|query|q_lin|query_proj|to_q|q_linear|wq)",
    "k": r"(k|k_proj|key|k_lin|key_proj|to_k|k_linear|wk)",
    "v": r"(v|v_proj|value|v_lin|value_proj|to_v|v_linear|wv)",
    "o": r"(o|o_proj|out_proj|out_lin|.*(attn|attention)\.(dense|c_proj|proj|projection|wo)"
    r"|.*(attention|attn)\.output\.dense)",
    "qkv": r"(c_attn|qkv|qkv_proj|Wqkv|W_pack|in_proj|query_key_value)",
}
_LEAF = {role: re.compile(rf"(?:.*\.)?{pattern}") for role, pattern in _PATTERNS.items()}
# Fused projections whose rows come head group by head group; the others come role by role.
_INTERLEAVED = ("in_proj", "query_key_value")


@dataclass(frozen=True)
class Site:
    """A weight that can be adapted.

    Attributes
    ----------
    name : str
        Name of its module in the model.
    out_features, in_features : int
        Its shape.
    path : str
        Its name inside its layer, such as ``self_attn.q_proj``.
    stack : str
        Name of the container whose numbered layer it is in, empty outside of any.
    layer, depth : int
        Number of its layer, and how many layers the model has.
    role : str
        "q", "k", "v", "o", "qkv" for the three at once, empty for any other weight.
    slot, slots : int
        Its number among the weights of a layer that can share a tensor with it, and how many
        those are: q, k, v, o of every attention, other weights of the same two widths.
    heads, kv_heads : int
        Numbers of query heads and of key and value heads; 1 where the model does not say.
    interleaved : bool
        Whether a fused projection has its rows head group by head group.
    """

    name: str
    out_features: int
    in_features: int
    path: str = ""
    stack: str = ""
    layer: int = 0
    depth: int = 1
    role: str = ""
    slot: int = 0
    slots: int = 1
    heads: int = 1
    kv_heads: int = 1
    interleaved: bool = False


def find_sites(model: nn.Module) -> dict[str, Site]:
    """Every linear layer of `model` by its name, adapted already or not.

    Parameters
    ----------
    model : torch.nn.Module
        Any model; with a transformers configuration as ``model.config``, heads are known.

    Returns
    -------
    dict of str to Site
        In the model's order.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> [(site.name, site.out_features) for site in find_sites(model).values()]
    [('0', 8), ('2', 4)]
    """
    linear = list(linear_layers(model))
    heads, kv_heads = _heads(getattr(model, "config", None))
    places = {name: _place(name) for name, _ in linear}
    roles = {
        name: _role(places[name][2] or name, out, heads, kv_heads) for name, (out, _) in linear
    }
    # Layers are counted where there is attention, or everywhere if there is none.
    attended = {places[name][0] for name, role in roles.items() if role and places[name][0]}
    stacks = attended or {stack for stack, _, _ in places.values() if stack}
    layers: dict[tuple[str, int], int] = {}
    for stack, number, _ in places.values():
        if stack in stacks:
            layers.setdefault((stack, number), len(layers))
    slots = _slots({n: (places[n], roles[n], widths) for n, widths in linear}, stacks)
    sites = {}
    for name, (out, width) in linear:
        stack, number, path = places[name]
        inside = stack in stacks
        role = roles[name] if inside or not stacks else ""
        slot, count = slots[name]
        sites[name] = Site(
            name,
            out,
            width,
            path=path if inside else name,
            stack=stack if inside else "",
            layer=layers[stack, number] if inside else 0,
            depth=len(layers) if inside else 1,
            role=role,
            slot=slot,
            slots=count,
            heads=heads,
            kv_heads=kv_heads,
            interleaved=role == "qkv" and name.split(".")[-1] in _INTERLEAVED,
        )
    return sites


def linear_layers(model: nn.Module) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names and (output, input) widths of all linear layers, looking through adapted ones."""
    inner: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if inner and name.startswith(inner):
            continue
        widths = features(module)
        if widths is not None:
            inner = (*inner, name + ".") if hasattr(module, "base_layer") else inner
            yield name, widths


def features(module: nn.Module) -> tuple[int, int] | None:
    """Output and input width of a linear layer, plain, transposed, quantised or adapted."""
    if hasattr(module, "base_layer"):
        return features(module.base_layer)  # type: ignore[arg-type]
    if is_transposed(module):
        width, out = module.weight.shape  # type: ignore[misc]
        return int(out), int(width)
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return None
    named = "Linear" in type(module).__name__ and hasattr(module, "in_features")
    if isinstance(module, nn.Linear) or named:
        return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
    return None


def is_transposed(module: nn.Module) -> bool:
    """Whether the layer keeps its weight as (in_features, out_features), as GPT-2 does."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _place(name: str) -> tuple[str, int, str]:
    """Container, number and path in the layer; the first number of a name is the layer's."""
    match = re.fullmatch(r"(?:(.*?)\.)?(\d+)\.(.+)", name)
    return (match[1] or ".", int(match[2]), match[3]) if match else ("", 0, "")


def _role(path: str, out: int, heads: int, kv_heads: int) -> str:
    role = next((role for role, leaf in _LEAF.items() if leaf.fullmatch(path)), "")
    if role == "qkv" and out % (heads + 2 * kv_heads):
        return ""
    return role


def _heads(config: Any) -> tuple[int, int]:
    """Query heads and key/value heads that a transformers configuration states, else ones."""
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return 1, 1
    kv_heads = getattr(config, "num_key_value_heads", None)
    if getattr(config, "multi_query", False):
        kv_heads = 1
    return heads, kv_heads if isinstance(kv_heads, int) else heads


def _slots(
    found: dict[str, tuple[tuple[str, int, str], str, tuple[int, int]]], stacks: set[str]
) -> dict[str, tuple[int, int]]:
    """Number of every weight among those of a layer that share a tensor, and their count."""
    # One list a kind of weight: every path once, in the model's order.
    paths: dict[object, list[str]] = defaultdict(list)
    for name, ((stack, _, path), role, widths) in found.items():
        kind, path = _kind(stack in stacks or not stacks, role, widths), path or name
        if path not in paths[kind]:
            paths[kind].append(path)
    attentions = max((len(paths[kind]) for kind in paths if kind in (*ROLES, "qkv")), default=1)
    slots = {}
    for name, ((stack, _, path), role, widths) in found.items():
        kind = _kind(stack in stacks or not stacks, role, widths)
        number = paths[kind].index(path or name)
        if kind in (*ROLES, "qkv"):
            first = 0 if role == "qkv" else ROLES.index(role)
            slots[name] = (first + 4 * number, 4 * attentions)
        else:
            slots[name] = (number, len(paths[kind]))
    return slots


def _kind(inside: bool, role: str, widths: tuple[int, int]) -> object:
    """What weights must have in common to share a tensor."""
    return role if role and inside else (inside, *sorted(widths))
