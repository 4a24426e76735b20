"""What a method trains besides its cores: whole modules, by PEFT's ``modules_to_save``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from tnlib_adapters.linear_modules import original_modules


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
        wanted = name.startswith(part) and _is_norm(module)
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


class _Cast:
    """Hooks around a module whose parameters are wider than the model's activations."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        width = next(module.parameters()).dtype
        return tuple(_as(value, width) for value in inputs)

    def leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return _as(output, self.dtype)


def widen_norms(model: nn.Module, adapter_name: str) -> None:
    """Train the norms of an adapter in float32 where the model is in half precision.

    A step of usual size would be rounded away in half precision, and torch's ``GradScaler`` refuses
    float16 parameters. Their outputs have the model's dtype.
    """
    for norm in _copies(model, adapter_name):
        dtype = next(norm.parameters()).dtype
        if dtype in (torch.float16, torch.bfloat16):
            cast = _Cast(dtype)
            norm.float()
            norm.register_forward_pre_hook(cast.enter)
            norm.register_forward_hook(cast.leave)


def narrow_norms(model: nn.Module, adapter_name: str | None = None) -> None:
    """Undo :func:`widen_norms`, by default for all adapters."""
    for norm in _copies(model, adapter_name):
        for hooks in (norm._forward_pre_hooks, norm._forward_hooks):
            for key, hook in list(hooks.items()):
                cast = getattr(hook, "__self__", None)
                if isinstance(cast, _Cast):
                    del hooks[key]
                    norm.to(cast.dtype)


def _copies(model: nn.Module, adapter_name: str | None) -> list[nn.Module]:
    """The copies of norms that adapters train."""
    return [
        norm
        for module in model.modules()
        if isinstance(module, ModulesToSaveWrapper) and _is_norm(module.original_module)
        for name, norm in module.modules_to_save.items()
        if adapter_name in (None, name)
    ]


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and next(module.parameters(False), None) is not None


def _as(value: Any, dtype: torch.dtype) -> Any:
    wide = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if wide else value
