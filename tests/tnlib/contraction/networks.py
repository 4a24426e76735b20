"""Networks for the tests: random small ones, and the usual large ones."""

from __future__ import annotations

import itertools
import random

import numpy as np
import opt_einsum
from hypothesis import strategies as st

LETTERS = "abcdefg"


@st.composite
def networks(draw, most=5):
    """A random equation with its shapes: repeated, lone, shared and size-one indices included."""
    sizes = {letter: draw(st.integers(1, 4)) for letter in LETTERS}
    term = st.lists(st.sampled_from(LETTERS), max_size=4)
    terms = draw(st.lists(term, min_size=1, max_size=most))
    present = sorted({letter for t in terms for letter in t})
    kept = st.lists(st.sampled_from(present), max_size=3, unique=True) if present else st.just([])
    equation = ",".join("".join(t) for t in terms) + "->" + "".join(draw(kept))
    return equation, [tuple(sizes[letter] for letter in t) for t in terms]


def arrays_for(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def exact(equation, arrays):
    """The result by one loop over all indices."""
    return np.einsum(equation, *arrays)


def operator_and_batch(order, batch, mode, rank):
    """A batch times a matrix product operator."""
    symbols = (opt_einsum.get_symbol(k) for k in itertools.count())
    b, *bonds = itertools.islice(symbols, order + 2)
    rows, columns = ([*itertools.islice(symbols, order)] for _ in range(2))
    cores = [bonds[k] + rows[k] + columns[k] + bonds[k + 1] for k in range(order)]
    ranks = [1, *[rank] * (order - 1), 1]
    shapes = [(ranks[k], mode, mode, ranks[k + 1]) for k in range(order)]
    equation = f"{b}{''.join(columns)},{','.join(cores)}->{b}{''.join(rows)}"
    return equation, [(batch, *[mode] * order), *shapes]


def regular(count, degree, size, seed):
    """A random regular graph, one operand a node, by the pairing model; nothing is left open."""
    generator = random.Random(seed)
    while True:
        stubs = [node for node in range(count) for _ in range(degree)]
        generator.shuffle(stubs)
        edges = {tuple(sorted(pair)) for pair in zip(stubs[::2], stubs[1::2], strict=True)}
        if len(edges) == count * degree // 2 and all(a != b for a, b in edges):
            break
    terms = [""] * count
    for k, (a, b) in enumerate(sorted(edges)):
        terms[a] += opt_einsum.get_symbol(k)
        terms[b] += opt_einsum.get_symbol(k)
    return ",".join(terms) + "->", [(size,) * degree] * count


def inner_product(length, mode, rank):
    """The inner product of two matrix product states."""
    symbols = (opt_einsum.get_symbol(k) for k in itertools.count())
    modes = [*itertools.islice(symbols, length)]
    terms, shapes = [], []
    for _ in range(2):
        bonds = [*itertools.islice(symbols, length - 1)]
        for k in range(length):
            left, right = bonds[k - 1 : k] if k else [], bonds[k : k + 1]
            terms.append("".join([*left, modes[k], *right]))
            shapes.append(tuple([rank] * len(left) + [mode] + [rank] * len(right)))
    return ",".join(terms) + "->", shapes
