"""Adapters over a base in 4 or 8 bits: every method, ours and transformers' layers."""

from __future__ import annotations

import copy
import gc
import weakref

import peft
import pytest
import torch
import transformers as hf

from tests.tnlib_adapters.forms import MERGEABLE, METHODS
from tests.tnlib_adapters.models import TARGETS, assert_same_outputs, inputs, logits, make, train
from tests.tolerances import assert_close, rounding
from tnlib_adapters import DoTAConfig, NetworkLinear, cached
from tnlib_adapters.fourbit import bitsandbytes
from tnlib_adapters.fourbit.dense_layers import DenseConv1D, DenseLinear
from tnlib_adapters.layers.residual_base import ResidualLinear
from tnlib_adapters.quantization import (
    QuantizedLinear,
    dequantize_base,
    footprint,
    prevent_repacking,
    quantize_base,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
]
# Widths 48, 80, 96: not multiples of 32, of a block, or of both.
ARCHITECTURES = ["llama", "gpt2", "bert"]
every_method = pytest.mark.parametrize("method", METHODS)
every_mergeable = pytest.mark.parametrize("method", MERGEABLE)
# Every method over every layout of a layer once, the rest of the product if slow.
IN_TURN = dict.fromkeys(METHODS, "llama") | {
    "dota": "gpt2",
    "lotr": "bert",
    "lorta": "gpt2",
    "adp": "bert",
}


def every(methods):
    return pytest.mark.parametrize(
        ("method", "name"),
        [
            pytest.param(method, name, marks=() if IN_TURN[method] == name else pytest.mark.slow)
            for method in methods
            for name in ARCHITECTURES
        ],
    )


def adapted(model, method, name="llama", **kwargs):
    torch.manual_seed(0)
    return peft.get_peft_model(model, METHODS[method](target_modules=TARGETS[name], **kwargs))


def loaded(folder, name="llama", bits=4, dtype=torch.float32):
    """A model that transformers quantises while it loads."""
    model = make(name, dtype)
    model.save_pretrained(folder)
    options = {"load_in_8bit": True}
    if bits == 4:
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        options |= {"bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    config = hf.BitsAndBytesConfig(**options)
    return type(model).from_pretrained(folder, quantization_config=config, device_map="cpu").eval()


def gradients(model):
    model.train()
    output = model(**inputs(model)).logits.float()
    output.log_softmax(-1)[..., 0].mean().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return found


def kinds(model):
    return {type(module) for module in model.modules()}


@every(METHODS)
def test_over_4_bits_every_method_starts_trains_disables_and_reloads_exactly(
    method, name, tmp_path
):
    base = quantize_base(make(name))
    before = logits(base)
    model = adapted(base, method, name)
    assert torch.equal(logits(model), before)
    losses = train(model)
    assert losses[-1] < losses[0]
    trained = logits(model)
    assert not torch.equal(trained, before)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(quantize_base(make(name)), tmp_path)
    assert torch.equal(logits(again), trained)
    assert torch.equal(logits(model.unload()), before)


@every_method
def test_loaded_onto_full_precision_it_says_so_and_quantising_then_gives_what_was_trained(
    method, tmp_path
):
    model = adapted(quantize_base(make("llama")), method)
    train(model)
    trained = logits(model)
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"loaded over one that is not.*quantize_base\(model, "):
        full = peft.PeftModel.from_pretrained(make("llama"), tmp_path)
    assert not torch.allclose(logits(full), trained, rtol=0, atol=1e-3)
    quantize_base(full)
    assert torch.equal(logits(full), trained)


@every_method
def test_adapted_first_and_quantised_then_is_the_same_as_the_other_way(method):
    first = adapted(make("llama"), method)
    quantize_base(first)
    assert torch.equal(logits(first), logits(quantize_base(make("llama"))))
    assert first.peft_config["default"].base_quantization["quant_type"] == "nf4"
    losses = train(first)
    assert losses[-1] < losses[0]


@every(MERGEABLE)
def test_merging_gives_bfloat16_and_unmerging_the_4_bits_again(method, name):
    model = adapted(quantize_base(make(name)), method, name)
    before = logits(model)
    train(model)
    trained, state = logits(model), copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match=r"merged into torch.bfloat16: .* errs by"):
        model.merge_adapter()
    merged = {m.weight.dtype for m in model.modules() if isinstance(m, DenseLinear | DenseConv1D)}
    assert merged == {torch.bfloat16}
    assert_same_outputs(logits(model), trained, dtype=torch.bfloat16)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), trained)
    model.merge_adapter(dtype=torch.float32)
    assert_same_outputs(logits(model), trained)
    model.unmerge_adapter()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@every_mergeable
def test_requantising_reports_its_error_beside_that_of_bfloat16(method):
    model = adapted(quantize_base(make("llama"), blocksize=32), method)
    train(model)
    targets = [m for m in model.modules() if hasattr(m, "held") and hasattr(m, "base_layer")]
    exact = [(m.dense_of(m.base_layer) + m.update("default").delta()).detach() for m in targets]
    with pytest.warns(UserWarning, match=r"quantised again, which errs by .*bfloat16 errs by"):
        merged = model.merge_and_unload(requantize=True)
    layers = [merged.get_submodule(n) for n, _ in merged.named_modules()]
    layers = [layer for layer in layers if isinstance(layer, QuantizedLinear)]
    assert {layer.format.blocksize for layer in layers} == {32}
    made = {id(weight): weight for weight in (layer.dequantize() for layer in layers)}.values()
    for total in exact:
        nearest = min(
            float((w - total).norm() / total.norm()) for w in made if w.shape == total.shape
        )
        assert nearest < 0.1  # the error of NF4


@every(MERGEABLE)
def test_a_merged_model_becomes_one_plain_checkpoint(method, name, tmp_path):
    model = adapted(quantize_base(make(name)), method, name)
    train(model)
    trained = logits(model)
    with pytest.warns(UserWarning, match="merged into"):
        merged = model.merge_and_unload()
    dequantize_base(merged, torch.float32)
    assert not kinds(merged) & {DenseLinear, DenseConv1D, QuantizedLinear}
    merged.save_pretrained(tmp_path)
    again = type(make(name)).from_pretrained(tmp_path).eval()
    assert not hasattr(again.config, "quantization_config")
    assert_same_outputs(logits(again), logits(merged))
    assert_same_outputs(logits(again), trained, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("method", "bits"), [("dota", 4), ("adp", 4), ("lotr", 8), ("rep", 4), ("lorta", 8)]
)
def test_an_evaluation_before_training_changes_no_gradient_and_no_merged_weight(
    method, bits, tmp_path
):
    results = []
    for evaluate in (False, True):
        model = adapted(loaded(tmp_path, bits=bits), method)
        start = logits(model) if evaluate else None
        found = gradients(model)
        train(model)
        trained = logits(model)
        if method in MERGEABLE:
            merged = model.merge_and_unload(dtype=torch.float32)
            if bits == 4:
                assert_same_outputs(logits(merged), trained)
            found |= {n: p for n, p in merged.named_parameters() if p.is_floating_point()}
        results.append((found, trained))
    del start
    (first, trained), (second, again) = results
    assert all(value is not None for value in first.values())
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(trained, again)


@pytest.mark.parametrize("bits", [4, 8])
def test_models_that_transformers_quantised_are_adapted_as_they_are(bits, tmp_path):
    base = loaded(tmp_path / "base", bits=bits)
    before, types = logits(base) if bits == 8 else None, kinds(base)
    model = adapted(base, "dota")
    assert types <= kinds(model)
    start = logits(model)
    with model.disable_adapter():
        disabled = logits(model)
    # With an adapter our product takes the place of bitsandbytes'.
    assert_same_outputs(start, disabled)
    train(model)
    trained = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(
        loaded(tmp_path / "base", bits=bits), tmp_path / "adapter"
    )
    assert_same_outputs(logits(again), trained)
    unloaded = model.unload()
    assert torch.equal(logits(unloaded), disabled)
    assert before is None or torch.equal(before, disabled)


def test_the_guard_is_put_on_layers_that_are_not_adapted_too(tmp_path):
    base = loaded(tmp_path)
    for layer in base.modules():
        if bitsandbytes.is_bitsandbytes(layer):
            layer.support_avx512bf16_for_cpu = True
    adapted(base, "lotr")
    switches = [
        m.support_avx512bf16_for_cpu for m in base.modules() if bitsandbytes.is_bitsandbytes(m)
    ]
    assert len(switches) == 14
    assert not any(switches)


def test_a_repacked_layer_is_refused_before_anything_changes(tmp_path):
    base = loaded(tmp_path)
    layer = base.model.layers[0].self_attn.q_proj
    model = adapted(base, "dota")
    layer.weight.quant_state.packing_format_for_cpu = True  # what an evaluation leaves
    names = dict(model.named_modules()).keys()
    for attempt in (
        model.merge_adapter,
        model.merge_and_unload,
        lambda: prevent_repacking(model),
        lambda: dequantize_base(base),
        lambda: model.add_adapter("other", METHODS["dota"](target_modules=["v_proj"])),
    ):
        with pytest.raises(ValueError, match=r"q_proj.*rewritten this 4-bit layer for inference"):
            attempt()
    assert dict(model.named_modules()).keys() == names
    assert list(model.peft_config) == ["default"]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_residual_order_quantises_what_the_operator_leaves(name, tmp_path):
    original = make(name)
    weights = {n: m.weight.detach() for n, m in original.named_modules() if hasattr(m, "weight")}
    model = adapted(make(name), "dota", name, residual=True)
    with pytest.warns(UserWarning, match=r"away from W in the median layer"):
        quantize_base(model)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, ResidualLinear)}
    assert len(layers) == 2 * len(TARGETS[name])
    for path, layer in layers.items():
        path = path.removeprefix("base_model.model.").removesuffix(".base_layer")
        weight = weights[path].mT if layer.transposed else weights[path]
        update = model.get_submodule(f"base_model.model.{path}").update("default")
        operator = update.network.unanchored.delta(update.anchor)
        residual = layer.packed.dequantize()
        lost = float((residual - (weight - operator)).norm() / (weight - operator).norm())
        assert lost < 0.1  # the error of NF4
        off = float((residual + operator - weight).norm() / weight.norm())
        assert off == pytest.approx(layer.deviation, rel=rounding(torch.float32, weight.numel()))
        assert_close(layer.dequantize(), residual + operator, operations=2 * 48)
    start = logits(model)
    with model.disable_adapter():
        disabled = logits(model)
    assert_same_outputs(disabled, start)
    losses = train(model)
    assert losses[-1] < losses[0]
    trained = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), disabled)
    with cached(model):
        assert_same_outputs(logits(model), trained)
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"trained over .*Q\(W - N\(theta_0\)\)"):
        again = peft.PeftModel.from_pretrained(make(name), tmp_path)
    with pytest.warns(UserWarning, match="away from W"):
        quantize_base(again)
    assert torch.equal(logits(again), trained)
    with pytest.warns(UserWarning, match="difference of both quantisations"):
        peft.PeftModel.from_pretrained(quantize_base(make(name)), tmp_path)
    model.merge_adapter(dtype=torch.float32)
    assert_same_outputs(logits(model), trained)
    model.unmerge_adapter()
    assert torch.equal(logits(model), trained)
    assert torch.equal(logits(model.unload()), disabled)


def test_a_residual_base_takes_no_second_adapter(tmp_path):
    model = adapted(make("llama"), "dota", residual=True)
    with pytest.warns(UserWarning, match="takes no second adapter"):
        quantize_base(model)
    model.save_pretrained(tmp_path)
    before = logits(model)
    with pytest.raises(ValueError, match=r"for the one adapter that has theta_0"):
        model.add_adapter("other", METHODS["dota"](target_modules=TARGETS["llama"]))
    with pytest.raises(ValueError, match=r"for the one adapter that has theta_0"):
        model.load_adapter(tmp_path, "other")
    assert torch.equal(logits(model), before)
    assert list(model.peft_config) == ["default"]


def test_a_residual_is_not_taken_out_of_rounded_weights():
    base = quantize_base(make("llama"))
    before = logits(base)
    with pytest.raises(ValueError, match=r"residual=True over a base in 4 bits.*quantize_base"):
        adapted(base, "dota", residual=True)
    assert torch.equal(logits(base), before)
    two = adapted(make("llama"), "dota", residual=True)
    two.add_adapter("other", METHODS["dota"](target_modules=TARGETS["llama"]))
    with pytest.raises(ValueError, match=r"residual=True shares the layer with another"):
        quantize_base(two)
    assert QuantizedLinear not in kinds(two)


def test_the_residual_beats_quantising_the_weight_where_an_operator_fits():
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(64, 64, bias=False)
    # A Kronecker product is an operator of rank 1; what is left has half of its norm.
    operator = torch.kron(*torch.randn(2, 8, 8, generator=generator))
    with torch.no_grad():
        linear.weight.copy_(operator + 0.5 * torch.randn(64, 64, generator=generator))
    plain = QuantizedLinear.from_linear(linear).deviation
    model = torch.nn.Sequential(
        NetworkLinear.from_linear(linear, DoTAConfig(r=4, dims=2, residual=True))
    )
    with pytest.warns(UserWarning, match="away from W"):
        quantize_base(model)
    assert model[0].base.deviation < 0.7 * plain


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dota_in_half_precision_starts_as_its_4_bit_base(dtype):
    base = quantize_base(make("llama", dtype))
    before = logits(base)
    model = adapted(base, "dota")
    assert torch.equal(logits(model), before)
    losses = train(model)
    assert losses[-1] < losses[0]
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_dota_under_autocast_starts_as_its_4_bit_base():
    base = quantize_base(make("llama"))
    model = adapted(base, "dota")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        start = logits(model)
        with model.disable_adapter():
            assert torch.equal(logits(model), start)
        losses = train(model)
    assert losses[-1] < losses[0]


def largest_saved(layer, width):
    """Entries of the largest tensor that a forward pass keeps for the backward pass."""
    sizes = []

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    x = torch.randn(3, width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x).sum().backward()
    assert x.grad is not None
    return max(sizes)


@pytest.mark.parametrize("residual", [False, True])
def test_a_step_of_qdota_keeps_no_dense_weight(residual):
    linear = torch.nn.Linear(192, 256)
    layer = NetworkLinear.from_linear(linear, DoTAConfig(r=4, residual=residual))
    model = torch.nn.Sequential(layer)
    if residual:
        with pytest.warns(UserWarning, match="away from W"):
            quantize_base(model)
    else:
        quantize_base(model)
    assert largest_saved(layer, 192) < 192 * 256 / 8


def test_qdota_compiles_without_breaks():
    layer = NetworkLinear.from_linear(
        QuantizedLinear.from_linear(torch.nn.Linear(64, 64)), DoTAConfig(r=4)
    )
    x = torch.randn(5, 64)
    expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert_close(compiled(x), expected, operations=2 * 64)


def test_a_network_linear_over_4_bits_merges_dense():
    linear = QuantizedLinear.from_linear(torch.nn.Linear(64, 48))
    layer = NetworkLinear.from_linear(linear, DoTAConfig(r=4))
    x = torch.randn(5, 64)
    assert torch.equal(layer(x), linear(x))
    merged = layer.merged()
    assert merged.weight.dtype == torch.bfloat16
    assert torch.equal(merged.weight, linear.dequantize().to(torch.bfloat16))


def test_weights_are_released_one_after_another(monkeypatch):
    model = make("llama")
    weights = [weakref.ref(m.weight) for m in model.modules() if type(m) is torch.nn.Linear]
    alive = []
    quantize = QuantizedLinear.from_linear.__func__

    def counting(cls, linear, **options):
        gc.collect()
        alive.append(sum(ref() is not None for ref in weights))
        return quantize(cls, linear, **options)

    monkeypatch.setattr(QuantizedLinear, "from_linear", classmethod(counting))
    quantize_base(model)
    # All but the output embedding, one less every time.
    assert alive == list(range(15, 1, -1))


def test_a_footprint_counts_every_byte_and_says_how_far_weights_are_off():
    linear = torch.nn.Linear(256, 512)
    model = torch.nn.Sequential(linear, torch.nn.Linear(512, 512).to(torch.bfloat16))
    found = footprint(model)
    assert [(row.layers, row.shape, row.bits) for row in found.rows] == [
        (1, (512, 256), 32.0),
        (1, (512, 512), 16.0),
    ]
    weight = linear.weight.detach().clone()
    quantize_base(model, skip=["1"])
    found = footprint(model)
    entries = 512 * 256
    # Half a byte a value, a byte a scale, 4 bytes for 256 scales and for their mean.
    assert found.rows[0].nbytes == entries // 2 + entries // 64 + 4 * entries // 64 // 256 + 4
    assert found.nbytes == found.rows[0].nbytes + 2 * 512 * 512
    off = float((model[0].dequantize() - weight).norm() / weight.norm())
    assert found.rows[0].deviation == pytest.approx(off, rel=rounding(torch.float32, entries))
    assert "nf4, blocks of 64" in str(found)
    with pytest.raises(ValueError, match="has no linear layers"):
        footprint(torch.nn.ReLU())


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16, torch.float16])
def test_a_compute_dtype_goes_before_autocast(compute):
    model = torch.nn.Sequential(torch.nn.Linear(64, 64))
    quantize_base(model, compute_dtype=compute)
    model = peft.get_peft_model(model, DoTAConfig(r=4, target_modules=["0"]))
    x = torch.randn(512, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        start = model(x)
        with model.disable_adapter():
            assert torch.equal(model(x), start)


def test_nothing_is_quantised_under_a_merged_adapter_or_hooks():
    model = adapted(make("llama"), "dota")
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"q_proj: adapter 'default' is merged.*unmerge_adapter"):
        quantize_base(model)
    plain = torch.nn.Sequential(torch.nn.Linear(64, 64))
    plain[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"^0: the layer has hooks, which would be lost"):
        quantize_base(plain)
    assert QuantizedLinear not in kinds(model) | kinds(plain)


def test_a_layer_in_4_bits_cannot_be_trained_in_full():
    base = quantize_base(make("bert"))
    with pytest.raises(ValueError, match=r"modules_to_save names bert.pooler.*skip="):
        adapted(base, "dota", "bert", modules_to_save=["pooler"])


def test_what_torchs_encoder_reads_itself_is_left():
    layer = torch.nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
    model = torch.nn.Sequential(torch.nn.TransformerEncoder(layer, 1), torch.nn.Linear(32, 32))
    quantize_base(model.eval())
    assert isinstance(model[1], QuantizedLinear)
    assert not model[1].training
    with torch.no_grad():
        assert model(torch.randn(2, 5, 32)).shape == (2, 5, 32)


def test_what_a_layer_was_merged_into_can_be_changed():
    model = adapted(quantize_base(make("llama")), "dota")
    train(model)
    trained = logits(model)
    with pytest.warns(UserWarning, match="merged into torch.bfloat16"):
        model.merge_adapter()
    with pytest.warns(UserWarning, match="[Aa]lready"):
        merged = model.merge_and_unload(dtype=torch.float32)
    assert_same_outputs(logits(merged), trained)


def test_files_of_what_was_unloaded_or_merged_are_read_by_transformers(tmp_path):
    config = hf.LlamaConfig(
        hidden_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=128,
        vocab_size=64,
    )
    targets = ["q_proj", "v_proj"]
    for merge in (False, True):
        torch.manual_seed(0)
        model = hf.LlamaForCausalLM(config).eval()
        model = peft.get_peft_model(model, METHODS["lotr"](target_modules=targets))
        quantize_base(model)
        bare = model.merge_and_unload(dtype=torch.float32) if merge else model.unload()
        bare.save_pretrained(tmp_path / str(merge))
        again = hf.LlamaForCausalLM.from_pretrained(tmp_path / str(merge)).eval()
        prevent_repacking(again)
        in_bits = {
            n.rsplit(".", 1)[-1]
            for n, m in again.named_modules()
            if bitsandbytes.is_bitsandbytes(m)
        }
        left = {"k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
        assert in_bits == (left if merge else left | set(targets))
        ids = torch.arange(9)[None]
        with torch.no_grad():
            expected, found = bare(ids).logits, again(ids).logits
        assert_same_outputs(found, expected)
