"""In which arithmetic a contraction is computed, by the types and dtypes of its operands.

NumPy arrays are brought to their common dtype, as ``np.einsum`` does; half precision is computed in
float32 and rounded once, at the end. Tensors keep their dtype, which must be one: mixed ones are
taken under ``torch.autocast`` alone, whose products bring them together.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tnlib.arrays import backend
from tnlib.arrays.backend import Array

Kind = Literal["inexact", "integer", "bool"]

_INEXACT = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
_INTEGER = ("uint8", "int8", "int16", "int32", "int64")
# Of tensors that can be contracted.
DTYPES = ("bool", *_INTEGER, *_INEXACT)
# What autocast brings to its own dtype.
_CASTABLE = {"float16", "bfloat16", "float32"}


@dataclass(frozen=True)
class Arithmetic:
    """How operands of some types are brought together.

    Attributes
    ----------
    tensors : bool
        Whether they are torch's.
    kind : {"inexact", "integer", "bool"}
        Of the numbers.
    dtype, result : dtype
        Of the computation, and of its result.
    cast : bool
        Whether NumPy arrays have to be converted.
    mixed : str
        Names of the dtypes of tensors, where only autocast takes them together.
    """

    tensors: bool
    kind: Kind
    dtype: Any
    result: Any
    cast: bool
    mixed: str = ""

    @property
    def torch(self) -> Any:
        """The torch module for tensors, None for NumPy arrays."""
        return sys.modules["torch"] if self.tensors else None

    @classmethod
    def of(cls, pairs: Collection[tuple[type, Any]]) -> Arithmetic:
        """The arithmetic for arrays of these types and dtypes.

        Raises
        ------
        TypeError
            If the arrays are not of one library, or their dtypes are not numeric or, on torch,
            cannot be mixed.
        """
        types, dtypes = {kind for kind, _ in pairs}, {dtype for _, dtype in pairs}
        if library(types) is not None:
            return _of_tensors(dtypes)
        for dtype in dtypes:
            if dtype.kind not in "biufc":
                raise TypeError(f"arrays must be numeric, got dtype {dtype}; cast it")
        result = np.result_type(*dtypes).newbyteorder("=")
        dtype = np.dtype(np.float32) if result == np.float16 else result
        cast = dtypes != {dtype} or any(dtype.byteorder == ">" for dtype in dtypes)
        cast = cast or types != {np.ndarray}
        kind: Kind = "bool" if dtype.kind == "b" else "integer" if dtype.kind in "iu" else "inexact"
        return cls(False, kind, dtype, result, cast)

    def brought(self, arrays: Sequence[Array]) -> Sequence[Array]:
        """NumPy arrays as plain ones of the common dtype."""
        return [np.asarray(array, dtype=self.dtype) for array in arrays]

    def check_autocast(self, device: Any) -> None:
        """Refuse mixed dtypes outside of autocast."""
        if not self.torch.is_autocast_enabled(device.type):
            raise TypeError(f"tensors must be of one dtype, got {self.mixed}; cast them")


def _of_tensors(dtypes: Collection[Any]) -> Arithmetic:
    names = sorted(backend.dtype_name(dtype) for dtype in dtypes)
    for name in names:
        if name not in DTYPES:
            raise TypeError(f"tensors must be of {', '.join(DTYPES)}, got {name}; cast it")
    if len(names) > 1 and not set(names) <= _CASTABLE:
        raise TypeError(f"tensors must be of one dtype, got {', '.join(names)}; cast them")
    kind: Kind = "inexact"
    if names[0] not in _INEXACT:
        kind = "bool" if names[0] == "bool" else "integer"
    dtype = next(iter(dtypes))
    return Arithmetic(True, kind, dtype, dtype, False, ", ".join(names) if len(names) > 1 else "")


def library(types: Collection[type]) -> Any:
    """The torch module if the arrays are tensors, None if they are NumPy's.

    Raises
    ------
    TypeError
        If they are neither, or both, or masked.
    """
    torch = sys.modules.get("torch")
    tensors = torch is not None and all(issubclass(kind, torch.Tensor) for kind in types)
    if tensors:
        return torch
    if any(issubclass(kind, np.ma.MaskedArray) for kind in types):
        raise TypeError(
            "a masked array was given, and its mask would be lost; fill its holes first, "
            "with filled()"
        )
    if all(issubclass(kind, np.ndarray | np.generic) for kind in types):
        return None
    names = ", ".join(sorted(f"{kind.__module__}.{kind.__qualname__}" for kind in types))
    raise TypeError(
        f"all arrays must be NumPy arrays or torch tensors, of one library, got {names}; convert "
        "them with numpy.asarray, torch.from_numpy or tensor.numpy()"
    )


def arrays_of(operands: Sequence[Any], others: Sequence[Array] = ()) -> tuple[Array, ...]:
    """Operands of which Python's numbers have become arrays, in the library of the rest.

    NumPy gives a number the dtype that ``np.asarray`` gives it; beside tensors it takes theirs.
    """
    if all(hasattr(operand, "dtype") for operand in operands):
        return tuple(operands)
    torch = sys.modules.get("torch")
    known = [*operands, *others]
    tensors = [] if torch is None else [x for x in known if isinstance(x, torch.Tensor)]

    def array_of(operand: Any) -> Array:
        if not isinstance(operand, bool | int | float | complex) or hasattr(operand, "dtype"):
            return operand
        if not tensors or torch is None:
            return np.asarray(operand)
        like = tensors[0]
        dtype = torch.result_type(like, operand)
        return torch.asarray(operand, dtype=dtype, device=like.device)

    return tuple(map(array_of, operands))


def compiling() -> bool:
    """Whether torch captures the calls that are made; it follows this function too."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.compiler.is_compiling())


def has_symbols(about: Sequence[tuple[type, Any, Any]]) -> bool:
    """Whether a size is no number yet, in a graph that is made for any."""
    return any(not isinstance(size, int) for _, _, shape in about for size in shape)
