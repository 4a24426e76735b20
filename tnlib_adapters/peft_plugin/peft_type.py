"""The names of methods among PEFT's types.

PEFT offers ``register_peft_method`` but demands that the name is a member of its ``PeftType``
enum, which has no door. A member is added in the way that ``enum`` itself builds one.
"""

from __future__ import annotations

from typing import Any

from peft.utils.peft_types import PeftType


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


def saved_type(config_class: type[Any]) -> str:
    """What is saved as the type of a method.

    Where the method is not known PEFT raises a KeyError of just that, so it says what to do. The
    plain name is read too.
    """
    name: str = config_class.method.upper()
    ours = config_class.__module__.startswith("tnlib_adapters.")
    return f"{name} (import tnlib_adapters first)" if ours else name
