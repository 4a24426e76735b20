"""Weights in safetensors files: one file, or a folder of shards.

Only headers are read here. A shard that is missing or cut off makes a problem of its tensors; what
is whole can be read. Nothing is ever unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tnlib.common.atomic import read_json
from tnlib.common.safetensors_header import cut_off, read_entries
from tnlib.weights.number_formats import FLOAT8
from tnlib.weights.source import Weights, sorted_out
from tnlib.weights.tensor import FileTensor, ScaledTensor, WeightTensor

_INDEX = ".safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz")
# Endings of the scale of a float8 tensor, in the place of its last part or behind it.
_SCALES = ("weight_scale_inv", "weight_scale", "scale_inv")


def read_file(path: Path) -> Weights:
    """The tensors of one safetensors file.

    Raises
    ------
    ValueError
        If it is another kind of file, or has no whole header.
    """
    if path.name.endswith(_INDEX):
        return read_folder(path.parent)
    if path.suffix != ".safetensors":
        raise ValueError(_refused(path))
    found, problems = _tensors_of(path)
    return _weights(str(path), found, problems, (), "")


def read_folder(folder: Path) -> Weights:
    """The tensors of the shards that a folder's index names, or of all its safetensors files.

    Raises
    ------
    FileNotFoundError
        If there are no weights in it.
    ValueError
        If they are pickled, or the index is damaged, or names two files for the same tensor.
    """
    indexes = sorted(folder.glob(f"*{_INDEX}"))
    if len(indexes) > 1:
        names = ", ".join(path.name for path in indexes)
        raise ValueError(f"{folder} has several indexes: {names}; give one of them, or a file")
    if indexes:
        found, problems, notes = _indexed(indexes[0])
    else:
        found, problems, notes = _all_files(folder)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return _weights(str(folder), found, problems, notes, _quantised(config))


def _indexed(
    index: Path,
) -> tuple[dict[str, WeightTensor], dict[str, str], tuple[str, ...]]:
    """Tensors, problems and notes of the shards of an index."""
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(v, str) for v in named.values()):
        raise ValueError(f"{index} has no weight_map; save the checkpoint again")
    found: dict[str, WeightTensor] = {}
    problems: dict[str, str] = {}
    notes = []
    for shard in dict.fromkeys(named.values()):
        expected = [name for name, file in named.items() if file == shard]
        path = index.parent / shard
        if Path(shard).name != shard:
            raise ValueError(f"{index} names a file outside its folder: {shard!r}")
        if not path.is_file():
            problems |= dict.fromkeys(expected, f"{shard}, which has it, is missing")
            continue
        try:
            stored, hurt = _tensors_of(path)
        except ValueError as error:
            problems |= dict.fromkeys(expected, str(error))
            continue
        problems |= hurt | {
            name: f"{index.name} says it is in {shard}, which has no such tensor"
            for name in expected
            if name not in stored and name not in hurt
        }
        unnamed = [name for name in stored if name not in named]
        if unnamed:
            more = f" and {len(unnamed) - 1} others" if len(unnamed) > 1 else ""
            notes.append(f"{shard} has {unnamed[0]}{more}, which {index.name} does not name")
        found |= stored
    return found, problems, tuple(notes)


def _all_files(
    folder: Path,
) -> tuple[dict[str, WeightTensor], dict[str, str], tuple[str, ...]]:
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        others = [path for path in sorted(folder.iterdir()) if path.suffix in (*_PICKLED, ".gguf")]
        if others:
            raise ValueError(_refused(others[0]))
        raise FileNotFoundError(f"{folder} has no safetensors files; give the folder that has them")
    found: dict[str, WeightTensor] = {}
    problems: dict[str, str] = {}
    for path in paths:
        stored, hurt = _tensors_of(path)
        if twice := [name for name in stored if name in found]:
            raise ValueError(
                f"{twice[0]} is in several files of {folder}, {path.name} among them, and there is "
                f"no index that says which one counts; give one file"
            )
        found |= stored
        problems |= hurt
    return found, problems, ()


def _tensors_of(path: Path) -> tuple[dict[str, WeightTensor], dict[str, str]]:
    """The whole tensors of a file, and what is wrong with the others."""
    size = path.stat().st_size
    entries = read_entries(path)
    texts = {name: cut_off(name, entry, size) for name, entry in entries.items()}
    hurt = {name: f"{path} {text}; copy it again" for name, text in texts.items() if text}
    whole: dict[str, WeightTensor] = {
        name: FileTensor(path, name, entry) for name, entry in entries.items() if name not in hurt
    }
    return whole, hurt


def _weights(
    label: str,
    found: Mapping[str, WeightTensor],
    problems: Mapping[str, str],
    notes: tuple[str, ...],
    quantised: str,
) -> Weights:
    scaled = _scaled(found)
    tensors, codes = sorted_out(
        {name: scaled[name] for name in sorted(scaled, key=_natural)}, quantised
    )
    return Weights(label, tensors, {**problems, **codes}, notes)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which layer 2 comes before layer 10: files are ordered by the alphabet."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _scaled(found: Mapping[str, WeightTensor]) -> dict[str, WeightTensor]:
    """Tensors of 8-bit floating point together with their scales, which count as part of them."""
    scales: dict[str, str] = {}
    for name, tensor in found.items():
        if tensor.dtype in FLOAT8:
            stems = (name.removesuffix("weight"), f"{name}_", f"{name}.")
            near = (stem + end for stem in stems for end in _SCALES)
            scale = next((key for key in near if key in found), None)
            if scale is not None:
                scales[name] = scale
    counted = set(scales.values())
    kept: dict[str, WeightTensor] = {}
    for name, tensor in found.items():
        if name in scales:
            codes, scale_tensor = tensor, found[scales[name]]
            assert isinstance(codes, FileTensor)
            assert isinstance(scale_tensor, FileTensor)
            kept[name] = ScaledTensor(codes, scale_tensor)
        elif name not in counted:
            kept[name] = tensor
    return kept


def _quantised(config: Mapping[str, Any]) -> str:
    """How a configuration says that its checkpoint is quantised; empty where it does not."""
    fields = config.get("quantization_config")
    if not isinstance(fields, dict):
        return ""
    return str(fields.get("quant_method") or "quantization_config")


def _refused(path: Path) -> str:
    if path.suffix in _PICKLED:
        return (
            f"{path} is pickled or a file of NumPy's, which is not read; save the weights as "
            "safetensors (save_pretrained does)"
        )
    if path.suffix == ".gguf":
        return f"{path} holds quantised weights; give the checkpoint that it was made from"
    return f"{path} is no safetensors file; give one, a folder of them, or the name of a model"


def is_name_of_model(text: str) -> bool:
    """Whether a text can be the name of a model on the hub."""
    return re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", text) is not None
