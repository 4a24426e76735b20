"""The interleaved form of einsum: every operand is followed by the list of its indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opt_einsum import get_symbol


def equation_of(equation: Any, operands: Sequence[Any]) -> tuple[str, tuple[Any, ...]]:
    """An equation and the operands from either form of einsum's arguments.

    The interleaved form is ``A, [0, 1], B, [1, 2], [0, 2]``; indices are integers or other names
    that can be sorted, and an ellipsis. Without the last list the result has, in their order, the
    indices that occur once.

    Raises
    ------
    TypeError
        If the first argument is neither an equation nor an operand that a list of indices follows.
    """
    if isinstance(equation, str):
        return equation, tuple(operands)
    number = isinstance(equation, int | float | complex)
    if not operands or equation is None or (number and not _without_axes(operands[0])):
        raise TypeError(f"equation must be a string, got {type(equation).__name__}")
    arguments = [equation, *operands]
    half = len(arguments) // 2
    taken, lists = arguments[: 2 * half : 2], arguments[1 : 2 * half : 2]
    written = [*lists, *arguments[2 * half :]]
    for indices in written:
        if isinstance(indices, str) or not isinstance(indices, Sequence):
            raise TypeError(
                "equation must be a string, or every operand be followed by the list of its "
                f"indices, got {type(indices).__name__} where such a list was expected"
            )
    names = [index for indices in written for index in indices if index is not Ellipsis]
    try:
        symbols = {index: get_symbol(k) for k, index in enumerate(sorted(set(names)))}
    except TypeError as error:
        raise TypeError(f"indices must be integers, or other names of one type: {error}") from None
    terms = ["".join([symbols.get(i, "...") for i in indices]) for indices in written]
    if len(written) > half:
        return f"{','.join(terms[:half])}->{terms[half]}", tuple(taken)
    open_ = "".join([symbol for index, symbol in symbols.items() if names.count(index) == 1])
    dots = "..." if any("..." in term for term in terms) else ""
    return f"{','.join(terms)}->{dots}{open_}", tuple(taken)


def _without_axes(indices: Any) -> bool:
    """Whether these are the indices of a number: none, or an ellipsis that stands for none."""
    return isinstance(indices, Sequence) and all(index is Ellipsis for index in indices)
