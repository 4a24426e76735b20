"""A user's function of indices: called in batches, counted, and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import array_checks, backend
from tnlib.arrays.backend import Array

Vector = np.ndarray[Any, np.dtype[Any]]

# Index vectors of one call.
_CALL = 1 << 18


class Exhausted(Exception):
    """The next call would be one too many."""


@dataclass
class Sampled:
    """A function of index vectors over a grid, and what is known of it so far.

    `seen` has the dtype, library and device of the values, `zero` says that none was not 0.
    """

    function: Callable[[Any], Any]
    shape: tuple[int, ...]
    like: Array | None
    most: int
    evaluations: int = 0
    seen: Array = field(default=None)
    zero: bool = True

    def __call__(self, count: int, rows: Callable[[Vector], Vector], reserve: int = 0) -> Vector:
        """Values (count,) in double precision, at the index vectors that `rows` gives for numbers.

        Raises
        ------
        Exhausted
            If these and `reserve` more would be too many.
        """
        if self.evaluations + count + reserve > self.most:
            raise Exhausted
        pieces = [
            self._values(rows(np.arange(start, min(start + _CALL, count))))
            for start in range(0, count, _CALL)
        ]
        return np.concatenate(pieces)

    def _values(self, index: Vector) -> Vector:
        passed = index.copy()
        given: Any = passed if self.like is None else backend.from_numpy(passed, self.like)
        values = self.function(given)
        self.evaluations += len(index)
        try:
            backend.namespace(values)
        except TypeError:
            raise TypeError(
                "function must return a NumPy array or a torch tensor, got "
                f"{type(values).__name__}; it is called with many index vectors at once"
            ) from None
        if tuple(values.shape) != (len(index),):
            raise ValueError(
                f"function must return an array of shape ({len(index)},) for index vectors of "
                f"shape {index.shape}, one value for each; got shape {tuple(values.shape)}. For a "
                "function g of one index vector pass "
                "lambda index: np.array([g(*row) for row in index])"
            )
        values = array_checks.tensor("what function returns", values)
        self._note(values)
        xp = array_namespace(values)
        wide = backend.to_numpy(backend.astype(values, backend.double(xp, values.dtype)))
        wrong = np.flatnonzero(~np.isfinite(wide))
        if wrong.size:
            at = tuple(map(int, index[wrong[0]]))
            raise ValueError(
                f"function gave {wide[wrong[0]]} at {at}; a train needs finite values everywhere"
            )
        self.zero = self.zero and not wide.any()
        return wide

    def _note(self, values: Array) -> None:
        """Remember the common dtype of all values."""
        xp = array_namespace(values)
        dtype = values.dtype
        if xp.isdtype(dtype, ("bool", "integral")):
            dtype = backend.default_float(xp)
        if self.seen is not None:
            if backend.is_torch(self.seen) != backend.is_torch(values):
                raise TypeError("function returned NumPy arrays and torch tensors in turn")
            dtype = xp.result_type(dtype, self.seen.dtype)
        self.seen = xp.empty(0, dtype=dtype, device=values.device)


def grid(left: Vector, size: int, right: Vector) -> tuple[int, Callable[[Vector], Vector]]:
    """Number of the index vectors (left, i, right), and what gives those of given numbers."""
    count = len(left) * size * len(right)

    def rows(numbers: Vector) -> Vector:
        outer, column = np.divmod(numbers, len(right))
        row, middle = np.divmod(outer, size)
        return np.concatenate([left[row], middle[:, None], right[column]], axis=1)

    return count, rows


def random_indices(rng: np.random.Generator, shape: Sequence[int], count: int) -> Vector:
    """Uniform index vectors (count, d)."""
    columns = [rng.integers(0, size, count) for size in shape]
    return np.stack(columns, axis=1) if columns else np.zeros((count, 0), np.int64)
