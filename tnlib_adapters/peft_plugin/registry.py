"""Making a method known to PEFT from outside.

PEFT ties prefixes and class names to methods, so each gets classes of its own, as attributes of its
configuration class.
"""

from __future__ import annotations

from typing import Any

import peft
from packaging.version import Version
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType

from tnlib_adapters.peft_plugin.core_store import CoreStore
from tnlib_adapters.peft_plugin.expert_layer import ExpertLayer
from tnlib_adapters.peft_plugin.layer import NetworkLayer
from tnlib_adapters.peft_plugin.peft_type import peft_type, saved_type
from tnlib_adapters.peft_plugin.tuner import NetworkTuner

OLDEST_PEFT = "0.21"


def register(name: str, config_class: type[Any]) -> None:
    """Register a method under its lower-case `name`, or put a new definition in its place.

    The tuner becomes ``config_class.tuner``.

    Raises
    ------
    ImportError
        If the installed PEFT is too old for the hooks that the plug-in uses.
    ValueError
        If the name is not lower-case, or a method of PEFT's own.
    """
    if Version(peft.__version__).release < Version(OLDEST_PEFT).release:
        raise ImportError(
            f"tnlib_adapters needs peft {OLDEST_PEFT} or newer, found {peft.__version__}; "
            "run: pip install -U peft"
        )
    if not name.isidentifier() or name != name.lower():
        raise ValueError(f"a method's name must be a lower-case identifier, got {name!r}")
    present = name.upper() in PeftType.__members__
    known = PEFT_TYPE_TO_TUNER_MAPPING.get(peft_type(name)) if present else None
    if present and not _ours(known):
        raise ValueError(f"{name!r} is a method of PEFT's own; choose another name")
    tuner = _classes(name, config_class)
    kind = peft_type(name)
    if known is None:
        register_peft_method(name=name, config_cls=config_class, model_cls=tuner)
    else:
        PEFT_TYPE_TO_CONFIG_MAPPING[kind] = config_class
        PEFT_TYPE_TO_TUNER_MAPPING[kind] = tuner
    PEFT_TYPE_TO_CONFIG_MAPPING[saved_type(config_class)] = config_class  # type: ignore[index]


def _classes(name: str, config_class: type[Any]) -> type[NetworkTuner]:
    """The method's tuner with its layer and store classes, found by pickle where they are set."""
    title = config_class.__name__.removesuffix("Config") or name
    place = {"__module__": config_class.__module__}
    owner = f"{config_class.__qualname__}.tuner"
    prefix = f"{name}_"
    layer = type(
        f"{title}Linear",
        (NetworkLayer,),
        place | {"__qualname__": f"{owner}.layer_cls"},
        prefix=prefix,
    )
    expert = type(
        f"{title}Experts",
        (ExpertLayer,),
        place | {"__qualname__": f"{owner}.expert_cls"},
        prefix=prefix,
    )
    store = type(
        f"{title}Cores", (CoreStore,), place | {"__qualname__": f"{owner}.store_cls"}, prefix=prefix
    )
    members = {"prefix": prefix, "layer_cls": layer, "store_cls": store, "__qualname__": owner}
    members |= {"expert_cls": expert}
    tuner = type(f"{title}Model", (NetworkTuner,), place | members)
    config_class.tuner = tuner
    return tuner


def _ours(tuner: object) -> bool:
    return isinstance(tuner, type) and issubclass(tuner, NetworkTuner)
