"""The number formats of safetensors files as NumPy's, those that NumPy lacks by ml_dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np

# Names of dtypes by those of safetensors.
NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
FLOATING = ("float64", "float32", "float16", "bfloat16", *FLOAT8, "complex64", "complex128")
# What quantised checkpoints keep their codes in.
CODES = ("int32", "int16", "int8", "uint32", "uint16", "uint8", "F4", "F6_E2M3", "F6_E3M2")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of a name; ml_dtypes is imported for those that NumPy lacks.

    Raises
    ------
    ValueError
        If neither has it.
    """
    if name not in NAMES.values():
        raise ValueError(f"numbers of the format {name} cannot be read")
    if name.startswith(("bfloat16", "float8")):
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return dtype
    return np.dtype(name)


def widened(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Floating-point numbers in single precision or better."""
    kind = values.dtype
    if kind in (np.float32, np.float64, np.complex64, np.complex128):
        return values
    return values.astype(np.float32)
