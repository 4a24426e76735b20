"""Names that were public and have another one now: they work, and say the new one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T")


def renamed_fields(**names: str) -> Callable[[type[T]], type[T]]:
    """Let a class be made with, and read by, the earlier names of its fields.

    Parameters
    ----------
    **names : str
        The name of a field by its earlier one.
    """

    def decorated(cls: type[T]) -> type[T]:
        init: Any = cls.__init__

        @wraps(init)
        def __init__(self: T, *args: Any, **kwargs: Any) -> None:
            for old in names.keys() & kwargs.keys():
                _warn(f"{cls.__name__}({old}=)", f"{names[old]}=", stacklevel=3)
                kwargs[names[old]] = kwargs.pop(old)
            init(self, *args, **kwargs)

        cls.__init__ = __init__  # type: ignore[assignment,method-assign]
        for old, new in names.items():
            setattr(cls, old, property(_reader(cls.__name__, old, new)))
        return cls

    return decorated


def _reader(owner: str, old: str, new: str) -> Callable[[Any], Any]:
    def read(self: Any) -> Any:
        """Read the field by its present name."""
        _warn(f"{owner}.{old}", f".{new}", stacklevel=3)
        return getattr(self, new)

    return read


def renamed(package: str, name: str, names: Mapping[str, Any]) -> Any:
    """What an earlier name of a package stands for; for its ``__getattr__``.

    Raises
    ------
    AttributeError
        If there never was such a name.
    """
    if name not in names:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    _warn(f"{package}.{name}", names[name].__name__, stacklevel=4)
    return names[name]


def _warn(old: str, new: str, *, stacklevel: int) -> None:
    warnings.warn(f"{old} is called {new} now", DeprecationWarning, stacklevel=stacklevel)
