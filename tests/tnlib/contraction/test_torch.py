"""Plans inside torch's machinery: autocast, captured graphs, transforms, tensors without data."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from tests.tolerances import assert_close
from tnlib import contract, plan_contraction

CHAIN = "bi,ij,jk->bk"
SHAPES = ((4, 30), (30, 3), (3, 5))
# Of one entry of the chain: both sums.
BEHIND = 40

# torch warns of its own deprecated calls while it traces.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def operands():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(shape, generator=generator) for shape in SHAPES]


def test_a_call_under_autocast_is_that_of_einsum(operands):
    x, a, b = operands
    plan = plan_contraction(CHAIN, *SHAPES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        folded = plan_contraction(CHAIN, SHAPES[0], a, b, constants=(1, 2))
        expected = torch.einsum(CHAIN, x, a, b)
        for result in (plan(x, a, b), folded(x), folded(x.bfloat16()), plan(x, a.bfloat16(), b)):
            assert result.dtype == expected.dtype == torch.bfloat16
            assert_close(result, expected, operations=BEHIND, size=expected.abs().max())
        with pytest.raises(TypeError, match="of one dtype, got float32, float64"):
            plan(x, a.double(), b)
    # What was folded there is in its own precision.
    full = plan_contraction(CHAIN, SHAPES[0], a, b, constants=(1, 2))
    for result in (folded(x), full(x)):
        assert_close(result, torch.einsum(CHAIN, x, a, b), operations=BEHIND)
    # What autocast took together is still refused without it.
    with pytest.raises(TypeError, match="bfloat16, float32"):
        folded(x.bfloat16())
    with pytest.raises(TypeError, match="bfloat16, float32"):
        plan_contraction(CHAIN, SHAPES[0], a, b.bfloat16(), constants=(1, 2))


def test_a_plan_folded_in_inference_mode_can_be_trained_through(operands):
    x, a, b = operands
    with torch.inference_mode():
        plan = plan_contraction(CHAIN, SHAPES[0], a + 0, b + 0, constants=(1, 2))
    x.requires_grad_()
    plan(x).sum().backward()
    assert_close(x.grad, (a @ b).sum(1).expand(4, 30), operations=BEHIND)


def test_a_plan_and_contract_are_one_graph(operands):
    x, a, b = operands
    plan = plan_contraction(CHAIN, *SHAPES)
    folded = plan_contraction(CHAIN, SHAPES[0], a, b, constants=(1, 2))

    def everything(x):
        return plan(x, a, b) + folded(x) + contract(CHAIN, x, a, b)

    torch._dynamo.reset()
    compiled = torch.compile(everything, fullgraph=True, backend="eager")
    assert_close(compiled(x), 3 * x @ a @ b, operations=BEHIND + 3)


@pytest.mark.slow
def test_plans_of_every_kind_are_one_graph(operands):
    x, a, b = operands
    square = torch.arange(9.0).reshape(3, 3)
    plan = plan_contraction(CHAIN, *SHAPES)
    folded = plan_contraction(CHAIN, SHAPES[0], a, b, constants=(1, 2))
    known = plan_contraction("ij,jk->ik", square, square, constants=(0, 1))
    sliced = plan_contraction("ij,jk,kl->il", (3, 8), (8, 8), (8, 3), memory_limit=100, slices=True)
    wide = torch.rand(8, 8)
    assert sliced.sliced

    def everything(x):
        return [
            plan(x, a, b),
            folded(x),
            sliced(x[:3, :8], wide, x[1:, :8].mT),
            contract(CHAIN, x, a, b),
            contract(x, [0, 1], a, [1, 2], [0, 2]),
            contract("...i,...i->...", x[:, None], a.mT),
            contract("ij->ji", square),
            contract("ii->i", square.to(torch.int16)),
            contract("ii,jk->k", square.to(torch.int16), square.to(torch.int16)),
            contract("ij,jk->k", square > 4, square > 4),
            known(),
        ]

    torch._dynamo.reset()
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for rows in (4, 5):
        x = torch.rand(rows, 30, requires_grad=True)
        found, expected = compiled(x), everything(x)
        for result, right in zip(found, expected, strict=True):
            assert result.dtype == right.dtype
            if right.dtype.is_floating_point:
                size = float(right.detach().abs().max())
                assert_close(result, right, operations=BEHIND, size=size)
            else:
                assert torch.equal(result, right)
        gradient, right = (torch.autograd.grad(made[1].sum(), x)[0] for made in (found, expected))
        assert_close(gradient, right, operations=BEHIND)
    with torch.no_grad():
        found[6][...], found[10][...] = -1, -1
    assert square.min() == 0
    assert torch.equal(known(), square @ square)


@pytest.mark.slow
def test_one_graph_serves_any_size(operands):
    x, a, b = operands
    plan = plan_contraction(CHAIN, *SHAPES)
    torch._dynamo.reset()
    compiled = torch.compile(plan, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (4, 5, 9, 1, 0):
        x = torch.rand(rows, 30)
        assert_close(compiled(x, a, b), x @ a @ b, operations=BEHIND)


def test_a_graph_broadcasts_an_ellipsis_as_planned():
    equation, shapes = "i...,i...->...", ((3, 1, 1), (3, 2, 4))
    plan = plan_contraction(equation, *shapes)
    tensors = [torch.rand(shape) for shape in shapes]
    made = make_fx(plan, tracing_mode="symbolic")
    assert_close(made(*tensors)(*tensors), (tensors[0] * tensors[1]).sum(0), operations=4)
    with pytest.raises(ValueError, match="was planned to be broadcast"):
        made(tensors[1], tensors[1])
    assert_close(plan(tensors[1], tensors[1]), tensors[1].square().sum(0), operations=4)


def test_transforms_go_through_a_plan(operands):
    x, a, b = operands
    for plan in (
        lambda x: plan_contraction(CHAIN, *SHAPES)(x, a, b),
        plan_contraction(CHAIN, SHAPES[0], a, b, constants=(1, 2)),
    ):
        gradient = torch.func.grad(lambda x, plan=plan: plan(x).sum())(x)
        assert_close(gradient, (a @ b).sum(1).expand(4, 30), operations=BEHIND)
        _, tangent = torch.func.jvp(plan, (x,), (x,))
        assert_close(tangent, x @ a @ b, operations=BEHIND)
        rows = torch.vmap(lambda row, plan=plan: plan(row[None])[0])(x)
        assert_close(rows, x @ a @ b, operations=BEHIND)
    assert torch.equal(
        torch.vmap(lambda m: contract("ij->ji", m))(a.reshape(5, 6, 3)).mT, a.reshape(5, 6, 3)
    )


def test_shapes_go_through_a_plan(operands):
    plan = plan_contraction(CHAIN, *SHAPES)
    with FakeTensorMode():
        fake = [torch.empty(shape) for shape in SHAPES]
        assert plan(*fake).shape == contract(CHAIN, *fake).shape == (4, 5)
    assert plan(*(array.to("meta") for array in operands)).shape == (4, 5)
    graph = make_fx(plan, tracing_mode="symbolic")(*operands)
    x, a, b = torch.rand(9, 30), *operands[1:]
    assert_close(graph(x, a, b), x @ a @ b, operations=BEHIND)


def test_an_exported_module_has_its_plan(operands):
    x, a, b = operands

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.plan = plan_contraction(CHAIN, SHAPES[0], a, b, constants=(1, 2))

        def forward(self, x):
            return self.plan(x)

    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(Module(), (x,), dynamic_shapes={"x": {0: rows}}).module()
    x = torch.rand(9, 30)
    assert_close(exported(x), x @ a @ b, operations=BEHIND)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "uint16"])
def test_what_torch_cannot_contract_is_refused(operands, name):
    arrays = [array.to(getattr(torch, name)) for array in operands]
    plan = plan_contraction(CHAIN, *SHAPES, constants=(2,))
    for attempt in (lambda: plan(*arrays), lambda: plan.folded(arrays[2])):
        with pytest.raises(TypeError, match=rf"tensors must be of bool.*got {name}; cast it"):
            attempt()
    with pytest.raises(TypeError, match=name):
        contract(CHAIN, *arrays)
