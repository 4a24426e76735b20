"""A weight in 4 bits as named tensors, under the names that bitsandbytes gives them in files."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tnlib_adapters.fourbit import blocks
from tnlib_adapters.fourbit.backend import best_backend
from tnlib_adapters.fourbit.packed import Format, Nested, PackedWeight

# The part of the names that says which code a weight has.
_STATE = "quant_state.bitsandbytes__"


def parts(weight: PackedWeight) -> dict[str, Tensor]:
    """All of a weight but the bytes, as bitsandbytes names it in files."""
    kind = weight.format.quant_type
    device = weight.absmax.device
    tensors = {"absmax": weight.absmax, "quant_map": blocks.code(kind, device)}
    words: dict[str, Any] = {
        "quant_type": kind,
        "blocksize": weight.format.blocksize,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "shape": list(weight.shape),
    }
    if weight.nested is not None:
        tensors["nested_absmax"] = weight.nested.absmax
        tensors["nested_quant_map"] = weight.nested.levels
        words |= {
            "nested_blocksize": blocks.NESTED_BLOCKSIZE,
            "nested_dtype": "float32",
            "nested_offset": _value(weight.nested.mean),
        }
    text = torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)
    return tensors | {_STATE + kind: text}


def read(packed: Tensor, state: Mapping[str, Tensor]) -> PackedWeight:
    """Read what :func:`parts`, or bitsandbytes, has written.

    Raises
    ------
    ValueError
        If parts are missing or do not fit each other.
    """
    kinds = [key.removeprefix(_STATE) for key in state if key.startswith(_STATE)]
    if len(kinds) != 1 or "absmax" not in state:
        raise ValueError(
            f"not a weight in 4 bits: needs absmax and one {_STATE}..., has {sorted(state)}"
        )
    try:
        words = json.loads(bytes(state[_STATE + kinds[0]].cpu().tolist()))
        double = "nested_blocksize" in words
        form = Format(words["quant_type"], words["blocksize"], double)
        rows, columns = (operator.index(size) for size in words["shape"])
        dtype = getattr(torch, words["dtype"])
        mean = torch.tensor(float(words["nested_offset"]) if double else 0.0)
        if double and int(words["nested_blocksize"]) != blocks.NESTED_BLOCKSIZE:
            raise ValueError("scales in 8 bits are read in blocks of 256 only")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{_STATE}{kinds[0]} cannot be read ({error!r})") from error
    device = packed.device
    nested = None
    absmax = state["absmax"].to(device)
    if double:
        largest = state.get("nested_absmax", absmax[:0]).to(device)
        nested = Nested(largest, mean.to(device), blocks.dynamic_map(device))
    found = PackedWeight(packed, absmax, nested, form, (rows, columns), dtype, best_backend())
    _check(found, state)
    return found


def _check(weight: PackedWeight, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless all parts fit each other, and the codes are the known ones."""
    (rows, columns), form = weight.shape, weight.format
    scales = -(-rows * columns // form.blocksize)
    parts = {
        "bytes": (weight.packed.nbytes, (rows * columns + 1) // 2),
        "scales": (weight.absmax.numel(), scales),
        "scales of scales": (
            0 if weight.nested is None else weight.nested.absmax.numel(),
            -(-scales // blocks.NESTED_BLOCKSIZE) if form.double_quant else 0,
        ),
    }
    for part, (has, needs) in parts.items():
        if has != needs or min(rows, columns) < 1:
            raise ValueError(
                f"a weight {rows} x {columns} in {form} needs {needs} {part}, has {has}"
            )
    kind = torch.uint8 if form.double_quant else torch.float32
    if weight.absmax.dtype != kind or not getattr(weight.dtype, "is_floating_point", False):
        raise ValueError(
            f"scales of {weight.absmax.dtype} for a weight of {weight.dtype} in {form}: expected "
            f"{kind}, and a floating dtype"
        )
    known = {"quant_map": blocks.code(form.quant_type, weight.absmax.device)}
    if weight.nested is not None:
        known["nested_quant_map"] = weight.nested.levels
    for name, values in known.items():
        given = state.get(name, values).to(values)
        if given.shape != values.shape or not torch.allclose(given, values, atol=1e-6):
            raise ValueError(f"{name} is not the one of {form}; such codes are not supported")


def _value(scalar: Tensor) -> float:
    """Of a tensor that may be without values, on the meta device."""
    return 0.0 if scalar.is_meta else float(scalar)
