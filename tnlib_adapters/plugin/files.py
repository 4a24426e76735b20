"""Adapter files: what is checked before they are used, and the line that says how to load them."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME

_ITEM = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
_ITEM |= {"U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
Shape = tuple[int, ...]


def check_file(folder: Path) -> None:
    """Check the safetensors file of a saved adapter without reading its tensors.

    Raises
    ------
    ValueError
        If it is not a safetensors file or ends too early, naming the first tensor that is hurt.
    """
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        return
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
                name: (tuple(entry["shape"]), *entry["data_offsets"])
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a whole safetensors file ({error}); copy or save it again"
            ) from error
    for name, (shape, _, stop) in sorted(spans.items(), key=lambda item: item[1][2]):
        if start + stop > size:
            raise ValueError(
                f"{path} is cut off: tensor {name} of shape {shape} ends at byte {start + stop}, "
                f"and the file has {size}; copy or save it again"
            )


def check_tensors(found: Mapping[str, Shape], expected: Mapping[str, Shape], model: str) -> None:
    """Check that the tensors of a file are those of the adapter that was built for it.

    Parameters
    ----------
    found, expected : mapping of str to tuple of int
        Shapes by name, in the file and in the model.
    model : str
        Name of the model's class.

    Raises
    ------
    ValueError
        Naming the first tensor that is missing, surplus or of another shape, with both shapes.
    """
    end = f"the adapter was saved for another model or configuration than this {model}"
    for name in _sorted(set(expected) & set(found)):
        if tuple(found[name]) != tuple(expected[name]):
            raise ValueError(
                f"tensor {name} is {tuple(found[name])} in the file and {tuple(expected[name])} in "
                f"the model; {end}"
            )
    missing, surplus = _sorted(set(expected) - set(found)), _sorted(set(found) - set(expected))
    if missing:
        raise ValueError(
            f"the file has no tensor {missing[0]} of shape {tuple(expected[missing[0]])}, and "
            f"{len(missing)} are missing in all; {end}"
        )
    if surplus:
        raise ValueError(
            f"the file has a tensor {surplus[0]} of shape {tuple(found[surplus[0]])} for which the "
            f"model has no place, and {len(surplus)} such in all; {end}"
        )


def mention_import(folder: Path, config: type) -> None:
    """Write into the model card which import makes the adapter's method known to PEFT."""
    package = config.__module__.split(".")[0]
    line = f"import {package if package != '__main__' else 'tnlib_adapters'}"
    text = (
        f"\n## How to load\n\nThe method comes from outside PEFT; run `{line}` before "
        "`PeftModel.from_pretrained`.\n"
    )
    for card in (folder / "README.md", folder.parent / "README.md"):
        if card.is_file():
            content = card.read_text(encoding="utf-8")
            if f"run `{line}`" not in content:
                beside = card.with_name(f".{card.name}.tmp")
                beside.write_text(content + text, encoding="utf-8")
                os.replace(beside, card)
            return


def _sorted(names: Collection[str]) -> list[str]:
    return sorted(names)
