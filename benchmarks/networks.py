"""The networks of the contraction benchmarks: adapter layers, matrix product states, graphs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import opt_einsum

Problem = tuple[str, list[tuple[int, ...]]]


def symbols() -> Iterator[str]:
    return (opt_einsum.get_symbol(k) for k in itertools.count())


def operator(batch: int, rows: list[int], columns: list[int], rank: int) -> Problem:
    """A batch times a matrix product operator: the update of a DoTA layer."""
    order, names = len(rows), symbols()
    b, *bonds = itertools.islice(names, order + 2)
    i, j = ([*itertools.islice(names, order)] for _ in range(2))
    ranks = [1, *[rank] * (order - 1), 1]
    cores = [bonds[k] + i[k] + j[k] + bonds[k + 1] for k in range(order)]
    shapes = [(ranks[k], rows[k], columns[k], ranks[k + 1]) for k in range(order)]
    return f"{b}{''.join(j)},{','.join(cores)}->{b}{''.join(i)}", [(batch, *columns), *shapes]


def bottleneck(
    batch: int, width: list[int], inner: list[int], out: list[int], rank: int
) -> Problem:
    """A LoRETTA layer: two thin matrices, each a tensor train, through a bottleneck."""
    names = symbols()
    b, *modes = itertools.islice(names, 1 + len(width) + len(inner) + len(out))
    i, s, o = modes[: len(width)], modes[len(width) : len(width) + len(inner)], modes[-len(out) :]
    terms, shapes = [b + "".join(i)], [(batch, *width)]
    for legs, sizes in ((i + s, width + inner), (s + o, inner + out)):
        bonds = [*itertools.islice(names, len(legs) + 1)]
        ranks = [1, *[rank] * (len(legs) - 1), 1]
        for k, (leg, size) in enumerate(zip(legs, sizes, strict=True)):
            terms.append(bonds[k] + leg + bonds[k + 1])
            shapes.append((ranks[k], size, ranks[k + 1]))
    return f"{','.join(terms)}->{b}{''.join(o)}", shapes


def lorta(batch: int, width: int, heads: int, head: int, rank: int) -> Problem:
    """A LoRTA layer: one CP term a rank, for one layer and one of q, k, v, o."""
    shapes = [(batch, width), (width, rank), (heads, rank), (head, rank), (rank,), (rank,)]
    return "bi,ir,hr,or,r,r->bho", shapes


def lotr(batch: int, width: int, out: int, rank: int) -> Problem:
    """A LoTR layer: two shared factors around a core."""
    return "bi,ir,rs,os->bo", [(batch, width), (width, rank), (rank, rank), (out, rank)]


def overlap(length: int, mode: int, rank: int) -> Problem:
    """The inner product of two matrix product states."""
    names = symbols()
    modes = [*itertools.islice(names, length)]
    terms, shapes = [], []
    for _ in range(2):
        bonds = [*itertools.islice(names, length - 1)]
        for k in range(length):
            left, right = bonds[max(k - 1, 0) : k], bonds[k : k + 1]
            terms.append("".join([*left, modes[k], *right]))
            shapes.append((*[rank] * len(left), mode, *[rank] * len(right)))
    return ",".join(terms) + "->", shapes


def sandwich(length: int, mode: int, rank: int, inner: int) -> Problem:
    """The expectation of a matrix product operator in a matrix product state."""
    names = symbols()
    tops, lows = ([*itertools.islice(names, length)] for _ in range(2))
    terms, shapes = [], []
    for legs, bond in ((tops, rank), (None, inner), (lows, rank)):
        bonds = [*itertools.islice(names, length - 1)]
        for k in range(length):
            ends = [*bonds[max(k - 1, 0) : k], *bonds[k : k + 1]]
            own = [tops[k], lows[k]] if legs is None else [legs[k]]
            terms.append("".join([*ends, *own]))
            shapes.append((*[bond] * len(ends), *[mode] * len(own)))
    return ",".join(terms) + "->", shapes


def regular(count: int, degree: int, size: int, seed: int) -> Problem:
    """A random regular graph with an operand at every node."""
    generator = random.Random(seed)
    while True:
        stubs = [node for node in range(count) for _ in range(degree)]
        generator.shuffle(stubs)
        pairs = sorted(tuple(sorted(pair)) for pair in zip(stubs[::2], stubs[1::2], strict=True))
        if len(set(pairs)) == len(pairs) and all(a != b for a, b in pairs):
            break
    terms = [""] * count
    for symbol, (a, b) in zip(symbols(), pairs, strict=False):
        terms[a] += symbol
        terms[b] += symbol
    return ",".join(terms) + "->", [(size,) * degree] * count


TWENTY: dict[str, Problem] = {
    "MPO 768x768 r16, 512": operator(512, [8, 8, 12], [8, 8, 12], 16),
    "MPO 4096x4096 r64, 2048": operator(2048, [8] * 4, [8] * 4, 64),
    "MPO 4096x4096 r8, 1": operator(1, [8] * 4, [8] * 4, 8),
    "MPO 2^12 r8, 64": operator(64, [2] * 12, [2] * 12, 8),
    "DoTA 576x576 r8, 512": operator(512, [8, 8, 9], [8, 8, 9], 8),
    "DoTA 1536x576 r32, 512": operator(512, [8, 12, 16], [8, 8, 9], 32),
    "DoTA 192x576 r16, 64": operator(64, [4, 6, 8], [8, 8, 9], 16),
    "LoRETTA rep 768 r5, 512": bottleneck(512, [8, 8, 12], [8], [8, 8, 12], 5),
    "LoRETTA rep 4096 r5, 64": bottleneck(64, [8, 8, 64], [8], [8, 8, 64], 5),
    "LoRETTA adp 768 r5, 512": bottleneck(512, [8, 8, 12], [8, 8], [8, 8, 12], 5),
    "LoRTA 576 r8, 512": lorta(512, 576, 9, 64, 8),
    "LoRTA 4096 r64, 1": lorta(1, 4096, 32, 128, 64),
    "LoTR 576 r8, 512": lotr(512, 576, 576, 8),
    "LoTR 4096 r64, 64": lotr(64, 4096, 4096, 64),
    "regular 20, 4": regular(20, 3, 4, 0),
    "regular 40, 2": regular(40, 3, 2, 0),
    "regular 60, 2": regular(60, 3, 2, 0),
    "MPS 10 r32": overlap(10, 2, 32),
    "MPS 40 r16": overlap(40, 4, 16),
    "MPS MPO MPS 12 r16": sandwich(12, 2, 16, 5),
}
