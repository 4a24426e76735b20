"""Which weights of experts a configuration adapts, and which experts of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from tnlib_adapters.base_model.expert_parameters import (
    ExpertParameter,
    expert_parameters,
    find_expert_sites,
)
from tnlib_adapters.base_model.linear_modules import bare_experts
from tnlib_adapters.base_model.peft_names import is_named
from tnlib_adapters.base_model.sites import Site, position
from tnlib_adapters.peft_plugin.naming import naming

if TYPE_CHECKING:
    from tnlib_adapters.peft_plugin.fields import MethodFields

ALL_EXPERTS = "all-experts"


@dataclass(frozen=True)
class ExpertTarget:
    """A weight of experts that is adapted.

    Attributes
    ----------
    parameter : ExpertParameter
        Which rows of which parameter.
    site : Site
        What the method may know of it; its experts are those that are adapted.
    chosen : tuple of int, optional
        Their numbers, in order; None for all.
    """

    parameter: ExpertParameter
    site: Site
    chosen: tuple[int, ...] | None


Chosen = Sequence[int] | Mapping[str, Sequence[int]] | None


def targeted_parameters(config: MethodFields, model: nn.Module) -> dict[str, ExpertParameter]:
    """The weights of experts that ``target_parameters`` match, by name.

    Raises
    ------
    ValueError
        If an entry matches no weight of experts, or two match the same rows of one.
    """
    entries = config.target_parameters
    if not entries:
        return {}
    known = expert_parameters(model)
    matched: dict[str, ExpertParameter] = {}
    if entries == ALL_EXPERTS:
        matched = {name: p for name, p in known.items() if p.whole}
        if not matched:
            raise ValueError(f"target_parameters={ALL_EXPERTS!r}: {_none(model)}")
    for entry in () if entries == ALL_EXPERTS else sorted(entries):
        own = {n: p for n, p in known.items() if is_named(n, entry)}
        if not own:
            raise ValueError(f"target_parameters entry {entry!r}: {_no_match(model, entry, known)}")
        matched |= own
    found = {name: p for name, p in matched.items() if _wanted(config, name)}
    if not found:
        raise ValueError(
            f"target_parameters match {len(matched)} weights of experts, and layers_to_transform "
            f"({config.layers_to_transform}) and exclude_modules ({config.exclude_modules}) leave "
            "none of them"
        )
    _check_saved(config, found)
    for name, parameter in found.items():
        owner = f"{parameter.module}.{parameter.parameter}".removeprefix(".")
        if not parameter.whole and owner in found:
            raise ValueError(
                f"target_parameters match {owner} and {name}, which is a part of it; name the "
                "whole weight or its parts"
            )
    return {name: known[name] for name in known if name in found}


def expert_targets(config: MethodFields, model: nn.Module) -> dict[str, ExpertTarget]:
    """What is adapted of the weights of experts, by name; errors as of the functions above."""
    found = targeted_parameters(config, model)
    sites = find_expert_sites(model) if found else {}
    targets = {}
    _check_named(config.experts, found)
    for name, parameter in found.items():
        if _unnamed(config.experts, parameter.module):
            continue
        with naming(name):
            chosen = chosen_experts(config.experts, parameter.module, parameter.n_experts)
        site = sites[name] if chosen is None else replace(sites[name], experts=len(chosen))
        targets[name] = ExpertTarget(parameter, site, chosen)
    return targets


def _check_saved(config: MethodFields, found: Mapping[str, ExpertParameter]) -> None:
    """Raise ValueError if a module that is trained in full holds weights that are adapted."""
    for name, parameter in found.items():
        for entry in config.modules_to_save or ():
            if re.search(rf"(^|\.){re.escape(entry)}(\.|$)", parameter.module):
                raise ValueError(
                    f"modules_to_save names {entry!r}, which holds {name}, a weight that is to be "
                    "adapted; train a module in full or adapt its weights"
                )


def _of_module(chosen: Mapping[str, Sequence[int]], module: str) -> list[str]:
    return [n for n in chosen if is_named(module, n)]


def _unnamed(chosen: Chosen, module: str) -> bool:
    """Whether experts are chosen by module, and none of this one."""
    return isinstance(chosen, Mapping) and not _of_module(chosen, module)


def _check_named(chosen: Chosen, found: Mapping[str, ExpertParameter]) -> None:
    """Raise ValueError if experts are chosen of a module that has none."""
    modules = dict.fromkeys(parameter.module for parameter in found.values())
    for name in chosen if isinstance(chosen, Mapping) else ():
        if not any(_of_module({name: ()}, module) for module in modules):
            raise ValueError(
                f"experts names {name!r}, and no weights of it are adapted; the modules are "
                f"{', '.join([*modules][:3])}{' and others' * (len(modules) > 3)}"
            )


def _wanted(config: MethodFields, name: str) -> bool:
    """Whether the layer is to be adapted and the weight is not excluded."""
    layers = config.layers_to_transform
    if layers is not None:
        container, number, _ = position(name)
        numbers = [layers] if isinstance(layers, int) else layers
        patterns = config.layers_pattern or ()
        patterns = [patterns] if isinstance(patterns, str) else patterns
        named = not patterns or container.rsplit(".", 1)[-1] in patterns
        if number not in numbers or not named or not container:
            return False
    excluded = _Only(config.exclude_modules)
    return not (excluded.target_modules and check_target_module_exists(excluded, name))


class _Only:
    """Names alone, as PEFT matches those of modules."""

    def __init__(self, names: Any) -> None:
        self.target_modules = names
        self.exclude_modules = None


def chosen_experts(chosen: Chosen, module: str, n_experts: int) -> tuple[int, ...] | None:
    """The experts of a module that are adapted, in order; None for all.

    Raises
    ------
    ValueError
        If one of them is not there, or none is chosen.
    """
    if isinstance(chosen, Mapping):
        names = _of_module(chosen, module)
        chosen = chosen[max(names, key=len)] if names else None
    if chosen is None:
        return None
    numbers = sorted({*chosen})
    if not numbers or numbers[0] < 0 or numbers[-1] >= n_experts:
        raise ValueError(f"experts={[*chosen]}: the module has experts 0 to {n_experts - 1}")
    return None if len(numbers) == n_experts else tuple(numbers)


def _no_match(model: nn.Module, entry: str, known: Mapping[str, ExpertParameter]) -> str:
    names = [name for name, _ in model.named_parameters()]
    if any(is_named(name, entry) for name in names):
        return (
            "is a parameter, but not one of experts that can be adapted: linear layers are adapted "
            "by target_modules"
        )
    some = sorted({".".join(name.split(".")[-2:]) for name in known})
    return f"matches no weight of experts; there are {some}" if some else _none(model)


def _none(model: nn.Module) -> str:
    bare = bare_experts(model)
    if bare:
        return (
            f"the experts of this {type(model).__name__} ({', '.join(bare[:3])}) are not computed "
            "by transformers' experts interface, so they cannot be adapted"
        )
    return (
        f"this {type(model).__name__} has no experts that are held as parameters; experts that are "
        "linear layers are adapted by target_modules"
    )
