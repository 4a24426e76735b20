"""Every method on every architecture, in float32 and bfloat16."""

from __future__ import annotations

import json
import subprocess
import sys

import peft
import pytest
import safetensors.torch
import torch

from tests.tnlib_adapters.methods import MERGEABLE, METHODS
from tests.tnlib_adapters.models import MAKERS, TARGETS, logits, make, train

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
ARCHITECTURES = sorted(MAKERS)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
every_method = pytest.mark.parametrize("method", sorted(METHODS))
every_model = pytest.mark.parametrize("name", ARCHITECTURES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def adapted(method, name, dtype=torch.float32, **kwargs):
    """An adapted model with reproducible cores, and the base model's outputs."""
    model = make(name, dtype)
    before = logits(model)
    config = METHODS[method](target_modules=TARGETS[name], **kwargs)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return peft.get_peft_model(model, config), before


@every_dtype
@every_model
@every_method
def test_a_life_of_an_adapter(method, name, dtype):
    model, before = adapted(method, name, dtype)
    # The start is the base model.
    assert torch.equal(logits(model), before)
    # A gradient reaches every trainable tensor, and the loss falls.
    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    lr = 1e-2 if dtype == torch.float32 else 2e-2
    losses = train(model, steps=5, lr=lr)
    assert losses[-1] < losses[0]
    moved = {n for n, p in model.named_parameters() if n in start and not torch.equal(p, start[n])}
    assert moved == set(start)
    trained = logits(model)
    assert not torch.equal(trained, before)
    # Switched off, it is the base model again.
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), trained)
    assert torch.equal(logits(model.unload()), before)


@every_model
@pytest.mark.parametrize("method", MERGEABLE)
def test_merge_and_unmerge_within_rounding(method, name):
    model, _ = adapted(method, name)
    train(model)
    expected = logits(model)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    merged = model.merge_and_unload()
    assert type(merged) is type(make(name))
    assert [n for n, _ in merged.named_parameters()] == [
        n for n, _ in make(name).named_parameters()
    ]
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)


@every_dtype
@every_model
@every_method
def test_a_loaded_adapter_is_the_saved_one(method, name, dtype, tmp_path):
    model, _ = adapted(method, name, dtype)
    train(model)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make(name, dtype), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    saved = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    values = sum(tensor.numel() for tensor in saved.values())
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


@every_method
def test_a_new_process_loads_the_same_function(method, tmp_path):
    jobs, expected = [], {}
    for name in ARCHITECTURES:
        model, _ = adapted(method, name)
        train(model)
        model.save_pretrained(tmp_path / name)
        output = str(tmp_path / f"{name}.pt")
        jobs.append((name, str(tmp_path / name), output))
        expected[output] = logits(model)
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOAD, json.dumps(jobs)], check=True)
    for output, outputs in expected.items():
        assert torch.equal(torch.load(output, weights_only=True), outputs)
