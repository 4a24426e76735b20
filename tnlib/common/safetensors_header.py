"""The header of a safetensors file, read without its tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """What a header says of a tensor: its dtype in safetensors' words, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, Entry]:
    """All tensors of a file by name, in the file's order.

    Raises
    ------
    ValueError
        If it is not a safetensors file or ends too early, naming the first tensor that is hurt.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start = 8 + length
        try:
            if start > size:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            spans = {
                name: (Entry(entry["dtype"], tuple(entry["shape"])), *entry["data_offsets"])
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a whole safetensors file ({error}); copy or save it again"
            ) from error
    for name, (entry, _, stop) in sorted(spans.items(), key=lambda item: item[1][2]):
        if start + stop > size:
            raise ValueError(
                f"{path} is cut off: tensor {name} of shape {entry.shape} ends at byte "
                f"{start + stop}, and the file has {size}; copy or save it again"
            )
    return {name: entry for name, (entry, *_) in spans.items()}
