"""Writing fitted cores as an adapter that PEFT loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn

from tnlib_adapters.base_model.linear_modules import without_values
from tnlib_adapters.base_model.peft_names import PREFIX
from tnlib_adapters.convert.fitted import Fitted
from tnlib_adapters.convert.folder import whole
from tnlib_adapters.layers.expert_update import ExpertUpdate
from tnlib_adapters.layers.shared_cores import SharedCores
from tnlib_adapters.layers.stored_cores import StoredCores
from tnlib_adapters.layers.update import Update
from tnlib_adapters.networks.expert_network import ExpertNetwork
from tnlib_adapters.networks.facts import facts
from tnlib_adapters.peft_plugin.config import NetworkConfig
from tnlib_adapters.peft_plugin.core_store import STORE
from tnlib_adapters.peft_plugin.trained_norms import TrainedNorm, is_multiplied
from tnlib_adapters.peft_plugin.tuner import NetworkTuner

_CARD = """---
{base}library_name: peft
---

# {method} adapter

{text}
"""


def model_card(method: str, base: str | None, text: str) -> str:
    """The model card of an adapter: its method, its base, and what there is to say."""
    named = f"base_model: {json.dumps(base)}\n" if base else ""  # a string of JSON is one of YAML
    return _CARD.format(base=named, method=method, text=text)


_EXTRACTED = """Extracted by tnlib_adapters from {finetuned}, which was fine-tuned from {base}.
Load it with `peft.PeftModel.from_pretrained`{needs}.

```text
{table}
```"""
_CONVERTED = "Converted from a LoRA by tnlib_adapters; the relative error of its updates is {:.3g}."


def extracted_text(finetuned: str, base: str, table: str, *, needs_import: bool) -> str:
    """What the card of an extracted adapter says: where it is from, how to load it, its errors."""
    needs = " after `import tnlib_adapters`" if needs_import else ""
    return _EXTRACTED.format(finetuned=finetuned, base=base, table=table, needs=needs)


def write_adapter(folder: Path, fitted: Fitted, model: nn.Module, card: str = "") -> int:
    """Write an adapter's folder whole or not at all; the size of its tensor file.

    Parameters
    ----------
    folder : Path
        New or empty.
    fitted : Fitted
        What is written.
    model : torch.nn.Module
        The base model on the meta device, in which the adapter is put to see that it fits.
    card : str
        What the model card says of it, by default that it was made of a LoRA.

    Raises
    ------
    ValueError
        If PEFT would not load it into the model.
    """
    config = fitted.config
    config.described = facts(fitted.networks.values())
    tensors = {PREFIX + name: value for name, value in _named(fitted)}
    tensors |= _stored_norms(fitted.others, model) if config.rate_scaling else fitted.others
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    with whole(folder) as place:
        method = type(config).__name__.removesuffix("Config")
        text = card or _CONVERTED.format(fitted.error)
        named = model_card(method, config.base_model_name_or_path, text)
        (place / "README.md").write_text(named, encoding="utf-8")
        config.save_pretrained(str(place))
        path = place / SAFETENSORS_WEIGHTS_NAME
        path.write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
        size = path.stat().st_size
        # Loading compares the names and shapes in the file with those of the adapted model.
        loaded: NetworkConfig = type(config).from_pretrained(str(place))
        tuner(config)(model, {"default": loaded}, "default")
    return size


def _stored_norms(others: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """What is in full, norms as rate scaling stores them: divided by their size."""
    found = dict(others)
    for name, module in model.named_modules():
        own = {key: f"{PREFIX}{name}.{key}" for key, _ in module.named_parameters(recurse=False)}
        if is_multiplied(module) and all(place in found for place in own.values()):
            norm = without_values(module).to_empty(device="cpu")
            norm.load_state_dict({key: found[place] for key, place in own.items()}, assign=True)
            stored = TrainedNorm(norm, scaled=True).state_dict()
            found |= {f"{PREFIX}{name}.{key}": value for key, value in stored.items()}
    return found


def _named(fitted: Fitted) -> list[tuple[str, Tensor]]:
    """What is stored of the cores by its names in the adapted model, without the adapter's name."""
    parts: Any = tuner(fitted.config)
    layer, store = (f"{kind.prefix}{kind.attribute}" for kind in (parts.layer_cls, parts.store_cls))
    shared, found = SharedCores(), []
    for name, network in fitted.networks.items():
        strength = fitted.strengths[name]
        update: StoredCores
        if isinstance(network, ExpertNetwork):
            experts = network.n_experts
            update = ExpertUpdate(network, shared, n_experts=experts, strength=strength)
        else:
            update = Update(network, shared, strength=strength)
        update.set_initial(fitted.shared | fitted.own[name])
        found += [(f"{name}.{layer}.{key}", value) for key, value in update.state_dict().items()]
    return found + [(f"{STORE}.{store}.{key}", v) for key, v in shared.state_dict().items()]


def tuner(config: NetworkConfig) -> type[NetworkTuner]:
    """The tuner of a configuration's method."""
    kind: type[NetworkTuner] = type(config).tuner  # type: ignore[attr-defined]
    return kind
