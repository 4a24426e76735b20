"""Numbers and tuples as one line of text, however large or long."""

from __future__ import annotations

from collections.abc import Sequence

# Entries of a tuple up to which all are shown, and how many are shown at both ends of a longer one.
_SHOWN, _ENDS = 9, 3


def number(value: int) -> str:
    """An integer, or from 10^16 its size: ``"about 2^4096"``."""
    if abs(value) < 10**16:
        return str(value)
    exponent = (value * value).bit_length() // 2
    exact = "" if abs(value) == 1 << exponent else "about "
    return f"{exact}{'-' if value < 0 else ''}2^{exponent}"


def sizes(values: Sequence[int]) -> str:
    """A tuple of integers, those in the middle left out where there are many.

    Examples
    --------
    >>> sizes((2, 3)), sizes((4,)), sizes((2,) * 40)
    ('(2, 3)', '(4,)', '(2, 2, 2, ..., 2, 2, 2)')
    """
    shown = [number(value) for value in values]
    if len(shown) > _SHOWN:
        shown[_ENDS:-_ENDS] = ["..."]
    return f"({shown[0]},)" if len(shown) == 1 else f"({', '.join(shown)})"


def modes(values: Sequence[int] | Sequence[Sequence[int]]) -> str:
    """Mode sizes, or those of rows and columns."""
    if isinstance(values[0], int):
        return sizes([int(value) for value in values if isinstance(value, int)])
    return " x ".join(sizes(part) for part in values if not isinstance(part, int))
