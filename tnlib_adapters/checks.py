"""Checks of configuration values, with messages that say what came and what was expected."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any


def positive_int(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless `value` is an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r} ({type(value).__name__})")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def positive_number(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless `value` is a finite number above 0."""
    _number(name, value)
    if not (math.isfinite(value) and value > 0):  # type: ignore[arg-type,operator]
        raise ValueError(f"{name} must be finite and above 0, got {value}")


def fraction(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless `value` is a number of at least 0 and below 1."""
    _number(name, value)
    if not 0 <= value < 1:  # type: ignore[operator]
        raise ValueError(f"{name} must be at least 0 and below 1, got {value}")


def flag(name: str, value: object) -> None:
    """Raise TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")


def choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if not any(
        value is option or (isinstance(option, str) and value == option) for option in allowed
    ):
        options = ", ".join(map(repr, allowed))
        raise ValueError(f"{name} must be one of {options}, got {value!r}")


def mode_lists(name: str, value: Sequence[Any], what: str, *, same_length: bool = False) -> None:
    """Raise TypeError or ValueError unless `value` is a pair of sequences of sizes."""
    sides = isinstance(value, Sequence) and not isinstance(value, str)
    if not sides or not all(isinstance(s, Sequence) and not isinstance(s, str) for s in value):
        raise TypeError(f"{name} must be two sequences of ints ({what}), got {value!r}")
    if len(value) != 2 or not all(value) or (same_length and len(value[0]) != len(value[1])):
        equal = " of equal length" if same_length else ""
        raise ValueError(f"{name} must be ({what}){equal}, got {value!r}")
    for size in (*value[0], *value[1]):
        positive_int(f"every mode of {name}", size)


def check_dims(value: object, *, same_length: bool = False) -> None:
    """Raise TypeError or ValueError unless `value` is a number of modes or a pair of modes."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        mode_lists("dims", value, "row modes, column modes", same_length=same_length)
    else:
        positive_int("dims", value)


# What others call our fields.
WORDS = {
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "init_lora_weights": "init_weights",
    "rank": "r",
    "ranks": "r",
    "lora_r": "r",
    "scale": "alpha",
    "scaling": "alpha",
    "n_heads": "num_heads",
    "bottleneck_size": "bottleneck",
    "target_layers": "layers_to_transform",
    "exclude": "exclude_modules",
    "targets": "target_modules",
}


# Fields of PEFT's LoRA that have no counterpart, whatever the names are like, and what to do.
_STARTS = "call start_from_gradients(model, batches) instead"
_NO_COUNTERPART = {
    "alora_invocation_tokens": "the update does not depend on tokens; use PEFT's LoRA for that",
    "arrow_config": "add_weighted_adapter sums adapters; use PEFT's LoRA to route between them",
    "corda_config": _STARTS,
    "eva_config": _STARTS,
    "fan_in_fan_out": "how a weight lies is found out; leave it away",
    "kasa_config": "use PEFT's LoRA for that",
    "layer_replication": "use PEFT's LoRA for that",
    "lora_alpha": "its update has no factor; leave it away",
    "loftq_config": "take theta_0 out before quantising: DoTAConfig(residual=True), quantize_base",
    "lora_bias": "cores have no bias; bias='all' trains those of the layers",
    "lora_ga_config": _STARTS,
    "megatron_config": "Megatron's parallel layers are not adapted",
    "megatron_core": "Megatron's parallel layers are not adapted",
    "monteclora_config": "use PEFT's LoRA for that",
    "qalora_group_size": "use PEFT's LoRA for that",
    "runtime_config": "it has no such option; leave it away",
    "use_bdlora": "use PEFT's LoRA for that",
    "use_dora": "weights are not rescaled by a magnitude; use PEFT's LoRA for that",
    "use_qalora": "use PEFT's LoRA for that",
    "use_rslora": "its update has no factor alpha / r",
    "velora_config": "use PEFT's LoRA for that",
}


def unknown_field(owner: str, name: str, known: Sequence[str]) -> str:
    """What to say of a field that a configuration does not have."""
    near = [word for word in [WORDS.get(name, "")] if word in known]
    if not near and name in _NO_COUNTERPART:
        return f"{owner} has no {name}: {_NO_COUNTERPART[name]}"
    if not near:
        near = difflib.get_close_matches(name, known, 1)
    advice = f"; it is called {near[0]} here" if near else "; it has none like it"
    return f"{owner} got an unexpected keyword argument {name!r}{advice}"


def _number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
