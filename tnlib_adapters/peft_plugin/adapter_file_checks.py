"""Adapter files: what is checked before they are used, and the line that says how to load them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft.utils import SAFETENSORS_WEIGHTS_NAME, ModulesToSaveWrapper
from torch import Tensor, nn

from tnlib.common import atomic
from tnlib.common.safetensors_header import read_header
from tnlib_adapters.base_model.peft_names import PREFIX
from tnlib_adapters.layers.multipliers import MULTIPLIERS
from tnlib_adapters.peft_plugin.core_store import AdapterPart

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
    return {name: entry.shape for name, entry in read_header(path).items()}


def check_file(found: Mapping[str, Shape], model: nn.Module, adapter_name: str) -> None:
    """Check, before anything is loaded, that a file fits the adapter that was built for it.

    Where its names are others, they may still be translated while it is loaded (``key_mapping``,
    renamed modules): then the shapes have to be the same. :func:`check_loaded` looks again.

    Parameters
    ----------
    found : mapping of str to tuple of int
        Shapes by name in the file.
    model : torch.nn.Module
        The adapted base model.
    adapter_name : str
        The adapter.

    Raises
    ------
    ValueError
        Naming the first tensor that is missing, surplus or of another shape, with both shapes.
    """
    found = {plain_key(name): shape for name, shape in found.items()}
    expected = dict(_expected(model, adapter_name))
    renamed = not expected.keys() <= found.keys()
    if not (renamed and _leaves(expected) <= _leaves(found)):
        _compare(found, expected, model, adapter_name)


def check_loaded(state: Mapping[str, Tensor], model: nn.Module, adapter_name: str) -> None:
    """Check that all values of an adapter are there, under the names that the model has for them.

    Parameters
    ----------
    state : mapping of str to Tensor
        What is about to be loaded.
    model : torch.nn.Module
        The adapted base model, or PEFT's wrapper of it.
    adapter_name : str
        The adapter.

    Raises
    ------
    ValueError
        As :func:`check_file` does.
    """
    found = {plain_key(name): tuple(value.shape) for name, value in state.items()}
    names = own_names(model, adapter_name)
    expected = {plain_key(n): tuple(v.shape) for n, v in model.state_dict().items() if n in names}
    _compare(found, expected, model, adapter_name)


def own_names(model: nn.Module, adapter_name: str) -> set[str]:
    """Names of an adapter's cores in the state of a model, without modules trained in full."""
    # FSDP's wrapper is in the names of modules, and not in those of their state.
    return {
        f"{name.replace('_fsdp_wrapped_module.', '')}.{part.prefix}{part.attribute}"
        f".{adapter_name}.{key}".removeprefix(".")
        for name, part in model.named_modules()
        if isinstance(part, AdapterPart) and adapter_name in part.held
        for key in part.held[adapter_name].state_dict()
    }


def is_resized(model: nn.Module, config: Any) -> bool:
    """Whether the model's vocabulary is not that of the base that an adapter names, if known."""
    mine: Any = getattr(model, "config", None)
    folder = config.base_model_name_or_path
    if not folder or not hasattr(mine, "get_text_config"):
        return False
    try:
        saved = type(mine).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError):
        return False
    sizes = [getattr(found.get_text_config(), "vocab_size", None) for found in (mine, saved)]
    return sizes[0] != sizes[1]


def plain_key(name: str) -> str:
    """A name as the model has it that is neither wrapped by PEFT nor compiled."""
    return name.replace("_orig_mod.", "").removeprefix(PREFIX)


def _compare(
    found: Mapping[str, Shape], expected: Mapping[str, Shape], model: nn.Module, adapter_name: str
) -> None:
    kind = type(model).__name__
    end = f"the adapter was saved for another model or configuration than this {kind}"
    scaled = {any(n.endswith(f".{MULTIPLIERS}") for n in names) for names in (found, expected)}
    if len(scaled) == 2 and found:
        other = not any(n.endswith(f".{MULTIPLIERS}") for n in expected)
        end = f"the cores are stored in another way; set rate_scaling={other}"
    # Biases and embeddings are saved under the names they have in the model, those of copies
    # without the adapter's.
    places = {plain_key(n): tuple(v.shape) for n, v in model.state_dict().items()}
    places |= {n.replace(f".{adapter_name}.", "."): shape for n, shape in places.items()}
    # Trained tokens end in the adapter's name.
    places |= {n.removesuffix(f".{adapter_name}"): shape for n, shape in places.items()}
    places |= expected
    for name in sorted(found.keys() & places.keys()):
        if found[name] != places[name]:
            advice = "; resize the model's embeddings first" if name not in expected else ""
            raise ValueError(
                f"tensor {name} is {found[name]} in the file and {places[name]} in the model; "
                f"{end}{advice}"
            )
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise ValueError(
            f"the file has no tensor {missing[0]} of shape {expected[missing[0]]}, and "
            f"{len(missing)} are missing in all; {end}"
        )
    surplus = sorted(found.keys() - places.keys())
    if surplus:
        raise ValueError(
            f"the file has a tensor {surplus[0]} of shape {found[surplus[0]]} for which the model "
            f"has no place, and {len(surplus)} such in all; {end}"
        )


def _expected(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, Shape]]:
    """Names in a file, and shapes, of an adapter's cores and of the modules it trains in full."""
    for name, module in model.named_modules():
        core = isinstance(module, AdapterPart)
        if not core and not isinstance(module, ModulesToSaveWrapper):
            continue
        held: nn.ModuleDict = module.held if core else module.modules_to_save
        attribute = f"{module.prefix}{module.attribute}." if core else ""
        if adapter_name in held:
            for key, value in held[adapter_name].state_dict().items():
                yield plain_key(f"{name}.{attribute}{key}"), tuple(value.shape)


def _leaves(shapes: Mapping[str, Shape]) -> Counter[tuple[str, Shape]]:
    return Counter((name.rpartition(".")[2], shape) for name, shape in shapes.items())


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
                atomic.replace(card, (content + text).encode())
            return
