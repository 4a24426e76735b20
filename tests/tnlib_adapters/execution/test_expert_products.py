"""Products of rows with the matrix of their expert: sorted or not, with rows that have none."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import torch

from tests.tolerances import assert_close
from tnlib_adapters.execution.expert_products import Routing, expert_product, expert_scaling

sizes = st.integers(1, 6)


@st.composite
def routed(draw):
    """Rows, matrices, scales, and the numbers of matrices; more than there are for none."""
    n, rows, a, b = draw(sizes), draw(st.integers(0, 12)), draw(sizes), draw(sizes)
    slots = draw(st.lists(st.integers(0, n), min_size=rows, max_size=rows))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return random(rows, a), random(n, a, b), random(n, a), torch.tensor(slots, dtype=torch.int64)


def routings(slots, n):
    """The same routing, by groups where the rows are in order."""
    partial = bool((slots == n).any())
    yield Routing(slots, partial=partial)
    if (slots.diff() >= 0).all():
        yield Routing.sorted(slots, n, partial=partial)


@hypothesis.given(routed(), st.booleans())
def test_every_row_is_multiplied_by_its_matrix(case, in_order):
    x, matrices, scales, slots = case
    slots = slots.sort()[0] if in_order else slots
    none = torch.zeros(1, *matrices.shape[1:], dtype=x.dtype)
    expected = torch.einsum("ra,rab->rb", x, torch.cat([matrices, none])[slots])
    scaled = x * torch.cat([scales, none[..., 0]])[slots]
    for routing in routings(slots, len(matrices)):
        assert_close(expert_product(x, matrices, routing), expected, 2 * x.shape[1], size=100.0)
        assert_close(expert_scaling(x[:, None], scales, routing)[:, 0], scaled, size=100.0)


@hypothesis.given(routed(), st.integers(1, 4))
def test_repeated_rows_keep_their_matrices(case, times):
    x, matrices, _, slots = case
    slots = slots.sort()[0]
    many = x.repeat_interleave(times, 0)
    for routing in routings(slots, len(matrices)):
        found = expert_product(many, matrices, routing.repeated(times))
        expected = expert_product(x, matrices, routing).repeat_interleave(times, 0)
        assert_close(found, expected, 2 * x.shape[1], size=100.0)


def test_gradients_and_their_gradients():
    """Of groups too, which are an operation of its own; a matrix without rows gets zeros."""
    generator = torch.Generator().manual_seed(0)
    slots = torch.tensor([0, 0, 2, 2, 2, 4])
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    matrices = torch.randn(4, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    routing = Routing.sorted(slots, 4, partial=True)
    torch.autograd.gradcheck(lambda a, b: expert_product(a, b, routing), (x, matrices))
    torch.autograd.gradgradcheck(lambda a, b: expert_product(a, b, routing), (x, matrices))
    (gradient,) = torch.autograd.grad(expert_product(x, matrices, routing).sum(), matrices)
    assert [bool(g.any()) for g in gradient] == [True, False, True, False]


def test_frozen_factors_keep_nothing_for_the_backward_pass():
    saved = []

    def pack(value):
        saved.append(value.shape)
        return value

    x, matrices = torch.randn(5, 3), torch.randn(2, 3, 4, requires_grad=True)
    routing = Routing.sorted(torch.tensor([0, 0, 0, 1, 1]), 2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        expert_product(x, matrices, routing)
        assert (2, 3, 4) not in saved
        expert_product(x.requires_grad_(), matrices.detach(), routing)
    assert saved.count((5, 3)) == 1
