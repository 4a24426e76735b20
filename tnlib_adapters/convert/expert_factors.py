"""Updates of experts as PEFT's LoRA of parameters keeps them.

PEFT puts one wrapper a parameter around a module of experts, in the order of the parameters, so the
last one's factors are under the module's own name and those before it under ``.base_layer``, once
for each that follows. A holds the experts' factors one below another, the expert slowest: (E r,
in). In B the expert is fastest: (out, r E).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tnlib_adapters.base_model.peft_names import is_named
from tnlib_adapters.convert.conversion import ConvertedWeight
from tnlib_adapters.convert.trained_adapter import Adapter
from tnlib_adapters.convert.truncation import LowRank, low_rank
from tnlib_adapters.networks.expert_network import ExpertNetwork
from tnlib_adapters.peft_plugin.expert_layer import ExpertLayer

BASE = ".base_layer"


@dataclass(frozen=True)
class ExpertFactors:
    """Factors of all experts of a parameter.

    Attributes
    ----------
    name : str
        Name of the parameter.
    parts : tuple of (slice, tuple of LowRank)
        Rows of the parameter's matrices, and the factors of every expert.
    shape : (int, int)
        Output and input width of one expert's matrix.
    """

    name: str
    parts: tuple[tuple[slice, tuple[LowRank, ...]], ...]
    shape: tuple[int, int]

    @property
    def rank(self) -> int:
        """The largest rank of an expert."""
        ranks = ([len(factors.A) for factors in found] for _, found in self.parts)
        return max(map(sum, zip(*ranks, strict=True)))

    def tensors(self, rank: int) -> tuple[Tensor, Tensor]:
        """A (E r, in) and B (out, r E), filled with zeros up to `rank`."""
        n = len(self.parts[0][1])
        a, b = torch.zeros(n, rank, self.shape[1]), torch.zeros(self.shape[0], rank, n)
        for expert in range(n):
            start = 0
            for rows, found in self.parts:
                stop = start + len(found[expert].A)
                a[expert, start:stop] = found[expert].A
                b[rows, start:stop, expert] = found[expert].B
                start = stop
        return a.flatten(0, 1), b.flatten(1)

    def converted(self, rank: int) -> ConvertedWeight:
        """What became of the parameter; values are those that are written, zeros among them."""
        every = [found for _, part in self.parts for found in part]
        norm = math.hypot(*(found.norm for found in every))
        off = math.hypot(*(found.error * found.norm for found in every))
        n = len(self.parts[0][1])
        values = n * rank * sum(self.shape)
        error = off / norm if norm else 0.0
        return ConvertedWeight(self.name, (n, *self.shape), (rank,), values, error, norm)


def expert_factors(source: Adapter, rank: int | None, eps: float | None) -> Iterator[ExpertFactors]:
    """The factors of every adapted parameter.

    Raises
    ------
    ValueError
        As :func:`~tnlib_adapters.convert.truncation.low_rank` does.
    """
    for name, layers in source.experts.items():
        parts = []
        for layer in layers:
            update = layer.update(source.name)
            try:
                found = tuple(
                    _of_expert(layer, source.name, expert, rank, eps)
                    for expert in range(update.n_experts)
                )
            except ValueError as error:
                own = _title(source, layer)
                raise ValueError(f"{own}: {error}") from error
            parts.append((layer.parameter.rows, found))
        yield ExpertFactors(name, tuple(parts), layers[0].whole_shape)


def _title(source: Adapter, layer: ExpertLayer) -> str:
    """The name of a weight that is adapted, which may be a part of a parameter."""
    names = source.model.named_modules()
    return next(str(name) for name, module in names if module is layer)


def _of_expert(
    layer: ExpertLayer, adapter: str, expert: int, rank: int | None, eps: float | None
) -> LowRank:
    update = layer.update(adapter)
    network: ExpertNetwork = update.network
    slot = update.slot(expert)
    if slot is None:
        none = torch.zeros(network.out_features, 0), torch.zeros(0, network.in_features)
        return LowRank(*none, 0.0, 0.0)
    anchor = update.anchor
    start = None if anchor is None else network.of_expert(anchor, slot)
    return low_rank(network.alone, network.of_expert(update.cores, slot), start, rank, eps)


def wrapper_names(names: Sequence[str], owner: nn.Module, module: str) -> dict[str, str]:
    """Under which name PEFT keeps the factors of the parameters `names` of a module."""
    order = [key for key, _ in owner.named_parameters(recurse=False) if key in names]
    return {key: module + BASE * (len(order) - 1 - k) for k, key in enumerate(order)}


def target_entries(names: Sequence[str], parameters: Sequence[str]) -> list[str]:
    """Entries of ``target_parameters`` that match `names` and no other of the `parameters`."""
    short = sorted({".".join(name.split(".")[-2:]) for name in names})
    matched = {p for p in parameters for s in short if is_named(p, s)}
    return short if matched == set(names) else sorted(names)


def split_factors(a: Tensor, b: Tensor, n_experts: int) -> list[tuple[Tensor, Tensor]]:
    """B and A of every expert, of PEFT's two tensors."""
    first = a.reshape(n_experts, -1, a.shape[1])
    second = b.reshape(b.shape[0], -1, n_experts).permute(2, 0, 1)
    return [*zip(second, first, strict=True)]


def by_owner(names: Mapping[str, object]) -> dict[str, list[str]]:
    """Last parts of the names of parameters, by their modules."""
    found: dict[str, list[str]] = {}
    for name in names:
        module, _, key = name.rpartition(".")
        found.setdefault(module, []).append(key)
    return found
