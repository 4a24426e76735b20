"""Trains under the transforms of torch.func are the dense arrays under them."""

from __future__ import annotations

import array_api_compat
import pytest
import torch
from packaging.version import Version
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from tests.tolerances import assert_close
from tnlib import CP, MPO, TT, Tucker, tt_random

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
CORES = tt_random((2, 3, 2), 2, like=torch.empty(0), dtype="float64").cores
ALL = (0, 1, 2)


def dense(*cores):
    return torch.einsum("aib,bjc,ckd->ijk", *cores)


# What a train computes of its cores, and the same of the dense array.
FUNCTIONS = {
    "norm": (lambda t: t.norm(), torch.linalg.norm),
    "lognorm": (lambda t: t.lognorm(), lambda x: torch.linalg.norm(x).log()),
    "inner": (lambda t: t.inner(t), lambda x: (x * x).sum()),
    "to_dense": (lambda t: t.to_dense(), lambda x: x),
    "entry": (lambda t: t[1, 2, 0], lambda x: x[1, 2, 0]),
    "slice": (lambda t: t[1, :, 0].to_dense(), lambda x: x[1, :, 0]),
    "arithmetic": (
        lambda t: ((2 * t - t / 3).hadamard(t)).to_dense(),
        lambda x: (2 * x - x / 3) * x,
    ),
    "normalized": (lambda t: t.normalized().to_dense(), lambda x: x / torch.linalg.norm(x)),
}


@pytest.fixture(params=sorted(FUNCTIONS))
def functions(request):
    ours, theirs = FUNCTIONS[request.param]
    return (lambda *cores: ours(TT(cores))), (lambda *cores: theirs(dense(*cores)))


def same(ours, theirs, size=10.0):
    if isinstance(ours, tuple):
        for a, b in zip(ours, theirs, strict=True):
            same(a, b, size)
    else:
        assert_close(ours, theirs, 1000, size)


def test_first_and_second_derivatives_forward_and_backward(functions):
    ours, theirs = (lambda *cores, f=f: f(*cores).sum() for f in functions)
    same(*(torch.func.grad(f, ALL)(*CORES) for f in (ours, theirs)))
    same(
        *(
            torch.func.jvp(f, CORES, tuple(torch.cos(core) for core in CORES))
            for f in (ours, theirs)
        )
    )
    same(*(torch.func.hessian(f, ALL)(*CORES) for f in (ours, theirs)), size=100.0)


def test_derivatives_are_the_same_outside_of_transforms(functions):
    ours, theirs = functions
    leaves = [core.clone().requires_grad_() for core in CORES]
    found = torch.autograd.grad(ours(*leaves).sum(), leaves)
    exact = torch.autograd.grad(theirs(*leaves).sum(), leaves)
    same(found, exact, size=100.0)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(core, torch.cos(core)) for core in CORES]
        pairs = [forward_ad.unpack_dual(f(*duals).sum()) for f in functions]
    same(pairs[0].tangent, pairs[1].tangent, size=100.0)
    frozen = ours(*CORES)
    assert not frozen.requires_grad
    same(frozen, theirs(*CORES))


def test_batches_are_mapped(functions):
    generator = torch.Generator().manual_seed(0)
    batch = [torch.randn(4, *c.shape, dtype=c.dtype, generator=generator) for c in CORES]
    same(*(torch.func.vmap(f)(*batch) for f in functions), size=100.0)
    gradients = [torch.func.grad(lambda *c, f=f: f(*c).sum()) for f in functions]
    same(*(torch.func.vmap(g)(*batch) for g in gradients), size=1000.0)


def test_shapes_are_propagated_without_data(functions):
    ours, theirs = functions
    expected = theirs(*CORES).shape
    assert ours(*(core.to("meta") for core in CORES)).shape == expected
    with FakeTensorMode() as mode:
        assert ours(*map(mode.from_tensor, CORES)).shape == expected


def test_operators_without_data_have_matrices_without_data():
    cores = [core[:, :, None].to("meta") for core in CORES]
    assert MPO(cores).to_matrix().shape == (12, 1)
    assert (MPO(cores) @ MPO(cores).T).entry(1, 2).shape == ()


def test_derivatives_by_zeros_are_those_of_the_dense_array():
    first, middle, last = CORES
    for cores in ((first, middle, 0 * last), (first, 0 * middle, 0 * last)):
        for ours, theirs in (FUNCTIONS["to_dense"], FUNCTIONS["inner"]):
            pair = (lambda *c, f=ours: f(TT(c)).sum(), lambda *c, f=theirs: f(dense(*c)).sum())
            same(*(torch.func.grad(f, ALL)(*cores) for f in pair))


def test_gradients_of_the_zero_norm_are_zero():
    zeros = tuple(0 * core for core in CORES)
    for norm in (lambda *c: TT(c).norm(), lambda *c: TT(c).lognorm()):
        for gradient in torch.func.grad(norm, ALL)(*zeros):
            assert not gradient.any()


def test_the_gradient_of_a_norm_that_nearly_cancels_is_true():
    leaves = [core.clone().requires_grad_() for core in CORES]
    fixed = TT(CORES)
    value = (TT(leaves) * (1 + 1e-7) - fixed).norm()
    ours = torch.autograd.grad(value, leaves)
    theirs = torch.autograd.grad(torch.linalg.norm(dense(*leaves)), leaves)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, 1000, size=10.0, condition=1e7)


def test_derivatives_at_scattered_scales_are_scattered():
    scales = (1e200, 1e-250, 1e50)
    cores = tuple(core * scale for core, scale in zip(CORES, scales, strict=True))
    for ours, theirs in FUNCTIONS.values():
        found = torch.func.grad(lambda *c, f=ours: f(TT(c)).sum(), ALL)(*cores)
        exact = torch.func.grad(lambda *c, f=theirs: f(dense(*c)).sum(), ALL)(*CORES)
        for a, b, scale in zip(found, exact, scales, strict=True):
            assert_close(a * scale, b, 1000, size=10.0)


CAPTURED = {
    "to_dense": lambda *cores: TT(cores).to_dense(),
    "norm": lambda *cores: TT(cores).norm(),
    "inner": lambda *cores: TT(cores).inner(TT(cores)),
    "Tucker": lambda a, b, c: Tucker(b, (b[0], b[:, :, 0], b[1])).to_dense(),
    "CP": lambda a, b, c: CP(a[0, 0], (a[0], b[0])).to_dense(),
}


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.13")
    or Version(array_api_compat.__version__) < Version("1.15"),
    reason="older ones break the graph where the library of an array is looked up",
)
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("name", CAPTURED)
def test_formats_go_into_one_captured_graph(name):
    function = CAPTURED[name]
    captured = torch.compile(function, fullgraph=True, backend="eager")
    assert_close(captured(*CORES), function(*CORES), 50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(captured(*CORES), function(*CORES), 50)
