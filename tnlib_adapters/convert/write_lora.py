"""A trained adapter as a LoRA folder, which PEFT loads without any code of ours.

Every update becomes two factors B A. LoRA scales its product by alpha / r, which is 1 here for
every weight; what is trained in full travels with it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor
from tqdm.auto import tqdm

from tnlib_adapters.base_model.linear_modules import is_transposed
from tnlib_adapters.base_model.peft_names import PREFIX
from tnlib_adapters.convert.conversion import Conversion, ConvertedWeight
from tnlib_adapters.convert.expert_factors import (
    by_owner,
    expert_factors,
    target_entries,
    wrapper_names,
)
from tnlib_adapters.convert.folder import check_free, whole
from tnlib_adapters.convert.trained_adapter import Adapter, adapter_of
from tnlib_adapters.convert.truncation import check_target, low_rank
from tnlib_adapters.progress import is_shown


def to_lora(
    adapter: Any,
    output: str | Path,
    *,
    rank: int | None = None,
    eps: float | None = None,
    base: Any = None,
    adapter_name: str | None = None,
    progressbar: bool | None = None,
) -> Conversion:
    """Write a trained adapter as a LoRA folder.

    Without `rank` and `eps` the factors are exact, which LoTR, LoRTA and LoRETTA's rep have. With
    one of them every update is truncated to the best factors: those of a network with exact
    factors without forming the update, others one dense update at a time.

    Parameters
    ----------
    adapter : peft.PeftModel, str or Path
        An adapted model, or a folder that ``save_pretrained`` wrote. For a folder the base
        model's weights are not read.
    output : str or Path
        The folder to write: new, or empty. It appears whole or not at all.
    rank : int, optional
        Largest rank of a weight. With `eps` as well, the rank wins where both cannot be had.
    eps : float, optional
        Largest relative Frobenius error of a weight's update, and so of all together; at least
        1e-6.
    base : torch.nn.Module, transformers configuration, str or Path, optional
        For a folder: the base model's class and sizes; by default found by the base model that the
        adapter's configuration names.
    adapter_name : str, optional
        For a model: which adapter, by default the active one.
    progressbar : bool, optional
        Show progress; by default on large models only.

    Returns
    -------
    Conversion
        Ranks and exact errors, of the float32 factors as written.

    Raises
    ------
    TypeError
        If the adapter is not of these methods, or changes no weight (LoRETTA's adp).
    ValueError
        If the update has no exact factors and neither `rank` nor `eps` is given, or the adapter
        does not fit the base.
    FileNotFoundError, FileExistsError
        If there is no adapter or base, or `output` is not empty.

    Examples
    --------
    >>> import tempfile
    >>> import peft
    >>> import torch
    >>> from tnlib_adapters import LoTRConfig, to_lora
    >>> base = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(64, 48)})
    >>> config = LoTRConfig(r=4, target_modules=["q_proj"], init_weights=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(to_lora(peft.get_peft_model(base, config), f"{folder}/lora"))
    weight  shape  ranks  parameters  error
    q_proj  48x64  4      448         ...
    448 parameters; ... bytes; relative error ...
    """
    check_target(rank, eps)
    target = check_free(output)
    source = adapter_of(adapter, base=base, adapter_name=adapter_name)
    layers = source.layers
    _check_read_as_written(source, _config(source, dict.fromkeys(layers, 1), 1, base))
    work = sum(layer.out_features * layer.in_features for layer in layers.values())
    work += sum(layer.values.numel() for found in source.experts.values() for layer in found)
    shown = is_shown(progressbar, work)
    weights: list[ConvertedWeight] = []
    tensors = {f"{PREFIX}{name}": value for name, value in source.extras.items()}
    for name, layer in tqdm(layers.items(), desc="to LoRA", disable=not shown, unit="layer"):
        update = layer.update(source.name)
        try:
            found = low_rank(update.weight_network(), update.cores, update.anchor, rank, eps)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        tensors[f"{PREFIX}{name}.lora_A.weight"] = found.A
        tensors[f"{PREFIX}{name}.lora_B.weight"] = found.B
        shape = (layer.out_features, layer.in_features)
        ranks, values = (len(found.A),), found.A.numel() + found.B.numel()
        weights.append(ConvertedWeight(name, shape, ranks, values, found.error, found.norm))
    ranks_of_layers = {weight.name: weight.ranks[0] for weight in weights}
    found_experts = [
        *tqdm(
            expert_factors(source, rank, eps),
            desc="to LoRA, experts",
            disable=not shown or not source.experts,
            total=len(source.experts),
        )
    ]
    # One rank for all, or PEFT would look for the names of parameters among those of modules.
    common = max((found.rank for found in found_experts), default=0)
    places = _places(source)
    for factors in found_experts:
        a, b = factors.tensors(common)
        tensors[f"{PREFIX}{places[factors.name]}.lora_A.weight"] = a
        tensors[f"{PREFIX}{places[factors.name]}.lora_B.weight"] = b
        weights.append(factors.converted(common))
    config = _config(source, ranks_of_layers, common, base)
    with whole(target) as folder:
        write_folder(folder, config, tensors)
        size = (folder / SAFETENSORS_WEIGHTS_NAME).stat().st_size
    return Conversion(tuple(weights), 0, size)


def _places(source: Adapter) -> dict[str, str]:
    """Where PEFT has the factors of every adapted parameter of experts."""
    found = {}
    for module, keys in by_owner(source.experts).items():
        owner = source.experts[f"{module}.{keys[0]}".removeprefix(".")][0].get_base_layer()
        for key, place in wrapper_names(keys, owner, module).items():
            found[f"{module}.{key}".removeprefix(".")] = place
    return found


def _check_read_as_written(source: Adapter, config: LoraConfig) -> None:
    """Raise ValueError if PEFT would take targets for other weights while it loads them.

    Of some mixtures of experts it takes "gate_proj", "up_proj" and "down_proj" for parts of the
    fused experts, also where they are the names of ordinary layers.
    """
    names = [*source.layers]
    own = set(config.target_parameters or ())
    try:
        convert_peft_config_for_transformers(config, source.model, None)
        more = set(config.target_parameters or ()) - own
        left = list(config.target_modules or ()) if more else []
        taken = [n for n in names if more and not n.endswith(tuple(left))]
    except ValueError:
        taken = names
    if taken:
        kind = getattr(getattr(source.model, "config", None), "model_type", "")
        raise ValueError(
            f"PEFT would load a LoRA on {', '.join(taken[:3])}{' and others' * (len(taken) > 3)} "
            f"into other weights: of {kind} it takes such names for parts of the fused experts. "
            "Merge the adapter into the checkpoint instead (tnlib_adapters.merge), or train "
            "without those layers"
        )


def _config(source: Adapter, ranks: dict[str, int], of_experts: int, base: Any) -> LoraConfig:
    """The configuration of the LoRA of an adapter."""
    transposed = any(is_transposed(layer.get_base_layer()) for layer in source.layers.values())
    names = (source.modules, source.parameters)
    return lora_config(
        source.config, source.model, ranks, [*source.experts], of_experts, names, transposed, base
    )


def lora_config(
    old: Any,
    model: Any,
    ranks: dict[str, int],
    experts: Sequence[str],
    of_experts: int,
    names: tuple[Sequence[str], Sequence[str]],
    transposed: bool,
    base: Any,
) -> LoraConfig:
    """A configuration that matches the adapted modules and scales every product by 1.

    Parameters
    ----------
    old : NetworkConfig or LoraConfig
        What says the task, biases, modules to save and the base.
    model : torch.nn.Module
        The base model.
    ranks : dict of str to int
        Ranks of linear layers.
    experts : sequence of str
        Parameters of experts that are adapted.
    of_experts : int
        Their rank.
    names : (sequence of str, sequence of str)
        All modules and all parameters of the model.
    transposed : bool
        Whether the layers' weights are.
    base : object
        The base, where `old` names none.
    """
    modules, parameters = names
    usual = of_experts if experts else Counter(ranks.values()).most_common(1)[0][0]
    pattern = {f"^{re.escape(name)}": r for name, r in ranks.items() if r != usual}
    bias: Any = old.bias if old.bias in ("none", "all") else "lora_only"
    mapping = old.auto_mapping
    if old.task_type is None and mapping is None:
        kind = type(model)
        mapping = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    config = LoraConfig(
        r=usual,
        lora_alpha=usual,
        rank_pattern=dict(pattern),
        alpha_pattern=dict(pattern),
        target_modules=_targets(old.target_modules, ranks, modules) if ranks else [],
        target_parameters=target_entries([*experts], parameters) if experts else None,
        fan_in_fan_out=transposed,
        bias=bias,
        modules_to_save=list(dict.fromkeys(old.modules_to_save or ())) or None,
        task_type=old.task_type,
        inference_mode=True,
    )
    named = str(base) if isinstance(base, str | Path) else None
    config.base_model_name_or_path = old.base_model_name_or_path or named
    config.revision = old.revision
    config.auto_mapping = mapping
    return config


def _targets(old: Any, names: Collection[str], modules: Collection[str]) -> list[str] | str:
    """Entries of ``target_modules`` that match `names` and no other of the `modules`."""
    for targets in _spellings(old, names):
        config = LoraConfig(target_modules=targets)
        if {name for name in modules if check_target_module_exists(config, name)} == set(names):
            return targets
    raise ValueError(f"no target_modules single out {sorted(names)}")


def _spellings(old: Any, names: Collection[str]) -> Iterator[list[str] | str]:
    yield old if isinstance(old, str) else sorted(old or ())
    yield sorted(names)
    # Endings of other names match a list; a regular expression is for the whole name.
    yield "|".join(map(re.escape, sorted(names)))


def write_folder(folder: Path, config: LoraConfig, tensors: dict[str, Tensor]) -> None:
    """Write the two files of a LoRA into a folder.

    Parameters
    ----------
    folder : Path
        It is there.
    config : LoraConfig
        Configuration.
    tensors : dict of str to Tensor
        By their names in the file.
    """
    config.save_pretrained(str(folder))
    path = folder / CONFIG_NAME
    fields = json.loads(path.read_text(encoding="utf-8"))
    # PEFT keeps targets as a set, whose order changes from run to run.
    for key in ("target_modules", "target_parameters"):
        if isinstance(fields.get(key), list):
            fields[key].sort()
    path.write_text(json.dumps(fields, indent=2, sort_keys=True), encoding="utf-8")
    safetensors.torch.save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})
