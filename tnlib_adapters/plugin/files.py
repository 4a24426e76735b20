"""Adapter files: what is checked before they are used, and the line that says how to load them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME, ModulesToSaveWrapper
from torch import nn

from tnlib import _disk
from tnlib_adapters.plugin.layer import AdapterPart

# What PEFT's wrapper puts before the names of the model it wraps.
OUTSIDE = "base_model.model."
_KINDS = (AdapterPart, ModulesToSaveWrapper)

Shape = tuple[int, ...]


def shapes_in(folder: Path) -> dict[str, Shape]:
    """Shapes by name in the safetensors file of a saved adapter, whose tensors are not read.

    Empty where the folder has no such file.

    Raises
    ------
    ValueError
        If it is not a safetensors file or ends too early, naming the first tensor that is hurt.
    """
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        return {}
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
    return {name: shape for name, (shape, *_) in spans.items()}


def check_tensors(
    found: Mapping[str, Shape], model: nn.Module, adapter_name: str, *, cores_only: bool = False
) -> None:
    """Check that the tensors of a file are those of the adapter that was built for it.

    Parameters
    ----------
    found : mapping of str to tuple of int
        Shapes by name in the file.
    model : torch.nn.Module
        The adapted base model, or PEFT's wrapper of it.
    adapter_name : str
        The adapter.
    cores_only : bool
        Whether `found` has the cores only, without modules that are trained in full.

    Raises
    ------
    ValueError
        Naming the first tensor that is missing, surplus or of another shape, with both shapes.
    """
    found = {name.removeprefix(OUTSIDE): shape for name, shape in found.items()}
    expected = dict(_expected(model, adapter_name, (AdapterPart,) if cores_only else _KINDS))
    kind = type(model).__name__
    end = f"the adapter was saved for another model or configuration than this {kind}"
    for name in sorted(set(expected) & set(found)):
        if found[name] != expected[name]:
            raise ValueError(
                f"tensor {name} is {found[name]} in the file and {expected[name]} in the model; "
                f"{end}"
            )
    missing = sorted(set(expected) - set(found))
    if missing:
        raise ValueError(
            f"the file has no tensor {missing[0]} of shape {expected[missing[0]]}, and "
            f"{len(missing)} are missing in all; {end}"
        )
    # Biases and embeddings are saved under the names they have in the model, those of copies
    # without the adapter's.
    names = {*model.state_dict()}
    names |= {name.replace(f".{adapter_name}.", ".") for name in names}
    surplus = sorted(set(found) - set(expected) - names)
    if surplus:
        raise ValueError(
            f"the file has a tensor {surplus[0]} of shape {found[surplus[0]]} for which the model "
            f"has no place, and {len(surplus)} such in all; {end}"
        )


def _expected(
    model: nn.Module, adapter_name: str, kinds: tuple[type[nn.Module], ...]
) -> Iterator[tuple[str, Shape]]:
    """Names in a file, and shapes, of what an adapter has in modules of some kinds."""
    for name, module in model.named_modules():
        if not isinstance(module, kinds):
            continue
        core = isinstance(module, AdapterPart)
        held: nn.ModuleDict = module.held if core else module.modules_to_save  # type: ignore[assignment]
        attribute = f"{module.prefix}{module.attribute}." if core else ""
        if adapter_name in held:
            for key, value in held[adapter_name].state_dict().items():
                yield f"{name}.{attribute}{key}".removeprefix(OUTSIDE), tuple(value.shape)


def mention_import(folder: Path, config: type) -> None:
    """Write into the model card which import makes the adapter's method known to PEFT."""
    place = config.__module__
    line = f"import {'tnlib_adapters' if place.startswith('tnlib_adapters.') else place}"
    if place == "__main__":
        line = f"class {config.__name__}"
    text = (
        f"\n## How to load\n\nThe method comes from outside PEFT; run `{line}` before "
        "`PeftModel.from_pretrained`.\n"
    )
    for card in (folder / "README.md", folder.parent / "README.md"):
        if card.is_file():
            content = card.read_text(encoding="utf-8")
            if f"run `{line}`" not in content:
                _disk.replace(card, (content + text).encode())
            return
