"""Updates of experts added to a checkpoint, which has them in one tensor or a matrix for each."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tnlib_adapters.base_model.expert_parameters import FUSED, expert_parameters
from tnlib_adapters.convert.checkpoint import FLOATING, Change, Checkpoint
from tnlib_adapters.convert.trained_adapter import Adapter
from tnlib_adapters.networks.core import computing
from tnlib_adapters.peft_plugin.expert_layer import ExpertLayer

_PIECE = re.compile(r"\.(\d+)\.(\w+)\.weight$")
# Names of the projections where experts are stored one by one.
_LEAVES = {
    "gate_proj": "gate_proj",
    "up_proj": "up_proj",
    "down_proj": "down_proj",
    "w1": "gate_proj",
    "w3": "up_proj",
    "w2": "down_proj",
}


@dataclass
class Rounding:
    """Squared norms of what the rounding of merged weights takes, and of their updates."""

    lost: float = 0.0
    update: float = 0.0

    @property
    def share(self) -> float:
        """How much of the update it takes."""
        return (self.lost / self.update) ** 0.5 if self.update else 0.0

    def add(self, written: Tensor, exact: Tensor, delta: Tensor) -> None:
        """Count one weight."""
        self.lost += float((written.to(exact.dtype) - exact).square().sum())
        self.update += float(delta.square().sum())


@dataclass
class ExpertMerge:
    """The changes of a checkpoint for the weights of experts.

    Attributes
    ----------
    source : Adapter
        The adapter.
    checkpoint : Checkpoint
        The base model's.
    known : mapping of str to str
        Names in the checkpoint of parameters that it has as they are.
    pieces : mapping of str to sequence of str
        Names of the tensors that a parameter is made of.
    rounding : dict of str to Rounding
        By parameter, filled while the changes are written.
    """

    source: Adapter
    checkpoint: Checkpoint
    known: Mapping[str, str]
    pieces: Mapping[str, Sequence[str]]
    rounding: dict[str, Rounding] = field(default_factory=dict)

    def changes(self, cast: torch.dtype | None) -> Iterator[tuple[str, str, Change]]:
        """Names in the checkpoint, names of the parameters, and what is written.

        Raises
        ------
        ValueError
            If the checkpoint has a weight in a form that is not known.
        """
        for name, layers in self.source.experts.items():
            self.rounding[name] = Rounding()
            if name in self.known:
                stored = self.known[name]
                shape = tuple(layers[0].values.shape)
                yield stored, name, self._change(stored, shape, cast, self._whole(name, layers))
            elif name in self.pieces:
                yield from self._of_pieces(name, layers, cast)
            else:
                raise ValueError(_not_there(self.checkpoint, name))

    def _of_pieces(
        self, name: str, layers: Sequence[ExpertLayer], cast: torch.dtype | None
    ) -> Iterator[tuple[str, str, Change]]:
        parameters = expert_parameters(self.source.model)
        module, _, leaf = name.rpartition(".")
        found = expert_pieces(self.pieces[name])
        numbers, leaves = range(layers[0].parameter.n_experts), FUSED.get(leaf, (leaf,))
        if {*found} != {*itertools.product(numbers, leaves)}:
            raise ValueError(_not_there(self.checkpoint, name))
        for (expert, leaf), stored in found.items():
            part = parameters[f"{module}.{leaf}".removeprefix(".")]
            if any(layer.update(self.source.name).slot(expert) is not None for layer in layers):
                shape = (part.out_features, part.in_features)
                value = self._piece(name, layers, expert, part.rows)
                yield stored, name, self._change(stored, shape, cast, value)

    def _change(
        self,
        stored: str,
        shape: tuple[int, ...],
        cast: torch.dtype | None,
        value: Callable[[Tensor, torch.dtype], Tensor],
    ) -> Change:
        tensor = self.checkpoint.tensors[stored]
        if tensor.shape != shape or tensor.dtype not in FLOATING:
            raise ValueError(
                f"{stored} is {tensor.dtype} {tensor.shape} in the checkpoint, and the adapter is "
                f"for {shape} in floating point; give the checkpoint that it was trained on"
            )
        dtype = cast or FLOATING[tensor.dtype]

        def made(weight: Tensor | None) -> Tensor:
            assert weight is not None
            written = value(weight, dtype)
            if not torch.isfinite(written).all():
                raise ValueError(
                    f"{stored}: the merged weight is not finite in {dtype}: the adapter holds nan "
                    "or inf, or the dtype is too narrow; nothing was written"
                )
            return written

        return Change(dtype, shape, made)

    def _delta(self, layers: Sequence[ExpertLayer], expert: int) -> Tensor | None:
        """The update of one expert's whole matrix, (out, in); None where it has none."""
        found: Tensor | None = None
        for layer in layers:
            update = layer.update(self.source.name)
            if update.slot(expert) is None:
                continue
            part = update.delta(expert).detach()
            if found is None:
                found = part.new_zeros(layer.whole_shape)
            found[layer.parameter.rows] += part
        return found

    def _whole(
        self, name: str, layers: Sequence[ExpertLayer]
    ) -> Callable[[Tensor, torch.dtype], Tensor]:
        def value(weight: Tensor, dtype: torch.dtype) -> Tensor:
            written = weight.to(dtype, copy=True)
            for expert in range(len(weight)):
                delta = self._delta(layers, expert)
                if delta is not None:
                    delta = delta.mT if layers[0].parameter.transposed else delta
                    exact = weight[expert].to(computing([weight, delta])) + delta
                    written[expert] = exact.to(dtype)
                    self.rounding[name].add(written[expert], exact, delta)
            return written

        return value

    def _piece(
        self, name: str, layers: Sequence[ExpertLayer], expert: int, rows: slice
    ) -> Callable[[Tensor, torch.dtype], Tensor]:
        def value(weight: Tensor, dtype: torch.dtype) -> Tensor:
            delta = self._delta(layers, expert)
            assert delta is not None
            exact = weight.to(computing([weight, delta])) + delta[rows]
            written = exact.to(dtype)
            self.rounding[name].add(written, exact, delta[rows])
            return written

        return value


def expert_pieces(names: Sequence[str]) -> dict[tuple[int, str], str]:
    """Tensors that have a matrix of one expert each, by the expert and the projection."""
    found: dict[tuple[int, str], str] = {}
    for stored in names:
        match = _PIECE.search(stored)
        if match is not None and match[2] in _LEAVES:
            found[int(match[1]), _LEAVES[match[2]]] = stored
    return found


def _not_there(checkpoint: Checkpoint, name: str) -> str:
    return (
        f"{checkpoint.folder} has no tensor for {name}, or has it in another layout; give the "
        "checkpoint that the adapter was trained on as base=, or load the model and use "
        "merge_and_unload()"
    )
