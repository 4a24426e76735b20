"""Weights that hold a matrix for every expert of a layer: what they are, and how they lie.

transformers keeps the experts of a layer as parameters (experts, out, in), or (experts, in, out),
of one module. Classes that use its experts interface say how in attributes; of a few others it is
known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from tnlib_adapters.base_model.linear_modules import original_modules
from tnlib_adapters.base_model.sites import Site, numbered_layers, position

# Fused projections, with the names of their parts.
FUSED = {"gate_up_proj": ("gate_proj", "up_proj")}
# Classes without the interface: whether their weights are (experts, in, out).
_TRANSPOSED = {
    "JetMoeParallelExperts": False,
    "Llama4TextExperts": True,
    "LongcatFlashExperts": False,
}


@dataclass(frozen=True)
class ExpertParameter:
    """A weight of all experts, or a projection that is fused with another in it.

    Attributes
    ----------
    module : str
        Name of the module that has the parameter.
    parameter : str
        Its name there.
    n_experts, out_features, in_features : int
        How many matrices, of which shape; of a fused projection the rows of this part.
    rows : slice
        Rows of the matrices of the parameter that are these.
    transposed : bool
        Whether the matrices lie as (in_features, out_features).
    """

    module: str
    parameter: str
    n_experts: int
    out_features: int
    in_features: int
    rows: slice
    transposed: bool

    @property
    def whole(self) -> bool:
        """Whether it has all rows of the parameter."""
        return self.rows == slice(None)


def uses_interface(module: nn.Module) -> bool:
    """Whether a module of experts is computed by transformers' experts interface."""
    flags = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "has_post_expert_norm")
    return all(hasattr(module, flag) for flag in flags) and hasattr(module, "_apply_gate")


def expert_parameters(model: nn.Module) -> dict[str, ExpertParameter]:
    """Weights of experts by name, fused ones followed by their parts.

    A part is called as if it was no part: ``experts.gate_proj`` of ``experts.gate_up_proj``.
    """
    found = {}
    for inside, module in original_modules(model):
        name = inside.replace(".base_layer", "")  # what adapters put around it
        for key, parameter in _of(name, module):
            found[f"{name}.{key}".removeprefix(".")] = parameter
    return found


def _of(name: str, module: nn.Module) -> Iterator[tuple[str, ExpertParameter]]:
    interface = uses_interface(module)
    if not interface and type(module).__name__ not in _TRANSPOSED:
        return
    transposed = bool(module.is_transposed) if interface else _TRANSPOSED[type(module).__name__]
    concatenated = bool(module.is_concatenated) if interface else True
    for key, parameter in module.named_parameters(recurse=False):
        if parameter.ndim != 3:
            continue
        experts, *shape = parameter.shape
        out, width = reversed(shape) if transposed else shape
        yield key, ExpertParameter(name, key, experts, out, width, slice(None), transposed)
        for part, title in enumerate(FUSED.get(key, ())):
            half = out // 2
            rows = slice(part * half, (part + 1) * half) if concatenated else slice(part, None, 2)
            yield title, ExpertParameter(name, key, experts, half, width, rows, transposed)


def find_expert_sites(model: nn.Module) -> dict[str, Site]:
    """Every weight of experts in `model` by its name, and the parts of fused ones.

    Parameters
    ----------
    model : torch.nn.Module
        Any model, adapted or not, also on the meta device.

    Returns
    -------
    dict of str to Site
        In the model's order. Shapes are those of the matrix of one expert.

    Examples
    --------
    >>> import torch, transformers
    >>> config = transformers.Qwen3MoeConfig(
    ...     hidden_size=32, num_hidden_layers=1, moe_intermediate_size=16, num_experts=4
    ... )
    >>> with torch.device("meta"):
    ...     model = transformers.Qwen3MoeForCausalLM(config)
    >>> for name, site in find_expert_sites(model).items():
    ...     print(name, site.experts, site.out_features, site.in_features)
    model.layers.0.mlp.experts.gate_up_proj 4 32 32
    model.layers.0.mlp.experts.gate_proj 4 16 32
    model.layers.0.mlp.experts.up_proj 4 16 32
    model.layers.0.mlp.experts.down_proj 4 32 16
    """
    parameters = expert_parameters(model)
    if not parameters:
        return {}
    layers = numbered_layers(model)
    containers = {container for container, _ in layers}
    positions = {name: position(name) for name in parameters}
    # Weights of one kind can share a tensor: those of the same two widths, of so many experts.
    kinds: dict[tuple[int, ...], list[str]] = {}
    for name, found in parameters.items():
        paths = kinds.setdefault(_kind(found), [])
        if (path := positions[name][2] or name) not in paths:
            paths.append(path)
    sites = {}
    for name, found in parameters.items():
        container, number, path = positions[name]
        inside = container in containers
        same = kinds[_kind(found)]
        sites[name] = Site(
            name,
            found.out_features,
            found.in_features,
            path=path if inside else name,
            container=container if inside else "",
            layer=layers.get((container, number), 0) if inside else 0,
            depth=len(layers) if inside else 1,
            matrix=same.index(path or name),
            n_matrices=len(same),
            experts=found.n_experts,
        )
    return sites


def _kind(found: ExpertParameter) -> tuple[int, ...]:
    return found.n_experts, *sorted((found.out_features, found.in_features))
