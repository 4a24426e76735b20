"""``tnlib-adapters inspect``: what an adapter folder holds, read without the base model.

Neither torch nor PEFT is needed for it, so that it answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tnlib.common.atomic import read_json
from tnlib.common.byte_sizes import size
from tnlib.common.safetensors_header import Entry, read_header
from tnlib.common.table import aligned

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# How the names of tensors in adapter files begin, and those of shared and of frozen cores in them.
PREFIX, STORE, ANCHOR = "base_model.model.", "corestore", "anchor_"
# What divides the cores that are stored.
MULTIPLIERS = "multipliers"
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16}
# Of LoRA's fields, those that say what it is.
_OF_LORA = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
# Fields of every configuration, which are told by themselves or are the same for all.
_COMMON = frozenset(
    (
        *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "base_quantization", "bias"),
        *("described", "dropout", "ensure_weight_tying", "exclude_modules", "experts"),
        *("inference_mode", "init_weights", "layers_pattern", "layers_to_transform"),
        *("modules_to_save", "peft_type", "peft_version", "progressbar", "rank_pattern"),
        *("rate_scaling", "revision", "target_modules", "target_parameters", "task_type"),
        *("trainable_token_indices",),
    )
)


@dataclass(frozen=True)
class Part:
    """A tensor of an adapter file.

    Attributes
    ----------
    owner : str
        Name of the adapted module, or of the module that is kept in full; empty for a core that
        several weights share.
    name : str
        Name of the core, or of the module's last part and its parameter.
    kind : str
        "weight", "shared", "frozen start", "multipliers" or "module".
    entry : Entry
        Its dtype and shape.
    """

    owner: str
    name: str
    kind: str
    entry: Entry


def run(options: argparse.Namespace) -> str:
    """The description, or JSON, of ``inspect``.

    Raises
    ------
    FileNotFoundError
        If the folder is not that of an adapter.
    ValueError
        If its configuration or its file is damaged.
    """
    folder = Path(options.adapter)
    config = _configuration(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}")
    # Behind the name there may be what has to be imported to load it.
    method = config["peft_type"].partition(" ")[0].lower()
    parts = list(_parts(read_header(path), method))
    rows: list[dict[str, Any]] = [
        {"name": name, "kind": kind, "shape": entry.shape, "dtype": entry.dtype, "number": number}
        | {"values": number * math.prod(entry.shape), "bytes": number * _bytes(entry)}
        for (name, kind, entry), number in Counter(
            (part.name, part.kind, part.entry) for part in parts
        ).items()
    ]
    values: Counter[str] = Counter()
    for row in rows:
        values[row["kind"]] += row["values"]
    frozen = values["frozen start"]
    adapted = {part.owner for part in parts if part.kind in ("weight", "frozen start")}
    described = _described(config, method)
    facts = {
        "method": method,
        "settings": _settings(config, method),
        "scale": described.get("scale"),
        "start": described.get("start") or _start(config, frozen > 0),
        "base": config.get("base_model_name_or_path"),
        "base_quantization": config.get("base_quantization"),
        "task": config.get("task_type"),
        "targets": config.get("target_modules"),
        "target_parameters": config.get("target_parameters"),
        "experts": config.get("experts"),
        "rank_pattern": config.get("rank_pattern"),
        "alpha_pattern": config.get("alpha_pattern"),
        "weights": len(adapted) or None,
        "trained": values.total() - frozen - values[MULTIPLIERS],
        "frozen": frozen,
        "file_bytes": path.stat().st_size,
        "merges": described.get("merges"),
        "low_rank": described.get("low_rank"),
    }
    if options.json:
        return json.dumps(facts | {"tensors": rows}, indent=1)
    return f"{_words(facts)}\n\n{_table(rows)}"


def _configuration(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    config = read_json(path)
    if not isinstance(config.get("peft_type"), str):
        raise ValueError(f"{path} names no peft_type; it is not the configuration of an adapter")
    return config


def _parts(header: Mapping[str, Entry], method: str) -> Iterator[Part]:
    """Tensors of a file in its order, by what PEFT calls the modules of a method."""
    for key, entry in header.items():
        name = key.removeprefix(PREFIX)
        owner, core, kind = name.rpartition(".")[0], name, "module"
        if name.startswith(f"{STORE}.{method}_cores."):
            owner, core, kind = "", name.rpartition(".")[2], "shared"
        elif f".{method}_update." in name:
            owner, _, core = name.partition(f".{method}_update.")
            kind = "frozen start" if core.startswith(ANCHOR) else "weight"
        elif f".{method}_" in name:
            owner, _, rest = name.partition(f".{method}_")
            core, kind = f"{method}_{rest.removesuffix('.weight')}", "weight"
        else:
            core = ".".join(name.split(".")[-2:])
        kind = MULTIPLIERS if core.rpartition(".")[2] == MULTIPLIERS else kind
        yield Part(owner, core, kind, entry)


def _bytes(entry: Entry) -> int:
    return math.prod(entry.shape) * _BITS.get(entry.dtype, 8) // 8


def _settings(config: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The method's own fields that say something."""
    names = _OF_LORA if method == "lora" else sorted(config.keys() - _COMMON)
    return {name: config[name] for name in names if config.get(name) not in (None, False, {}, [])}


def _described(config: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The factor of the updates, whether they merge and whether they are of low rank."""
    if method == "lora":
        rank, alpha = config.get("r"), config.get("lora_alpha")
        known: dict[str, Any] = {"merges": True, "low_rank": True}
        if not rank or not alpha:
            return known
        return known | {"scale": alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)}
    described = config.get("described")
    if described is None:
        return _asked(config, method)
    kinds: dict[str, Any] = {"scale": int | float, "merges": bool, "low_rank": bool, "start": str}
    if not isinstance(described, dict) or not all(
        value is None or isinstance(value, kinds.get(name, object))
        for name, value in described.items()
    ):
        raise ValueError(f"described must have scale, merges and low_rank, got {described!r}")
    return described


def _asked(config: Mapping[str, Any], method: str) -> dict[str, Any]:
    """What the method declares, for files that do not say; nothing where it is not installed."""
    try:
        package = importlib.import_module("tnlib_adapters.commands.described")
    except ImportError:
        return {}
    fields = {name: config[name] for name in config.keys() - _COMMON}
    found: dict[str, Any] = package.described(method, fields)
    return found


def _start(config: Mapping[str, Any], anchored: bool) -> str:
    if anchored:
        return "the pretrained weights, whose cores are in the file"
    return "random" if config.get("init_weights") == "random" else "the base model"


def _words(facts: Mapping[str, Any]) -> str:
    targets, form = facts["targets"], facts["base_quantization"]
    answer = {True: "yes", False: "no: not an update of the weights", None: "not known here"}
    if facts["low_rank"] is False:
        answer[True] = "yes, as a LoRA with --rank or --eps"
    rows = [
        ("method", facts["method"]),
        ("settings", ", ".join(f"{name} {value}" for name, value in facts["settings"].items())),
        ("scale", "" if facts["scale"] is None else f"{facts['scale']:g}"),
        ("start", facts["start"]),
        ("base", facts["base"] or "not named"),
        ("base in 4 bits", "" if form is None else _form(form)),
        ("task", facts["task"] or "none"),
        ("targets", _listed(targets)),
        ("weights of experts", _listed(facts["target_parameters"])),
        ("experts", _listed(facts["experts"])),
        ("rank pattern", _listed(facts["rank_pattern"])),
        ("alpha pattern", _listed(facts["alpha_pattern"])),
        ("weights", str(facts["weights"] or "not in the file: all cores are shared")),
        ("trained", f"{facts['trained']:,} parameters"),
        ("frozen start", f"{facts['frozen']:,} parameters" if facts["frozen"] else ""),
        ("file", f"{facts['file_bytes']:,} bytes ({size(facts['file_bytes'])})"),
        ("merges, exports", answer[facts["merges"]]),
    ]
    return aligned([row for row in rows if row[1]])


def _listed(value: Any) -> str:
    """A field that is a list, a dictionary, one word or not there."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_listed(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, sorted(value)))
    return "" if value is None else str(value)


def _form(form: Mapping[str, Any]) -> str:
    second = ", double quantisation" if form.get("double_quant") else ""
    taken = ", without the initial cores" if form.get("residual") else ""
    return f"{form.get('quant_type')}, blocks of {form.get('blocksize')}{second}{taken}"


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        (
            row["name"],
            row["kind"],
            "x".join(map(str, row["shape"])) or "scalar",
            row["dtype"],
            f"{row['number']}",
            f"{row['values']:,}",
            size(row["bytes"]),
        )
        for row in rows
    ]
    return aligned([("tensor", "of", "shape", "dtype", "number", "parameters", "size"), *lines])
