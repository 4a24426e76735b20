"""Running one step: a matrix product between views, with all shapes worked out beforehand.

The indices of two factors fall into four groups: those of both that stay (a batch), those of both
that are summed, and those of one alone. A product is then a (batched) matrix product of two
reshaped arrays. What does not fit, diagonals and sums of one array, goes to the library's einsum.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tnlib.contraction.network import Network, Shape
from tnlib.contraction.tree import Step

Run = Callable[..., Any]


def ordered(network: Network, steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps with every result's indices in the order in which its product leaves them.

    Only the last result's order is the caller's.
    """
    terms = list(network.terms)
    done: list[Step] = []
    for step in steps:
        taken = tuple(terms[n] for n in step.inputs)
        result = step.result
        if len(taken) == 2 and len(done) < len(steps) - 1:
            batch, rows, columns, _ = groups(*taken, result)
            made = dict.fromkeys(batch + rows + columns)
            result = "".join(index for index in made if index in result)
        done.append(Step(step.inputs, taken, result))
        terms.append(result)
    return tuple(done)


def groups(left: str, right: str, result: str) -> tuple[str, str, str, str]:
    """Indices of a batch, of the left and of the right factor alone, and summed ones."""
    kept = set(result)
    batch = "".join(index for index in left if index in right and index in kept)
    summed = "".join(index for index in left if index in right and index not in kept)
    only_left = "".join(index for index in left if index not in right)
    only_right = "".join(index for index in right if index not in left)
    return batch, only_left, only_right, summed


def plain(left: str, right: str, result: str) -> bool:
    """Whether no factor repeats an index or has one that it alone sums."""
    if len(set(left)) < len(left) or len(set(right)) < len(right):
        return False
    return (set(left) ^ set(right)) <= set(result)


def copies(step: Step, sizes: Mapping[str, int]) -> int:
    """Values that a product of two contiguous arrays copies to bring them into groups."""
    left, right = step.terms
    if not plain(left, right, step.result):
        return 0
    batch, rows, columns, summed = arranged(left, right, step.result, sizes)
    pairs = ((left, (batch, rows, summed)), (right, (batch, summed, columns)))
    moved = [term for term, wanted in pairs if not _is_view(term, wanted, sizes)]
    return sum(_volume(term, sizes) for term in moved)


def _is_view(term: str, wanted: Sequence[str], sizes: Mapping[str, int]) -> bool:
    """Whether the groups can be had of a contiguous array without a copy."""
    real = "".join(index for index in term if sizes[index] > 1)
    groups_ = ["".join(index for index in group if sizes[index] > 1) for group in wanted]
    return all(group in real for group in groups_) and not (groups_[0] and real[-1:] in groups_[0])


def arranged(
    left: str, right: str, result: str, sizes: Mapping[str, int]
) -> tuple[str, str, str, str]:
    """The groups, summed indices in the order of the larger array, which then needs no copy."""
    batch, rows, columns, summed = groups(left, right, result)
    if _volume(columns, sizes) > _volume(rows, sizes):
        summed = "".join(index for index in right if index in summed)
    return batch, rows, columns, summed


def compiled(step: Step, shapes: Sequence[Shape], torch: Any) -> Run:
    """A function of the arrays of one step, for arrays of the given shapes.

    `torch` is the torch module for tensors, None for NumPy arrays.
    """
    einsum = np.einsum if torch is None else torch.einsum
    if len(step.terms) == 1 or not plain(step.terms[0], step.terms[1], step.result):
        equation = _relabelled(step.equation)
        return lambda *arrays: einsum(equation, *arrays)
    sizes = dict(zip("".join(step.terms), (n for s in shapes for n in s), strict=True))
    left, right = step.terms
    batch, rows, columns, summed = arranged(left, right, step.result, sizes)
    if batch and summed and not rows and not columns:
        equation = _relabelled(step.equation)
        return lambda a, b: einsum(equation, a, b)
    a = _view(left, (batch, rows, summed), sizes, torch)
    b = _view(right, (batch, summed, columns), sizes, torch)
    back = _split((batch, rows, columns), step.result, sizes, torch)
    if not summed:
        return _chain(a, b, _multiplied, back)
    return _chain(a, b, _numpy_batches if batch and torch is None else _matmul, back)


def _matmul(a: Any, b: Any) -> Any:
    return a @ b


def _numpy_batches(a: Any, b: Any) -> Any:
    """A batched product; NumPy calls BLAS only where one of the last two strides is one entry."""
    return _blas(a) @ _blas(b)


def _blas(x: Any) -> Any:
    return x if x.itemsize in x.strides[-2:] else np.ascontiguousarray(x)


def _multiplied(a: Any, b: Any) -> Any:
    return a * b


def _chain(a: Run | None, b: Run | None, product: Run, back: Run | None) -> Run:
    def run(x: Any, y: Any) -> Any:
        if a is not None:
            x = a(x)
        if b is not None:
            y = b(y)
        z = product(x, y)
        return z if back is None else back(z)

    return run


def _grouped(wanted: tuple[str, str, str], sizes: Mapping[str, int]) -> Shape:
    """One axis a group; none where there is no batch."""
    batch, *matrix = (_volume(group, sizes) for group in wanted)
    return (batch, *matrix) if wanted[0] else tuple(matrix)


def _view(
    term: str, wanted: tuple[str, str, str], sizes: Mapping[str, int], torch: Any
) -> Run | None:
    """Bring an array with indices `term` into groups."""
    order = "".join(wanted)
    shape = _grouped(wanted, sizes)
    if order == term:
        unchanged = shape == tuple(sizes[index] for index in order)
        return None if unchanged else lambda x: x.reshape(shape)
    permute = np.transpose if torch is None else torch.permute
    axes = tuple(term.index(index) for index in order)
    return lambda x: permute(x, axes).reshape(shape)


def _split(
    made: tuple[str, str, str], result: str, sizes: Mapping[str, int], torch: Any
) -> Run | None:
    """Bring a product with grouped axes into single indices in the order of the result."""
    order = "".join(made)
    shape = tuple(sizes[index] for index in order)
    if order == result:
        return None if shape == _grouped(made, sizes) else lambda x: x.reshape(shape)
    permute = np.transpose if torch is None else torch.permute
    axes = tuple(order.index(index) for index in result)
    return lambda x: permute(x.reshape(shape), axes)


def _volume(group: str, sizes: Mapping[str, int]) -> int:
    product = 1
    for index in group:
        product *= sizes[index]
    return product


def _relabelled(equation: str) -> str:
    """The equation of one step in the letters that every einsum knows."""
    symbols = sorted({symbol for symbol in equation if symbol not in ",->"})
    if len(symbols) > len(string.ascii_letters):
        raise ValueError(
            f"a step has {len(symbols)} indices and einsum takes {len(string.ascii_letters)}: "
            f"{equation}"
        )
    names = dict(zip(symbols, string.ascii_letters, strict=False))
    return "".join(names.get(symbol, symbol) for symbol in equation)
