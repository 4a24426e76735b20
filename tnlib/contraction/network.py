"""A tensor network as einsum writes it: which operand has which indices, and how large they are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from operator import or_

from opt_einsum.parser import parse_einsum_input

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """Operands as strings of indices, the indices of the result, and their sizes.

    A set of indices is written as an integer with one bit for each, so that unions and
    intersections, which a search makes by the million, are single operations.
    """

    terms: tuple[str, ...]
    output: str
    shapes: tuple[Shape, ...]

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
        """The same network with operands of other shapes."""
        return parsed(self.equation, shapes)


def parsed(equation: str, shapes: Sequence[Shape]) -> Network:
    """Read an einsum equation for operands of the given shapes.

    An ellipsis and an implicit result mean what they mean in NumPy.

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
    count = equation.split("->")[0].count(",") + 1
    if count != len(shapes):
        raise ValueError(f"{equation!r} has {count} operands, got {len(shapes)} shapes")
    try:
        inputs, output, _ = parse_einsum_input((equation, *shapes), shapes=True)
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{equation!r} is not an einsum equation: {error}") from None
    terms = tuple(inputs.split(","))
    _check_sizes(terms, shapes)
    if len(set(output)) < len(output):
        raise ValueError(f"the result {output!r} names an index twice")
    unknown = sorted(set(output) - set(inputs))
    if unknown:
        raise ValueError(f"the result has indices that no operand has: {', '.join(unknown)}")
    return Network(terms, output, tuple(tuple(int(n) for n in shape) for shape in shapes))


def _check_sizes(terms: Sequence[str], shapes: Sequence[Shape]) -> None:
    sizes: dict[str, int] = {}
    for k, (term, shape) in enumerate(zip(terms, shapes, strict=True)):
        if len(term) != len(shape):
            raise ValueError(
                f"operand {k} has the indices {term!r}, {len(term)} of them, and the shape "
                f"{tuple(shape)}, {len(shape)} axes"
            )
        for index, size in zip(term, shape, strict=True):
            if sizes.setdefault(index, size) != size:
                raise ValueError(
                    f"index {index!r} has size {sizes[index]} and, in operand {k}, {size}; sizes "
                    "are not broadcast"
                )
