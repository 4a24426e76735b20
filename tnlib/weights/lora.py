"""The update that a LoRA of PEFT is, read without torch: two factors for every weight."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tnlib.common.atomic import read_json
from tnlib.common.safetensors_header import read_header
from tnlib.weights.source import Weights
from tnlib.weights.tensor import FileTensor, Product, WeightTensor

CONFIG, FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")


def is_lora(folder: Path) -> bool:
    """Whether a folder is a saved adapter and no model."""
    return (folder / CONFIG).is_file() and (folder / FILE).is_file()


def read_lora(folder: Path) -> Weights:
    """The change of every weight that a LoRA adapts, by the weight's name.

    Raises
    ------
    ValueError
        If the adapter is no LoRA whose updates are products of two factors.
    """
    config = read_json(folder / CONFIG)
    kind = str(config.get("peft_type"))
    if kind.upper() != "LORA":
        raise ValueError(
            f"{folder} is an adapter of {kind}; make a LoRA of it (tnlib-adapters to-lora), or a "
            "checkpoint (tnlib-adapters merge)"
        )
    for field in ("use_dora", "lora_bias", "target_parameters", "layer_replication"):
        if config.get(field):
            raise ValueError(
                f"{folder} has {field}={config[field]!r}, so its updates are not products of two "
                "factors; merge it into a checkpoint, and give that with its base"
            )
    if isinstance(start := config.get("init_lora_weights", True), str) and start != "gaussian":
        raise ValueError(
            f"{folder} has init_lora_weights={start!r}, which may change the base at the start; "
            "merge it into a checkpoint, and give that with its base"
        )
    factors: dict[str, dict[str, FileTensor]] = {}
    others = []
    for key, entry in read_header(folder / FILE).items():
        name = key.removeprefix(_PREFIX)
        match = _FACTOR.fullmatch(name)
        if match:
            factors.setdefault(match[1], {})[match[2]] = FileTensor(folder / FILE, key, entry)
        else:
            others.append(name)
    tensors: dict[str, WeightTensor] = {}
    problems: dict[str, str] = {}
    for name, pair in factors.items():
        if {*pair} != {"A", "B"} or any(len(part.shape) != 2 for part in pair.values()):
            problems[name] = "is no product of two matrices, as those of convolutions are not"
        else:
            rank = pair["A"].shape[0]
            alpha = by_module(config.get("alpha_pattern"), name, config.get("lora_alpha", 8))
            scale = scale_of(rank, alpha, config)
            tensors[f"{name}.weight"] = Product(pair["B"], pair["A"], scale)
    notes = (f"{len(others)} tensors beside the factors, {others[0]} the first",) if others else ()
    if not tensors:
        raise ValueError(f"{folder / FILE} has no factors of a LoRA")
    return Weights(str(folder), tensors, problems, notes, is_update=True)


def scale_of(rank: int, alpha: float, config: Mapping[str, Any]) -> float:
    """What the product of two factors is multiplied by."""
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def by_module(pattern: Mapping[str, Any] | None, name: str, otherwise: Any) -> Any:
    """The value of the first pattern that is the name or the end of it, by PEFT's rule."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return otherwise
