"""Bases whose weights are not plain tensors of one layer: tied, computed, wrapped, elsewhere."""

from __future__ import annotations

import copy

import peft
import pytest
import safetensors.torch
import torch
import transformers as hf
from peft import PeftModel
from torch import nn

from tests.tnlib_adapters.adapters import alone
from tests.tnlib_adapters.forms import MERGEABLE, METHODS
from tests.tnlib_adapters.models import (
    TARGETS,
    assert_other_outputs,
    assert_same_outputs,
    cores_in,
    inputs,
    logits,
    make,
    tokens,
    train,
)
from tnlib_adapters import DoTAConfig, LoRETTAConfig
from tnlib_adapters.quantization import quantize_base

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
SHARING = ("lotr", "lorta")
every_mergeable = pytest.mark.parametrize("method", MERGEABLE)
quiet_ties = pytest.mark.filterwarnings(
    "ignore:tie_word_embeddings=True:UserWarning",
    "ignore:Input and output embeddings are no longer tied:UserWarning",
    "ignore:Setting `save_embedding_layers`:UserWarning",
)


def config(method, targets, **kwargs):
    return METHODS[method](target_modules=targets, **alone(method), **kwargs)


def trained(base, method, targets):
    model = peft.get_peft_model(base, config(method, targets))
    losses = train(model)
    assert losses[-1] < losses[0]
    return model.eval()


@quiet_ties
@every_mergeable
def test_a_tied_output_is_merged_into_a_copy(method, tmp_path):
    base = make("qwen2")
    embedding = base.get_input_embeddings().weight
    assert base.lm_head.weight is embedding
    model = trained(base, method, ["lm_head", "q_proj"])
    values, outputs = embedding.clone(), logits(model)
    model.merge_adapter()
    assert_same_outputs(logits(model), outputs)
    assert torch.equal(embedding, values)
    model.unmerge_adapter()
    assert model.base_model.model.lm_head.base_layer.weight is embedding
    assert_same_outputs(logits(model), outputs)
    merged = model.merge_and_unload()
    assert torch.equal(embedding, values)
    assert_same_outputs(logits(merged), outputs)
    assert not merged.config.tie_word_embeddings
    merged.save_pretrained(tmp_path)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same_outputs(logits(again), outputs)


@quiet_ties
@every_mergeable
def test_the_file_of_an_adapted_output_has_what_was_trained(method, tmp_path):
    model = trained(make("llama"), method, ["lm_head", "q_proj"])
    model.save_pretrained(tmp_path)
    saved = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(value.numel() for name, value in saved.items() if "anchor_" in name)
    assert sum(value.numel() for value in cores_in(saved).values()) == numbers + frozen
    loaded = PeftModel.from_pretrained(make("llama"), tmp_path)
    assert_same_outputs(logits(loaded), logits(model))


@quiet_ties
@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_a_resized_output_that_is_adapted_is_saved(tmp_path):
    make("llama").save_pretrained(tmp_path / "base")
    base = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(80, mean_resizing=False)
    model = peft.get_peft_model(base, config("lotr", ["lm_head"]))
    model.save_pretrained(tmp_path / "adapter")
    saved = safetensors.torch.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.lm_head.base_layer.weight"
    assert torch.equal(saved[name], base.lm_head.base_layer.weight)


NORMED = {
    "parametrised": torch.nn.utils.parametrizations.weight_norm,
    "hooked": pytest.param(
        torch.nn.utils.weight_norm,
        marks=pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning"),
    ),
    "spectral": torch.nn.utils.parametrizations.spectral_norm,
}


@pytest.mark.parametrize("norm", NORMED.values(), ids=NORMED.keys())
@every_mergeable
def test_weights_that_are_computed_from_others_merge(method, norm):
    base = make("llama").eval()
    layer = base.model.layers[0].self_attn
    for name in ("q_proj", "o_proj"):
        norm(getattr(layer, name))
    model = trained(base, method, ["q_proj", "v_proj"])
    outputs = logits(model)
    model.merge_adapter()
    assert_same_outputs(logits(model), outputs)
    model.unmerge_adapter()
    assert_same_outputs(logits(model), outputs)
    merged = model.merge_and_unload()
    assert_same_outputs(logits(merged), outputs)
    assert type(merged.model.layers[0].self_attn.q_proj) is nn.Linear
    assert type(merged.model.layers[0].self_attn.o_proj) is not None


HOOKED = {
    "weight norm": torch.nn.utils.weight_norm,
    "spectral norm": torch.nn.utils.spectral_norm,
    "pruned": lambda layer: torch.nn.utils.prune.random_unstructured(layer, "weight", 0.3),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize("norm", HOOKED.values(), ids=HOOKED)
@every_mergeable
def test_weights_that_hooks_compute_are_those_of_now(method, norm):
    """In ``weight`` they are those of the last call."""

    def base():
        torch.manual_seed(0)
        return nn.Sequential(norm(nn.Linear(16, 16)), nn.Linear(16, 8)).eval()

    other = base()
    with torch.no_grad():
        for name, value in other[0].named_parameters():
            if name != "bias":
                value.mul_(1.5).add_(0.1)
    x = torch.randn(4, 16)
    target = {"dota": "random"}.get(method, False)
    model = peft.get_peft_model(base(), config(method, ["0", "1"], init_weights=target))
    names = {n: n.replace("0.", "0.base_layer.", 1) for n in other.state_dict()}
    names |= {n: n.replace("1.", "1.base_layer.", 1) for n in other.state_dict() if n[0] == "1"}
    state = {names[name]: value for name, value in other.state_dict().items()}
    model.base_model.model.load_state_dict(state, strict=False)
    model.merge_adapter()
    merged = model(x)
    model.unmerge_adapter()
    assert_same_outputs(merged, model(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@every_mergeable
def test_what_is_set_aside_is_cast_with_the_model(method, dtype):
    base = make("llama").eval()
    for layer in base.model.layers:
        torch.nn.utils.parametrizations.weight_norm(layer.self_attn.q_proj)
    model = trained(base, method, ["q_proj"])
    expected = logits(copy.deepcopy(model).to(dtype))
    model.merge_adapter()
    model.to(dtype)
    model.unmerge_adapter()
    assert_same_outputs(logits(model), expected)


class Activated(nn.Linear):
    """Linear by its class, with an activation."""

    def forward(self, x):
        return super().forward(x).relu()


def doubled(layer):
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    return layer


def shifted(layer):
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    return layer


def watched(layer):
    layer.seen = []
    layer.register_forward_hook(lambda module, inputs, output: module.seen.append(output.norm()))
    return layer


MORE = {
    "activation": lambda: Activated(16, 16),
    "output hook": lambda: doubled(nn.Linear(16, 16)),
    "input hook": lambda: shifted(nn.Linear(16, 16)),
}


@pytest.mark.parametrize("layer", MORE.values(), ids=MORE)
@every_mergeable
def test_layers_that_are_more_than_a_product_are_not_merged(method, layer):
    torch.manual_seed(0)
    base = nn.ModuleDict({"a": nn.Linear(16, 16), "b": layer()})
    model = peft.get_peft_model(base, config(method, ["a", "b"], init_weights=False))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"b: this \w+ does more than multiply by its weight"):
        model.merge_adapter()
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


@every_mergeable
def test_hooks_that_only_look_are_no_obstacle(method):
    torch.manual_seed(0)
    base = nn.Sequential(watched(nn.Linear(16, 16)))
    model = peft.get_peft_model(base, config(method, ["0"], init_weights=False))
    x = torch.randn(4, 16)
    outputs = model(x)
    model.merge_adapter()
    assert_same_outputs(model(x), outputs)


class Scaled(torch.Tensor):
    """A tensor that says float32 and holds its values in another form, as torchao's do."""

    @staticmethod
    def __new__(cls, whole, scale):
        return torch.Tensor._make_wrapper_subclass(cls, whole.shape, dtype=torch.float32)

    def __init__(self, whole, scale):
        self.whole, self.scale = whole, scale

    def dequantize(self):
        return self.whole.float() * self.scale

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return Scaled(args[0].whole, args[0].scale)
        allowed = ("aten::t", "aten::mm", "aten::addmm", "aten::linear", "aten::_to_copy")
        if function.name().split(".")[0] not in allowed:
            raise NotImplementedError(f"{function} of a quantised tensor")
        plain = [x.dequantize() if isinstance(x, Scaled) else x for x in args]
        return function(*plain, **(kwargs or {}))


@every_mergeable
def test_tensors_of_other_kinds_are_left_to_their_layers(method):
    """Their layers are called; nothing is added to their weights."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    base = copy.deepcopy(plain)
    for layer in (base[0], base[2]):
        whole = (layer.weight.detach() * 100).round().to(torch.int8)
        layer.weight = nn.Parameter(Scaled(whole, 0.01), requires_grad=False)
    expected = copy.deepcopy(plain)
    for k in (0, 2):
        expected[k].weight.data = base[k].weight.dequantize()
    if method == "dota":
        adapted = METHODS[method](target_modules=["0", "2"], init_weights="random")
    else:
        adapted = config(method, ["0", "2"])
    model = peft.get_peft_model(base, adapted)
    reference = peft.get_peft_model(expected, copy.deepcopy(adapted))
    peft.set_peft_model_state_dict(reference, peft.get_peft_model_state_dict(model))
    x = torch.randn(4, 32)
    optimizers = []
    for network in (model, reference):
        parameters = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, 0.1)
        network(x).square().sum().backward()
        optimizer.step()
        optimizers.append(optimizer)
    assert_same_outputs(model(x), reference(x))


@pytest.mark.parametrize("name", ["mamba", "siglip"])
@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.filterwarnings("ignore:not adapted:UserWarning")
def test_all_linear_is_loaded_where_layers_were_left_out(method, name, tmp_path):
    def base():
        torch.manual_seed(0)
        if name == "mamba":
            sizes = hf.MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=64)
            return hf.MambaForCausalLM(sizes)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
        sizes |= {"num_attention_heads": 4, "image_size": 16, "patch_size": 8}
        return hf.SiglipVisionModel(hf.SiglipVisionConfig(**sizes))

    model = peft.get_peft_model(base(), config(method, "all-linear", init_weights=False))
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path)
    assert loaded.targeted_module_names == model.targeted_module_names
    saved = peft.get_peft_model_state_dict(model)
    assert all(torch.equal(v, saved[n]) for n, v in peft.get_peft_model_state_dict(loaded).items())
    model.add_adapter("second", model.peft_config["default"])
    plain = base()
    plain.load_adapter(str(tmp_path))


@pytest.mark.parametrize("kind", ["mamba", "wav2vec"])
def test_layers_whose_weight_is_read_stay_in_full_precision(kind):
    torch.manual_seed(0)
    if kind == "mamba":
        base = hf.MambaForCausalLM(
            hf.MambaConfig(hidden_size=64, num_hidden_layers=1, vocab_size=64)
        ).train()
        arguments = {"input_ids": tokens()}
    else:
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
        sizes |= {"intermediate_size": 48, "conv_dim": (16, 16), "conv_kernel": (10, 3)}
        sizes |= {"conv_stride": (5, 2), "tdnn_dim": (32, 32), "tdnn_kernel": (3, 3)}
        sizes |= {"tdnn_dilation": (1, 1), "xvector_output_dim": 16, "num_feat_extract_layers": 2}
        base = hf.Wav2Vec2ForXVector(hf.Wav2Vec2Config(**sizes)).eval()
        arguments = {"input_values": torch.randn(1, 2000)}
    quantize_base(base)
    kinds = {type(module).__name__ for module in base.modules()}
    assert "QuantizedLinear" in kinds
    assert torch.isfinite(base(**arguments).logits).all()


@pytest.mark.parametrize("left_out", [0, 1])
@pytest.mark.parametrize("method", MERGEABLE)
def test_a_core_that_never_came_is_named(method, left_out, tmp_path):
    """transformers says what is missing in its log only."""
    model = peft.get_peft_model(make("llama"), config(method, ["q_proj"], init_weights=False))
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    saved = safetensors.torch.load_file(path)
    name = sorted(cores_in(saved))[left_out]
    del saved[name]
    safetensors.torch.save_file(saved, path, {"format": "pt"})
    base = make("llama")
    base.load_adapter(str(tmp_path))
    core = name.rpartition(".")[2]
    with pytest.raises(RuntimeError, match=rf"the cores {core} were allocated but never loaded"):
        logits(base)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_train_in_float32_over_half_precision(dtype):
    """GradScaler refuses float16 parameters, and rounding would undo steps of a usual size."""
    base = make("llama", dtype)
    model = peft.get_peft_model(base, LoRETTAConfig(target_modules=TARGETS["llama"], dropout=0.0))
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in parameters} == {torch.float32}
    assert logits(model).dtype == dtype
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = torch.optim.SGD(parameters, 0.1)
    for _ in range(2):
        with torch.autocast("cpu", dtype):
            loss = model.train()(tokens(), labels=tokens()).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    outputs = logits(model)
    again = copy.deepcopy(model)
    assert torch.equal(logits(again), outputs)
    with pytest.warns(UserWarning, match="rounding"):
        merged = model.merge_and_unload()
    assert {p.dtype for p in merged.parameters()} == {dtype}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in merged.modules())
    assert_same_outputs(logits(merged), outputs)


def test_norms_keep_the_dtype_of_the_base_where_adapters_shall():
    """As FSDP needs it, which wants one dtype."""
    base = make("llama", torch.bfloat16)
    wanted = LoRETTAConfig(target_modules=TARGETS["llama"])
    model = peft.get_peft_model(base, wanted, autocast_adapter_dtype=False)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_of_full_precision_warns_over_4_bits(method, tmp_path):
    model = peft.get_peft_model(make("llama"), config(method, ["q_proj"]))
    model.save_pretrained(tmp_path)
    base = quantize_base(make("llama"))
    with pytest.warns(UserWarning, match=r"in full precision, and is loaded over one in 4 bits"):
        PeftModel.from_pretrained(base, tmp_path)


def offloaded(folder, spare):
    """Llama with a layer on disk, which accelerate reads when it is called."""
    places = dict.fromkeys(("model.embed_tokens", "model.norm", "lm_head"), "cpu")
    places |= {"model.rotary_emb": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    return hf.AutoModelForCausalLM.from_pretrained(folder, device_map=places, offload_folder=spare)


@pytest.mark.parametrize("method", MERGEABLE)
def test_weights_on_disk_are_adapted_and_loaded_over(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # PEFT writes off-loaded files below the folder it runs in
    base = make("llama")
    base.save_pretrained(tmp_path / "base")
    model = trained(base, method, ["q_proj", "v_proj"])
    model.save_pretrained(tmp_path / "adapter")
    lazy = offloaded(tmp_path / "base", tmp_path / "spare")
    assert lazy.model.layers[1].self_attn.q_proj.weight.is_meta
    fresh = peft.get_peft_model(lazy, config(method, ["q_proj", "v_proj"]))
    own = {n: v for n, v in fresh.state_dict().items() if "_update." in n or "corestore" in n}
    assert own
    assert not any(value.is_meta for value in own.values())
    assert_same_outputs(logits(fresh), logits(make("llama")))
    places = {f"base_model.model.{n}": p for n, p in lazy.hf_device_map.items()}
    loaded = PeftModel.from_pretrained(
        offloaded(tmp_path / "base", tmp_path / "spare2"),
        tmp_path / "adapter",
        device_map=places | ({"base_model.model.corestore": "cpu"} if method in SHARING else {}),
        offload_folder=tmp_path / "spare3",
    )
    for _ in range(2):
        assert_same_outputs(logits(loaded), logits(model))


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("method", MERGEABLE)
def test_an_adapter_is_injected_by_its_values_alone(method, low):
    model = trained(make("llama"), method, ["q_proj", "v_proj"])
    values = peft.get_peft_model_state_dict(model)
    other = peft.inject_adapter_in_model(
        config(method, ["q_proj", "v_proj"]),
        make("llama"),
        state_dict=values,
        low_cpu_mem_usage=low,
    )
    own = {n: v for n, v in other.state_dict().items() if "_update." in n or "corestore" in n}
    assert {value.is_meta for value in own.values()} == {low}
    peft.set_peft_model_state_dict(other, values, low_cpu_mem_usage=low)
    assert_same_outputs(logits(other), logits(model))


def test_shared_values_alone_do_not_tell_the_layers():
    values = peft.get_peft_model_state_dict(trained(make("llama"), "lorta", ["q_proj", "v_proj"]))
    other = make("llama")
    with pytest.raises(ValueError, match=r"which layers are adapted.*give target_modules"):
        peft.inject_adapter_in_model(METHODS["lorta"](), other, state_dict=values)
    assert_same_outputs(logits(other), logits(make("llama")))


def llava():
    torch.manual_seed(0)
    small = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            text_config=hf.LlamaConfig(**small, intermediate_size=96, vocab_size=64),
            vision_config=hf.CLIPVisionConfig(
                **small, intermediate_size=96, image_size=16, patch_size=8
            ),
        )
    )


@pytest.mark.parametrize("method", sorted(METHODS))
def test_of_a_model_that_sees_the_language_model_is_adapted(method):
    with pytest.warns(UserWarning, match=r"language model \(model.language_model.\*\) is adapted"):
        model = peft.get_peft_model(llava(), METHODS[method]())
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names
    assert all("language_model" in name or "corestore" in name for name in names)
    named = peft.get_peft_model(llava(), METHODS[method](target_modules=["q_proj"]))
    assert any("vision_tower" in name for name in named.targeted_module_names)


def roberta_like(name):
    small = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {"intermediate_size": 96, "vocab_size": 64, "pad_token_id": 1}
    kinds = {
        "roberta": (hf.RobertaConfig, hf.RobertaForSequenceClassification),
        "xlm-roberta": (hf.XLMRobertaConfig, hf.XLMRobertaForSequenceClassification),
        "camembert": (hf.CamembertConfig, hf.CamembertForSequenceClassification),
        "electra": (hf.ElectraConfig, hf.ElectraForSequenceClassification),
        "mpnet": (hf.MPNetConfig, hf.MPNetForSequenceClassification),
    }
    make_config, kind = kinds[name]
    torch.manual_seed(0)
    return kind(make_config(**small)).eval()


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta", "camembert", "electra", "mpnet"])
@every_mergeable
def test_classifiers_with_a_head_of_several_layers_are_merged(method, name):
    base = roberta_like(name)
    targets = ["q", "v"] if name == "mpnet" else ["query", "value"]
    model = peft.get_peft_model(
        base, config(method, targets, task_type="SEQ_CLS", modules_to_save=["classifier"])
    ).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01
    outputs = logits(model)
    with model.disable_adapter():
        assert_other_outputs(logits(model), outputs)
    merged = model.merge_and_unload()
    assert_same_outputs(logits(merged), outputs)
    assert type(merged.classifier).__name__.endswith("ClassificationHead")


def test_unloading_gives_the_head_of_the_base_model_back():
    base = roberta_like("roberta")
    outputs = base(**inputs(base)).logits
    model = peft.get_peft_model(
        base, DoTAConfig(target_modules=["query"], task_type="SEQ_CLS", modules_to_save=None)
    )
    train(model)
    assert_same_outputs(model.unload().eval()(**inputs(base)).logits, outputs)
