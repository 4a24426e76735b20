"""What the entries of ``target_modules`` matched, and what they could not."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from tnlib_adapters.base_model.linear_modules import bare_experts, features
from tnlib_adapters.base_model.peft_names import is_named
from tnlib_adapters.base_model.sites import find_sites
from tnlib_adapters.base_model.task_heads import ALL_TASK_HEADS
from tnlib_adapters.fourbit.bitsandbytes import is_bitsandbytes
from tnlib_adapters.fourbit.layer import QuantizedLinear

if TYPE_CHECKING:
    from tnlib_adapters.peft_plugin.fields import MethodFields

C = TypeVar("C", bound="MethodFields")

ALL_LINEAR = "all-linear"
Entries = Collection[str] | str | None


def choose(config: MethodFields, model: nn.Module) -> None:
    """Set ``target_modules`` where none are named: the method's choice for the model.

    Of a model with parts for several kinds of data it is the language model's layers, with a
    warning that says so. Layers that cannot be adapted are left out.

    Raises
    ------
    ValueError
        If the method knows none for it.
    """
    if config.target_modules is not None or config.adapts_experts:
        return
    kind = getattr(getattr(model, "config", None), "model_type", "")
    usual: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind)
    part = language_part(model)
    sites = {name: site for name, site in find_sites(model).items() if name.startswith(part)}
    if usual is not None and not isinstance(usual, str):
        usual = {entry for entry in usual if any(report([entry], [*sites])[entry])}
    found = config.default_targets(sites, usual)
    if not found:
        raise ValueError(
            "target_modules is not given, and no default is known for this model; name the "
            "linear layers to adapt, or say 'all-linear'"
        )
    if part and not isinstance(found, str):
        names = "|".join(re.escape(entry) for entry in sorted(found))
        found = rf"{re.escape(part)}(?:.*\.)?(?:{names})"
        warnings.warn(
            f"target_modules is not given: of this {type(model).__name__} the language model "
            f"({part}*) is adapted only; name target_modules to adapt other parts",
            stacklevel=6,
        )
    config.target_modules = found  # type: ignore[assignment]


def language_part(model: nn.Module) -> str:
    """What the names of the language model's layers begin with, in a model of several parts."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if text is None or text is config:
        return ""
    inner = (n for n, m in model.named_modules() if n and getattr(m, "config", None) is text)
    return f"{found}." if (found := next(inner, "")) else ""


def adapted_part(config: MethodFields, model: nn.Module) -> str:
    """What the names of the adapted layers begin with, where all are in the language model."""
    part = language_part(model)
    if not part or config.target_modules == ALL_LINEAR:
        return ""
    names = [name for name in find_sites(model) if check_target_module_exists(config, name)]
    return part if all(name.startswith(part) for name in names) else ""


def resolved(config: C, model: nn.Module, heads: list[str]) -> C:
    """A copy of a configuration with everything that depends on the model decided.

    `heads` are names of modules that PEFT trains in full for the task.
    """
    config = copy.deepcopy(config)
    config.modules_to_save = [*(config.modules_to_save or ()), *heads] or None
    choose(config, model)
    config.prepare(model)
    _maybe_include_all_linear_layers(config, model)
    return config


def report(entries: Entries, adapted: Sequence[str]) -> dict[str, list[str]]:
    """Names of adapted modules by the entry that matched them.

    Parameters
    ----------
    entries : collection of str, str or None
        A collection matches whole names and their endings; a str is a regular expression (or
        "all-linear"), None the default: then there is one entry.
    adapted : sequence of str
        Names of the modules that are adapted.
    """
    if entries is None or isinstance(entries, str):
        return {entries or "default": list(adapted)}
    return {entry: [name for name in adapted if is_named(name, entry)] for entry in sorted(entries)}


def warn(found: dict[str, list[str]], model: nn.Module, entries: Entries) -> None:
    """Warn of entries that matched nothing, and of experts that "all-linear" cannot reach."""
    bare = bare_experts(model)
    empty = [entry for entry, names in found.items() if not names]
    if empty:
        counts = ", ".join(f"{entry!r}: {len(names)}" for entry, names in found.items())
        warnings.warn(
            f"target_modules entries that matched no module: {empty} (modules by entry: {counts})"
            + _named([name for name in bare if name.rsplit(".", 1)[-1] in empty]),
            stacklevel=4,
        )
    elif isinstance(entries, str) and entries.lower() == ALL_LINEAR and bare:
        warnings.warn(
            "target_modules='all-linear' reaches modules only" + _named(bare), stacklevel=4
        )


def warn_unsaved(saved: Collection[str] | None, model: nn.Module) -> None:
    """Warn of entries of ``modules_to_save`` that no module has; PEFT adds some for a task."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    missing = [entry for entry in saved or () if not any(n.endswith(entry) for n in names)]
    missing = [entry for entry in missing if entry not in ALL_TASK_HEADS]
    if missing:
        warnings.warn(f"modules_to_save entries that matched no module: {missing}", stacklevel=4)


def check_saved(saved: Collection[str] | None, model: nn.Module) -> None:
    """Raise ValueError if a module that shall be trained in full holds a layer in 4 bits."""
    for name, module in model.named_modules():
        if any(is_named(name, entry) for entry in saved or ()):
            for inner, layer in module.named_modules():
                if isinstance(layer, QuantizedLinear) or is_bitsandbytes(layer):
                    raise ValueError(
                        f"modules_to_save names {name}, whose layer {inner or name} is in 4 bits "
                        "and cannot be trained; leave it out of quantising: skip=[...] of "
                        "quantize_base, llm_int8_skip_modules of BitsAndBytesConfig"
                    )


def check_compiled(model: nn.Module) -> None:
    """Raise ValueError if a module is trained in full in a compiled one, where PEFT loads none."""
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and "_orig_mod." in f"{name}.":
            raise ValueError(
                f"{name} is trained in full, and PEFT cannot load it into a compiled model; load "
                "the adapter first and compile the model then"
            )


def check_weight(layer: nn.Module) -> None:
    """Raise TypeError or ValueError if a layer has no weight that an update could be added to."""
    weight = layer._parameters.get("weight")
    if isinstance(weight, UninitializedParameter):
        raise ValueError(
            f"this {type(layer).__name__} has no weight yet; call the model once, then adapt it"
        )
    if weight is not None and weight.numel() == 0 and 0 in (features(layer) or ()):
        raise ValueError(f"the layer is {features(layer)} wide and has no values to adapt")
    if weight is not None and weight.is_floating_point():
        check_dtype(weight)


def check_dtype(weight: Tensor) -> None:
    """Raise TypeError if an update cannot be added to values of this dtype."""
    if not weight.is_floating_point() or weight.dtype.itemsize == 1:
        raise TypeError(
            f"weights of {weight.dtype} are not supported; load the model in bfloat16, or quantise "
            "it in 4 bits (tnlib_adapters.quantization)"
        )


def warn_left_out(left_out: Mapping[str, str]) -> None:
    """Warn of layers that match and cannot be adapted: names, and why."""
    if left_out:
        some = ", ".join([*left_out][:3]) + (" and others" if len(left_out) > 3 else "")
        warnings.warn(f"not adapted: {some}; {_reasons(left_out)}", stacklevel=4)


def check_left_out(entries: Entries, adapted: Sequence[str], left_out: Mapping[str, str]) -> None:
    """Raise ValueError if an entry of ``target_modules`` matches no layer that can be adapted."""
    named = {} if entries is None or entries == ALL_LINEAR else report(entries, [*left_out])
    for entry, names in named.items():
        if names and not report(entries, adapted)[entry]:
            raise ValueError(
                f"{names[0]} cannot be adapted: {_reasons(left_out)}; leave {entry!r} out of "
                "target_modules"
            )


def forget_left_out(
    config: MethodFields, adapted: Sequence[str], left_out: Mapping[str, str]
) -> None:
    """Take what was left out from the names that PEFT writes for "all-linear"."""
    if not isinstance(config.target_modules, str):
        for entry, names in report(config.target_modules, [*left_out]).items():
            if names and not report([entry], adapted)[entry]:
                config.target_modules.remove(entry)  # type: ignore[union-attr]


def _reasons(left_out: Mapping[str, str]) -> str:
    text = " and ".join(sorted(set(left_out.values())))
    if "uses the weight by itself" in text:
        text += ", at least on some machines, without calling the layer, so that an adapter there "
        text += "would not train"
    return text


def overlooked(error: BaseException, model: nn.Module, entries: Entries) -> str:
    """What a user may have overlooked where nothing at all matched; empty for other errors."""
    # PEFT says the second where modules are trained in full beside (LoRETTA's norms).
    messages = ("not found in the base model", "No modules were targeted for adaptation")
    if not any(message in str(error) for message in messages):
        return ""
    hint = "" if messages[0] in str(error) else f" target_modules: {entries!r}."
    if isinstance(entries, str) and entries.lower() != ALL_LINEAR:
        hint += " target_modules is a str, so it is a regular expression for whole names."
    last = {entries} if isinstance(entries, str) else set(entries or ())
    return hint + _named([name for name in bare_experts(model) if name.rsplit(".", 1)[-1] in last])


def _named(bare: Sequence[str]) -> str:
    if not bare:
        return ""
    return (
        f"; held as bare parameters, which are not adapted: {', '.join(bare[:3])}"
        f"{' and others' if len(bare) > 3 else ''}"
    )
