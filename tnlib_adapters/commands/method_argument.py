"""Configurations written on a command line, such as ``lotr:r=16,target_modules=q_proj+v_proj``."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from tnlib_adapters.methods import METHODS
from tnlib_adapters.methods.lora import CountedLoRA
from tnlib_adapters.peft_plugin.config import NetworkConfig
from tnlib_adapters.peft_plugin.expert_targets import ALL_EXPERTS
from tnlib_adapters.peft_plugin.targets import ALL_LINEAR

_LISTS = (
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "layers_pattern",
    "layers_to_transform",
    "target_parameters",
    "experts",
)
_WORDS = {"true": True, "false": False, "none": None}


class WrongMethod(ValueError):
    """A METHOD that cannot be what is meant: wrong usage of the command line."""

    exit_code = 2


CONFIGS: dict[str, type[NetworkConfig]] = {**METHODS, "lora": CountedLoRA}


def configuration(text: str, **defaults: Any) -> Any:
    """The configuration that a METHOD of the command line stands for.

    Parameters
    ----------
    text : str
        ``name`` or ``name:field=value,...``: whole numbers, numbers, true, false, none, words;
        several joined by +; lists of modes as ``8x8/6x6``.
    **defaults
        Fields that `text` may change.

    Returns
    -------
    NetworkConfig

    Raises
    ------
    WrongMethod
        If the method has no such field, twice the same one, or the field cannot have this value.

    Examples
    --------
    >>> config = configuration("lotr:r=16,target_modules=q_proj+v_proj")
    >>> config.r, sorted(config.target_modules)
    (16, ['q_proj', 'v_proj'])
    """
    name = text.partition(":")[0]
    kind = CONFIGS[name]
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    fields = dict(defaults)
    for field, value in written_fields(text).items():
        if field not in known:
            own = [key for key in known if key not in dir(NetworkConfig)]
            raise WrongMethod(
                f"{text}: {name} has no field {field!r}; of its own it has {', '.join(own)}, and "
                f"with all methods {', '.join(_LISTS)} and bias"
            )
        fields[field] = names(value) if field in _LISTS else _value(value)
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise WrongMethod(f"{text}: {error}") from error


def written_fields(text: str) -> dict[str, str]:
    """The fields of a METHOD by name, as they are written."""
    found: dict[str, str] = {}
    for entry in filter(None, text.partition(":")[2].split(",")):
        field, _, value = entry.partition("=")
        if field in found:
            raise WrongMethod(f"{text}: {field} is given twice; several values are joined by +")
        found[field] = value
    return found


def names(text: str) -> Any:
    """Values joined by +, as a list; but the words that stand for all layers, or all experts."""
    if text.lower() in (ALL_LINEAR, ALL_EXPERTS):
        return text.lower()
    return None if text.lower() == "none" else [_value(part) for part in text.split("+")]


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if re.fullmatch(r"\d+(x\d+)*/\d+(x\d+)*", text):
        return [[int(mode) for mode in side.split("x")] for side in text.split("/")]
    if re.fullmatch(r"\d+(x\d+)+", text):
        raise WrongMethod(f"{text}: modes are those of rows / columns, such as 8x8/6x6")
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
