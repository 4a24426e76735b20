"""What a method trains besides its cores: whole modules, by PEFT's ``modules_to_save``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from tnlib_adapters.base_model.linear_modules import original_modules
from tnlib_adapters.peft_plugin.trained_norms import is_norm


def norm_names(model: nn.Module, part: str = "") -> list[str]:
    """Names of all normalisation layers with weights, as short as they single them out.

    With `part` of those only whose names begin so.

    Raises
    ------
    ValueError
        If the model has none.
    """
    norms: list[str] = []
    others: list[str] = []
    for name, module in original_modules(model):
        wanted = name.startswith(part) and is_norm(module)
        (norms if wanted else others).append(name)
    if not norms:
        raise ValueError("the model has no normalisation layers to train; set train_norms=False")
    short = sorted({name.rsplit(".", 1)[-1] for name in norms})
    unique = not any(other.endswith(tuple(short)) for other in others)
    return short if unique else norms


def save_parts(
    config: Any, names: Iterable[str], instead: Iterable[str] = (), model: nn.Module | None = None
) -> None:
    """Add modules to ``modules_to_save``, and adapt the modules `instead` of saving them.

    A module to save that contains one of `instead` is replaced by its other parts with weights.
    """
    saved = list(dict.fromkeys([*(config.modules_to_save or ()), *names]))
    for adapted in instead:
        assert model is not None
        for entry in [e for e in saved if f".{adapted}".startswith(f".{e}.") or adapted == e]:
            saved.remove(entry)
            if adapted != entry:
                children = model.get_submodule(entry).named_children()
                parts = [
                    f"{entry}.{n}" for n, child in children if any(True for _ in child.parameters())
                ]
                saved += [part for part in parts if part != adapted and part not in saved]
        targets = config.target_modules
        if isinstance(targets, str):
            if targets.lower() != "all-linear" and adapted not in targets:
                config.target_modules = f"(?:{targets})|{adapted}"
        else:
            config.target_modules = {*targets, adapted}
    config.modules_to_save = saved or None


def restore_parts(model: nn.Module, adapter_name: str | None = None) -> None:
    """Put the original modules back where copies of them were trained.

    With `adapter_name` only where no other adapter has a copy; elsewhere its own is deleted.
    """
    for name, module in list(model.named_modules()):
        if not isinstance(module, AuxiliaryTrainingWrapper):
            continue
        kept = module._get_available_adapters() - {adapter_name}
        if adapter_name is not None and kept:
            active = [n for n in module.active_adapters if n != adapter_name]
            module.delete_adapter(adapter_name, active)
        else:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.original_module)
