"""Two processes, each with half of a batch, train as one process with the whole batch does.

Workers take seconds to start, so one launch of two goes through all methods and ways to wrap a
model that are asked for; the first worker writes what it found, and the tests compare that with one
process. They compute in float64: what is left is the distribution, not the rounding.
"""

from __future__ import annotations

import functools
import os
import socket
from datetime import timedelta

import peft
import pytest
import torch
from accelerate import Accelerator
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tests.tnlib_adapters.expert_models import whole_model
from tests.tnlib_adapters.forms import METHODS, SITE
from tests.tnlib_adapters.models import ARRAYS, TARGETS, TERMS, assert_same_outputs, make, tokens
from tests.tolerances import assert_close, rounding

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
WORLD = 2
ROWS = tokens(rows=2 * WORLD) % 50
SAVED = StateDictOptions(full_state_dict=True, ignore_frozen_params=True)


def ddp(model):
    return DistributedDataParallel(model)


def checkpointed_ddp(model):
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return DistributedDataParallel(model)


def accelerate(model):
    prepared = Accelerator(cpu=True).prepare(model)
    assert isinstance(prepared, DistributedDataParallel)
    return prepared


def fsdp(model, **kwargs):
    for layer in model.get_base_model().model.layers:
        fully_shard(layer, **kwargs)
    return fully_shard(model, **kwargs)


def mixed_fsdp(model):
    return fsdp(model, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))


# How a model is wrapped, and the dtype of its weights.
WAYS = {
    "ddp": (ddp, torch.float64),
    "ddp, checkpointed": (checkpointed_ddp, torch.float64),
    "accelerate": (accelerate, torch.float64),
    "fsdp": (fsdp, torch.float64),
    "fsdp, mixed precision": (mixed_fsdp, torch.float64),
    "fsdp, bfloat16": (fsdp, torch.bfloat16),
    # Tokens of the two halves go to experts of their own.
    "ddp, experts": (ddp, torch.float32),
    "fsdp, experts": (fsdp, torch.float32),
}
# Every method is sharded and replicated. What only wraps those two is tried with some methods, of
# which one shares its cores at least; the rest of the product is slow.
SOME = {
    "ddp, checkpointed": ("dota", "lotr"),
    "accelerate": ("lorta",),
    "fsdp, mixed precision": ("lotr", "rep"),
    "fsdp, bfloat16": ("lorta", "adp"),
    "ddp, experts": ("lotr", "lorta"),
    "fsdp, experts": ("lotr", "dota"),
}
JOBS = [
    (method, way)
    for method in METHODS
    for way in WAYS
    if "experts" not in way or METHODS[method]().network(SITE).additive
]
IN_HALF = [(method, way) for method, way in JOBS if "mixed" in way or "bfloat16" in way]
EXACT = [job for job in JOBS if job not in IN_HALF]


def each(jobs):
    cases = [
        pytest.param(
            method, way, marks=() if method in SOME.get(way, METHODS) else pytest.mark.slow
        )
        for method, way in jobs
    ]
    return pytest.mark.parametrize(("method", "way"), cases)


def plain(way):
    """The base model."""
    return whole_model("Qwen3Moe") if "experts" in way else make("llama", WAYS[way][1])


def adapted(method, way):
    """The same model in all processes, with cores that let every gradient flow.

    FSDP needs one dtype among the trainable parameters: cores take that of the base and its norms.
    """
    fields = {"target_modules": TARGETS["llama"]}
    if "experts" in way:
        fields = {"target_modules": ["q_proj"], "target_parameters": "all-experts"}
    config = METHODS[method](init_weights=False, **fields)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        base = plain(way)
        return peft.get_peft_model(base, config, autocast_adapter_dtype=False).train()


def rate(method, way):
    """Of SGD, whose step of a core's value goes with the square of the multiplier."""
    return (1e-3 if method == "lotr" else 0.5) * (4 if "experts" in way else 1)


def train(model, rows, parameters, rate):
    """Gradients by name of one step on `rows`; then loss and outputs on all rows."""
    model(input_ids=rows, labels=rows).loss.backward()
    gradients = {
        name: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        for name, p in parameters.items()
    }
    torch.optim.SGD(parameters.values(), lr=rate).step()
    with torch.no_grad():
        output = model.eval()(input_ids=ROWS, labels=ROWS)
    return gradients, output.loss, output.logits


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def work(rank, folder, jobs):
    """One worker: methods in ways."""
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    os.environ |= {"GLOO_SOCKET_IFNAME": loopback[0], "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/store", timedelta(seconds=60), world_size=WORLD, rank=rank
    )
    for method, way in jobs:
        wrap, _ = WAYS[way]
        model = adapted(method, way)
        found = train(wrap(model), ROWS.chunk(WORLD)[rank], trainable(model), rate(method, way))
        state = get_model_state_dict(model, options=SAVED)
        if rank == 0:
            model.save_pretrained(f"{folder}/{method}, {way}", state_dict=state)
            torch.save(found, f"{folder}/{method}, {way}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    """What two workers wrote of the jobs that are asked for."""
    here = [item for item in request.session.items if item.path == request.path]
    found = [item.callspec.params for item in here if hasattr(item, "callspec")]
    jobs = sorted({(params["method"], params["way"]) for params in found}, key=JOBS.index)
    place = tmp_path_factory.mktemp("workers")
    torch.multiprocessing.spawn(work, (str(place), jobs), nprocs=WORLD, daemon=True)
    return place


@functools.cache
def alone(method, way):
    """What one process finds."""
    model = adapted(method, way)
    return train(model, ROWS, trainable(model), rate(method, way))


def both(folder, method, way):
    """What two processes found, and what one finds."""
    return torch.load(folder / f"{method}, {way}.pt"), alone(
        method, way if "experts" in way else _like(way)
    )


def _like(way):
    """The first way whose model is of the same dtype."""
    return next(other for other in WAYS if WAYS[other][1] == WAYS[way][1])


@each(EXACT)
def test_gradients_are_those_of_one_process(method, way, folder):
    (found, *_), (expected, *_) = both(folder, method, way)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.any()
        # Llama's norms and transformers' losses are in float32 whatever the model is in.
        assert_close(found[name], gradient, TERMS, dtype=torch.float32)


@each(IN_HALF)
def test_gradients_in_half_precision_differ_by_its_rounding(method, way, folder):
    (found, *_), (expected, *_) = both(folder, method, way)
    assert found.keys() == expected.keys()
    error = sum(float((found[n] - g).double().norm() ** 2) for n, g in expected.items())
    whole = sum(float(g.double().norm() ** 2) for g in expected.values())
    assert (error / whole) ** 0.5 < rounding(torch.bfloat16, ARRAYS)  # forward and back


@each(JOBS)
def test_after_a_step_the_loss_is_that_of_one_process(method, way, folder):
    (_, loss, _), (_, expected, _) = both(folder, method, way)
    with torch.no_grad():
        start = adapted(method, way)(input_ids=ROWS, labels=ROWS).loss
    fallen = start - expected
    assert fallen > 0.01
    rounded = rounding(torch.float32, TERMS, expected)
    assert abs(loss - expected) <= (0.1 * fallen if (method, way) in IN_HALF else rounded)


@each(JOBS)
def test_what_one_of_two_processes_saves_is_the_trained_model(method, way, folder):
    _, _, logits = torch.load(folder / f"{method}, {way}.pt")
    loaded = peft.PeftModel.from_pretrained(
        plain(way), folder / f"{method}, {way}", autocast_adapter_dtype=False
    )
    half = (method, way) in IN_HALF
    if half:
        for parameter in loaded.parameters():
            parameter.data = parameter.data.bfloat16()
    with torch.no_grad():
        outputs = loaded(input_ids=ROWS).logits
    assert outputs.dtype == logits.dtype
    assert_same_outputs(outputs, logits, torch.bfloat16 if half else torch.float32)
