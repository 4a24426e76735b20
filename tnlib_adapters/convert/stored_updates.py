"""Updates that are read when they are asked for: their leading directions, or all of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tnlib import tt_svd
from tnlib_adapters.convert.checkpoint_pair import CheckpointPair
from tnlib_adapters.fitting.low_rank_update import LowRankUpdate


class StoredUpdate(LowRankUpdate):
    """The leading directions of an update, the whole of which is in two checkpoints."""

    def __init__(self, left: Tensor, right: Tensor, pair: CheckpointPair, name: str) -> None:
        super().__init__(left, right)
        object.__setattr__(self, "_whole", (pair, name))

    def dense(self) -> Tensor:
        """The whole update, in float64."""
        pair, name = self._whole  # type: ignore[attr-defined]
        delta: Tensor = pair.delta(name)
        return delta.double()


class StoredUpdates(Mapping[str, LowRankUpdate]):
    """Updates by the names of their weights, kept by their leading directions in float32.

    Parameters
    ----------
    pair : CheckpointPair
        Where they are.
    names : sequence of str
        The weights; of experts ``name[e]``.
    kept : int
        How many directions.
    """

    def __init__(self, pair: CheckpointPair, names: Sequence[str], kept: int) -> None:
        self.pair, self.names, self.kept = pair, names, kept
        self._found: dict[str, tuple[Tensor, Tensor]] = {}

    def __getitem__(self, name: str) -> LowRankUpdate:
        left, right = self.factors(name)
        return StoredUpdate(left.double(), right.double(), self.pair, name)

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """Orthonormal columns (out, k), and (k, in).

        Raises
        ------
        ValueError
            If the update is not finite.
        """
        if name not in self._found:
            self._found[name] = leading(name, self.pair.delta(name), self.kept)
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def leading(name: str, delta: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """The leading directions of an update in float32: orthonormal columns (out, k), and (k, in).

    Raises
    ------
    ValueError
        If the update is not finite.
    """
    try:
        first, second = tt_svd(delta.contiguous(), min(kept, *delta.shape), rng=0).cores
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return torch.as_tensor(first)[0].float(), torch.as_tensor(second)[..., 0].float()
