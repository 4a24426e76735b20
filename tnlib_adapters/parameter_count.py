"""How many parameters a method trains in a model, from declarations alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from tnlib.common.table import aligned
from tnlib_adapters.base_model.adaptable import unusable
from tnlib_adapters.base_model.peft_names import is_named
from tnlib_adapters.base_model.sites import Site, find_sites
from tnlib_adapters.base_model.task_heads import TASK_HEADS
from tnlib_adapters.methods.lora import counted_lora
from tnlib_adapters.networks.rate_scaling import declared_multipliers
from tnlib_adapters.peft_plugin import targets
from tnlib_adapters.peft_plugin.config import NetworkConfig
from tnlib_adapters.peft_plugin.declarations import declared
from tnlib_adapters.peft_plugin.expert_targets import expert_targets
from tnlib_adapters.peft_plugin.trained_norms import is_multiplied


@dataclass(frozen=True)
class CountRow:
    """Cores of one name and shape.

    Attributes
    ----------
    name : str
        Name of the core, or of the module that is trained in full.
    owner : str
        "weight", the name of the sharing group, or "module".
    shape : tuple of int
        Shape of one; of a module, its number of values.
    number : int
        How many there are.

    Examples
    --------
    >>> CountRow("g", "weight", (8, 8), number=24).values
    1536
    """

    name: str
    owner: str
    shape: tuple[int, ...]
    number: int

    @property
    def values(self) -> int:
        """Values of all of them."""
        return self.number * math.prod(self.shape)


@dataclass(frozen=True)
class Count:
    """What a method trains in a model; printing it shows a table.

    Attributes
    ----------
    rows : tuple of CountRow
        The cores by name and shape, and the modules trained in full.
    targets : tuple of str
        Names of the weights that are adapted.
    anchored : int
        Frozen values that are saved beside the trained ones (theta_0 of DoTA).
    multipliers : int
        Multipliers of cores and norms, which are saved beside them.

    Examples
    --------
    >>> import torch
    >>> from tnlib_adapters import LoTRConfig
    >>> model = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(64, 48)})
    >>> found = count(model, LoTRConfig(target_modules=["q_proj"]))
    >>> [(row.name, row.shape, row.values) for row in found.rows]
    [('u', (48, 8), 384), ('g', (8, 8), 64), ('v', (64, 8), 512)]
    >>> found.targets, found.adapter
    (('q_proj',), 960)
    """

    rows: tuple[CountRow, ...]
    targets: tuple[str, ...]
    anchored: int
    multipliers: int = 0

    @property
    def adapter(self) -> int:
        """Trained parameters of the cores.

        Examples
        --------
        >>> rows = CountRow("g", "weight", (8, 8), 24), CountRow("classifier", "module", (1538,), 1)
        >>> Count(rows, targets=("query",), anchored=0).adapter
        1536
        """
        return sum(row.values for row in self.rows if row.owner != "module")

    @property
    def total(self) -> int:
        """All trained parameters: cores and modules trained in full.

        Examples
        --------
        >>> rows = CountRow("g", "weight", (8, 8), 24), CountRow("classifier", "module", (1538,), 1)
        >>> Count(rows, targets=("query",), anchored=0).total
        3074
        """
        return sum(row.values for row in self.rows)

    def __str__(self) -> str:
        """The rows and their sum."""
        lines = [
            (row.name, row.owner, "x".join(map(str, row.shape)), f"{row.number}", f"{row.values:,}")
            for row in self.rows
        ]
        table = aligned([("core", "owner", "shape", "number", "parameters"), *lines])
        return f"{table}\n{self.total:,} trained parameters over {len(self.targets)} weights"


def count(model: nn.Module | str | Path | Any, config: NetworkConfig | LoraConfig) -> Count:
    """Count what a method would train in a model, without building the adapter.

    Parameters
    ----------
    model : torch.nn.Module, path, or transformers configuration
        A model, also on the meta device; or a configuration, a ``config.json`` or its folder, of
        which no weights are made.
    config : NetworkConfig or peft.LoraConfig
        Configuration of the method, or PEFT's LoRA for comparison.

    Returns
    -------
    Count

    Raises
    ------
    TypeError
        If `config` is not a configuration of these methods, or matches what is not linear.
    ValueError
        If no weight matches the targets, or a LoRA is more than two factors of one rank.

    Examples
    --------
    >>> import transformers
    >>> from tnlib_adapters import LoTRConfig, count
    >>> llama = transformers.LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    >>> print(count(llama, LoTRConfig(r=8, target_modules=["q_proj", "v_proj"])))
    core  owner   shape  number  parameters
    u     64x64   64x8   1       512
    g     weight  8x8    4       256
    v     64x64   64x8   1       512
    1,280 trained parameters over 4 weights
    """
    if not isinstance(model, nn.Module):
        model = skeleton(model)
    return counted(model, *targeted(model, config))


def counted(model: nn.Module, config: NetworkConfig, sites: Mapping[str, Site]) -> Count:
    """Count what a configuration trains in these weights; see :func:`targeted`."""
    found: dict[tuple[str, str, tuple[int, ...]], set[str]] = {}
    anchored = 0
    stored: set[tuple[str, str]] = set()
    for name, site in sites.items():
        network = declared(config, site)
        anchored += network.n_params if network.anchored else 0
        for core in network.cores:
            if not core.frozen:
                row = (core.name, core.group or "weight", network.shapes[core.key])
                found.setdefault(row, set()).add(core.group or name)
        if config.rate_scaling:
            owners = {core.key: core.group or name for core in network.cores}
            stored |= {(key, owners[key]) for key in declared_multipliers(network)}
    rows = [CountRow(*row, len(owners)) for row, owners in found.items()]
    saved = _saved(model, config)
    norms = sum(map(is_multiplied, saved.values())) if config.rate_scaling else 0
    modules = _modules(model, config, [*sites], saved)
    return Count((*rows, *modules), tuple(sites), anchored, len(stored) + norms)


def targeted(model: nn.Module, config: object) -> tuple[NetworkConfig, dict[str, Site]]:
    """A configuration with everything that depends on the model decided, and its weights.

    Raises
    ------
    TypeError
        If `config` is neither of these methods nor LoRA's, or matches a layer that is not linear.
    ValueError
        If it matches nothing.
    """
    if isinstance(config, LoraConfig):
        config = counted_lora(config)
    if not isinstance(config, NetworkConfig):
        raise TypeError(
            "config must be one of these methods' or a peft.LoraConfig, "
            f"got {type(config).__name__}"
        )
    heads = TASK_HEADS.get(config.task_type or "", ())
    entries, saved = config.target_modules, config.modules_to_save
    config = targets.resolved(config, model, [*heads])
    sites = find_sites(model)
    reasons = unusable(model)
    matched = [n for n, _ in model.named_modules() if n and check_target_module_exists(config, n)]
    names = [name for name in matched if name in sites]
    left_out = {name: reasons[name] for name in matched if name in reasons}
    if len(names) + len(left_out) < len(matched):
        other = next(name for name in matched if name not in sites and name not in left_out)
        kind = type(model.get_submodule(other)).__name__
        raise TypeError(f"{other}: cannot adapt a {kind}; leave it out of target_modules")
    targets.check_left_out(entries, names, left_out)
    targets.warn_left_out(left_out)
    targets.warn_unsaved(saved, model)
    experts = {name: target.site for name, target in expert_targets(config, model).items()}
    if names:
        targets.warn(targets.report(entries, names), model, entries)
    elif not experts:
        raise ValueError(f"target_modules={config.target_modules!r} match no linear layer")
    return config, {name: sites[name] for name in names} | experts


def _saved(model: nn.Module, config: NetworkConfig) -> dict[str, nn.Module]:
    """Modules trained in full by name; where a copy is trained already, the original."""
    ends = tuple(config.modules_to_save or ())
    found: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if ends and name.endswith(ends) and not (inside and name.startswith(inside)):
            inside = (*inside, f"{name}.")
            found[name] = getattr(module, "original_module", module)
    return found


def _modules(
    model: nn.Module, config: NetworkConfig, adapted: list[str], saved: Mapping[str, nn.Module]
) -> list[CountRow]:
    """Modules trained in full, and trained biases, by the last part of their names."""
    sizes = [
        (name.rpartition(".")[2], sum(parameter.numel() for parameter in module.parameters()))
        for name, module in saved.items()
    ]
    sizes += _tokens(model, config)
    inside = tuple(f"{name}." for name in saved)
    for name, parameter in model.named_parameters() if config.bias != "none" else ():
        owner, _, leaf = name.rpartition(".")
        counted = config.bias == "all" or owner in adapted
        if leaf == "bias" and counted and not (inside and name.startswith(inside)):
            sizes.append((".".join(name.split(".")[-2:]), parameter.numel()))
    return [CountRow(name, "module", (size,), n) for (name, size), n in Counter(sizes).items()]


def _tokens(model: nn.Module, config: NetworkConfig) -> list[tuple[str, int]]:
    """Layers of which single tokens are trained, with the number of values."""
    tokens: Any = config.trainable_token_indices
    if tokens is None:
        return []
    if not isinstance(tokens, dict):
        inputs: Any = model.get_input_embeddings()  # type: ignore[operator]
        tokens = {next(name for name, m in model.named_modules() if m is inputs): tokens}
    found = []
    for entry, indices in tokens.items():
        name, layer = next((n, m) for n, m in model.named_modules() if is_named(n, entry))
        weight: Any = layer.weight
        found.append((f"{name.rpartition('.')[2]}, tokens", len(indices) * weight.shape[1]))
    return found


def skeleton(source: Any) -> nn.Module:
    """A model without weights, of the class that the configuration names."""
    import transformers

    if isinstance(source, str | Path):
        source = transformers.AutoConfig.from_pretrained(source)
    names = getattr(source, "architectures", None) or [""]
    kind = getattr(transformers, names[0], None)
    with torch.device("meta"):
        if kind is None:
            kind = transformers.AutoModel.from_config
        model: nn.Module = kind(source)
    return model
