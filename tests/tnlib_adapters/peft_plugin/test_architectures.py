"""Every method on every architecture, in float32 and bfloat16.

By default every method is with every architecture once, and both are with every dtype; `slow` has
the rest of the product.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import peft
import pytest
import safetensors.torch
import torch

from tests.tnlib_adapters.adapters import adapted
from tests.tnlib_adapters.forms import MERGEABLE, METHODS
from tests.tnlib_adapters.models import (
    MAKERS,
    assert_same_model,
    assert_same_outputs,
    cores_in,
    logits,
    make,
    precise,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
ARCHITECTURES = sorted(MAKERS)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def in_turn(start):
    """Every method with every architecture in one dtype of two, and in the other if slow."""
    cases = [
        pytest.param(
            method,
            name,
            dtype,
            id=f"{method}-{name}-{kind}",
            marks=() if (m + n + d + start) % 2 == 0 else pytest.mark.slow,
        )
        for m, method in enumerate(sorted(METHODS))
        for n, name in enumerate(ARCHITECTURES)
        for d, (kind, dtype) in enumerate(DTYPES.items())
    ]
    return pytest.mark.parametrize(("method", "name", "dtype"), cases)


@in_turn(0)
def test_a_life_of_an_adapter(method, name, dtype):
    model, before = adapted(method, name, dtype)
    # The start is the base model.
    assert torch.equal(logits(model), before)
    # A gradient reaches every trainable tensor, and the loss falls; BERT's by less in five steps
    # than roundings to bfloat16 may hide.
    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    lr = 1e-2 if dtype == torch.float32 else 2e-2
    losses = train(model, steps=5, lr=lr)
    assert dtype == torch.bfloat16 or losses[-1] < losses[0]
    moved = {n for n, p in model.named_parameters() if n in start and not torch.equal(p, start[n])}
    # A constant added to all keys changes no attention, so its gradient is nothing but rounding.
    idle = {n for n in start if ".key." in n and n.endswith("up_bias")}
    assert moved | idle == set(start)
    trained = logits(model)
    assert not torch.equal(trained, before)
    # Switched off, it is the base model again.
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), trained)
    assert torch.equal(logits(model.unload()), before)


# Every architecture with the method that reads its heads and with another one; the rest if slow.
@pytest.mark.parametrize(
    ("method", "name"),
    [
        pytest.param(method, name, marks=() if method in ("lorta", other) else pytest.mark.slow)
        for name, other in zip(
            ARCHITECTURES, itertools.cycle(["dota", "lotr", "rep"]), strict=False
        )
        for method in MERGEABLE
    ],
)
def test_merge_and_unmerge_within_rounding(method, name):
    model, _ = adapted(method, name, precise(name))
    train(model)
    expected = logits(model)
    model.merge_adapter(safe_merge=True)
    assert_same_outputs(logits(model), expected)
    model.unmerge_adapter()
    assert_same_outputs(logits(model), expected)
    merged = model.merge_and_unload()
    assert type(merged) is type(make(name))
    assert [n for n, _ in merged.named_parameters()] == [
        n for n, _ in make(name).named_parameters()
    ]
    assert_same_outputs(logits(merged), expected)


@in_turn(1)
def test_a_loaded_adapter_is_the_saved_one(method, name, dtype, tmp_path):
    model, _ = adapted(method, name, dtype)
    train(model)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make(name, dtype), tmp_path)
    assert_same_model(loaded, model)
    saved = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    values = sum(tensor.numel() for tensor in cores_in(saved).values())
    trainable, _ = model.get_nb_trainable_parameters()
    assert values == trainable * (2 if method == "dota" else 1)
    assert not any("default" in key for key in saved)


LOAD = """
import json, sys, torch
import peft, tnlib_adapters
from tests.tnlib_adapters.models import logits, make
for name, folder, output in json.loads(sys.argv[1]):
    model = peft.PeftModel.from_pretrained(make(name), folder)
    torch.save(logits(model), output)
"""


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([*zip(sorted(METHODS) * 2, ARCHITECTURES, strict=False)], id="some"),
        pytest.param(
            [(method, name) for method in METHODS for name in ARCHITECTURES],
            id="all",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_new_process_loads_the_same_function(pairs, tmp_path):
    jobs, expected = [], {}
    for method, name in pairs:
        model, _ = adapted(method, name)
        train(model)
        folder, output = str(tmp_path / f"{method}-{name}"), str(tmp_path / f"{method}-{name}.pt")
        model.save_pretrained(folder)
        jobs.append((name, folder, output))
        expected[output] = logits(model)
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOAD, json.dumps(jobs)], check=True)
    for output, outputs in expected.items():
        assert_same_outputs(torch.load(output, weights_only=True), outputs)
