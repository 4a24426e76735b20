"""LoRA folders read and converted: errors that are true, bounds of the decompositions, files."""

from __future__ import annotations

import copy
import json
import math

import peft
import pytest
import safetensors.torch
import torch
from peft import LoraConfig

from tests.tnlib_adapters.adapters import saved_base
from tests.tnlib_adapters.forms import FITTED, METHODS
from tests.tnlib_adapters.low_rank_updates import norm, tails
from tests.tnlib_adapters.models import (
    TARGETS,
    assert_same_outputs,
    cores_in,
    logits,
    make,
    train,
)
from tests.tolerances import assert_close, rounding
from tnlib_adapters import DoTAConfig, LoRETTAConfig, LoRTAConfig, LoTRConfig, find_sites
from tnlib_adapters.convert.from_lora import from_lora
from tnlib_adapters.convert.read_lora import read_lora
from tnlib_adapters.fitting import shared_cp
from tnlib_adapters.peft_plugin.layer import NetworkLayer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]
FILE = "adapter_model.safetensors"
# What a change of weights loses in a file, where each of its cores, twelve at most, is rounded.
ROUNDED = rounding(torch.float32, 12)


@pytest.fixture(autouse=True)
def few_sweeps(monkeypatch):
    """What is tested holds after any number of sweeps."""
    monkeypatch.setattr(shared_cp, "_SWEEPS", 20)
    monkeypatch.setattr(shared_cp, "_FIRST", 3)


def lora(name, folder, steps=0, **fields):
    """A LoRA with random factors on a small model, perhaps trained a little, and saved."""
    fields = {"r": 4, "target_modules": TARGETS[name], "init_lora_weights": False} | fields
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fields["fan_in_fan_out"] = name == "gpt2"
        model = peft.get_peft_model(make(name), LoraConfig(**fields))
        if steps:
            train(model, steps)
    model.save_pretrained(folder)
    return model


def changes(model):
    """Dense updates by module, in float64 of the factors as they are."""
    found = {}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            found[name] = module.scaling["default"] * b.detach().double() @ a.detach().double()
        elif isinstance(module, NetworkLayer):
            update = module.update("default")
            cores = {key: value.detach().double() for key, value in update.cores.items()}
            found[name] = update.network.delta(cores)
    return found


# What is reported, written and loaded.


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("bert", LoTRConfig(r=6)),
        ("llama", LoTRConfig(r=6, alpha=3.0, init="normal")),
        ("gpt2", LoTRConfig(r=6)),
        ("llama", LoRTAConfig(r=6)),
        ("gpt2", LoRTAConfig(r=6, use_rslora=True)),
        ("bert", LoRETTAConfig()),
        ("gpt2", LoRETTAConfig(bottleneck=64, tt_rank=12, alpha=2.0)),
        *((name, METHODS[form]()) for name in ("bert", "gpt2") for form in FITTED),
    ],
    ids=lambda value: value if isinstance(value, str) else value.method,
)
def test_the_error_reported_is_that_of_the_adapter_that_peft_loads(name, config, tmp_path):
    targets = ATTENTION if config.method == "lorta" and name == "llama" else TARGETS[name]
    old = changes(lora(name, tmp_path / "lora", target_modules=targets))
    before = copy.deepcopy(config)
    conversion = from_lora(tmp_path / "lora", tmp_path / "new", config, base=make(name))
    assert config == before
    loaded = peft.PeftModel.from_pretrained(make(name), tmp_path / "new")
    new = changes(loaded)
    assert [weight.name for weight in conversion.weights] == list(old) == list(new)
    for weight in conversion.weights:
        change = old[weight.name]
        error = norm(new[weight.name] - change) / norm(change)
        assert weight.error == pytest.approx(error, abs=1e-6)
        assert weight.norm == pytest.approx(norm(change), rel=1e-6)
        assert weight.shape == tuple(change.shape)
    off = math.hypot(*(norm(new[n] - old[n]) for n in old))
    assert conversion.error == pytest.approx(off / math.hypot(*map(norm, old.values())), abs=1e-6)
    tensors = safetensors.torch.load_file(tmp_path / "new" / FILE)
    assert conversion.n_params == sum(tensor.numel() for tensor in cores_in(tensors).values())
    assert conversion.n_bytes == (tmp_path / "new" / FILE).stat().st_size
    assert "run `import tnlib_adapters`" in (tmp_path / "new" / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora", "new"]


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_saved_modules_and_biases_go_along(bias, tmp_path):
    fields = {"modules_to_save": ["classifier"], "bias": bias, "task_type": "SEQ_CLS"}
    model = lora("bert", tmp_path / "lora", steps=2, **fields)
    from_lora(tmp_path / "lora", tmp_path / "new", LoTRConfig(r=48), base=make("bert"))
    loaded = peft.PeftModel.from_pretrained(make("bert"), tmp_path / "new")
    assert_same_outputs(logits(loaded), logits(model))
    assert loaded.peft_config["default"].bias == bias.replace("lora", "lotr")
    assert loaded.peft_config["default"].task_type == "SEQ_CLS"


@pytest.mark.parametrize("config", [METHODS[form]() for form in FITTED])
def test_a_converted_adapter_can_be_trained_further(config, tmp_path):
    lora("bert", tmp_path / "lora", r=2, target_modules=["query", "value"])
    from_lora(tmp_path / "lora", tmp_path / "new", config, base=make("bert"))
    model = peft.PeftModel.from_pretrained(make("bert"), tmp_path / "new", is_trainable=True)
    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    losses = train(model, lr=1e-3)
    assert losses[-1] < losses[0]
    moved = dict(model.named_parameters())
    assert start
    assert not any(torch.equal(moved[name], value) for name, value in start.items())


def test_the_base_is_found_by_the_lora_and_its_weights_are_not_read(tmp_path):
    base = saved_base("bert", tmp_path / "base")
    model = peft.get_peft_model(base, LoraConfig(task_type="SEQ_CLS", init_lora_weights=False))
    model.save_pretrained(tmp_path / "lora")
    (tmp_path / "base" / "model.safetensors").unlink()
    for number, place in enumerate((None, tmp_path / "base", base.config)):
        found = from_lora(
            tmp_path / "lora", tmp_path / f"new{number}", LoTRConfig(r=32), base=place
        )
        assert found.error < ROUNDED
    saved = json.loads((tmp_path / "new0" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(tmp_path / "base")


def test_a_model_given_as_base_is_not_changed(tmp_path):
    lora("bert", tmp_path / "lora")
    base = make("bert")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    from_lora(tmp_path / "lora", tmp_path / "new", LoTRConfig(), base=base)
    assert base.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


@pytest.mark.parametrize("config", [METHODS[form]() for form in FITTED])
def test_a_lora_at_its_start_stays_zero(config, tmp_path):
    model = peft.get_peft_model(make("llama"), LoraConfig())
    model.save_pretrained(tmp_path / "lora")
    found = from_lora(tmp_path / "lora", tmp_path / "new", config, base=make("llama"), eps=0.1)
    assert found.error == 0
    loaded = peft.PeftModel.from_pretrained(make("llama"), tmp_path / "new")
    assert all(norm(change) == 0 for change in changes(loaded).values())


def test_the_same_generator_gives_the_same_file(tmp_path):
    lora("llama", tmp_path / "lora")
    files = []
    for number, generator in enumerate((None, torch.Generator().manual_seed(0))):
        place = tmp_path / f"new{number}"
        from_lora(
            tmp_path / "lora", place, LoRTAConfig(r=2), base=make("llama"), generator=generator
        )
        files.append((place / FILE).read_bytes())
    assert files[0] == files[1]


# Reading.


@pytest.mark.parametrize("rslora", [False, True])
def test_scales_follow_the_patterns_of_rank_and_alpha(rslora, tmp_path):
    fields = {
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, r".*\.1\..*v_proj": 3},
        "alpha_pattern": {"v_proj": 5, "model.layers.0.mlp.down_proj": 7},
        "use_rslora": rslora,
    }
    old = changes(lora("llama", tmp_path, **fields))
    source = read_lora(tmp_path)
    ranks = {update.right.shape[0] for update in source.updates.values()}
    assert ranks == {2, 3, 4}
    assert source.updates.keys() == old.keys()
    for name, update in source.updates.items():
        torch.testing.assert_close(update.dense(), old[name], rtol=1e-12, atol=1e-14)


REFUSED = [
    ({"use_dora": True}, "use_dora=True: weights are rescaled"),
    ({"lora_bias": True}, "lora_bias=True"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"target_parameters": ["weight"]}, "target_parameters"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
    ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
    ({"r": 5}, "but the configuration says rank 5"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_a_lora_that_is_no_product_of_two_factors_is_refused(fields, message, tmp_path):
    lora("bert", tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(ValueError, match=message):
        from_lora(tmp_path / "lora", tmp_path / "new", LoTRConfig(), base=make("bert"))
    assert not (tmp_path / "new").exists()


def _tensors(change):
    """Damage a file by changing its tensors."""

    def damage(folder):
        tensors = safetensors.torch.load_file(folder / FILE)
        change(tensors, next(iter(tensors)).removesuffix("lora_A.weight"))
        safetensors.torch.save_file(tensors, folder / FILE)

    return damage


DAMAGED = [
    (lambda f: (f / FILE).rename(f / "adapter_model.bin"), r"pickled files \(.bin\) are not"),
    (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json"),
    (lambda f: (f / "adapter_config.json").write_text("{"), "is not JSON"),
    (lambda f: (f / "adapter_config.json").write_text("[]"), "holds no fields but a list"),
    (lambda f: (f / FILE).write_bytes((f / FILE).read_bytes()[:-9]), "is cut off"),
    (_tensors(lambda t, n: t.pop(n + "lora_B.weight")), "lora_A and not the other factor"),
    (_tensors(lambda t, n: t[n + "lora_A.weight"].fill_(math.nan)), "holds nan or inf"),
    (_tensors(lambda t, n: t.clear()), "has no tensor of a LoRA"),
    (
        _tensors(lambda t, n: t.update({n + "lora_embedding_A": torch.zeros(4, 9)})),
        "lora_embedding_A is no factor of a linear layer",
    ),
    (
        _tensors(lambda t, n: t.update({n + "lora_A.weight": torch.zeros(4, 48, 1, 1)})),
        "no linear layer",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGED)
def test_a_damaged_folder_is_refused(damage, message, tmp_path):
    lora("bert", tmp_path / "lora")
    damage(tmp_path / "lora")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        from_lora(tmp_path / "lora", tmp_path / "new", LoTRConfig(), base=make("bert"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("config", "more", "message"),
    [
        (DoTAConfig(), {}, "config must be a .*LoTRConfig.* or a "),
        (LoraConfig(), {}, "got a LoraConfig"),
        (LoRETTAConfig(variant="adp"), {}, "a LoRA can become variant='rep'"),
        (LoRETTAConfig(tt_head=True), {}, "a LoRA can become variant='rep' without tt_head"),
        (
            LoRETTAConfig(bottleneck=4, shapes=([8, 3, 4, 2], [2, 2, 8, 6])),
            {},
            "have a mode across the border of a width and the bottleneck of 4",
        ),
        (LoTRConfig(), {"eps": 0.0}, "eps must be"),
        (LoTRConfig(), {"eps": "small"}, "eps must be"),
        (LoTRConfig(), {"progressbar": "yes"}, "progressbar must be True, False or None"),
        (LoTRConfig(), {"base": None}, "the LoRA names no base model"),
        (LoTRConfig(), {"base": "llama"}, "has no linear layer of that name"),
        (LoTRConfig(), {"base": "wide"}, "the LoRA's update is 48 x 48, the layer of"),
        (LoTRConfig(), {"base": "adapted"}, "adapter"),
    ],
)
def test_arguments_that_cannot_be_used(config, more, message, tmp_path):
    lora("bert", tmp_path / "lora", target_modules=["query"])
    wide = copy.deepcopy(make("bert").config)
    wide.hidden_size = 96
    places = {
        "bert": make("bert"),
        "llama": make("llama"),
        "wide": wide,
        "adapted": peft.get_peft_model(make("bert"), LoTRConfig(target_modules=["query"])),
    }
    more["base"] = places.get(more.get("base", "bert"))
    with pytest.raises((TypeError, ValueError), match=message):
        from_lora(tmp_path / "lora", tmp_path / "new", config, **more)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora"]


def test_a_folder_that_is_there_is_not_overwritten(tmp_path):
    lora("bert", tmp_path / "lora")
    with pytest.raises(FileExistsError, match="new folder"):
        from_lora(tmp_path / "lora", tmp_path / "lora", LoTRConfig(), base=make("bert"))
    (tmp_path / "empty").mkdir()
    from_lora(tmp_path / "lora", tmp_path / "empty", LoTRConfig(), base=make("bert"))
    assert (tmp_path / "empty" / FILE).is_file()


# Sizes that meet an error.


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (LoTRConfig(r=20), "r"),
        (LoRETTAConfig(tt_rank=10), "tt_rank"),
        *((METHODS[form]().resized(20), "r") for form in FITTED if form not in ("lorta", "rep")),
    ],
)
def test_eps_finds_the_smallest_size_that_meets_it(config, size, tmp_path):
    lora("bert", tmp_path / "lora", target_modules=["query"])
    sizes = {}

    def convert(config, **options):
        place = tmp_path / f"new{len(list(tmp_path.iterdir()))}"
        return from_lora(tmp_path / "lora", place, config, base=make("bert"), **options), place

    for eps in (0.6, 0.3):
        found, place = convert(config, eps=eps)
        assert found.error <= eps
        saved = peft.PeftConfig.from_pretrained(place)
        reached = getattr(saved, size)
        assert 1 < reached < getattr(config, size)
        fields = {size: reached - 1}
        if size == "tt_rank":
            assert saved.bottleneck == min(8, reached)
            fields["bottleneck"] = min(8, reached - 1)
        less, _ = convert(type(config)(**fields))
        assert less.error > eps
        sizes[eps] = found.n_params
    assert sizes[0.6] < sizes[0.3]


@pytest.mark.parametrize("config", [METHODS[form]().resized(2) for form in FITTED])
def test_eps_that_the_largest_size_does_not_meet_is_refused_with_the_best(config, tmp_path):
    lora("bert", tmp_path / "lora", target_modules=["query"])
    reached = from_lora(tmp_path / "lora", tmp_path / "new", config, base=make("bert")).error
    with pytest.raises(ValueError, match=rf"error is {reached:.3g} at the largest size .* eps=0.1"):
        from_lora(tmp_path / "lora", tmp_path / "none", config, base=make("bert"), eps=0.1)
    assert not (tmp_path / "none").exists()


# What theory says of the three decompositions.


@pytest.mark.parametrize(
    "config",
    [
        LoRETTAConfig(bottleneck=4, tt_rank=48),
        *(METHODS[form]().resized(48) for form in FITTED if form != "lorta"),
    ],
)
def test_ranks_that_hold_the_lora_lose_nothing(config, tmp_path):
    lora("llama", tmp_path / "lora")
    found = from_lora(tmp_path / "lora", tmp_path / "new", config, base=make("llama"))
    assert found.error < ROUNDED


def test_lotr_starts_at_the_scale_of_training_and_fills_what_is_free(tmp_path):
    lora("bert", tmp_path / "lora", target_modules=["query"], r=2)
    from_lora(tmp_path / "lora", tmp_path / "new", LoTRConfig(r=10), base=make("bert"))
    tensors = safetensors.torch.load_file(tmp_path / "new" / FILE)
    u = next(value for key, value in tensors.items() if ".u_" in key)
    # Two weights of rank 2 span four columns; U starts as N(0, 1/d), of columns about 1 long.
    assert_close(u[:, :4].mT @ u[:, :4], torch.eye(4), operations=2 + 48)
    assert (torch.linalg.norm(u[:, 4:], dim=0) > 0.3).all()
    g = [value for key, value in tensors.items() if key.endswith("update.g")]
    assert all(not value[4:].any() and not value[:, 4:].any() for value in g)


@pytest.mark.parametrize(("bottleneck", "rank"), [(8, 2), (8, 5), (3, 7)])
def test_train_errors_are_within_the_bounds_of_the_unfoldings(bottleneck, rank, tmp_path):
    old = changes(lora("bert", tmp_path / "lora", r=6, target_modules=["intermediate.dense"]))
    config = LoRETTAConfig(bottleneck=bottleneck, tt_rank=rank)
    found = from_lora(tmp_path / "lora", tmp_path / "new", config, base=make("bert"))
    for weight in found.weights:
        network = config.network(find_sites(make("bert"))[weight.name])
        change = old[weight.name].mT
        modes = [network.sizes[leg] for leg in (*network.in_legs, *network.out_legs)]
        # One bond between any two modes; the one in the middle goes through the bottleneck.
        bonds = [min(rank, math.prod(modes[:k]), math.prod(modes[k:])) for k in range(len(modes))]
        bonds[len(network.in_legs)] = min(rank, bottleneck)
        least = [
            tails(change.reshape(math.prod(modes[:k]), -1), bonds[k]) for k in range(1, len(modes))
        ]
        assert max(least) / weight.norm <= weight.error + 1e-6
        assert weight.error <= math.hypot(*least) / weight.norm + 1e-6


def test_lorta_gets_closer_with_rank(tmp_path):
    lora("bert", tmp_path / "lora", r=2, target_modules=["query"])
    errors = [
        from_lora(tmp_path / "lora", tmp_path / f"{r}", LoRTAConfig(r=r), base=make("bert")).error
        for r in (2, 16)
    ]
    assert errors == sorted(errors, reverse=True)
    # Two weights of rank 2 over four heads are sums of 16 terms.
    assert errors[-1] < 0.2
