"""The header of a safetensors file, read without its tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """What a header says of a tensor: dtype in safetensors' words, shape, and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: Path) -> dict[str, Entry]:
    """All tensors of a file by name, in the file's order.

    Raises
    ------
    ValueError
        If it is not a safetensors file or ends too early, naming the first tensor that is hurt.
    """
    entries = read_entries(path)
    size = path.stat().st_size
    for name, entry in sorted(entries.items(), key=lambda item: item[1].stop):
        if text := cut_off(name, entry, size):
            raise ValueError(f"{path} {text}; copy or save it again")
    return entries


def read_entries(path: Path) -> dict[str, Entry]:
    """The same of a file whose tensors may be cut off; the header itself must be whole.

    Raises
    ------
    ValueError
        If there is no whole header.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        first = 8 + length
        try:
            if first > size:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            return {
                name: Entry(
                    entry["dtype"],
                    tuple(entry["shape"]),
                    *(first + offset for offset in entry["data_offsets"]),
                )
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a whole safetensors file ({error}); copy or save it again"
            ) from error


def cut_off(name: str, entry: Entry, size: int) -> str:
    """What is wrong with a tensor in a file of `size` bytes; empty where nothing is."""
    if entry.stop <= size:
        return ""
    return (
        f"is cut off: tensor {name} of shape {entry.shape} ends at byte {entry.stop}, and the "
        f"file has {size}"
    )
