"""Base weights, dense or made dense for every product, behave alike to whoever adds an update."""

from __future__ import annotations

import pytest
import torch

from tests.tolerances import assert_close
from tnlib_adapters.execution.base_weight import DenseWeight
from tnlib_adapters.fourbit.packed import Format, PackedWeight


def weights():
    dense = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    packed = PackedWeight.of(dense, Format())
    return {"dense": (DenseWeight(dense), dense), "packed": (packed, packed.dequantize())}


@pytest.mark.parametrize("kind", ["dense", "packed"])
def test_the_sum_is_that_with_the_dense_weight_and_carries_gradients(kind):
    weight, dense = weights()[kind]
    assert weight.kind == kind
    update = torch.full((8, 64), 0.5, requires_grad=True)
    total = weight.plus(update)
    assert torch.equal(total, dense + 0.5)
    (grad,) = torch.autograd.grad(total.sum(), update)
    assert torch.equal(grad, torch.ones(8, 64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["dense", "packed"])
def test_a_sum_never_overwrites_the_weight(kind, dtype):
    weight, dense = weights()[kind]
    before = dense.clone()
    source, target = weight.dense_and_out(dtype)
    torch.add(source, 1.0, out=target)
    assert target.dtype == dtype
    assert_close(target, before.double() + 1.0, dtype="float32")
    assert torch.equal(weights()[kind][1], before)
    assert torch.equal(weight.plus(torch.zeros(8, 64)), before)


def test_a_dense_weight_is_watched_and_a_packed_one_has_nothing_to_watch():
    (dense, tensor), (packed, _) = weights()["dense"], weights()["packed"]
    assert dense.watched == (tensor,)
    other = torch.ones(8, 64)
    assert dense.with_watched((other,)).weight is other
    assert packed.watched == ()
    assert packed.with_watched(()) is packed
    assert dense.without_anchor() is packed.without_anchor() is None
