"""The life of an adapter under the oldest PEFT that is supported.

OLDEST_PEFT names a directory with that version, installed by ``pip install --no-deps --target``;
``make slow`` makes one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tnlib_adapters.forms import METHODS
from tnlib_adapters.peft_plugin.registry import OLDEST_PEFT

ROOT = Path(__file__).parents[3]
FOLDER = os.environ.get("OLDEST_PEFT")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not FOLDER, reason="OLDEST_PEFT does not name a directory with the oldest PEFT: make slow"
    ),
]

LIFE = """
import sys, torch
import peft, tnlib_adapters
from tests.tnlib_adapters.forms import MERGEABLE, METHODS
from tests.tnlib_adapters.models import TARGETS, logits, make, train

method, name, folder, oldest, place = sys.argv[1:]
assert peft.__version__.startswith(oldest + "."), peft.__version__
assert peft.__file__.startswith(place), peft.__file__

def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)

alone = {"train_norms": False} if method in ("rep", "adp") else {}
model = make(name)
before = logits(model)
config = METHODS[method](target_modules=TARGETS[name], **alone)
model = peft.get_peft_model(model, config)
assert torch.equal(logits(model), before)
counted = tnlib_adapters.count(make(name), config).total
assert model.get_nb_trainable_parameters()[0] == counted
losses = train(model)
assert losses[-1] < losses[0]
first = logits(model)

with model.disable_adapter():
    assert torch.equal(logits(model), before)
assert torch.equal(logits(model), first)

model.save_pretrained(folder)
for low in (True, False):
    loaded = peft.PeftModel.from_pretrained(make(name), folder, low_cpu_mem_usage=low)
    assert torch.equal(logits(loaded), first)
plain = make(name)
plain.load_adapter(folder)
assert torch.equal(logits(plain), first)

model.add_adapter("second", METHODS[method](target_modules=TARGETS[name][:1], **alone))
model.set_adapter("second")
assert torch.equal(logits(model), before)
train(model)
second = logits(model)
assert not torch.equal(second, before)
model.set_adapter("default")
assert torch.equal(logits(model), first)
model.base_model.set_adapter(["default", "second"])
both = logits(model)
assert not torch.equal(both, first) and not torch.equal(both, second)
if method in MERGEABLE:
    model.merge_adapter()
    close(logits(model), both)
    model.unmerge_adapter()
    close(logits(model), both)
else:
    try:
        model.merge_adapter()
    except TypeError as error:
        assert "variant='rep'" in str(error)
    else:
        raise AssertionError("a series adapter was merged")
model.set_adapter("second")
model.delete_adapter("default")
assert not any("default" in key for key in model.state_dict())
if method in MERGEABLE:
    close(logits(model.merge_and_unload(safe_merge=True)), second)
else:
    assert torch.equal(logits(model.unload()), before)

# With norms and a head that are trained in full.
model = peft.get_peft_model(
    make(name), METHODS[method](target_modules=TARGETS[name], modules_to_save=["lm_head"])
)
train(model)
first = logits(model)
model.save_pretrained(folder)
loaded = peft.PeftModel.from_pretrained(make(name), folder)
assert torch.equal(logits(loaded), first)
with loaded.disable_adapter():
    assert torch.equal(logits(loaded), before)
if method in MERGEABLE:
    close(logits(model.merge_and_unload()), first)
else:
    assert torch.equal(logits(model.unload()), before)

failed = make(name)
try:
    config = METHODS[method](target_modules=[TARGETS[name][0], "ln_f", "norm"], **alone)
    peft.get_peft_model(failed, config)
except TypeError as error:
    assert "cannot adapt" in str(error)
else:
    raise AssertionError("a norm was adapted")
assert failed.state_dict().keys() == make(name).state_dict().keys()
assert all(parameter.requires_grad for parameter in failed.parameters())
print("lived")
"""


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_oldest_peft_serves(method, name, tmp_path):
    place = str(Path(FOLDER).resolve())
    paths = [place, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIFE, method, name, tmp_path, OLDEST_PEFT, place],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.splitlines()[-1] == "lived"
