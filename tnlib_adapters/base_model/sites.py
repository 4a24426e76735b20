"""The weights of a model that can be adapted: what a method may know about them.

Layers are the numbered containers of the model (``model.layers.3``), roles are read from names,
heads from the model's configuration. Nothing here needs weights: a model on the meta device will
do.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tnlib.common.deprecation import renamed_fields
from tnlib_adapters.base_model.adaptable import linear_layers
from tnlib_adapters.base_model.linear_modules import original_modules

Kind = str | tuple[bool | int, ...]
ROLES = ("q", "k", "v", "o")
# Names that say it all, and names that do so inside an attention only.
_PLAIN = {
    "q": r"(q_proj|query_proj|q_lin|to_q|q_linear)",
    "k": r"(k_proj|key_proj|k_lin|to_k|k_linear)",
    "v": r"(v_proj|value_proj|v_lin|to_v|v_linear)",
    "o": r"o_proj",
}
_INSIDE = {
    "q": r"(q|query|wq)",
    "k": r"(k|key|wk)",
    "v": r"(v|value|wv)",
    "o": r"(o|wo|out_proj|out_lin|dense|c_proj|proj|projection)",
    "qkv": r"(c_attn|qkv|qkv_proj|Wqkv|W_pack|in_proj|query_key_value)",
}
_ATTENTION = re.compile(r"(?i).*(attn|attention)")
# Architectures whose fused rows come head group by head group; elsewhere role by role, except
# that names which say nothing need a known architecture, and CodeGen has an order of its own.
_INTERLEAVED = ("bloom", "deberta", "falcon", "gpt_bigcode", "gpt_neox", "persimmon")
_BY_ROLE = ("chatglm",)
_ANY_ORDER = ("in_proj", "query_key_value")


@renamed_fields(stack="container", slot="matrix", slots="n_matrices")
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
    container : str
        Name of the container whose numbered layer it is in, empty outside of any.
    layer, depth : int
        Number of its layer, and how many layers the model has.
    role : str
        "q", "k", "v", "o", "qkv" for the three at once, empty for any other weight.
    matrix, n_matrices : int
        Its number among the weights of a layer that can share a tensor with it, and how many
        those are: q, k, v, o of every attention, other weights of the same two widths.
    heads, kv_heads : int
        Numbers of query heads and of key and value heads; 1 where the model does not say.
    interleaved : bool
        Whether a fused projection has its rows head group by head group.
    experts : int
        Of a weight with a matrix for every expert, the first axis of its parameter: how many; 0 for
        any other. The shape is that of one matrix.
    expert : int
        Index at which a network is fixed that has a leg "expert" of this size: always 0, the
        networks of the others are the same at their indices.

    Examples
    --------
    >>> from tnlib_adapters import DoTAConfig, LoRTAConfig
    >>> DoTAConfig(r=4).network(Site("q_proj", 576, 576)).n_params
    1604
    >>> site = Site("layers.3.q_proj", 576, 576, layer=3, depth=30, role="q", heads=9, kv_heads=3)
    >>> LoRTAConfig(r=4).network(site).fixed_indices
    {'layer': 3, 'matrix': 0}
    """

    name: str
    out_features: int
    in_features: int
    path: str = ""
    container: str = ""
    layer: int = 0
    depth: int = 1
    role: str = ""
    matrix: int = 0
    n_matrices: int = 1
    heads: int = 1
    kv_heads: int = 1
    interleaved: bool = False
    experts: int = 0
    expert: int = 0


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
    modules = dict(original_modules(model))
    owners = {name: _Owner.of(name, modules) for name, _ in linear}
    roles = {name: _role(name, out, owners[name]) for name, (out, _) in linear}
    positions = {name: position(name) for name, _ in linear}
    layers = _numbered_layers(positions, roles)
    containers = {container for container, _ in layers}
    counted = {name: not containers or positions[name][0] in containers for name in positions}
    roles = {name: role if counted[name] else "" for name, role in roles.items()}
    # Weights of one kind can share a tensor: those of a role, others of the same two widths.
    kinds: dict[str, Kind] = {
        name: roles[name] or (counted[name], *sorted(widths)) for name, widths in linear
    }
    numbers = _numbers(kinds, {name: path or name for name, (_, _, path) in positions.items()})
    sites = {}
    for name, (out, width) in linear:
        container, number, path = positions[name]
        inside = container in containers
        role = roles[name]
        matrix, count = numbers[name]
        sites[name] = Site(
            name,
            out,
            width,
            path=path if inside else name,
            container=container if inside else "",
            layer=layers[container, number] if inside else 0,
            depth=len(layers) if inside else 1,
            role=role,
            matrix=matrix,
            n_matrices=count,
            heads=owners[name].heads,
            kv_heads=owners[name].kv_heads,
            interleaved=role == "qkv" and owners[name].kind in _INTERLEAVED,
        )
    return sites


def numbered_layers(model: nn.Module) -> dict[tuple[str, int], int]:
    """Numbers of the layers of a model, by container and the number in it."""
    linear = list(linear_layers(model))
    modules = dict(original_modules(model))
    roles = {name: _role(name, out, _Owner.of(name, modules)) for name, (out, _) in linear}
    return _numbered_layers({name: position(name) for name, _ in linear}, roles)


def _numbered_layers(
    positions: Mapping[str, tuple[str, int, str]], roles: Mapping[str, str]
) -> dict[tuple[str, int], int]:
    """Layers are counted where there is attention, or everywhere if there is none."""
    attended = {positions[name][0] for name, role in roles.items() if role and positions[name][0]}
    containers = attended or {container for container, _, _ in positions.values() if container}
    layers: dict[tuple[str, int], int] = {}
    for container, number, _ in positions.values():
        if container in containers:
            layers.setdefault((container, number), len(layers))
    return layers


def position(name: str) -> tuple[str, int, str]:
    """Container, number and path in the layer; the first number of a name is the layer's."""
    match = re.fullmatch(r"(?:(.*?)\.)?(\d+)\.(.+)", name)
    return (match[1] or ".", int(match[2]), match[3]) if match else ("", 0, "")


@dataclass(frozen=True)
class _Owner:
    """What the modules around a linear layer say of it: the kind of model, and its heads."""

    kind: str = ""
    heads: int = 1
    kv_heads: int = 1

    @classmethod
    def of(cls, name: str, modules: dict[str, nn.Module]) -> _Owner:
        """Read the nearest module around `name` that states its heads, or the configuration."""
        parts = name.split(".")
        around = [modules[".".join(parts[:k])] for k in range(len(parts) - 1, -1, -1)]
        configs = [c for c in (getattr(m, "config", None) for m in around) if c is not None]
        configs = [c.get_text_config() if hasattr(c, "get_text_config") else c for c in configs]
        kind = next((str(c.model_type) for c in configs if hasattr(c, "model_type")), "")
        sources = [*around[:2], *(_of_layer(config, name) for config in configs)]
        for source in sources:
            heads = _stated(source, "num_attention_heads", "num_heads", "n_heads")
            if heads:
                groups = _stated(source, "num_key_value_groups")
                kv = _stated(source, "num_key_value_heads", "num_kv_heads", "kv_heads")
                kv = kv or (heads // groups if groups else 0)
                return cls(kind, heads, kv or heads)
        return cls(kind)


def _of_layer(config: Any, name: str) -> Any:
    """The configuration of the layer of a weight, where every layer has its own; else as it is."""
    if not getattr(config, "is_heterogeneous", False):
        return config
    container, number, _ = position(name)
    inside = container and number < config.num_hidden_layers
    return config.per_layer_config[number] if inside else None


def _stated(source: Any, *names: str) -> int:
    """The first of some attributes that is a positive int, else 0."""
    values = (getattr(source, name, None) for name in names)
    return next((n for n in values if isinstance(n, int) and n > 0), 0)


def _role(name: str, out: int, owner: _Owner) -> str:
    parent, _, leaf = name.rpartition(".")
    inside = _ATTENTION.match(parent) is not None
    tables = (_PLAIN, _INSIDE) if inside else (_PLAIN,)
    role = next((r for t in tables for r, pattern in t.items() if re.fullmatch(pattern, leaf)), "")
    if role == "o" and leaf == "dense" and not re.search(r"(?i)attention(\.output)?$", parent):
        return ""
    if role != "qkv":
        return role
    known = owner.kind in _INTERLEAVED or owner.kind in _BY_ROLE or leaf not in _ANY_ORDER
    whole = out % (owner.heads + 2 * owner.kv_heads) == 0
    return role if known and whole and owner.kind != "codegen" else ""


def _numbers(kinds: Mapping[str, Kind], paths: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Number of every weight among those of its kind in a layer, and their count."""
    # One list a kind: every path once, in the model's order.
    known: dict[Kind, list[str]] = defaultdict(list)
    for name, kind in kinds.items():
        if paths[name] not in known[kind]:
            known[kind].append(paths[name])
    attentions = max((len(known[kind]) for kind in known if isinstance(kind, str)), default=1)
    numbers = {}
    for name, kind in kinds.items():
        number = known[kind].index(paths[name])
        if isinstance(kind, str):
            first = 0 if kind == "qkv" else ROLES.index(kind)
            numbers[name] = (first + 4 * number, 4 * attentions)
        else:
            numbers[name] = (number, len(known[kind]))
    return numbers
