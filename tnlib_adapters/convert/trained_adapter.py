"""A trained adapter to export: of a model in memory, or of a folder, without the base's weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor, nn

from tnlib.common.atomic import read_json
from tnlib_adapters.base_model.linear_modules import original_modules
from tnlib_adapters.base_model.peft_names import PREFIX, chosen_adapter
from tnlib_adapters.convert.candidates import candidates
from tnlib_adapters.peft_plugin.adapted_experts import AdaptedExperts
from tnlib_adapters.peft_plugin.adapter_file_checks import shapes_in
from tnlib_adapters.peft_plugin.config import NetworkConfig
from tnlib_adapters.peft_plugin.core_store import AdapterPart
from tnlib_adapters.peft_plugin.expert_layer import ExpertLayer
from tnlib_adapters.peft_plugin.layer import NetworkLayer
from tnlib_adapters.peft_plugin.trained_norms import as_base


@dataclass(frozen=True)
class Adapter:
    """A trained adapter, and the model around it.

    Attributes
    ----------
    config : NetworkConfig
        Its configuration.
    name : str
        Its name in the model.
    model : torch.nn.Module
        The adapted base model, without weights where the adapter came from a folder.
    extras : dict of str to Tensor
        What is trained in full (norms, heads, biases), as the base has it, by its name in the
        adapter's file without PEFT's prefix.
    """

    config: NetworkConfig
    name: str
    model: nn.Module
    extras: dict[str, Tensor]

    @property
    def layers(self) -> dict[str, NetworkLayer]:
        """The adapted layers by name in the base model."""
        return {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, NetworkLayer) and self.name in module.held
        }

    @property
    def experts(self) -> dict[str, list[ExpertLayer]]:
        """The adapted weights of experts by the names of their parameters, whole or in parts."""
        found: dict[str, list[ExpertLayer]] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, ExpertLayer) and self.name in module.held:
                owner = name.rpartition(".")[0]
                parameter = f"{owner}.{module.parameter.parameter}".removeprefix(".")
                found.setdefault(parameter, []).append(module)
        return found

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of all modules of the base model."""
        return tuple(_module_names(self.model))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters and buffers of the base model."""
        modules = {"", *self.modules}
        plain = [
            name.replace(".base_layer.", ".").replace(".original_module.", ".")
            for name in self.model.state_dict()
        ]
        return tuple(name for name in plain if name.rpartition(".")[0] in modules)

    def check_exportable(self) -> None:
        """Raise TypeError, naming the layer, if something is no update of a weight."""
        for name, layer in self.layers.items():
            try:
                layer.update(self.name).weight_network()
            except TypeError as error:
                raise TypeError(f"{name}: {error}") from error


def adapter_of(source: Any, *, base: Any = None, adapter_name: str | None = None) -> Adapter:
    """The adapter of a model or of a folder, checked to be one of these methods' updates.

    Parameters
    ----------
    source : peft.PeftModel, str or Path
        An adapted model, or a folder that ``save_pretrained`` wrote.
    base : torch.nn.Module, transformers configuration, str or Path, optional
        For a folder: the base model, of which no weights are read; by default the one that the
        adapter's configuration names.
    adapter_name : str, optional
        For a model: which adapter, by default the active one.

    Raises
    ------
    TypeError
        If `source` is neither, its method is not one of these, or changes no weight.
    ValueError
        If the folder's tensors do not fit the base, or an argument does not fit the source.
    FileNotFoundError
        If the folder is no saved adapter, or the base is not found.
    """
    if isinstance(source, peft.PeftModel):
        if base is not None:
            raise ValueError("base= is for a folder; the model has its base with it")
        adapter = _of_model(source, adapter_name)
    elif isinstance(source, str | Path):
        if adapter_name is not None:
            raise ValueError("adapter_name= is for a model; give the folder of that adapter")
        adapter = _of_folder(Path(source), base)
    else:
        raise TypeError(
            "expected a peft.PeftModel or the folder of a saved adapter, got "
            f"{type(source).__name__}"
        )
    adapter.check_exportable()
    return adapter


def _of_model(model: peft.PeftModel, name: str | None) -> Adapter:
    name = chosen_adapter(model, name)
    config = _ours(model.peft_config[name], "the model's adapter")
    state = get_peft_model_state_dict(model, adapter_name=name)
    extras = {
        plain: state[key].detach().cpu().contiguous() for plain, key in _extras(config, state)
    }
    return Adapter(config, name, model.get_base_model(), as_base(extras))


def _of_folder(folder: Path, base: Any) -> Adapter:
    for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} has no {name}; name the folder that save_pretrained wrote"
            )
    shapes_in(folder)
    config = _read(folder)
    base = config.base_model_name_or_path if base is None else base
    if not base:
        raise ValueError(f"{folder} does not say which base model it is for; give base=")
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        extras = {plain: file.get_tensor(key) for plain, key in _extras(config, file.keys())}
    shapes = {key: tuple(value.shape) for key, value in extras.items()}
    failure: Exception | None = None
    for skeleton in candidates(config, base, shapes):
        try:
            model = peft.PeftModel.from_pretrained(
                skeleton,
                folder,
                config=_read(folder),
                low_cpu_mem_usage=True,
                torch_device="cpu",
            )
        except (AttributeError, TypeError, ValueError) as error:
            failure = failure or error
            continue
        # As it was saved: PEFT adds to it.
        return Adapter(config, "default", model.get_base_model(), as_base(extras))
    place = type(base).__name__ if isinstance(base, nn.Module) else repr(base)
    raise ValueError(
        f"the adapter in {folder} does not fit the base {place}; give the model that it was "
        f"trained on as base= ({failure})"
    ) from failure


def _extras(config: NetworkConfig, keys: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Plain names of what is no core, with the names in the file; of two for one tensor, the first.

    PEFT writes biases of copied modules under two names, and those of the originals.
    """
    seen = set()
    for key in keys:
        plain = key.removeprefix(PREFIX).replace(".modules_to_save.", ".")
        if f".{config.method}_" in key or ".original_module." in key or plain in seen:
            continue
        seen.add(plain)
        yield plain, key


def _read(folder: Path) -> NetworkConfig:
    read_json(folder / CONFIG_NAME)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except KeyError as error:
        raise TypeError(
            f"{folder} is of a method {error} that is not known; import the module that declares it"
        ) from error
    return _ours(config, str(folder))


def _ours(config: object, where: str) -> NetworkConfig:
    if not isinstance(config, NetworkConfig):
        kind = getattr(config, "peft_type", type(config).__name__)
        raise TypeError(
            f"{where} is {getattr(kind, 'value', kind)}, not a method of tnlib_adapters; PEFT "
            "itself merges and converts its own"
        )
    return config


def _module_names(model: nn.Module) -> Iterator[str]:
    """Names as they are without adapters, which put modules between."""
    inside: tuple[str, ...] = ()
    # What stands around experts has their names.
    around: tuple[str, ...] = ()
    for name, module in original_modules(model):
        if not name or (inside and name.startswith(inside)):
            continue
        if isinstance(module, AdapterPart):
            inside = (*inside, f"{name}.")
        if isinstance(module, AdaptedExperts):
            around = (*around, f"{name}.base_layer")
        if name in around:
            continue
        if isinstance(module, NetworkLayer) or not isinstance(module, AdapterPart):
            yield name.replace(".base_layer.", ".") if name.startswith(around) else name
