"""What a file says of every decomposition in it, checked before any array is read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.cp.format import CP
from tnlib.result import ErrorKind, Format, Info
from tnlib.trains.chain import Chain
from tnlib.trains.mpo import MPO
from tnlib.trains.tt import TT
from tnlib.tucker.format import Tucker

KEY = "tnlib"
VERSION = 1
KINDS: dict[str, Callable[..., Format]] = {"TT": TT, "MPO": MPO, "Tucker": Tucker, "CP": CP}


@dataclass(frozen=True)
class Record:
    """One decomposition without its arrays.

    `modes` are those of the factors of a Tucker decomposition; none where they are all.
    """

    kind: str
    arrays: int
    dtype: str
    error: float | None
    error_kind: str
    center: int | None
    info: dict[str, Any] | None
    modes: Sequence[int] = ()

    @property
    def fields(self) -> list[str]:
        """Names of the arrays, in order."""
        if self.kind in ("TT", "MPO"):
            return [f"cores.{k}" for k in range(self.arrays)]
        first = "core" if self.kind == "Tucker" else "weights"
        return [first, *(f"factors.{k}" for k in self.modes or range(self.arrays - 1))]

    def dtype_of(self, name: str, ndim: int) -> str:
        """The dtype of a stored array: weights of complex terms can be real."""
        if self.kind == "CP" and name == "weights" and ndim == 1 and backend.is_complex(self.dtype):
            return self.stored_dtype
        return self.dtype

    @property
    def stored_dtype(self) -> str:
        """Name of the NumPy dtype in the file."""
        stored = {"bfloat16": "uint16", "complex64": "float32", "complex128": "float64"}
        return stored.get(self.dtype, self.dtype)

    def built(self, arrays: Sequence[Array]) -> Format:
        """The decomposition with its arrays."""
        about: dict[str, Any] = {"error": self.error, "error_kind": self.error_kind}
        if self.info is not None:
            entries: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in self.info.items()
            }
            about["info"] = Info(**entries)
        if self.kind in ("TT", "MPO"):
            return KINDS[self.kind](tuple(arrays), center=self.center, **about)
        if self.modes:
            about["modes"] = tuple(self.modes)
        return KINDS[self.kind](arrays[0], tuple(arrays[1:]), **about)


def record_of(name: str, decomposition: Format, arrays: Sequence[Array]) -> Record:
    """The record of a decomposition with the given arrays."""
    dtype = backend.dtype_name(arrays[-1].dtype)
    if dtype not in backend.FLOATING:
        raise TypeError(
            f"{name!r} has arrays of {dtype}; what can be saved is {', '.join(backend.FLOATING)}"
        )
    return Record(
        type(decomposition).__name__,
        len(arrays),
        dtype,
        decomposition.error,
        decomposition.error_kind,
        decomposition.center if isinstance(decomposition, Chain) else None,
        None if decomposition.info is None else _info(decomposition.info),
        _some_modes(decomposition),
    )


def _some_modes(decomposition: Format) -> list[int]:
    """The modes of the factors of a partial Tucker decomposition."""
    if not isinstance(decomposition, Tucker):
        return []
    modes = list(decomposition.modes)
    return [] if modes == list(range(len(decomposition.ranks))) else modes


def _info(info: Info) -> dict[str, Any]:
    """The record of an info; without what is younger than files and says nothing here."""
    younger = [name for name in _YOUNGER if not getattr(info, name)]
    return {name: value for name, value in asdict(info).items() if name not in younger}


def written_records(records: Mapping[str, Record]) -> str:
    """Records as JSON that :func:`read_records` accepts."""
    content = {name: asdict(record) for name, record in records.items()}
    for record in content.values():
        # As files were before there were partial decompositions.
        if not record["modes"]:
            del record["modes"]
    try:
        text = json.dumps(
            {"version": VERSION, "decompositions": content}, allow_nan=False, default=_number
        )
    except ValueError as error:
        raise ValueError(f"errors and records must be finite to be saved: {error}") from error
    _checked(text, "what is to be saved")
    return text


def read_records(metadata: Mapping[str, str], names: Collection[str]) -> dict[str, Record]:
    """The records in the metadata of a file, whose arrays have the given names."""
    if KEY not in metadata:
        about = ", ".join(sorted(metadata)) or "nothing"
        raise ValueError(
            f"the file was not written by tnlib: its metadata has {about} and no {KEY!r}; read "
            "its arrays with safetensors"
        )
    records = _checked(metadata[KEY], "the file")
    if any(record.arrays > len(names) + 1 for record in records.values()):
        raise ValueError(
            f"the file is damaged: a record has more arrays than the {len(names)} here"
        )
    expected = {f"{name}/{field}" for name, record in records.items() for field in record.fields}
    if expected != set(names):
        odd = ", ".join(sorted(expected ^ set(names))[:3])
        raise ValueError(f"the file is damaged: arrays and records do not match, see {odd}")
    return records


def _checked(text: str, what: str) -> dict[str, Record]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is damaged: its metadata is not JSON ({error})") from error
    if not isinstance(content, dict) or "version" not in content:
        raise ValueError(f"{what} is damaged: its metadata has no version")
    if content["version"] != VERSION:
        raise ValueError(
            f"{what} has version {content['version']!r} of the format, this tnlib reads version "
            f"{VERSION}; install a newer tnlib"
        )
    _check(content, {"version": _is_int, "decompositions": _is_dict}, what)
    records = {}
    for name, record in content["decompositions"].items():
        record = {"modes": [], **record} if isinstance(record, dict) else record
        _check(record, _RECORD, f"{what}, at {name!r},")
        if record["info"] is not None:
            record["info"] = _YOUNGER | record["info"]
            _check(record["info"], _INFO, f"{what}, at the info of {name!r},")
        records[name] = Record(**record)
        modes = record["modes"]
        fits = record["kind"] == "Tucker" and len(modes) == record["arrays"] - 1
        if modes and (modes != sorted(set(modes)) or not fits):
            raise ValueError(f"{what}, at {name!r}, is damaged: modes {modes!r:.200}")
        if record["center"] is not None and record["center"] >= record["arrays"]:
            raise ValueError(f"{what}, at {name!r}, is damaged: no core {record['center']}")
    return records


def _check(value: Any, valid: Mapping[str, Callable[[Any], bool]], what: str) -> None:
    """Refuse what is not a dict with exactly the valid entries."""
    if not isinstance(value, dict) or value.keys() != valid.keys():
        raise ValueError(f"{what} is damaged: expected {', '.join(valid)}, got {value!r:.200}")
    for key, holds in valid.items():
        if not holds(value[key]):
            raise ValueError(f"{what} is damaged: {key} is {value[key]!r:.200}")


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a record holds {value!r}, which is neither a number nor text")


def _is_int(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_float(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(holds, value))


def _optional(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


_RECORD = {
    "kind": KINDS.__contains__,
    "arrays": lambda value: _is_int(value) and value >= 1,
    "dtype": backend.FLOATING.__contains__,
    "error": _optional(lambda value: _is_float(value) and value >= 0),
    "error_kind": get_args(ErrorKind).__contains__,
    "center": _optional(_is_int),
    "info": _optional(_is_dict),
    "modes": _list_of(_is_int),
}
_INFO = {
    "kernels": _list_of(_is_text),
    "discarded": _list_of(_is_float),
    "eps": _optional(_is_float),
    "compute_dtype": _is_text,
    "n_iter": _is_int,
    "converged": _is_bool,
    "reason": _is_text,
    "trace": _list_of(_is_float),
    "fallbacks": _list_of(_is_text),
    "evaluations": _is_int,
}
# Entries that older files lack, and what they had been.
_YOUNGER: dict[str, Any] = {"fallbacks": [], "evaluations": 0}
