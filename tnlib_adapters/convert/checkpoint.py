"""Checkpoints of transformers on disk: safetensors shards, read and rewritten tensor by tensor.

A shard is a header of JSON (dtype, shape and span of every tensor) followed by the values. What
does not change is copied as bytes; at no time is more than one tensor in memory.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tnlib.common.atomic import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATING = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_DTYPES = FLOATING | {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# The one folder that transformers writes beside a model's files.
_TEMPLATES = "additional_chat_templates"
# Endings of files that hold weights, which are written anew or belong to other formats.
_WEIGHTS = (".safetensors", ".bin", ".h5", ".msgpack", ".pt", ".pth", ".ckpt", ".gguf", ".onnx")


@dataclass(frozen=True)
class Stored:
    """A tensor in a shard.

    Attributes
    ----------
    shard : str
        Name of the file.
    dtype : str
        Its dtype as safetensors names it.
    shape : tuple of int
        Its shape.
    start, stop : int
        Its bytes in the file.
    """

    shard: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Change:
    """A tensor to write.

    Attributes
    ----------
    dtype : torch.dtype
        Dtype to write.
    shape : tuple of int
        Shape to write.
    value : callable
        From the stored tensor, None where there is none, to the new one.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    value: Callable[[Tensor | None], Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a model's configuration and weights.

    Attributes
    ----------
    folder : Path
        The folder.
    config : dict
        Contents of ``config.json``.
    tensors : dict of str to Stored
        Every tensor by name.
    index : dict or None
        Contents of the index, where there are several shards.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Stored]
    index: dict[str, Any] | None

    @property
    def shards(self) -> tuple[str, ...]:
        """Names of the shards."""
        return tuple(dict.fromkeys(stored.shard for stored in self.tensors.values()))

    @property
    def others(self) -> tuple[Path, ...]:
        """What holds no weights: tokenizer, generation settings, chat templates and so on."""
        ours = ("config.json", INDEX, "adapter_config.json")
        return tuple(
            path
            for path in sorted(self.folder.iterdir())
            if (path.is_file() or path.name == _TEMPLATES)
            and path.name not in ours
            and not path.name.endswith((*_WEIGHTS, *(f"{end}.index.json" for end in _WEIGHTS)))
        )


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the configuration and the headers of a checkpoint.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If the weights are pickled or quantised, or a shard is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json, so it is no transformers checkpoint")
    config = read_json(path)
    if config.get("quantization_config"):
        raise ValueError(
            f"the checkpoint in {folder} is quantised, and an update cannot be added to its codes; "
            "give the unquantised checkpoint as base="
        )
    index = None
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        if not isinstance(index.get("weight_map"), dict):
            raise ValueError(f"{folder / INDEX} has no weight_map")
        shards = list(dict.fromkeys(index["weight_map"].values()))
    elif (folder / SINGLE).is_file():
        shards = [SINGLE]
    elif any(folder.glob("*.bin")):
        raise ValueError(
            f"{folder} has weights as .bin files, which are pickled and not read; load the model "
            "once and save it with save_pretrained, which writes safetensors"
        )
    else:
        raise FileNotFoundError(f"{folder} has neither {SINGLE} nor {INDEX}")
    tensors: dict[str, Stored] = {}
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise FileNotFoundError(f"{INDEX} names {shard!r}, which is not in {folder}")
        tensors |= _header(folder / shard)
    missing = set(index["weight_map"]) - set(tensors) if index else set()
    if missing:
        raise ValueError(f"no shard in {folder} has {min(missing)}, which {INDEX} names")
    return Checkpoint(folder, config, tensors, index)


def rewrite(source: Path, target: Path, changes: Mapping[str, Change]) -> dict[str, Any]:
    """Write a shard with some tensors changed or added; the rest is copied byte by byte.

    Parameters
    ----------
    source, target : Path
        The shard, and the file to write.
    changes : mapping of str to Change
        By name; a name that the shard lacks is added.

    Returns
    -------
    dict
        The new header's entries by name.
    """
    stored = _header(source)
    kept = {
        name: (entry.dtype, entry.shape, entry.stop - entry.start) for name, entry in stored.items()
    }
    kept |= {
        name: (_NAMES[c.dtype], c.shape, math.prod(c.shape) * c.dtype.itemsize)
        for name, c in changes.items()
    }
    # The widest first, so that every tensor is aligned.
    width = {name: size // max(math.prod(shape), 1) for name, (_, shape, size) in kept.items()}
    order = sorted(kept, key=lambda name: -width[name])
    header: dict[str, Any] = {}
    start = 0
    for name in order:
        dtype, shape, size = kept[name]
        span = [start, start + size]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": span}
        start += size
    text = json.dumps({"__metadata__": {"format": "pt"}} | header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with source.open("rb") as old, target.open("wb") as new:
        new.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            if name not in changes:
                _copy(old, new, stored[name])
                continue
            change = changes[name]
            value = change.value(_read(old, stored[name]) if name in stored else None)
            assert (value.dtype, tuple(value.shape)) == (change.dtype, change.shape), name
            flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
            new.write(memoryview(flat.numpy()))  # type: ignore[arg-type]
    return header


def copy_files(paths: tuple[Path, ...], folder: Path) -> None:
    """Copy files and folders into a folder, links as what they point to."""
    for path in paths:
        copy = shutil.copytree if path.is_dir() else shutil.copyfile
        copy(path, folder / path.name)


def _header(path: Path) -> dict[str, Stored]:
    """Entries of a shard's header, after safetensors has checked the file."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: Stored(
            path.name,
            entry["dtype"],
            tuple(entry["shape"]),
            *(8 + length + offset for offset in entry["data_offsets"]),
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _read(file: BinaryIO, stored: Stored) -> Tensor:
    """A tensor of a shard; not mapped, or pages would pile up in memory."""
    buffer = bytearray(stored.stop - stored.start)
    file.seek(stored.start)
    file.readinto(buffer)  # type: ignore[attr-defined]
    dtype = _DTYPES[stored.dtype]
    value = torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)
    return value.reshape(stored.shape)


def _copy(old: BinaryIO, new: BinaryIO, stored: Stored, chunk: int = 1 << 24) -> None:
    old.seek(stored.start)
    left = stored.stop - stored.start
    while left:
        block = old.read(min(left, chunk))
        new.write(block)
        left -= len(block)
