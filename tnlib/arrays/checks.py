"""Argument checks, in one place: every message says what came, what was expected, what to do."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from tnlib.common import formatting

METHODS = ("auto", "svd", "gram", "krylov")


def positive_int(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int of at least `least`."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r} (bool)")
    try:
        number = operator.index(value)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"{name} must be an integer, got {value!r} ({kind})") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def ranks(value: Any, order: int) -> tuple[int, ...] | None:
    """`value` as `order` - 1 maximal bond ranks, or None for no limit.

    Accepts None, one int for every bond, `order` - 1 ints, or `order` + 1 ints with ones outside.
    """
    if value is None:
        return None
    numbers = _rank_numbers(value)
    if isinstance(numbers, int):
        return (numbers,) * (order - 1)
    if len(numbers) == order + 1 and numbers[0] == numbers[-1] == 1:
        return numbers[1:-1]
    if len(numbers) != order - 1:
        raise ValueError(
            f"ranks must be one int or {order - 1} ints for {order} cores "
            f"({order + 1} with a 1 at both ends is accepted too), got {len(numbers)}: {numbers}"
        )
    return numbers


def _rank_numbers(value: Any) -> int | tuple[int, ...]:
    """One rank or several, each at least 1; a float is taken for a misplaced tolerance."""
    hint = "ranks are whole numbers; for a tolerance use eps="
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray) or not np.ndim(value):
        if isinstance(value, float):
            raise TypeError(f"ranks must be an int or a sequence of ints, got {value!r}; {hint}")
        return positive_int("ranks", value)
    for rank in value:
        if isinstance(rank, float):
            raise TypeError(f"ranks must be ints, got {rank!r}; {hint}")
    return tuple(positive_int("every rank", rank) for rank in value)


def required_ranks(value: Any, order: int) -> tuple[int, ...]:
    """`value` as `order` - 1 bond ranks, which must be given."""
    return ranks(given("ranks", value), order) or ()


def given(name: str, value: Any) -> Any:
    """`value`, which must not be None."""
    if value is None:
        raise TypeError(f"{name} must be given, got None")
    return value


def sizes(name: str, value: Any) -> tuple[int, ...]:
    """`value` as mode sizes, at least one."""
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"{name} must be a sequence of ints, got {value!r}")
    checked = tuple(positive_int(f"every entry of {name}", size) for size in value)
    if not checked:
        raise ValueError(f"{name} must not be empty")
    return checked


def eps(value: Any) -> float | None:
    """`value` as a relative tolerance strictly between 0 and 1, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        raise TypeError(f"eps must be a real number, got {value!r} ({type(value).__name__})")
    number = float(value)
    if not 0.0 < number < 1.0:
        raise ValueError(
            f"eps is a relative error and must lie strictly between 0 and 1, got {value!r}; "
            "for a decomposition without loss take a small one such as 1e-12 (float64)"
        )
    return number


def truncation(
    ranks_value: Any, eps_value: Any, order: int, max_params: Any = None
) -> tuple[tuple[int, ...] | None, float | None]:
    """Check ranks and eps together: one of them, or a budget, must be given."""
    some_limit(ranks=ranks_value, eps=eps_value, max_params=max_params)
    return ranks(ranks_value, order), eps(eps_value)


_LIMITS = {
    "rank": "the number of terms",
    "ranks": "largest ranks",
    "eps": "relative error",
    "max_params": "number of values",
}


def some_limit(**options: Any) -> None:
    """Refuse a decomposition that none of its options limits."""
    if all(value is None for value in options.values()):
        *first, last = (f"{name}= ({_LIMITS[name]})" for name in options)
        raise ValueError(f"give {', '.join(first)} or {last}, or several of them; got none")


def method(value: Any) -> str:
    """One of the kernel names."""
    if value not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {value!r}")
    return str(value)


def dims(name: str, value: Any, width: int) -> tuple[int, ...]:
    """`value` as mode sizes whose product is `width`."""
    checked = sizes(name, value)
    if math.prod(checked) != width:
        raise ValueError(
            f"{name}={checked} has product {math.prod(checked)}, expected {width}; "
            f"tnlib.factorize({width}, {len(checked)}) gives modes that fit"
        )
    return checked


def pairs(rows: Sequence[int], columns: Sequence[int]) -> None:
    """Refuse row and column modes that are not equally many."""
    if len(rows) != len(columns):
        raise ValueError(
            f"row_dims and col_dims must be equally many, got {len(rows)} {rows} and "
            f"{len(columns)} {columns}; fill the shorter one with ones"
        )


def index(name: str, value: Any, count: int) -> int:
    """`value` as a position among `count`; negative ones count from the end."""
    try:
        if isinstance(value, bool):
            raise TypeError
        position = operator.index(value)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"{name} must be an integer, got {value!r} ({kind})") from None
    if not -count <= position < count:
        raise ValueError(
            f"{name} must be from {formatting.number(-count)} to {formatting.number(count - 1)}, "
            f"got {formatting.number(position)}"
        )
    return position % count


def entry(name: str, value: Any, count: int) -> int:
    """:func:`index` for entries of an array, where Python expects an IndexError."""
    try:
        return index(name, value, count)
    except ValueError as error:
        raise IndexError(str(error)) from None


def scalar(name: str, value: Any) -> Any:
    """`value`, which must be one number; NumPy's become Python's, which leave dtypes alone."""
    if isinstance(value, np.ndarray | np.number) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not (
        isinstance(value, int | float | complex) or _is_number(value)
    ):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return value


def _is_number(value: Any) -> bool:
    """Whether `value` is a tensor without axes."""
    return getattr(value, "ndim", None) == 0 and not isinstance(value, np.ndarray | np.generic)


def modes(value: Any, order: int, name: str = "modes") -> tuple[int, ...]:
    """`value` as different modes of an array of `order` axes; all of them for None."""
    if value is None:
        return tuple(range(order))
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"{name} must be a sequence of ints, got {value!r}")
    found = tuple(index(f"every entry of {name}", mode, order) for mode in value)
    if len(set(found)) < len(found):
        raise ValueError(f"{name} must be different, got {tuple(value)}")
    if not found and name == "modes":
        raise ValueError("modes must not be empty; it lists the modes to decompose")
    return found


def multilinear_ranks(value: Any, order: int) -> tuple[int, ...] | None:
    """`value` as one largest rank for each of `order` modes, or None for no limit."""
    if value is None:
        return None
    numbers = _rank_numbers(value)
    if isinstance(numbers, int):
        return (numbers,) * order
    if len(numbers) != order:
        raise ValueError(
            f"ranks must be one int or {order} ints, one per decomposed mode, got "
            f"{len(numbers)}: {numbers}"
        )
    return numbers


def tolerance(name: str, value: Any) -> float:
    """`value` as a stopping tolerance, a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a real number, got {value!r} ({type(value).__name__})")
    number = float(value)
    if not 0.0 <= number < float("inf"):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
    return number


def real(name: str, value: Any) -> float:
    """`value` as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a real number, got {value!r} ({type(value).__name__})")
    return float(value)


def flag(name: str, value: Any) -> None:
    """Refuse what is neither True, False nor None."""
    if value is not None and not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True, False or None, got {value!r}")


def real_device(library: str, device: Any) -> Any:
    """The torch device that was asked for; None for NumPy."""
    if library == "numpy":
        if str(device) != "cpu":
            raise ValueError(f"NumPy arrays live on the CPU, got device={device!r}")
        return None
    torch = import_module("torch")
    try:
        place = torch.empty(0, device=torch.device(device)).device
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"device={device!r} is not a torch device here: {error}") from error
    if place.type == "meta":
        raise ValueError("the meta device holds no data; choose a real one")
    return place
