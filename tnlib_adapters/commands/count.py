"""``tnlib-adapters count``: what methods would train in a model, side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tnlib.common.byte_sizes import size
from tnlib.common.table import aligned
from tnlib_adapters.commands.method_argument import configuration, names
from tnlib_adapters.convert.candidates import TASKS
from tnlib_adapters.parameter_count import count, skeleton

# Bytes of a trained value: cores are float32, and AdamW keeps two values for each.
_VALUE, _ADAMW = 4, 8


def run(options: argparse.Namespace) -> str:
    """The table, or JSON, of ``count``.

    Raises
    ------
    FileNotFoundError
        If there is no such model.
    TypeError, ValueError
        If a method's fields are wrong, or it does not fit the model.
    """
    defaults: dict[str, Any] = {"task_type": options.task}
    if options.targets:
        defaults["target_modules"] = names(options.targets)
    configs = {text: configuration(text, **defaults) for text in options.methods}
    _check_model(options.model)
    try:
        model = _model(options.model, options.task)
    except OSError as error:
        if Path(options.model).exists():
            raise
        raise FileNotFoundError(
            f"there is no folder {options.model}, and no model of this name could be read from the "
            "hub; give a model folder, a config.json or the name of a model"
        ) from error
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = []
    for text, config in configs.items():
        found = count(model, config)
        rows.append(
            {
                "method": text,
                "weights": len(found.targets),
                "trained": found.total,
                "of_which_modules": found.total - found.adapter,
                "share": found.total / parameters,
                "file_bytes": _VALUE * (found.total + found.anchored + found.multipliers),
                "gradient_bytes": _VALUE * found.total,
                "adamw_bytes": _ADAMW * found.total,
            }
        )
    kind = type(model).__name__
    if options.json:
        return json.dumps({"model": kind, "parameters": parameters, "methods": rows}, indent=1)
    return f"{kind}, {parameters:,} parameters\n\n{_table(rows)}"


def _table(rows: list[dict[str, Any]]) -> str:
    header = ("method", "weights", "trained", "modules", "of model", "file", "gradients", "AdamW")
    lines = [
        (
            row["method"],
            f"{row['weights']}",
            f"{row['trained']:,}",
            f"{row['of_which_modules']:,}",
            f"{row['share']:.4%}",
            *(size(row[key]) for key in ("file_bytes", "gradient_bytes", "adamw_bytes")),
        )
        for row in rows
    ]
    return aligned([header, *lines])


def _model(source: str, task: str | None) -> nn.Module:
    """The model without weights, of the task's class or of the one that its configuration names."""
    if task is None:
        return skeleton(source)
    import transformers

    config = transformers.AutoConfig.from_pretrained(source)
    with torch.device("meta"):
        model: nn.Module = getattr(transformers, TASKS[task]).from_config(config)
    return model


def _check_model(source: str) -> None:
    """Raise FileNotFoundError for what is a path and leads to no configuration."""
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        raise FileNotFoundError(f"{source} has no config.json; give the folder of a base model")
    local = source.startswith((".", "/", "~")) or path.suffix == ".json" or source.count("/") > 1
    if local and not path.exists():
        raise FileNotFoundError(f"there is no {source}; give a model folder or a config.json")
