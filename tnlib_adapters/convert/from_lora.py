"""A LoRA converted into the adapter of another method, of about the same updates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tnlib_adapters.base_model.peft_names import PREFIX
from tnlib_adapters.base_model.sites import Site, find_sites
from tnlib_adapters.convert.candidates import candidates
from tnlib_adapters.convert.conversion import Conversion
from tnlib_adapters.convert.expert_updates import expert_sites, expert_updates
from tnlib_adapters.convert.fitted import Fitted, check_cores, check_networks, smallest
from tnlib_adapters.convert.folder import check_free
from tnlib_adapters.convert.read_lora import LoRA, read_lora
from tnlib_adapters.convert.truncation import check_target
from tnlib_adapters.convert.write_adapter import write_adapter
from tnlib_adapters.methods import METHODS
from tnlib_adapters.networks.expert_network import expert_by_expert
from tnlib_adapters.peft_plugin.config import NetworkConfig
from tnlib_adapters.peft_plugin.declarations import declared
from tnlib_adapters.progress import is_shown

# Fields that say where a LoRA is and what came beside it.
COPIED = (
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "target_parameters",
    "modules_to_save",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "auto_mapping",
)


def from_lora(
    lora: str | Path,
    output: str | Path,
    config: NetworkConfig,
    *,
    eps: float | None = None,
    base: nn.Module | str | Path | Any = None,
    generator: torch.Generator | None = None,
    progressbar: bool | None = None,
) -> Conversion:
    """Write the adapter of another method that is close to a LoRA of PEFT.

    Each method fits its own form: LoTR is a Tucker decomposition of the updates of one shape, LoRTA
    one CP decomposition of all, LoRETTA rep and TT-LoRA a tensor train of each. Modules that the
    LoRA trained in full, and biases, go along. What is written is loaded by
    ``PeftModel.from_pretrained`` after ``import tnlib_adapters``, and can be trained further.

    Parameters
    ----------
    lora : path
        Folder of the LoRA: ``adapter_config.json`` and ``adapter_model.safetensors``.
    output : path
        Folder to write, new or empty; it is there whole or not at all.
    config : LoTRConfig, LoRTAConfig, LoRETTAConfig or TTLoRAConfig
        The method and its size: `r`, or `tt_rank` and `bottleneck` of the variant rep. Targets,
        saved modules, biases, task and base are those of the LoRA, whatever `config` says, and
        LoRETTA trains no norms. It is not changed. A method of your own can be fitted where it has
        a ``fit_updates``.
    eps : float, optional
        Relative error, in the Frobenius norm over all updates together, that is enough: then the
        size of `config` is the largest one, and the smallest that meets `eps` is found by
        bisection; at least 1e-6 and below 1. For LoRETTA the size is `tt_rank`, and the bottleneck
        is no wider than that.
    base : torch.nn.Module, transformers configuration or path, optional
        Base model, for the names, widths and heads of its layers; its weights are neither read
        nor changed. By default the one that the LoRA names.
    generator : torch.Generator, optional
        Randomness of LoRTA's starts and of columns that are left free; a fixed seed by default.
    progressbar : bool, optional
        Show progress; by default for large models only.

    Returns
    -------
    Conversion
        Error and size of every weight, of the values as written (float32).

    Raises
    ------
    FileNotFoundError
        If `lora` lacks one of its two files, or there is no configuration of the base model.
    FileExistsError
        If `output` is there and not empty.
    TypeError
        If `config` is of no such method, or `base` is an adapted model.
    ValueError
        If the LoRA is not a product of two factors for every weight (DoRA, embeddings,
        convolutions and others), does not fit `base`, or `eps` is not reached.

    Examples
    --------
    >>> import tempfile
    >>> import peft
    >>> import torch
    >>> from tnlib_adapters import LoTRConfig, from_lora
    >>> base = torch.nn.ModuleDict({name: torch.nn.Linear(64, 64) for name in ("q_proj", "v_proj")})
    >>> lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     adapted = peft.get_peft_model(base, lora)
    ...     adapted.save_pretrained(f"{folder}/lora")
    ...     plain = adapted.unload()
    ...     found = from_lora(f"{folder}/lora", f"{folder}/lotr", LoTRConfig(r=8), base=plain)
    >>> [(weight.name, weight.ranks) for weight in found.weights], found.error < 1e-5
    ([('q_proj', (8,)), ('v_proj', (8,))], True)
    """
    _check_config(config)
    check_target(None, eps)
    if progressbar is not None and not isinstance(progressbar, bool):
        raise TypeError(f"progressbar must be True, False or None, got {progressbar!r}")
    folder = check_free(output)
    source = read_lora(Path(lora))
    largest = _with_fields_of(source, config)
    model, sites = _model(source, largest, base)
    drawn = generator or torch.Generator().manual_seed(0)
    updates = source.updates | expert_updates(source, model, sites)
    work = sum(math.prod(update.shape) for update in updates.values())
    show = is_shown(progressbar, work)

    def fitted(config: NetworkConfig) -> Fitted:
        networks: dict[str, Any] = {name: declared(config, site) for name, site in sites.items()}
        check_networks(networks)
        assert config.fit_updates is not None
        single = expert_by_expert(networks)
        cores = config.fit_updates(single, updates, drawn, show=show)
        check_cores(single, cores, config)
        strengths = {name: config.strength(site) for name, site in sites.items()}
        return Fitted(config, networks, cores, updates, source.others, strengths)

    found = fitted(largest) if eps is None else smallest(fitted, largest, eps, show=show)
    size = write_adapter(folder, found, model)
    return found.conversion(size)


def _check_config(config: object) -> None:
    if not isinstance(config, NetworkConfig) or config.fit_updates is None:
        *names, last = (f"a {kind.__name__}" for kind in METHODS.values() if kind.fit_updates)
        raise TypeError(
            f"config must be {', '.join(names)} or {last}, got a {type(config).__name__}"
        )
    if not hasattr(config, config.size_field):
        raise TypeError(
            f"{type(config).__name__} has no field {config.size_field!r}; name the field that sets "
            "its size: size_field"
        )


def _model(source: LoRA, config: NetworkConfig, base: Any) -> tuple[nn.Module, dict[str, Site]]:
    """The base model on the meta device, of the first class that fits, and the LoRA's sites."""
    base = config.base_model_name_or_path if base is None else base
    if not base:
        raise ValueError("the LoRA names no base model; give it as base=")
    shapes = {name.removeprefix(PREFIX): tuple(v.shape) for name, v in source.others.items()}
    misfit: ValueError | None = None
    for model in candidates(config, base, shapes):
        try:
            return model, _sites(model, source)
        except ValueError as error:
            misfit = misfit or error
    raise misfit or ValueError(f"transformers has no model for {base!r}; give the model as base=")


def _sites(model: nn.Module, source: LoRA) -> dict[str, Site]:
    """The sites of the LoRA's modules, in the model's order."""
    sites = find_sites(model)
    kind = type(model).__name__
    if not source.updates and not source.of_experts:
        raise ValueError("the LoRA adapts nothing")
    for name, update in source.updates.items():
        if name not in sites:
            raise ValueError(
                f"the LoRA has a module {name}, and {kind} has no linear layer of that name; give "
                "the base model that the LoRA was trained on, of the same class, as base="
            )
        widths = sites[name].out_features, sites[name].in_features
        if widths != update.shape:
            raise ValueError(
                f"{name}: the LoRA's update is {update.shape[0]} x {update.shape[1]}, the layer of "
                f"{kind} {widths[0]} x {widths[1]}; give the LoRA's own base model as base="
            )
    found = {name: site for name, site in sites.items() if name in source.updates}
    return found | expert_sites(source, model)


def _with_fields_of(source: LoRA, config: NetworkConfig) -> NetworkConfig:
    """A copy of a configuration with everything but the method taken from a LoRA."""
    fields: dict[str, Any] = {name: source.config.get(name) for name in COPIED}
    bias = source.config.get("bias") or "none"
    fields["bias"] = f"{config.method}_only" if bias == "lora_only" else bias
    return config.for_fitting(inference_mode=True, **fields)
