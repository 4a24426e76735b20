"""A tensor network as einsum writes it: which operand has which indices, and how large they are."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from itertools import count
from operator import or_

from opt_einsum.parser import get_symbol, parse_einsum_input

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """Operands as strings of indices, the indices of the result, and their sizes.

    A set of indices is written as an integer with one bit for each, so that unions and
    intersections, which a search makes by the million, are single operations.

    Attributes
    ----------
    terms : tuple of str
        Indices of every operand.
    output : str
        Indices of the result.
    shapes : tuple of tuple of int
        Shapes of the operands.
    written : str
        The equation as it was given, with its ellipsis; empty for a network made otherwise.
    stretched : str
        Indices, each of one operand alone, that stand for its axes of size one where an ellipsis
        broadcasts.
    """

    terms: tuple[str, ...]
    output: str
    shapes: tuple[Shape, ...]
    written: str = ""
    stretched: str = ""

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Size of every index, in the order in which they appear."""
        pairs = zip("".join(self.terms), (n for shape in self.shapes for n in shape), strict=True)
        return dict(pairs)

    @property
    def equation(self) -> str:
        """The einsum equation, explicit."""
        return f"{','.join(self.terms)}->{self.output}"

    @cached_property
    def _bits(self) -> dict[str, int]:
        return {index: 1 << k for k, index in enumerate(self.sizes)}

    @cached_property
    def _volumes(self) -> dict[int, int]:
        return {0: 1}

    def mask(self, indices: Iterable[str]) -> int:
        """The set of `indices`."""
        bits = self._bits
        return reduce(or_, (bits[index] for index in indices), 0)

    def volume(self, mask: int) -> int:
        """Product of the sizes of a set of indices."""
        known = self._volumes.get(mask)
        if known is None:
            chosen = (n for k, n in enumerate(self.sizes.values()) if mask >> k & 1)
            known = self._volumes[mask] = math.prod(chosen)
        return known

    @cached_property
    def masks(self) -> tuple[int, ...]:
        """The indices of every operand."""
        return tuple(self.mask(term) for term in self.terms)

    @cached_property
    def needed(self) -> dict[int, int]:
        """A memory for searches: the indices that are needed outside of a set of operands."""
        return {}

    @cached_property
    def open(self) -> int:
        """The indices of the result."""
        return self.mask(self.output)

    def resized(self, shapes: Sequence[Shape]) -> Network:
        """The same network with operands of other shapes; an ellipsis is read anew."""
        return parsed(self.written or self.equation, shapes)


def parsed(equation: str, shapes: Sequence[Shape]) -> Network:
    """Read an einsum equation for operands of the given shapes.

    An ellipsis and an implicit result mean what they mean in NumPy: axes of an ellipsis that have
    size one are broadcast. Indices with a name are not: a size of one that meets another is an
    error, as it is one of the caller's in a network.

    Raises
    ------
    TypeError
        If `equation` is not a string.
    ValueError
        If it is malformed or does not fit the shapes.
    """
    if not isinstance(equation, str):
        raise TypeError(f"equation must be a string, got {type(equation).__name__}")
    return _parsed(equation, tuple(tuple(shape) for shape in shapes))


@lru_cache(maxsize=4096)
def _parsed(equation: str, shapes: tuple[Shape, ...]) -> Network:
    operands = equation.split("->")[0].count(",") + 1
    if operands != len(shapes):
        raise ValueError(f"{equation!r} has {operands} operands, got {len(shapes)} shapes")
    try:
        inputs, output, _ = parse_einsum_input((equation, *shapes), shapes=True)
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{equation!r} is not an einsum equation: {error}") from None
    unnamed = set(inputs) - set(equation) - {","}
    shapes = tuple(tuple(int(n) for n in shape) for shape in shapes)
    terms, stretched = _broadcast(tuple(inputs.split(",")), shapes, unnamed)
    check_sizes(terms, shapes, unnamed)
    if len(set(output)) < len(output):
        raise ValueError(f"the result {output!r} names an index twice")
    unknown = sorted(set(output) - set(inputs))
    if unknown:
        raise ValueError(f"the result has indices that no operand has: {', '.join(unknown)}")
    return Network(terms, output, shapes, equation, stretched)


def _broadcast(
    terms: tuple[str, ...], shapes: Sequence[Shape], unnamed: Collection[str]
) -> tuple[tuple[str, ...], str]:
    """Terms in which an axis of size one that an ellipsis broadcasts has an index of its own.

    That index is summed, over its one value, and the operand is multiplied with the others as if
    it did not have the axis.
    """
    pairs = [
        list(zip(term, shape, strict=False)) for term, shape in zip(terms, shapes, strict=True)
    ]
    wide = {index for row in pairs for index, size in row if index in unnamed and size != 1}
    free = (symbol for symbol in map(get_symbol, count()) if symbol not in "".join(terms))
    made = ["".join(next(free) if n == 1 and i in wide else i for i, n in row) for row in pairs]
    fits = [len(row) == len(term) for row, term in zip(pairs, terms, strict=True)]
    named = tuple(new if fit else old for new, old, fit in zip(made, terms, fits, strict=True))
    return named, "".join(sorted(set("".join(named)) - set("".join(terms))))


def check_sizes(
    terms: Sequence[str], shapes: Sequence[Shape], unnamed: Collection[str] = ()
) -> None:
    """Refuse shapes that do not fit the indices."""
    sizes: dict[str, int] = {}
    for k, (term, shape) in enumerate(zip(terms, shapes, strict=True)):
        if len(term) != len(shape):
            raise ValueError(
                f"operand {k} has the indices {term!r}, {len(term)} of them, and the shape "
                f"{tuple(shape)}, {len(shape)} axes"
            )
        for index, size in zip(term, shape, strict=True):
            if sizes.setdefault(index, size) != size:
                what = "an axis of the ellipsis" if index in unnamed else f"index {index!r}"
                raise ValueError(
                    f"{what} has size {sizes[index]} and, in operand {k}, {size}; named indices "
                    "are not broadcast, and of an ellipsis sizes of one are"
                )
