"""Named weights of one source, and what of it cannot be read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from tnlib.weights.number_formats import CODES, FLOATING
from tnlib.weights.tensor import WeightTensor


@dataclass(frozen=True)
class Weights:
    """Tensors by name; they are read one by one, when they are asked for.

    Attributes
    ----------
    label : str
        What they are called in a report.
    tensors : dict of str to WeightTensor
        The floating-point tensors, in the order of the source.
    problems : dict of str to str
        Names of what cannot be read, with the reason.
    notes : tuple of str
        What else is odd about the source.
    is_update : bool
        Whether they are changes of weights and not weights.
    """

    label: str
    tensors: Mapping[str, WeightTensor]
    problems: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_update: bool = False

    def fingerprint(self) -> str:
        """By which the same weights are known again: names, shapes and a part of every tensor."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            found.update(f"{name} {tensor.shape} {tensor.dtype}\n".encode())
            found.update(tensor.sample())
        for name, reason in sorted(self.problems.items()):
            found.update(f"{name}: {reason}\n".encode())
        return found.hexdigest()


def sorted_out(
    found: Mapping[str, WeightTensor], quantised: str = ""
) -> tuple[dict[str, WeightTensor], dict[str, str]]:
    """The floating-point tensors, and codes of a quantised checkpoint with what is wrong.

    Parameters
    ----------
    found : mapping of str to WeightTensor
        All tensors.
    quantised : str
        How the source says that it is quantised.
    """
    tensors: dict[str, WeightTensor] = {}
    problems: dict[str, str] = {}
    for name, tensor in found.items():
        if tensor.dtype in FLOATING:
            tensors[name] = tensor
        elif tensor.dtype in CODES and (quantised or tensor.dtype not in ("int32", "uint8")):
            how = f" ({quantised})" if quantised else ""
            problems[name] = (
                f"holds codes of a quantised checkpoint, {tensor.dtype}{how}; give the checkpoint "
                "that it was made from"
            )
    return tensors, problems
