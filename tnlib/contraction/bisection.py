"""Trees by recursive bisection: cut the network where the bonds are thin, then each half.

The cut is found along the Fiedler vector of the graph whose edges weigh the logarithm of a bond's
size (Pothen, Simon and Liou, SIAM J. Matrix Anal. Appl. 11, 1990), and improved by moving single
operands (Fiduccia and Mattheyses, DAC 1982). Noise on the weights gives different trees.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tnlib.contraction.network import Network
from tnlib.contraction.tree import Tree
from tnlib.linalg import lapack

Matrix = np.ndarray[Any, np.dtype[np.float64]]


def bisected(network: Network, rng: np.random.Generator) -> Tree:
    """A tree from noisy recursive bisections."""
    weights = _weights(network) * np.exp(rng.normal(0.0, rng.uniform(0.0, 0.5)))
    noise = rng.normal(0.0, rng.uniform(0.0, 0.5), weights.shape)
    weights = weights * np.exp((noise + noise.T) / 2)
    return _split(weights, np.arange(len(network.terms)), rng.uniform(0.05, 0.45), rng)


def _weights(network: Network) -> Matrix:
    """Symmetric weights: logarithms of the bonds, shared evenly where more than two meet."""
    count = len(network.terms)
    weights = np.zeros((count, count))
    for index, size in network.sizes.items():
        owners = [k for k, term in enumerate(network.terms) if index in term]
        for a in owners:
            for b in owners:
                if a != b:
                    weights[a, b] += np.log2(max(size, 1) + 1e-3) / (len(owners) - 1)
    return weights


def _split(
    weights: Matrix, nodes: np.ndarray[Any, Any], balance: float, rng: np.random.Generator
) -> Tree:
    if len(nodes) == 1:
        return int(nodes[0])
    side = _cut(weights[np.ix_(nodes, nodes)], balance, rng)
    left = _split(weights, nodes[side], balance, rng)
    return (left, _split(weights, nodes[~side], balance, rng))


def _cut(weights: Matrix, balance: float, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Which nodes go to one side; at least a share `balance` of them on each."""
    count = len(weights)
    laplacian = np.diag(weights.sum(axis=1) + 1e-9 * rng.random(count)) - weights
    order = np.argsort(lapack.eigh(laplacian)[1][:, 1 % count])
    least = max(1, int(balance * count))
    ranked = weights[np.ix_(order, order)]
    cuts = [float(ranked[:k, k:].sum()) for k in range(least, count - least + 1)]
    side = np.zeros(count, dtype=bool)
    side[order[: least + int(np.argmin(cuts))]] = True
    return _moved(weights, side, least)


def _moved(weights: Matrix, side: np.ndarray[Any, Any], least: int) -> np.ndarray[Any, Any]:
    """The cut after a pass that moves every node once, rolled back to its best moment."""
    sign = np.where(side, 1.0, -1.0)
    locked = np.zeros(len(sign), dtype=bool)
    best, lowest, total = sign.copy(), 0.0, 0.0
    for _ in range(len(sign)):
        gains = sign * (weights @ sign)
        for positive in (True, False):
            if np.sum((sign > 0) == positive) <= least:
                gains[(sign > 0) == positive] = np.inf
        gains[locked] = np.inf
        node = int(np.argmin(gains))
        if not np.isfinite(gains[node]):
            break
        total += gains[node]
        sign[node] = -sign[node]
        locked[node] = True
        if total < lowest - 1e-12:
            best, lowest = sign.copy(), total
    return best > 0
