"""A layer plus a product of low-rank factors: what is saved, and in which dtype."""

from __future__ import annotations

import pytest
import torch

from tests.tolerances import assert_close
from tnlib_adapters.execution.factored_linear import factored_linear


def test_nothing_but_narrow_arrays_is_saved_of_a_low_rank_update():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 24, generator=generator, requires_grad=True)
    weight = torch.randn(36, 24, generator=generator)
    first = torch.randn(24, 3, generator=generator, requires_grad=True)
    second = torch.randn(3, 36, generator=generator, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        factored_linear(x, weight, None, [first, second])
    others = {t.data_ptr() for t in (x, weight, first, second)}
    sizes = [tuple(t.shape) for t in kept if t.data_ptr() not in others]
    assert sizes == [(50, 3)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_activations_meet_float32_factors_in_float32(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 24, generator=generator).to(dtype).requires_grad_()
    factors = [torch.randn(shape, generator=generator) for shape in ((24, 3), (3, 36))]
    y = factored_linear(x, None, None, factors)
    assert y.dtype == torch.float32
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.dtype == dtype
    expected = x.detach().float() @ factors[0] @ factors[1]
    assert_close(y, expected, operations=24 + 3)
