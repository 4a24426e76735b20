"""The values of a saved adapter put in the place of those of a loaded one, without new modules."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import peft
import safetensors.torch
import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME, get_peft_model_state_dict

from tnlib_adapters.base_model.peft_names import chosen_adapter
from tnlib_adapters.layers.multipliers import MultipliedCores
from tnlib_adapters.peft_plugin.config import NetworkConfig
from tnlib_adapters.peft_plugin.core_store import AdapterPart
from tnlib_adapters.peft_plugin.weight_layer import WeightLayer

# What may differ between adapters that are swapped: it does not change how they are computed.
_FREE = {
    *("auto_mapping", "base_model_name_or_path", "base_quantization", "bias", "described"),
    *("dropout", "inference_mode", "init_weights", "modules_to_save", "peft_type", "peft_version"),
    *("progressbar", "revision", "task_type"),
}


def hotswap(model: peft.PeftModel, folder: str | Path, adapter_name: str | None = None) -> None:
    """Give an adapter the values of a saved one of the same declaration, in place.

    No module is made and no shape changes, so a compiled model is not compiled again. Everything is
    checked before the first value is written.

    Parameters
    ----------
    model : peft.PeftModel
        With an adapter of one of these methods; it may be compiled.
    folder : str or Path
        What ``save_pretrained`` wrote.
    adapter_name : str, optional
        Which adapter, by default the active one.

    Raises
    ------
    TypeError
        If the adapters are of different methods, or not of these.
    ValueError
        If they differ in their declarations, targets or shapes, or an adapter is merged.
    FileNotFoundError
        If the folder is no saved adapter.

    Examples
    --------
    >>> import tempfile
    >>> from tnlib_adapters import LoTRConfig
    >>> def adapted():
    ...     base = torch.nn.Sequential(torch.nn.Linear(8, 8))
    ...     return peft.get_peft_model(base, LoTRConfig(r=2, target_modules=["0"]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     adapted().save_pretrained(folder)
    ...     hotswap(adapted(), folder)
    """
    model = getattr(model, "_orig_mod", model)
    name = chosen_adapter(model, adapter_name)
    mine = model.peft_config[name]
    path = Path(folder) / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {SAFETENSORS_WEIGHTS_NAME}; name the folder that save_pretrained "
            "wrote"
        )
    other = peft.PeftConfig.from_pretrained(str(folder))
    if not isinstance(mine, NetworkConfig) or type(other) is not type(mine):
        raise TypeError(
            f"the model's adapter is a {type(mine).__name__}, that in {folder} a "
            f"{type(other).__name__}; only adapters of one of these methods can be swapped"
        )
    for field in dataclasses.fields(mine):
        a, b = (getattr(config, field.name) for config in (mine, other))
        if field.name not in _FREE and a != b:
            raise ValueError(
                f"{field.name} is {b!r} in {folder} and {a!r} in the model; adapters that are "
                "swapped have one declaration"
            )
    merged = any(isinstance(layer, WeightLayer) and layer.merged for layer in model.modules())
    if merged:
        raise ValueError("the model has merged adapters; call unmerge_adapter() first")
    values = safetensors.torch.load_file(path)
    places = get_peft_model_state_dict(model, adapter_name=name)
    shapes = [{n: tuple(v.shape) for n, v in state.items()} for state in (values, places)]
    if shapes[0] != shapes[1]:
        odd = min(n for n in {*shapes[0], *shapes[1]} if shapes[0].get(n) != shapes[1].get(n))
        raise ValueError(
            f"tensor {odd} is {shapes[0].get(odd)} in {folder} and {shapes[1].get(odd)} in the "
            "model; adapters that are swapped have the same targets and sizes"
        )
    with torch.no_grad():
        for key, value in values.items():
            places[key].copy_(value)
    for part in model.modules():
        if isinstance(part, AdapterPart) and name in part.held:
            held = part.held[name]
            if isinstance(held, MultipliedCores):
                held.take_over()
