"""Low-rank updates to fit, and the least errors that theory allows."""

from __future__ import annotations

import torch

from tnlib_adapters.fitting.low_rank_update import LowRankUpdate


def norm(tensor):
    return float(torch.linalg.norm(tensor))


def low_rank(shape, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(shape[0], rank, generator=generator, dtype=torch.float64)
    return LowRankUpdate(
        left, torch.randn(rank, shape[1], generator=generator, dtype=torch.float64)
    )


def tails(matrix, rank):
    """Norm of the singular values beyond a rank: the least error of an unfolding."""
    return norm(torch.linalg.svdvals(matrix)[rank:])
