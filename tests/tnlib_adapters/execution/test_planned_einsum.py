"""A planned contraction gives the same through its plan and, as when compiled, step by step."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from tests.tolerances import assert_close
from tnlib_adapters.execution.planned_einsum import planned_einsum


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ab,bc,cd->ad", [(3, 4), (4, 5), (5, 2)]),
        ("abc->cab", [(2, 3, 4)]),
        ("abc->ca", [(2, 1, 4)]),
        ("ab->a", [(2, 3)]),
        ("ar,br,r->ab", [(3, 2), (4, 2), (2,)]),
    ],
)
def test_values_and_gradients_are_those_of_one_einsum(equation, shapes, compiling):
    generator = torch.Generator().manual_seed(0)
    operands = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]
    with mock.patch("torch.compiler.is_compiling", return_value=compiling):
        found = planned_einsum(equation, *shapes)(operands)
    expected = torch.einsum(equation, *operands)
    # Axes of size one that are summed away come last.
    found = found.reshape(expected.shape)
    assert_close(found.detach(), expected.detach(), operations=60)
    seed = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    pairs = zip(
        torch.autograd.grad(found, operands, seed),
        torch.autograd.grad(expected, operands, seed),
        strict=True,
    )
    for one, other in pairs:
        assert_close(one, other, operations=60)


def test_an_operand_that_is_only_permuted_is_not_copied():
    operand = torch.randn(2, 1, 4)
    assert planned_einsum("abc->ca", (2, 1, 4))([operand]).data_ptr() == operand.data_ptr()


def test_equal_contractions_are_planned_once():
    assert planned_einsum("ab,bc->ac", (2, 3), (3, 4)) is planned_einsum(
        "ab,bc->ac", (2, 3), (3, 4)
    )
