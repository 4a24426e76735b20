"""Making a method known to PEFT from outside.

PEFT offers ``register_peft_method`` but demands that the name is a member of its ``PeftType``
enum, which has no door. A member is added in the way that ``enum`` itself builds one; everything
else goes through PEFT's own registration.
"""

from __future__ import annotations

from typing import Any

import peft
from packaging.version import Version
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType

OLDEST_PEFT = "0.20"


def register(name: str, config_class: type[Any], tuner_class: type[Any]) -> None:
    """Register a method under its lower-case `name`; a name that is known already is kept.

    Raises
    ------
    ImportError
        If the installed PEFT is too old for the hooks that the plug-in uses.
    """
    if Version(peft.__version__).release < Version(OLDEST_PEFT).release:
        raise ImportError(
            f"tnlib_adapters needs peft {OLDEST_PEFT} or newer, found {peft.__version__}; "
            "run: pip install -U peft"
        )
    if peft_type(name) not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=name, config_cls=config_class, model_cls=tuner_class)


def peft_type(name: str) -> PeftType:
    """The enum member of a method's lower-case `name`, added where PEFT has none."""
    value = name.upper()
    if value not in PeftType.__members__:
        member = str.__new__(PeftType, value)
        member._name_ = value
        member._value_ = value
        member.__objclass__ = PeftType  # type: ignore[attr-defined]
        member._sort_order_ = len(PeftType._member_names_)  # type: ignore[attr-defined]
        PeftType._member_names_.append(value)
        PeftType._member_map_[value] = member
        PeftType._value2member_map_[value] = member
        type.__setattr__(PeftType, value, member)
    return PeftType[value]
