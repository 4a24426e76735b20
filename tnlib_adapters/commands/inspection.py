"""``tnlib-adapters inspect``: what an adapter folder holds, read without the base model."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open

from tnlib._table import aligned
from tnlib_adapters.commands.sizes import size
from tnlib_adapters.exchange.folder import read_json
from tnlib_adapters.plugin.files import OUTSIDE, shapes_in
from tnlib_adapters.plugin.layer import STORE
from tnlib_adapters.update import ANCHOR

_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16}


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
        "weight", "shared", "frozen start" or "module".
    shape : tuple of int
        Its shape.
    dtype : str
        Its dtype, in safetensors' words.
    """

    owner: str
    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str


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
    shapes_in(folder)
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {SAFETENSORS_WEIGHTS_NAME}")
    parts = list(_parts(path, config["peft_type"].lower()))
    rows: list[dict[str, Any]] = [
        {"name": name, "kind": kind, "shape": shape, "dtype": dtype, "number": number}
        | {"values": number * math.prod(shape), "bytes": number * _bytes(shape, dtype)}
        for (name, kind, shape, dtype), number in Counter(
            (part.name, part.kind, part.shape, part.dtype) for part in parts
        ).items()
    ]
    frozen = sum(row["values"] for row in rows if row["kind"] == "frozen start")
    adapted = {part.owner for part in parts if part.kind in ("weight", "frozen start")}
    facts = {
        "method": config["peft_type"].lower(),
        "base": config.get("base_model_name_or_path"),
        "task": config.get("task_type"),
        "targets": config.get("target_modules"),
        "weights": len(adapted) or None,
        "trained": sum(row["values"] for row in rows) - frozen,
        "frozen": frozen,
        "file_bytes": path.stat().st_size,
        "merges": _merges(config),
    }
    if options.json:
        return json.dumps(facts | {"tensors": rows}, indent=1)
    return f"{_words(facts)}\n\n{_table(rows)}"


def _configuration(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CONFIG_NAME)
    if not isinstance(config.get("peft_type"), str):
        raise ValueError(
            f"{folder / CONFIG_NAME} names no peft_type; it is not the configuration of an adapter"
        )
    return config


def _parts(path: Path, method: str) -> Iterator[Part]:
    """Tensors of a file in its order, by what PEFT calls the modules of a method."""
    with safe_open(path, "numpy") as file:
        for key in file.keys():  # noqa: SIM118 (not a mapping)
            found = file.get_slice(key)
            shape, dtype = tuple(found.get_shape()), found.get_dtype()
            name = key.removeprefix(OUTSIDE)
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
            yield Part(owner, core, kind, shape, dtype)


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * _BITS.get(dtype, 8) // 8


def _merges(config: dict[str, Any]) -> bool | None:
    """Whether the adapter is an update of weights; None for a method that is not known here."""
    method = config["peft_type"].lower()
    if method == "loretta":
        return config.get("variant") == "rep" and not config.get("tt_head")
    return True if method in ("dota", "lotr", "lorta", "lora") else None


def _words(facts: dict[str, Any]) -> str:
    targets = facts["targets"]
    answer = {True: "yes", False: "no: not an update of the weights", None: "not known here"}
    rows = [
        ("method", facts["method"]),
        ("base", facts["base"] or "not named"),
        ("task", facts["task"] or "none"),
        ("targets", ", ".join(sorted(targets)) if isinstance(targets, list) else str(targets)),
        ("weights", "not in the file: all cores are shared" if facts["weights"] is None else ""),
        ("trained", f"{facts['trained']:,} values"),
        ("frozen start", f"{facts['frozen']:,} values"),
        ("file", f"{facts['file_bytes']:,} bytes ({size(facts['file_bytes'])})"),
        ("merges, exports", answer[facts["merges"]]),
    ]
    rows = [(name, text or str(facts[name])) for name, text in rows]
    return aligned([row for row in rows if row[0] != "frozen start" or facts["frozen"]])


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
    return aligned([("tensor", "of", "shape", "dtype", "number", "values", "size"), *lines])
