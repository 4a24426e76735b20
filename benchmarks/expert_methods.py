"""Adapters of experts that are held as parameters, for the benchmarks: PEFT's, ours, and sizes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig

from tnlib_adapters import DoTAConfig, LoRETTAConfig, LoRTAConfig, LoTRConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from own_methods import PlainLoRAConfig, SharedOuterConfig

TARGETS = ["experts.gate_up_proj", "experts.down_proj"]
FIELDS: dict[str, Any] = {"target_modules": [], "target_parameters": TARGETS}
PEFT = "LoRA (peft)"


def rep(r: int, **fields: Any) -> LoRETTAConfig:
    return LoRETTAConfig(tt_rank=r, dropout=0.0, train_norms=False, **fields)


def dota(r: int, **fields: Any) -> DoTAConfig:
    return DoTAConfig(r=r, init_weights="random", **fields)


# How a method is made by its size, and three sizes.
METHODS: dict[str, tuple[Callable[..., PeftConfig], tuple[int, ...]]] = {
    PEFT: (lambda r, **k: LoraConfig(r=r, lora_alpha=16, **k), (1, 2, 8)),
    "LoRA, declared": (lambda r, **k: PlainLoRAConfig(r=r, **k), (1, 2, 8)),
    "shared outer": (lambda r, **k: SharedOuterConfig(r=r, **k), (1, 2, 8)),
    "LoTR": (lambda r, **k: LoTRConfig(r=r, **k), (4, 8, 32)),
    "LoRTA": (lambda r, **k: LoRTAConfig(r=r, **k), (8, 32, 128)),
    "LoRETTA rep": (rep, (2, 5, 16)),
    "DoTA, random start": (dota, (1, 2, 4)),
}


def config(method: str, size: int, **fields: Any) -> PeftConfig:
    """The configuration of a method on all experts."""
    return METHODS[method][0](size, **FIELDS, **fields)
