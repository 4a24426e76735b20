"""A model before and after it was fine-tuned, as two checkpoints that are read tensor by tensor.

Only the shapes of the model are built. Names and layouts of the checkpoints may be others than the
model's, and than each other's: transformers says which tensor is which parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tnlib.weights.opening import open_weights
from tnlib.weights.source import Weights
from tnlib_adapters.base_model.expert_parameters import FUSED, expert_parameters
from tnlib_adapters.base_model.linear_modules import is_transposed
from tnlib_adapters.convert.candidates import hollow
from tnlib_adapters.convert.checkpoint_names import names_in_checkpoint
from tnlib_adapters.convert.merge_experts import expert_pieces
from tnlib_adapters.parameter_count import skeleton


class Stored:
    """The parameters of a model in one checkpoint.

    Parameters
    ----------
    weights : Weights
        The checkpoint.
    model : torch.nn.Module
        The model, without weights.
    """

    def __init__(self, weights: Weights, model: nn.Module) -> None:
        self.weights = weights
        parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        self.names, self.pieces = names_in_checkpoint(model, parameters, weights.tensors)
        tied: Any = getattr(model, "all_tied_weights_keys", None) or {}
        for name, other in tied.items():
            for one, two in ((name, other), (other, name)):
                if one not in self.names and two in self.names:
                    self.names[one] = self.names[two]

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a parameter that the checkpoint has as one tensor, else None."""
        stored = self.names.get(name)
        return None if stored is None else self.weights.tensors[stored].shape

    def read(self, name: str, expert: int | None = None) -> Tensor:
        """A parameter, or the matrix of one expert of it.

        Raises
        ------
        ValueError
            If the checkpoint has it in no form that is known.
        """
        if name in self.names:
            return self._tensor(self.names[name], expert)
        if expert is None or name not in self.pieces:
            raise ValueError(f"{self.weights.label} has no tensor for {name}")
        found = expert_pieces(self.pieces[name])
        leaf = name.rpartition(".")[2]
        parts = [found.get((expert, own)) for own in FUSED.get(leaf, (leaf,))]
        if None in parts:
            raise ValueError(f"{self.weights.label} has not all of {name}[{expert}]")
        return torch.cat([self._tensor(str(part), None) for part in parts])

    def _tensor(self, stored: str, expert: int | None) -> Tensor:
        """The numbers of a tensor, which nobody else has."""
        values = self.weights.tensors[stored].read(expert)
        return torch.from_numpy(values if values.flags.owndata else values.copy())

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a parameter, in one tensor or in several."""
        return name in self.names or name in self.pieces


@dataclass(frozen=True)
class CheckpointPair:
    """What fine-tuning started from and what came of it.

    Attributes
    ----------
    model : torch.nn.Module
        The fine-tuned model on the meta device.
    base, finetuned : Stored
        Its parameters before and after.
    """

    model: nn.Module
    base: Stored
    finetuned: Stored

    @classmethod
    def of(cls, base: Any, finetuned: Any) -> CheckpointPair:
        """Open both, and build the model that the fine-tuned one is.

        Parameters
        ----------
        base, finetuned : path, str or torch.nn.Module
            Checkpoints of transformers, names of models on the hub, or models.

        Raises
        ------
        FileNotFoundError
            If there is no configuration.
        """
        old, new = open_weights(base, "base"), open_weights(finetuned, "finetuned")
        if old.is_update or new.is_update:
            one = "base" if old.is_update else "finetuned"
            raise ValueError(f"{one} is a LoRA and no checkpoint; a LoRA is converted by from_lora")
        for weights in (old, new):
            for name, reason in weights.problems.items():
                raise ValueError(f"{name} of {weights.label} {reason}")
        model = _hollow_model(finetuned, base)
        return cls(model, Stored(old, model), Stored(new, model))

    def delta(self, key: str) -> Tensor:
        """The change of a linear layer's weight, or of one expert ``name[e]``: (out, in)."""
        name, expert = _expert(key)
        if expert is None:
            changed = self.finetuned.read(f"{name}.weight") - self.base.read(f"{name}.weight")
            return changed.mT if is_transposed(self.model.get_submodule(name)) else changed
        part, whole = self._experts[name], self.parameter_of(name)
        changed = self.finetuned.read(whole, expert) - self.base.read(whole, expert)
        changed = changed.mT if part.transposed and whole in self.finetuned.names else changed
        return changed[part.rows]

    def parameter_of(self, name: str) -> str:
        """The parameter that a weight of experts is, or is a part of."""
        part = self._experts[name]
        return f"{part.module}.{part.parameter}".removeprefix(".")

    def rows_of(self, name: str) -> tuple[slice, int]:
        """Which rows of its parameter's matrices a weight of experts has, and of how many."""
        part = self._experts[name]
        whole = self._experts[self.parameter_of(name)]
        return part.rows, whole.out_features

    def others(self, adapted: set[str]) -> Iterator[tuple[str, str]]:
        """Parameters that are not `adapted`, with what keeps them from being compared, if so."""
        for name, parameter in self.model.named_parameters():
            if name in adapted:
                continue
            old, new = self.base.shape(name), self.finetuned.shape(name)
            if not self.finetuned.has(name):
                yield name, "is not in the fine-tuned checkpoint"
            elif not self.base.has(name):
                yield name, "is not in the base"
            elif old is not None and old != new:
                yield name, f"has shape {new}, and {old} in the base"
            elif new is None and parameter.ndim != 3:
                yield name, "is in several tensors of the checkpoint"
            else:
                yield name, ""

    @cached_property
    def _experts(self) -> dict[str, Any]:
        return expert_parameters(self.model)

    @cached_property
    def unknown(self) -> list[str]:
        """Tensors of the fine-tuned checkpoint that the model has no parameter for."""
        used = {*self.finetuned.names.values()}
        used |= {name for pieces in self.finetuned.pieces.values() for name in pieces}
        return [name for name in self.finetuned.weights.tensors if name not in used]

    def change(self, name: str) -> tuple[float, float]:
        """Norms of the change of a parameter and of what it was."""
        shape = self.model.get_parameter(name).shape
        whole = name in self.finetuned.names and name in self.base.names
        members = [None] if whole else [*range(shape[0])]
        off = norm = 0.0
        for expert in members:
            old = self.base.read(name, expert)
            off += float((self.finetuned.read(name, expert) - old).square().sum(dtype=torch.double))
            norm += float(old.square().sum(dtype=torch.double))
        return off**0.5, norm**0.5


def _expert(key: str) -> tuple[str, int | None]:
    """The name of a site, and the expert where a key has one."""
    if not key.endswith("]"):
        return key, None
    name, _, number = key[:-1].rpartition("[")
    return name, int(number)


def _hollow_model(*sources: Any) -> nn.Module:
    """The model of the first source that says what it is, on the meta device."""
    for source in sources:
        if isinstance(source, nn.Module):
            return hollow(source)
        path = Path(source)
        if path.is_dir() and (path / "config.json").is_file():
            return skeleton(path)
        if not path.exists():
            return skeleton(str(source))
    raise FileNotFoundError(
        f"neither {sources[0]} nor {sources[1]} has a config.json, which says what the layers are; "
        "give the folder that save_pretrained wrote, or models"
    )
