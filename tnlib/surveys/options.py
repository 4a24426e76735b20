"""What a survey looks at, and how hard."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tnlib.arrays import checks

DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Options:
    """Everything that the numbers of a survey depend on, beside the weights.

    Attributes
    ----------
    shapes : tuple of str
        Formats of every matrix: ``mpo-3`` is an operator of three cores, ``tt-4`` a train of four.
    budgets : tuple of float
        Numbers of values, as shares of those of the matrix; curves end at the largest.
    eps : tuple of float
        Relative errors for which the fewest values are looked for.
    select, exclude : str or None
        Regular expressions for the names of matrices: what is looked at, and what of it is not.
    dtype : str or None
        Precision of the arithmetic; None for that of the weights, float32 at least.
    device : str or None
        Device of torch on which to compute; None for NumPy.
    exact_side : int
        Matrices whose smaller side is longer have the leading part of their spectrum only.
    leading : int
        How many singular values that part has.
    factors : int
        Of an update, so many singular vectors are kept for methods that are fitted to it.
    """

    shapes: tuple[str, ...] = ("mpo-2", "mpo-3", "tt-4")
    budgets: tuple[float, ...] = (0.01, 0.05, 0.2)
    eps: tuple[float, ...] = (0.5, 0.2, 0.1)
    select: str | None = None
    exclude: str | None = None
    dtype: str | None = None
    device: str | None = None
    exact_side: int = 2048
    leading: int = 256
    factors: int = 0

    def wanted(self, name: str) -> bool:
        """Whether a matrix of this name is looked at."""
        if self.select is not None and not re.search(self.select, name):
            return False
        return self.exclude is None or not re.search(self.exclude, name)

    def as_json(self) -> dict[str, Any]:
        """The fields, with lists for tuples."""
        found = asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in found.items()}


def checked_options(
    shapes: Sequence[str],
    budgets: float | Sequence[float],
    eps: float | Sequence[float],
    **others: Any,
) -> Options:
    """Options, or an error that says which is wrong.

    Raises
    ------
    TypeError, ValueError
        If one has the wrong type or value.
    """
    for name in ("select", "exclude"):
        pattern = others[name]
        if pattern is not None and not isinstance(pattern, str):
            raise TypeError(f"{name} must be a regular expression, got {pattern!r}")
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{name}={pattern!r} is no regular expression: {error}") from error
    if others["dtype"] not in (None, *DTYPES):
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {others['dtype']!r}")
    if others["device"] is not None:
        checks.real_device("torch", others["device"])
        others["device"] = str(others["device"])
    for name in ("exact_side", "leading"):
        checks.positive_int(name, others[name])
    return Options(_shapes(shapes), _shares("budget", budgets), _shares("eps", eps), **others)


def _shapes(shapes: Sequence[str]) -> tuple[str, ...]:
    if isinstance(shapes, str):
        shapes = [shapes]
    for shape in shapes:
        match = re.fullmatch(r"(mpo|tt)-(\d{1,2})", shape) if isinstance(shape, str) else None
        if not match or int(match[2]) < 2 or (match[1] == "tt" and int(match[2]) % 2):
            raise ValueError(
                f"shapes are like 'mpo-2' or 'tt-4' (a train of an even number of cores, half of "
                f"them for the rows), got {shape!r}"
            )
    return tuple(dict.fromkeys(shapes))


def _shares(name: str, values: Any) -> tuple[float, ...]:
    """Numbers above 0 and at most 1, descending."""
    given = values if isinstance(values, Sequence) and not isinstance(values, str) else [values]
    found = {checks.real(f"every {name}", value) for value in given}
    if not found or not all(0 < value <= 1 for value in found):
        raise ValueError(f"{name} must be numbers above 0 and at most 1, got {values!r}")
    return tuple(sorted(found, reverse=name == "eps"))
