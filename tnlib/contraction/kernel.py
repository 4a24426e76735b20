"""Running one step, with all shapes worked out beforehand.

NumPy's products and sums know every dtype. torch has none for booleans, whose sum is "or" and whose
product is "and", sums integers into int64, and multiplies matrices of them on the CPU alone.
"""

from __future__ import annotations

import string
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tnlib.contraction.arithmetic import Kind
from tnlib.contraction.layout import Groups, Layout, volume
from tnlib.contraction.network import Shape
from tnlib.contraction.tree import Step

Run = Callable[..., Any]
# Products that are formed at a time where integers have no matrix product.
_BLOCK = 1 << 24


def compiled(step: Step, shapes: Sequence[Shape], torch: Any, kind: Kind = "inexact") -> Run:
    """A function of the arrays of one step, for arrays of the given shapes.

    `torch` is the torch module for tensors, None for NumPy arrays; `kind` says what numbers they
    hold.
    """
    if torch is not None and kind == "bool":
        return _truth(compiled(step, shapes, torch), torch)
    exact = torch is not None and kind == "integer"
    if len(step.terms) == 1:
        return _kept(_einsum(step.equation, torch)) if exact else _einsum(step.equation, torch)
    sizes = dict(zip("".join(step.terms), (n for s in shapes for n in s), strict=True))
    layout = Layout.of(step, sizes)
    (left, left_groups), (right, right_groups) = layout.sides
    return _chain(
        _view(step.terms[0], left, left_groups, sizes, torch, exact),
        _view(step.terms[1], right, right_groups, sizes, torch, exact),
        _product(layout, torch, exact),
        _split(layout.made, step.result, sizes, torch),
    )


def traceable(equation: str, arrays: Sequence[Any]) -> Any:
    """An einsum of one step on tensors of any kind and size, as plain calls of torch."""
    torch, first = sys.modules["torch"], arrays[0]
    named = _relabelled(equation)
    if first.dtype == torch.bool:
        return torch.einsum(named, *[array.to(torch.float32) for array in arrays]) != 0
    if first.dtype.is_floating_point or first.dtype.is_complex:
        return torch.einsum(named, *arrays)
    if len(arrays) == 2 and first.device.type not in ("cpu", "meta"):
        raise TypeError("a captured graph multiplies integers on the CPU alone; cast them to float")
    return torch.einsum(named, *arrays).to(first.dtype)


def _truth(run: Run, torch: Any) -> Run:
    """Booleans by way of numbers that are zero or positive: a sum of them is zero or not."""
    return lambda *arrays: run(*(array.to(torch.float32) for array in arrays)) != 0


def _kept(run: Run) -> Run:
    """A sum of integers in their own dtype, modulo its range."""
    return lambda array: run(array).to(array.dtype)


def _product(layout: Layout, torch: Any, exact: bool) -> Run:
    """The product of two grouped arrays."""
    if not layout.summed:
        return _multiplied if torch is not None else np.multiply
    if exact:
        return _integer_product
    if not layout.batch:
        return _matmul
    if not layout.rows and not layout.columns:
        # One sum a matrix: a row times a column.
        return _einsum("abc,acd->abd", torch)
    return _matmul if torch is not None else _numpy_batches


def _einsum(equation: str, torch: Any) -> Run:
    einsum = np.einsum if torch is None else torch.einsum
    named = _relabelled(equation)
    return lambda *arrays: einsum(named, *arrays)


def _matmul(a: Any, b: Any) -> Any:
    return a @ b


def _numpy_batches(a: Any, b: Any) -> Any:
    """A batched product; NumPy calls BLAS only where one of the last two strides is one entry."""
    return _blas(a) @ _blas(b)


def _blas(x: Any) -> Any:
    return x if x.itemsize in x.strides[-2:] else np.ascontiguousarray(x)


def _multiplied(a: Any, b: Any) -> Any:
    return a * b


def _integer_product(a: Any, b: Any) -> Any:
    """Matrix product of integers, which torch has on the CPU."""
    return a @ b if a.device.type in ("cpu", "meta") else in_blocks(a, b)


def in_blocks(a: Any, b: Any) -> Any:
    """Matrix product by multiplying and adding, a block of the summed index at a time."""
    size, total = a.shape[-1], None
    entries = max(1, a[..., :1].numel() * b.shape[-1])
    width = max(1, _BLOCK // entries)
    for start in range(0, max(size, 1), width):
        left, right = a[..., start : start + width, None], b[..., None, start : start + width, :]
        part = (left * right).sum(-2, dtype=a.dtype)
        total = part if total is None else total + part
    return total


def _chain(a: Run | None, b: Run | None, product: Run, back: Run | None) -> Run:
    def run(x: Any, y: Any) -> Any:
        if a is not None:
            x = a(x)
        if b is not None:
            y = b(y)
        z = product(x, y)
        return z if back is None else back(z)

    return run


def _grouped(wanted: Groups, sizes: Mapping[str, int]) -> Shape:
    """One axis a group; none where there is no batch."""
    batch, *matrix = (volume(group, sizes) for group in wanted)
    return (batch, *matrix) if wanted[0] else tuple(matrix)


def _view(
    term: str, side: str, wanted: Groups, sizes: Mapping[str, int], torch: Any, exact: bool
) -> Run | None:
    """Bring an array with indices `term` into groups, after its own sums if it has any."""
    kept = [index for index in term if sizes[index] != 1]
    if len(kept) > len(side):
        sums = _einsum(f"{term}->{side}", torch)
        if exact:
            sums = _kept(sums)
        rest = _view(side, side, wanted, sizes, torch, exact)
        return sums if rest is None else lambda x: rest(sums(x))
    order = "".join(wanted)
    shape = _grouped(wanted, sizes)
    if order == side:
        unchanged = shape == tuple(sizes[index] for index in term)
        return None if unchanged else lambda x: x.reshape(shape)
    permute = np.transpose if torch is None else torch.permute
    axes = tuple(side.index(index) for index in order)
    if term == side:
        return lambda x: permute(x, axes).reshape(shape)
    present = tuple(sizes[index] for index in side)
    return lambda x: permute(x.reshape(present), axes).reshape(shape)


def _split(made: Groups, result: str, sizes: Mapping[str, int], torch: Any) -> Run | None:
    """Bring a product with grouped axes into single indices in the order of the result."""
    order = "".join(made)
    kept = "".join(index for index in result if sizes[index] != 1)
    final = tuple(sizes[index] for index in result)
    if order == kept:
        return None if final == _grouped(made, sizes) else lambda x: x.reshape(final)
    permute = np.transpose if torch is None else torch.permute
    shape = tuple(sizes[index] for index in order)
    axes = tuple(order.index(index) for index in kept)
    if kept == result:
        return lambda x: permute(x.reshape(shape), axes)
    return lambda x: permute(x.reshape(shape), axes).reshape(final)


def _relabelled(equation: str) -> str:
    """The equation of one step in the letters that every einsum knows."""
    symbols = sorted({symbol for symbol in equation if symbol not in ",->"})
    if len(symbols) > len(string.ascii_letters):
        raise ValueError(
            f"a step has {len(symbols)} indices and einsum takes {len(string.ascii_letters)}: "
            f"{equation}"
        )
    names = dict(zip(symbols, string.ascii_letters[: len(symbols)], strict=True))
    return "".join(names.get(symbol, symbol) for symbol in equation)
