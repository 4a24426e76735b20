"""Base models without weights: what an adapter may have been trained on, by its configuration."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from tnlib_adapters.peft_plugin.config import NetworkConfig

TASKS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


def candidates(
    config: NetworkConfig, base: Any, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[nn.Module]:
    """Models on the meta device that the adapter may have been trained on, likeliest first.

    The class that the adapter's configuration names, the one of its task, that of the base's
    configuration, the bare model.

    Parameters
    ----------
    config : NetworkConfig
        The adapter's saved configuration.
    base : torch.nn.Module, transformers configuration, str or Path
        A model, of which a hollow copy is made; or what says the class and the sizes.
    shapes : mapping of str to tuple of int
        Shapes by name of what was trained in full: the heads tell the number of labels.

    Raises
    ------
    TypeError
        If `base` is a model with adapters in it.
    FileNotFoundError
        If there is no such configuration.
    """
    if isinstance(base, nn.Module):
        yield hollow(base)
        return
    import transformers

    if isinstance(base, str | Path):
        base = _configuration(base)
    if not isinstance(base, transformers.PretrainedConfig):
        raise TypeError(
            "base must be a model, a transformers configuration or a path, got "
            f"{type(base).__name__}"
        )
    mapping: Any = config.auto_mapping or {}
    task: Any = config.task_type
    names = [
        mapping.get("base_model_class"),
        TASKS.get(getattr(task, "value", task) or ""),
        *(getattr(base, "architectures", None) or ()),
        "AutoModel",
    ]
    seen = set()
    for name in dict.fromkeys(filter(None, names)):
        try:
            kind = getattr(transformers, name)
            model = _built(kind, base)
        except (AttributeError, TypeError, ValueError):
            continue  # a class of another architecture, or one that transformers does not have
        if type(model) not in seen:
            seen.add(type(model))
            labels = _labels(model, shapes)
            if labels is not None:
                other = copy.deepcopy(base)
                other.num_labels = labels
                model = _built(kind, other)
            yield model


def hollow(model: nn.Module) -> nn.Module:
    """A copy of a model on the meta device; its weights are not copied.

    Raises
    ------
    TypeError
        If there are adapters in the model.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise TypeError("base has an adapter already; give the plain model, as unload() leaves it")
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def _configuration(base: str | Path) -> Any:
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no configuration of the base model at {str(base)!r}; give base=, a folder with a "
            f"config.json, a configuration or a model ({error})"
        ) from error


def _built(kind: Any, config: Any) -> nn.Module:
    config = copy.deepcopy(config)
    with torch.device("meta"):
        model: nn.Module = kind.from_config(config) if kind.__name__[:4] == "Auto" else kind(config)
    return model


def _labels(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Number of labels of a saved head, where the model has another."""
    labels = getattr(model.config, "num_labels", None)
    for name, value in model.state_dict().items():
        saved = shapes.get(name)
        if saved and value.shape[:1] == (labels,) and saved[0] != labels:
            return saved[0]
    return None
