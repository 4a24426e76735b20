"""Decompositions in files: many of them, by name, in one safetensors file.

The arrays are stored bit for bit. bfloat16 numbers are stored as 16-bit integers and complex ones
as pairs of real ones, since safetensors has no such NumPy arrays; the dtype and everything else
that a decomposition knows of itself is JSON in the metadata. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, overload

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialized

from tnlib.arrays import array_checks, backend, checks
from tnlib.arrays.backend import Array
from tnlib.common import atomic
from tnlib.common.type_aliases import ArrayT, Device, Library, NumPyArray
from tnlib.cp.format import CP
from tnlib.io.records import KEY, KINDS, Record, read_records, record_of, written_records
from tnlib.result import Format
from tnlib.trains.chain import Chain
from tnlib.trains.mpo import MPO
from tnlib.trains.tt import TT
from tnlib.tucker.format import Tucker

if TYPE_CHECKING:
    import torch

LIBRARIES = get_args(Library)
# What a file holds.
Decomposition: TypeAlias = TT[ArrayT] | MPO[ArrayT] | Tucker[ArrayT] | CP[ArrayT]


def save(path: str | os.PathLike[str], decompositions: Mapping[str, Format]) -> None:
    """Write decompositions to one file, which appears whole or not at all.

    Parameters
    ----------
    path : path
        The file, by convention ``.safetensors``; one that is there is replaced.
    decompositions : mapping of str to TT, MPO, Tucker or CP
        Names are free, such as ``"model.layers.0.q_proj"``. NumPy and torch may be mixed; torch
        parameters are stored as data.

    Raises
    ------
    TypeError
        If `decompositions` is not such a mapping, or an array is not of floating point.
    ValueError
        If it is empty, a tensor holds no data, or a record cannot be written, such as an error
        that is nan.
    OSError
        If the file cannot be written; FileNotFoundError if its folder is missing.

    Examples
    --------
    >>> import tempfile
    >>> from tnlib import tt_random
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/model.safetensors", {"layers.0": tt_random((4, 5, 6), 2)})
    ...     load(f"{folder}/model.safetensors")
    {'layers.0': TT(shape=(4, 5, 6), ranks=(1, 2, 2, 1), n_params=40, error=None)}
    """
    target = Path(path)
    if not isinstance(decompositions, Mapping):
        raise TypeError(
            "expected a mapping of names to decompositions, got "
            f"{type(decompositions).__name__}; for one decomposition pass {{'name': it}}"
        )
    if not decompositions:
        raise ValueError("there is nothing to save: the mapping is empty")
    stored: dict[str, np.ndarray[Any, Any]] = {}
    records: dict[str, Record] = {}
    for name, decomposition in decompositions.items():
        if not isinstance(name, str):
            raise TypeError(f"names must be strings, got {name!r} ({type(name).__name__})")
        arrays = _arrays(name, decomposition)
        records[name] = record_of(name, decomposition, arrays)
        for field, array in zip(records[name].fields, arrays, strict=True):
            stored[f"{name}/{field}"] = _packed(array)
    atomic.replace(target, serialized(stored, {KEY: written_records(records)}))


@overload
def load(
    path: str | os.PathLike[str], *, library: Literal["numpy"] = "numpy", device: Device = "cpu"
) -> dict[str, Decomposition[NumPyArray]]: ...
@overload
def load(
    path: str | os.PathLike[str], *, library: Literal["torch"], device: Device = "cpu"
) -> dict[str, Decomposition[torch.Tensor]]: ...
def load(
    path: str | os.PathLike[str], *, library: Library = "numpy", device: Device = "cpu"
) -> dict[str, Any]:
    """Read the decompositions of a file that :func:`save` wrote.

    Parameters
    ----------
    path : path
        The file.
    library : {"numpy", "torch"}, optional
        What the arrays become, whatever they were when they were saved.
    device : str or torch.device, optional
        Where torch tensors go.

    Returns
    -------
    dict of str to TT, MPO, Tucker or CP
        In the order in which they were saved, with dtype, error and record.

    Raises
    ------
    OSError
        If the file cannot be read; FileNotFoundError if there is none.
    ValueError
        If the file is damaged, is not of tnlib or of a later version of it, `library` or `device`
        do not exist, or NumPy is asked for bfloat16.

    Examples
    --------
    >>> import tempfile
    >>> from tnlib import mpo_random
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/one.safetensors", {"q_proj": mpo_random((2, 3), (4, 5), 2)})
    ...     load(f"{folder}/one.safetensors", library="torch")["q_proj"].cores[0].dtype
    torch.float64
    """
    if library not in LIBRARIES:
        raise ValueError(f"library must be one of {', '.join(LIBRARIES)}, got {library!r}")
    place = checks.real_device(library, device)
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            records = read_records(file.metadata() or {}, file.keys())
            if library == "numpy":
                _check_numpy(records)
            return {name: _read(file, name, record, place) for name, record in records.items()}
    except SafetensorError as error:
        raise ValueError(f"{os.fspath(path)!r} is not a whole safetensors file: {error}") from error


def _arrays(name: str, decomposition: Any) -> list[Array]:
    """The arrays of a decomposition, checked, as data outside any graph."""
    if type(decomposition) not in KINDS.values():
        kind = type(decomposition).__name__
        raise TypeError(f"{name!r} must be one of {', '.join(KINDS)}, got {kind}")
    if isinstance(decomposition, Chain):
        arrays = decomposition.cores
    else:
        first, factors = decomposition
        arrays = (first, *factors)
    return [
        array_checks.tensor(f"an array of {name!r}", backend.detached(array)) for array in arrays
    ]


def _packed(array: Array) -> np.ndarray[Any, Any]:
    """The bits of `array` as a contiguous NumPy array that safetensors can store."""
    if backend.is_torch(array):
        array = array.resolve_conj().resolve_neg().cpu()
        if backend.dtype_name(array.dtype) == "bfloat16":
            array = array.view(sys.modules["torch"].int16)
        array = array.numpy()
    values = np.ascontiguousarray(array)
    if not backend.is_complex(values.dtype):
        return values.view(np.uint16) if values.dtype == np.int16 else values
    return values.view(values.real.dtype).reshape(*values.shape, 2)


def _unpacked(values: np.ndarray[Any, Any], dtype: str, place: Any) -> Array:
    """What :func:`_packed` packed; a torch tensor if there is a place for one."""
    if backend.is_complex(dtype):
        values = values.view(dtype)[..., 0]
    if place is None:
        return values
    torch = sys.modules["torch"]
    if dtype == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).to(place)
    return torch.from_numpy(values).to(place)


def _read(file: Any, name: str, record: Record, place: Any) -> Format:
    arrays = []
    for field in record.fields:
        try:
            values = file.get_tensor(f"{name}/{field}")
        except TypeError as error:
            raise ValueError(f"the file is damaged: {name}/{field}: {error}") from error
        dtype = record.dtype_of(field, values.ndim)
        pairs = backend.is_complex(dtype)
        if values.dtype != record.stored_dtype or (pairs and values.shape[-1:] != (2,)):
            raise ValueError(
                f"the file is damaged: {name}/{field} is stored as {values.dtype} of shape "
                f"{values.shape} and its record says {record.dtype}"
            )
        arrays.append(_unpacked(values, dtype, place))
    return record.built(arrays)


def _check_numpy(records: Mapping[str, Record]) -> None:
    for name, record in records.items():
        if record.dtype == "bfloat16":
            raise ValueError(f"{name!r} is bfloat16, which NumPy lacks; pass library='torch'")
