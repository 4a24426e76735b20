"""Making a method known to PEFT from outside.

PEFT offers ``register_peft_method`` but demands that the name is a member of its ``PeftType``
enum, which has no door. A member is added in the way that ``enum`` itself builds one; everything
else goes through PEFT's own registration.
"""

from __future__ import annotations

from typing import Any

import peft
from packaging.version import Version
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
    if name.upper() not in PeftType.__members__:
        _add_member(name.upper())
        register_peft_method(name=name, config_cls=config_class, model_cls=tuner_class)


def _add_member(name: str) -> None:
    """Add `name` to PeftType, with itself as its value."""
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType  # type: ignore[attr-defined]
    member._sort_order_ = len(PeftType._member_names_)  # type: ignore[attr-defined]
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)


def peft_type(name: str) -> PeftType:
    """The enum member of a registered method, or its future value while registering."""
    if name.upper() not in PeftType.__members__:
        _add_member(name.upper())
    return PeftType[name.upper()]
