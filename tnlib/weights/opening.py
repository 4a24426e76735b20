"""Whatever people call weights, opened: a path, a name on the hub, a module, a mapping."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tnlib.arrays import backend
from tnlib.weights.files import is_name_of_model, read_file, read_folder
from tnlib.weights.lora import is_lora, read_lora
from tnlib.weights.source import Weights, sorted_out
from tnlib.weights.tensor import ArrayTensor


def open_weights(source: Any, name: str = "source") -> Weights:
    """The weights of a source.

    Parameters
    ----------
    source : path, str, torch.nn.Module or mapping of arrays
        A safetensors file, a folder of them with or without an index, a folder of a LoRA, the name
        of a model on the hub, a module or arrays by name.
    name : str
        What the argument is called, for errors.

    Raises
    ------
    FileNotFoundError
        If there is no such file, folder or model.
    TypeError
        If it is something else.
    ValueError
        If it has no weights, or they cannot be read.
    """
    if isinstance(source, str | os.PathLike):
        return _opened(_at(source, name))
    if isinstance(source, Mapping):
        return _arrays(source, f"{len(source)} arrays", name)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.nn.Module):
        return _arrays(source.state_dict(), type(source).__name__, name)
    raise TypeError(
        f"{name} must be a path, the name of a model, a torch module or a mapping of arrays, got "
        f"{type(source).__name__}"
    )


def _at(source: str | os.PathLike[str], name: str) -> Path:
    """A path on this machine; a model of the hub is downloaded, or found in the hub's cache."""
    text = os.fspath(source)
    path = Path(text).expanduser()
    if not text:
        raise ValueError(f"{name} is empty; give a path or the name of a model")
    if path.exists():
        return path
    if not is_name_of_model(text) or path.suffix in (".safetensors", ".json"):
        raise FileNotFoundError(f"there is no {text}; give a file, a folder or a model's name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text, allow_patterns=["*.safetensors", "*.json"]))
    except Exception as error:
        raise FileNotFoundError(
            f"there is no folder {text}, and no model of this name could be had from the hub "
            f"({' '.join(str(error).split())[:200]})"
        ) from error


def _opened(path: Path) -> Weights:
    if path.is_file():
        found = read_file(path)
    else:
        found = read_lora(path) if is_lora(path) else read_folder(path)
    if not found.tensors:
        reason = next(iter(found.problems.items()), None)
        text = f": {reason[0]} {reason[1]}" if reason else ""
        raise ValueError(f"{path} has no tensor that can be read{text}")
    return found


def _arrays(arrays: Mapping[Any, Any], label: str, name: str) -> Weights:
    """Arrays in memory; those of a module that share their memory are one."""
    found, problems, notes = {}, {}, []
    owners: dict[tuple[Any, ...], str] = {}
    for key, array in arrays.items():
        if not isinstance(key, str):
            raise TypeError(f"{name}: names must be strings, got {key!r}")
        if not backend.is_torch(array):
            if not isinstance(array, np.ndarray | np.generic):
                raise TypeError(
                    f"{name}: {key} must be an array of NumPy or torch, got {type(array).__name__}"
                )
        elif array.device.type == "meta":
            problems[key] = "is on the meta device and holds no numbers"
            continue
        elif backend.is_wrapper(array):
            problems[key] = "holds codes of a quantised weight; give the unquantised module"
            continue
        elif array.numel():
            place = (array.data_ptr(), tuple(array.shape), array.stride(), array.device)
            if place in owners:
                notes.append(f"{key} is {owners[place]}")
                continue
            owners[place] = key
        found[key] = ArrayTensor(array)
    tensors, codes = sorted_out(found)
    if not tensors:
        raise ValueError(f"{name} has no floating-point tensor that can be read")
    return Weights(label, tensors, problems | codes, tuple(notes))
