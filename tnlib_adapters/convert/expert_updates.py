"""The updates of experts in a LoRA folder: which weights they are of, and one of every expert."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from tnlib_adapters.base_model.expert_parameters import expert_parameters, find_expert_sites
from tnlib_adapters.base_model.peft_names import is_named
from tnlib_adapters.base_model.sites import Site
from tnlib_adapters.convert.expert_factors import split_factors, wrapper_names
from tnlib_adapters.convert.read_lora import LoRA
from tnlib_adapters.fitting.low_rank_update import LowRankUpdate


def expert_sites(source: LoRA, model: nn.Module) -> dict[str, Site]:
    """The weights of experts that a LoRA changes, in the model's order.

    Raises
    ------
    ValueError
        If the model has no such weights, or of other shapes.
    """
    places = _places(source, model)
    sites = find_expert_sites(model) if places else {}
    for name, place in places.items():
        site, (a, b) = sites[name], source.of_experts[place]
        rank = source.config.get("r", 8)
        found = (len(a) // rank, b.shape[0], a.shape[1])
        expected = (site.experts, site.out_features, site.in_features)
        if found != expected:
            raise ValueError(
                f"{name}: the LoRA is of {found[0]} experts of {found[1]} x {found[2]}, the model "
                f"has {expected[0]} of {expected[1]} x {expected[2]}; give the LoRA's own base "
                "model as base="
            )
    return {name: site for name, site in sites.items() if name in places}


def expert_updates(
    source: LoRA, model: nn.Module, sites: Mapping[str, Site]
) -> dict[str, LowRankUpdate]:
    """The update of every expert, called ``name[0]``, ``name[1]`` and so on by its weight."""
    found: dict[str, LowRankUpdate] = {}
    for name, place in _places(source, model).items():
        factors = split_factors(*source.of_experts[place], sites[name].experts)
        found |= {f"{name}[{e}]": LowRankUpdate(*pair) for e, pair in enumerate(factors)}
    return found


def _places(source: LoRA, model: nn.Module) -> dict[str, str]:
    """Names of PEFT's wrappers by the weights whose factors they have."""
    modules = {name.replace(".base_layer", "") for name in source.of_experts}
    entries = source.config.get("target_parameters") or ()
    wanted: dict[str, list[str]] = {}
    for name, parameter in expert_parameters(model).items():
        targeted = any(is_named(name, entry) for entry in entries)
        if parameter.whole and parameter.module in modules and targeted:
            wanted.setdefault(parameter.module, []).append(parameter.parameter)
    found = {}
    for module, keys in wanted.items():
        for key, place in wrapper_names(keys, model.get_submodule(module), module).items():
            found[f"{module}.{key}".removeprefix(".")] = place
    if {*found.values()} != {*source.of_experts}:
        odd = min({*found.values()} ^ {*source.of_experts})
        raise ValueError(
            f"the LoRA of experts does not fit the model: {odd} is in one of them only; give the "
            "base model that the LoRA was trained on, of the same class, as base="
        )
    return found
