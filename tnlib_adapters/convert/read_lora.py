"""LoRA folders of PEFT, read without PEFT's model: two factors per weight, and what is beside them.

A LoRA changes a weight by ``scale * B A`` with A (r, in) and B (out, r); ``scale`` is alpha / r,
or alpha / sqrt(r) with rank-stabilised scaling, where r and alpha may differ by module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor

from tnlib.common.atomic import read_json
from tnlib.weights.lora import by_module, scale_of
from tnlib_adapters.base_model.peft_names import PREFIX
from tnlib_adapters.fitting.low_rank_update import LowRankUpdate
from tnlib_adapters.methods.lora import MORE_THAN_TWO_FACTORS
from tnlib_adapters.peft_plugin.adapter_file_checks import shapes_in

_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")
# Starts that take something out of the base weight, so that B A alone is not the change.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class LoRA:
    """A LoRA as it was saved.

    Attributes
    ----------
    config : mapping of str to object
        Its ``adapter_config.json``.
    updates : dict of str to LowRankUpdate
        Updates by the names of their modules in the model.
    of_experts : dict of str to (Tensor, Tensor)
        The factors A and B of weights of experts, with the scale in B, by the names of PEFT's
        wrappers; which weights they are of, the model says.
    others : dict of str to Tensor
        Modules trained in full and biases, by their names in the file.
    """

    config: Mapping[str, Any]
    updates: dict[str, LowRankUpdate]
    of_experts: dict[str, tuple[Tensor, Tensor]]
    others: dict[str, Tensor]


def read_lora(folder: Path) -> LoRA:
    """Read a LoRA that PEFT saved.

    Raises
    ------
    FileNotFoundError
        If the folder has no configuration or no safetensors file.
    ValueError
        If it is no LoRA, one of a kind that is not a product of two factors for every weight, or
        damaged.
    """
    config = read_json(folder / "adapter_config.json")
    _check_kind(config)
    shapes_in(folder)
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {SAFETENSORS_WEIGHTS_NAME}; pickled files (.bin) are not read: load "
            "the LoRA with peft and save it again, which writes safetensors"
        )
    factors: dict[str, dict[str, Tensor]] = {}
    others = {}
    for key, value in safetensors.torch.load_file(path).items():
        name = key.removeprefix(PREFIX)
        match = _FACTOR.fullmatch(name)
        if match is not None:
            factors.setdefault(match[1], {})[match[2]] = value
        elif ".lora_" in name:
            raise ValueError(
                f"{path}: {name} is no factor of a linear layer (embeddings, biases of factors and "
                "magnitudes have no place in a conversion)"
            )
        else:
            others[key] = value
    if not factors:
        raise ValueError(f"{path} has no tensor of a LoRA (names that end in lora_A.weight)")
    experts = {
        name: _of_experts(name, factors.pop(name), config)
        for name in [*factors]
        if _is_of_experts(name, factors[name], config)
    }
    updates = {name: _update(name, pair, config) for name, pair in factors.items()}
    return LoRA(config, updates, experts, others)


def _is_of_experts(name: str, pair: Mapping[str, Tensor], config: Mapping[str, Any]) -> bool:
    """Whether factors are of a parameter: those of several experts have several times the rank."""
    if not config.get("target_parameters"):
        return False
    return name.endswith(".base_layer") or (
        "A" in pair and len(pair["A"]) != by_module(config.get("rank_pattern"), name, config["r"])
    )


def _of_experts(
    name: str, pair: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """A and B of a weight of experts, B with the scale."""
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise ValueError(
            f"{name.replace('.base_layer', '')}: a LoRA of experts with rank_pattern or "
            "alpha_pattern cannot be converted"
        )
    _check_pair(name, pair)
    a, b = pair["A"], pair["B"]
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1] or len(a) % rank:
        raise ValueError(
            f"{name}: factors have shapes {tuple(a.shape)} and {tuple(b.shape)}, which are not "
            f"those of experts of rank {rank}"
        )
    return a.double(), scale_of(rank, alpha, config) * b.double()


def _check_kind(config: Mapping[str, Any]) -> None:
    """Raise ValueError if the configuration says more than a product of two factors per weight."""
    if config.get("peft_type") != "LORA":
        raise ValueError(f"peft_type is {config.get('peft_type')!r}; only 'LORA' can be converted")
    for field, reason in MORE_THAN_TWO_FACTORS.items():
        if config.get(field):
            raise ValueError(
                f"{field}={config[field]!r}: {reason}, so this LoRA is not a product of two "
                "factors for every weight and cannot be converted"
            )
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise ValueError(
            f"init_lora_weights={start!r}: the base weights were changed at the start, so the "
            "factors are not the change of the weights; save the LoRA with "
            "save_pretrained(path_initial_model_for_weight_conversion=...) first"
        )


def _update(name: str, pair: Mapping[str, Tensor], config: Mapping[str, Any]) -> LowRankUpdate:
    """The update of one module, of whose factors `pair` has A and B."""
    _check_pair(name, pair)
    a, b = pair["A"], pair["B"]
    rank = by_module(config.get("rank_pattern"), name, config.get("r", 8))
    alpha = by_module(config.get("alpha_pattern"), name, config.get("lora_alpha", 8))
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError(
            f"{name}: factors have shapes {tuple(a.shape)} and {tuple(b.shape)}, so it is no "
            "linear layer (a convolution?); only linear layers can be converted"
        )
    if a.shape[0] != rank or b.shape[1] != rank:
        raise ValueError(
            f"{name}: factors have shapes {tuple(a.shape)} and {tuple(b.shape)}, but the "
            f"configuration says rank {rank} (r and rank_pattern)"
        )
    return LowRankUpdate(scale_of(rank, alpha, config) * b.double(), a.double())


def _check_pair(name: str, pair: Mapping[str, Tensor]) -> None:
    if set(pair) != {"A", "B"}:
        raise ValueError(f"{name} has a lora_{''.join(pair)} and not the other factor")
    if not all(torch.isfinite(factor).all() for factor in pair.values()):
        raise ValueError(f"{name}: a factor holds nan or inf")
