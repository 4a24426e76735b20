"""QuantizedLinear in plain torch, and whole models put into 4 bits and back."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from transformers.pytorch_utils import Conv1D

from tests.tnlib_adapters.models import (
    TERMS,
    assert_other_outputs,
    assert_same_outputs,
    inputs,
    logits,
    make,
    tokens,
)
from tests.tolerances import assert_close, rounding
from tnlib_adapters.fourbit import packed as packed_module
from tnlib_adapters.fourbit import stored
from tnlib_adapters.fourbit.bitsandbytes import is_bitsandbytes, packed_of
from tnlib_adapters.fourbit.packed import Format, PackedWeight
from tnlib_adapters.fourbit.product import fused_product, packed_linear
from tnlib_adapters.quantization import (
    QuantizedLinear,
    dequantize_base,
    prevent_repacking,
    quantize_base,
)

HALVES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(96,), (5, 96), (2, 3, 96), (0, 96), (2, 0, 96)]
ARCHITECTURES = ["bert", "gpt2", "llama", "vit"]
# What is left by default.
LEFT = {"bert": {"classifier"}, "gpt2": {"lm_head"}, "llama": {"lm_head"}, "vit": {"classifier"}}


def seeded(maker, *arguments, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return maker(*arguments, **options)


def linear(rows=40, columns=96, seed=0, **options):
    return seeded(nn.Linear, columns, rows, seed=seed, **options)


def quantized(rows=40, columns=96, seed=0, bias=True, **options):
    return QuantizedLinear.from_linear(linear(rows, columns, seed, bias=bias), **options)


def normal(*shape, dtype=torch.float32, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def dense(layer, x, dtype):
    """What the layer has to compute, with its weight dense."""
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return functional.linear(x.to(dtype), layer.dequantize(dtype), bias).to(x.dtype)


class TestLayer:
    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("bias", [True, False])
    def test_outputs_are_those_of_the_dense_weight(self, dtype, shape, bias):
        layer = quantized(bias=bias)
        x = normal(*shape, dtype=dtype)
        y = layer(x)
        assert (y.dtype, y.shape) == (dtype, (*shape[:-1], 40))
        assert_close(y, dense(layer, x, dtype), operations=96)
        layer.compute_dtype = torch.bfloat16
        expected = dense(layer, x, torch.bfloat16)
        assert_close(layer(x), expected, operations=96, dtype=torch.bfloat16)

    @pytest.mark.parametrize("dtype", HALVES)
    def test_the_dtype_of_the_product_is_chosen(self, dtype):
        layer = quantized(compute_dtype=dtype, double_quant=False)
        x = normal(3, 96, dtype=torch.float64)
        assert layer(x).dtype == torch.float64
        assert_close(layer(x), dense(layer, x, dtype), operations=96, dtype=dtype)

    def test_autocast_chooses_the_dtype_of_the_product(self):
        layer, x = quantized(), normal(3, 96).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.float32
        assert_close(y, dense(layer, x, torch.bfloat16), operations=96, dtype=torch.bfloat16)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        expected = torch.ones(3, 40).bfloat16() @ layer.dequantize(torch.bfloat16)
        assert_close(gradient, expected, operations=40, dtype=torch.bfloat16)

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_gradients_are_those_through_the_dense_weight(self, shape, bias):
        layer = quantized(bias=bias).double()
        x = normal(*shape, dtype=torch.float64).requires_grad_()
        wanted = [x, layer.bias] if bias else [x]
        y, expected = layer(x), dense(layer, x, torch.float64)
        seed = normal(*y.shape, dtype=torch.float64, seed=2)
        for a, b in zip(
            torch.autograd.grad(y, wanted, seed),
            torch.autograd.grad(expected, wanted, seed),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert layer.weight.requires_grad is False

    @pytest.mark.parametrize("dtype", HALVES)
    def test_gradients_in_half_precision_have_its_dtype(self, dtype):
        layer = quantized()
        x = normal(5, 96, dtype=dtype).requires_grad_()
        seed = normal(5, 40, dtype=dtype, seed=2)
        layer(x).backward(seed)
        assert x.grad.dtype == dtype
        assert_close(x.grad, seed @ layer.dequantize(dtype), operations=40)
        assert layer.bias.grad.dtype == torch.float32
        assert_close(layer.bias.grad, seed.sum(0), operations=5)

    def test_a_frozen_bias_and_frozen_inputs_get_no_gradient(self):
        layer = quantized()
        layer(normal(2, 96)).sum().backward()
        assert torch.equal(layer.bias.grad, torch.full((40,), 2.0))
        layer.requires_grad_(False)
        assert not layer(normal(2, 96)).requires_grad

    @pytest.mark.parametrize("double", [True, False])
    def test_first_and_second_derivatives_pass_the_checks(self, double):
        packed = quantized(5, 7, double_quant=double).packed
        x = normal(2, 7, dtype=torch.float64).requires_grad_()
        bias = normal(5, dtype=torch.float64).requires_grad_()

        def curved(x, bias):
            return packed_linear(x, packed, bias).sin()

        assert torch.autograd.gradcheck(curved, (x, bias))
        assert torch.autograd.gradgradcheck(curved, (x, bias))

    def test_function_transforms_see_the_dense_product(self):
        layer, x = quantized(), normal(3, 96)
        weight = layer.dequantize()
        gradient = torch.func.grad(lambda x: layer(x).square().sum())(x)
        assert_close(gradient, 2 * layer(x) @ weight, operations=40 + 96)
        assert torch.equal(torch.func.jacrev(layer)(x[0]), weight)
        assert_close(torch.func.vmap(layer)(x), layer(x), operations=96)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize("double", [True, False])
    @pytest.mark.parametrize("backend", ["bitsandbytes", "torch"])
    def test_a_compiled_layer_is_one_graph(self, monkeypatch, backend, double):
        if backend == "bitsandbytes":
            pytest.importorskip("bitsandbytes")
        monkeypatch.setattr(packed_module, "best_backend", lambda: backend)
        layer = quantized(double_quant=double)
        torch._dynamo.reset()
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        x = normal(3, 96).requires_grad_()
        assert_close(compiled(x), layer(x), operations=96)
        (one,) = torch.autograd.grad(compiled(x).square().sum(), x)
        (two,) = torch.autograd.grad(layer(x).square().sum(), x)
        assert_close(one, two, operations=40 + 96)

    def test_nothing_is_saved_for_the_backward_pass(self):
        layer, x = quantized(), normal(3, 96).requires_grad_()
        kept = []

        def pack(tensor):
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            layer(x)
        assert kept == []

    def test_a_forward_pass_leaves_no_memory_but_its_output(self):
        layer, x = quantized(), normal(3, 96).requires_grad_()
        outputs = []
        assert growth(lambda: outputs.append(layer(x))) == outputs[0].nbytes
        through = growth(lambda: outputs.append(dense(layer, x, torch.float32)))
        assert through == outputs[1].nbytes + 40 * 96 * 4

    @pytest.mark.parametrize("kind", ["nf4", "fp4"])
    @pytest.mark.parametrize("dtype", HALVES)
    def test_the_fused_product_gives_the_same(self, kind, dtype):
        pytest.importorskip("bitsandbytes")
        layer = quantized(40, 128, quant_type=kind)
        x, bias = normal(2, 3, 128, dtype=dtype), layer.bias.detach().to(dtype)
        for vector in (bias, None):
            y = fused_product(x, layer.packed, vector)
            # In half precision a product is a sum in float32 and rounded once.
            terms = 128 if dtype == torch.float32 else 2
            assert_close(y, packed_linear(x, layer.packed, vector), operations=terms + 1)

    @pytest.mark.parametrize("double", [True, False])
    def test_casts_of_a_model_leave_the_scales(self, double):
        layer = quantized(double_quant=double)
        values = layer.dequantize()
        for cast in (nn.Module.bfloat16, nn.Module.half, nn.Module.double):
            cast(layer)
            packed = layer.packed
            scales = [packed.absmax] if packed.nested is None else packed.nested
            assert {scale.dtype for scale in scales} == {torch.float32}
            assert torch.equal(layer.dequantize(), values)
            assert layer.weight.dtype == torch.uint8
            x = normal(3, 96, dtype=layer.bias.dtype)
            assert_close(layer(x), dense(layer, x, x.dtype), operations=96)

    def test_a_copy_is_independent(self):
        layer = quantized()
        values = layer.dequantize()
        other = copy.deepcopy(layer)
        assert torch.equal(other.dequantize(), values)
        other.load_state_dict(quantized(seed=3).state_dict())
        assert torch.equal(layer.dequantize(), values)
        assert not torch.equal(other.dequantize(), values)

    @pytest.mark.parametrize("assign", [True, False])
    @pytest.mark.parametrize("double", [True, False])
    def test_the_state_is_loaded_into_a_layer_of_another_format(self, double, assign):
        source = quantized(quant_type="fp4", blocksize=128, double_quant=double)
        target = quantized(seed=3, double_quant=True)
        target.load_state_dict(load(save(source.state_dict())), assign=assign)
        assert target.format == source.format
        assert torch.equal(target.dequantize(), source.dequantize())
        assert_close(target(normal(3, 96)), source(normal(3, 96)), operations=96 + 1)
        assert target.nbytes == source.nbytes

    def test_the_layer_tells_what_it_is(self):
        layer = quantized(256, 512)
        assert layer.nbytes == 256 * 256 + 2048 + 4 * 8 + 4
        assert layer.bits_per_weight == pytest.approx(4.127, abs=5e-4)
        assert (layer.format, layer.weight.requires_grad) == (Format(), False)
        assert "nf4, blocks of 64, double quantisation, 4.13 bits per weight" in repr(layer)
        weight = linear(256, 512).weight.detach()
        distance = (layer.dequantize() - weight).norm() / weight.norm()
        # Sums of squares, which torch adds up in blocks.
        assert layer.deviation == pytest.approx(float(distance), rel=rounding(torch.float32, 1024))

    def test_the_source_is_left_and_shares_its_bias(self):
        source = linear()
        weight = source.weight.detach().clone()
        layer = QuantizedLinear.from_linear(source)
        assert layer.bias is source.bias
        assert torch.equal(source.weight, weight)

    def test_a_transposed_layer_gives_the_same_as_its_transpose(self):
        source = seeded(Conv1D, 40, 96)
        plain = nn.Linear(96, 40)
        plain.weight, plain.bias = nn.Parameter(source.weight.mT.contiguous()), source.bias
        one, two = map(QuantizedLinear.from_linear, (source, plain))
        assert torch.equal(one.dequantize(), two.dequantize())
        assert one(normal(3, 96)).shape == (3, 40)

    def test_plain_torch_writes_the_same_state(self, monkeypatch):
        pytest.importorskip("bitsandbytes")
        expected = quantized().state_dict()
        monkeypatch.setattr(packed_module, "best_backend", lambda: "torch")
        layer = quantized()
        assert layer.packed.backend == "torch"
        assert all(torch.equal(layer.state_dict()[key], expected[key]) for key in expected)


def growth(call):
    """Bytes that a call allocates and does not free."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    return sum(event.self_cpu_memory_usage for event in recorded.events())


class Special(nn.Linear):
    """A layer that is more than its weight."""


class Mixed(nn.Module):
    """Layers of many kinds."""

    _keep_in_fp32_modules = ("precise",)

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 32)
        self.first = nn.Linear(32, 48)
        self.second = nn.Sequential(Conv1D(64, 48), nn.Linear(64, 32, bias=False))
        self.tied = nn.Linear(32, 10, bias=False)
        self.tied.weight = self.embedding.weight
        self.special = Special(32, 32)
        self.attention = nn.MultiheadAttention(32, 2)
        self.convolution = nn.Conv2d(3, 4, 2)
        self.norm = nn.LayerNorm(32)
        self.precise = nn.Linear(32, 32)
        self.score = nn.Linear(32, 2)


def mixed():
    return seeded(Mixed)


def kinds(model):
    """Type of every module by name, a module at several places at each."""
    return {name: type(m) for name, m in model.named_modules(remove_duplicate=False)}


def in_four_bits(model):
    return {name for name, kind in kinds(model).items() if kind is QuantizedLinear}


def linears(model):
    return {name for name, kind in kinds(model).items() if kind in (nn.Linear, Conv1D)}


def substituted(original, model):
    """A copy of the original with the dequantised weights of the model."""
    result = copy.deepcopy(original)
    for name in in_four_bits(model):
        weight = model.get_submodule(name).dequantize(torch.float32)
        target = result.get_submodule(name)
        with torch.no_grad():
            target.weight.copy_(weight.mT if isinstance(target, Conv1D) else weight)
    return result


class TestModel:
    def test_linear_layers_and_nothing_else_are_replaced_in_place(self):
        model, before = mixed(), kinds(mixed())
        state = {name: value.clone() for name, value in model.state_dict().items()}
        assert quantize_base(model) is model
        changed = {"first", "second.0", "second.1"}
        assert in_four_bits(model) == changed
        after = kinds(model)
        assert {name for name in before if after[name] is not before[name]} == changed
        assert model.tied.weight is model.embedding.weight
        for name, value in model.state_dict().items():
            if name.rpartition(".weight")[0] not in changed:
                assert torch.equal(value, state[name]), name
        assert model.second[1].bias is None

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_a_model_computes_with_its_dequantised_weights(self, name):
        original = make(name)
        model = quantize_base(make(name))
        assert in_four_bits(model) == linears(original) - LEFT[name]
        expected = logits(substituted(original, model))
        assert_same_outputs(logits(model), expected)
        assert_other_outputs(logits(model), logits(original))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_model_in_half_precision_stays_there(self, dtype):
        model = quantize_base(make("llama", dtype))
        assert logits(model).dtype == dtype
        assert model.model.layers[0].mlp.up_proj.dequantize().dtype == dtype

    def test_options_reach_every_layer(self):
        form = {"quant_type": "fp4", "blocksize": 32, "double_quant": False}
        model = quantize_base(make("llama"), **form, compute_dtype=torch.bfloat16)
        layers = [model.get_submodule(name) for name in in_four_bits(model)]
        assert {layer.format for layer in layers} == {Format("fp4", 32, False)}
        assert {layer.compute_dtype for layer in layers} == {torch.bfloat16}

    @pytest.mark.parametrize(
        ("skip", "left"),
        [
            (["model.layers.0.mlp.up_proj"], lambda name: name == "model.layers.0.mlp.up_proj"),
            (("q_proj", "lm_head"), lambda name: name.endswith(("q_proj", "lm_head"))),
            ({"mlp"}, lambda name: ".mlp." in name),
            (["layers.1"], lambda name: ".layers.1." in name),
            (["layers.1.self_attn", "k_proj"], lambda n: ".1.self_attn" in n or "k_proj" in n),
            ([], lambda name: False),
        ],
    )
    def test_layers_are_skipped_by_name_end_or_surrounding(self, skip, left):
        model = quantize_base(make("llama"), skip)
        expected = {name for name in linears(make("llama")) if not left(name)}
        assert in_four_bits(model) == expected

    @pytest.mark.parametrize("entry", ["proj", "q_pro", "layers.7", "model.lm_head"])
    def test_a_skip_entry_without_a_match_is_said(self, entry):
        with pytest.warns(UserWarning, match=f"skip entry '{entry}' matches no module"):
            model = quantize_base(make("llama"), [entry])
        assert in_four_bits(model) == linears(make("llama"))

    def test_a_model_is_quantised_in_two_steps(self):
        model = quantize_base(make("llama"), ["mlp", "lm_head"])
        first = in_four_bits(model)
        quantize_base(model, ["self_attn", "lm_head"], quant_type="fp4")
        assert in_four_bits(model) == linears(make("llama")) - {"lm_head"}
        kinds_of_code = {n: model.get_submodule(n).format.quant_type for n in in_four_bits(model)}
        assert {name for name, kind in kinds_of_code.items() if kind == "nf4"} == first

    def test_a_layer_at_two_places_stays_one(self):
        model = nn.ModuleDict({"one": linear(32, 32), "block": nn.Sequential(linear(32, 32))})
        model["two"], model["again"] = model["one"], model["block"]
        quantize_base(model)
        assert model["one"] is model["two"]
        assert model["block"] is model["again"]
        assert in_four_bits(model) == {"one", "two", "block.0", "again.0"}

    def test_a_skipped_output_embedding_may_be_tied(self):
        model = quantize_base(make("qwen2"))
        assert "lm_head" not in in_four_bits(model)
        assert model.lm_head.weight is model.model.embed_tokens.weight

    def test_gradients_pass_to_what_is_trained(self):
        model = quantize_base(make("llama"))
        original = substituted(make("llama"), model)
        for each in (model, original):
            each(**inputs(each)).logits.square().mean().backward()
        reference = dict(original.named_parameters())
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert len(trained) == len(reference) - len(in_four_bits(model))
        for name, parameter in trained.items():
            expected = reference[name].grad
            # Sums over the tokens, of which some nearly cancel.
            assert_close(parameter.grad, expected, TERMS, condition=tokens().numel())

    def test_progress_is_shown_on_request(self, capsys):
        quantize_base(mixed())
        assert capsys.readouterr() == ("", "")
        dequantize_base(quantize_base(mixed(), progressbar=True), progressbar=True)
        shown = capsys.readouterr()
        assert shown.out == ""
        assert "quantising" in shown.err
        assert "dequantising" in shown.err


class TestDense:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_a_model_is_plain_again_with_the_dequantised_weights(self, name, dtype):
        model = quantize_base(make(name))
        expected = substituted(make(name), model).to(dtype).state_dict()
        assert dequantize_base(model, dtype) is model
        assert kinds(model) == kinds(make(name))
        state = model.state_dict()
        assert state.keys() == expected.keys()
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert all(torch.equal(value.to(dtype), expected[k]) for k, value in state.items())
        assert not hasattr(model.config, "quantization_config")

    def test_bfloat16_is_the_default_and_ties_are_kept(self):
        model = dequantize_base(quantize_base(mixed()))
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert model.tied.weight is model.embedding.weight
        assert kinds(model) == kinds(mixed())
        with pytest.raises(ValueError, match="this Mixed holds no layer in 4 bits"):
            dequantize_base(model)

    def test_a_plain_checkpoint_is_written(self, tmp_path):
        model = dequantize_base(quantize_base(make("gpt2")), torch.float32)
        model.save_pretrained(tmp_path)
        again = hf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert_same_outputs(logits(again), logits(model))

    @pytest.mark.parametrize("dtype", [int, torch.int8, "bfloat16", None])
    def test_only_floating_dtypes_are_taken(self, dtype):
        with pytest.raises(TypeError, match=r"dtype must be a floating torch.dtype"):
            dequantize_base(quantize_base(mixed()), dtype)


def wide(dtype=torch.float32):
    """Widths that are multiples of a block: bitsandbytes' kernel reads the right scales."""
    config = hf.LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return seeded(hf.AutoModelForCausalLM.from_config, config, dtype=dtype).eval()


def assert_same_bytes(model, loaded):
    """Every layer of ours is one of bitsandbytes' with the same bits, and no other is."""
    names = {name for name, module in loaded.named_modules() if is_bitsandbytes(module)}
    assert names == in_four_bits(model)
    for name in names:
        ours = model.get_submodule(name)
        theirs = packed_of(loaded.get_submodule(name))
        expected = stored.parts(ours.packed)
        assert torch.equal(theirs.packed.view(torch.uint8), ours.weight)
        assert all(torch.equal(value, expected[key]) for key, value in stored.parts(theirs).items())
        again = stored.read(theirs.packed, stored.parts(theirs))
        assert torch.equal(again.dequantize(), ours.dequantize())
        assert again.dtype == ours.dequantize().dtype


OPTIONS = [
    {},
    {"quant_type": "fp4", "blocksize": 128, "double_quant": False},
    {"skip": ["lm_head", "v_proj"]},
    {"skip": []},
]


class TestFiles:
    @pytest.mark.parametrize("options", OPTIONS)
    def test_transformers_loads_the_saved_model_with_the_same_outputs(self, tmp_path, options):
        pytest.importorskip("bitsandbytes")
        model = quantize_base(wide(), **options)
        model.save_pretrained(tmp_path)
        loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
        prevent_repacking(loaded)
        assert_same_bytes(model, loaded)
        assert_same_outputs(logits(loaded), logits(model))

    def test_the_dtype_of_products_is_saved(self, tmp_path):
        pytest.importorskip("bitsandbytes")
        model = quantize_base(wide(torch.bfloat16), compute_dtype=torch.bfloat16)
        model.save_pretrained(tmp_path)
        loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
        prevent_repacking(loaded)
        assert loaded.model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16
        assert_same_bytes(model, loaded)
        assert_same_outputs(logits(loaded), logits(model))

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_every_architecture_is_loaded_with_the_same_bytes(self, tmp_path, name):
        """At these widths outputs may differ: the kernel of bitsandbytes takes other scales."""
        pytest.importorskip("bitsandbytes")
        model = quantize_base(make(name))
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        prevent_repacking(loaded)
        assert_same_bytes(model, loaded)

    @pytest.mark.parametrize("name", ["gpt2", "llama"])
    def test_transformers_quantises_to_the_same_bytes(self, tmp_path, name):
        pytest.importorskip("bitsandbytes")
        make(name).save_pretrained(tmp_path)
        config = hf.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        )
        loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
        assert_same_bytes(quantize_base(make(name)), loaded)

    def test_what_transformers_loaded_becomes_plain(self, tmp_path):
        pytest.importorskip("bitsandbytes")
        model = quantize_base(wide())
        model.save_pretrained(tmp_path)
        loaded = dequantize_base(hf.AutoModelForCausalLM.from_pretrained(tmp_path), torch.float32)
        assert kinds(loaded) == kinds(wide())
        assert_same_outputs(logits(loaded), logits(dequantize_base(model, torch.float32)))

    def test_the_state_is_loaded_into_a_model_of_other_weights(self):
        source = quantize_base(make("llama"), quant_type="fp4")
        target = quantize_base(seeded(hf.LlamaForCausalLM, source.config, seed=5))
        target.load_state_dict(load(save(source.state_dict())))
        assert_same_outputs(logits(target), logits(source))


def poisoned(value):
    layer = linear(8, 8)
    with torch.no_grad():
        layer.weight[3, 4] = value
    return layer


def integers():
    layer = linear(8, 8)
    layer.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    return layer


def foreign():
    bnb = pytest.importorskip("bitsandbytes")
    return bnb.nn.Linear4bit(64, 64).to("cpu")


BAD_LAYERS = {
    "ours": (quantized, ValueError, "last: the layer is in 4 bits already"),
    "bitsandbytes": (foreign, ValueError, "last: the layer is in 4 bits already"),
    "meta": (lambda: linear(device="meta"), ValueError, "last: the weight is on the meta device"),
    "nan": (lambda: poisoned(torch.nan), ValueError, "last: the weight holds nan or inf"),
    "inf": (lambda: poisoned(-torch.inf), ValueError, "last: the weight holds nan or inf"),
    "integers": (integers, ValueError, r"last: .* quantised already: its weight is of torch.int8"),
}


def picture(model):
    """Kinds of all modules, and the values of the state."""
    state = model.state_dict()
    return kinds(model), {name: value.clone() for name, value in state.items() if not value.is_meta}


def assert_unchanged(model, before):
    (types, values), (expected_types, expected) = picture(model), before
    assert types == expected_types
    assert values.keys() == expected.keys()
    for name, value in values.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, equal_nan=True)


class TestBadInput:
    @pytest.mark.parametrize("kind", BAD_LAYERS)
    def test_a_layer_that_cannot_be_quantised_is_named_before_anything_changes(self, kind):
        maker, error, message = BAD_LAYERS[kind]
        model = nn.ModuleDict({"first": linear(16, 16), "last": maker()})
        before = picture(model)
        with pytest.raises(error, match=message):
            quantize_base(model)
        assert_unchanged(model, before)
        assert in_four_bits(quantize_base(model, ["last"])) - {"last"} == {"first"}

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"quant_type": "int4"}, ValueError, "quant_type must be one of 'nf4', 'fp4'"),
            ({"quant_type": None}, ValueError, "quant_type must be one of"),
            ({"blocksize": 63}, ValueError, "blocksize must be one of 32, .*, got 63"),
            ({"blocksize": 8192}, ValueError, "blocksize must be one of"),
            ({"blocksize": True}, ValueError, "blocksize must be one of 32, .*, got True"),
            ({"blocksize": "64"}, ValueError, "blocksize must be one of"),
            ({"double_quant": 1}, TypeError, "double_quant must be True or False, got 1"),
            ({"compute_dtype": int}, TypeError, r"compute_dtype must be a floating torch.dtype"),
            ({"compute_dtype": torch.int8}, TypeError, "compute_dtype must be a floating"),
            ({"compute_dtype": "bfloat16"}, TypeError, "compute_dtype must be a floating"),
            ({"skip": "lm_head"}, TypeError, "skip must be a collection of names, got 'lm_head'"),
            ({"skip": [1]}, TypeError, "skip must be a collection of names"),
        ],
    )
    def test_an_option_of_another_kind_is_refused(self, options, error, message):
        model = mixed()
        before = picture(model)
        with pytest.raises(error, match=message):
            quantize_base(model, **options)
        assert_unchanged(model, before)
        if "skip" not in options:
            with pytest.raises(error, match=message):
                QuantizedLinear.from_linear(linear(), **options)

    @pytest.mark.parametrize(
        ("model", "error", "message"),
        [
            (linear, ValueError, r"itself one linear layer.*QuantizedLinear.from_linear"),
            (quantized, ValueError, "itself one linear layer"),
            (lambda: Conv1D(8, 8), ValueError, "itself one linear layer"),
            (lambda: nn.Conv2d(3, 3, 3), ValueError, "this Conv2d has no linear layer"),
            (lambda: nn.Sequential(nn.Embedding(3, 3)), ValueError, "has no linear layer"),
            (lambda: nn.Sequential(Special(3, 3)), ValueError, "has no linear layer"),
            (lambda: "model", TypeError, r"model must be a torch.nn.Module, got str"),
        ],
    )
    def test_a_model_without_a_place_for_a_layer_is_refused(self, model, error, message):
        with pytest.raises(error, match=message):
            quantize_base(model())

    def test_a_skip_of_everything_leaves_nothing_to_quantise(self):
        model = make("llama")
        before = picture(model)
        with pytest.raises(ValueError, match="this LlamaForCausalLM has no linear layer"):
            quantize_base(model, ["model", "lm_head"])
        assert_unchanged(model, before)
        assert not hasattr(model.config, "quantization_config")

    @pytest.mark.parametrize(
        "layer", [nn.Conv2d(3, 3, 3), nn.Embedding(3, 3), nn.LayerNorm(3), nn.Bilinear(3, 3, 3)]
    )
    def test_a_layer_that_is_not_linear_is_refused(self, layer):
        with pytest.raises(TypeError, match=f"cannot quantise a {type(layer).__name__}"):
            QuantizedLinear.from_linear(layer)

    @pytest.mark.parametrize("kind", BAD_LAYERS)
    def test_one_layer_is_checked_alike(self, kind):
        maker, error, message = BAD_LAYERS[kind]
        with pytest.raises(error, match=message.removeprefix("last: ")):
            QuantizedLinear.from_linear(maker())

    def test_no_matrix_is_no_weight(self):
        with pytest.raises(TypeError, match=r"matrix of float16.*of shape \(3,\)"):
            PackedWeight.of(torch.ones(3), Format())
        with pytest.raises(TypeError, match=r"matrix of float16.*got torch.int32"):
            PackedWeight.of(torch.ones(3, 3, dtype=torch.int32), Format())

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
    @pytest.mark.parametrize("method", ["lora", "ia3"])
    def test_a_model_with_adapters_of_peft_is_refused(self, method):
        config = {
            "lora": lambda: peft.LoraConfig(target_modules=["v_proj"]),
            "ia3": lambda: peft.IA3Config(target_modules=["v_proj"], feedforward_modules=[]),
        }[method]()
        model = peft.get_peft_model(make("llama"), config)
        before = picture(model)
        with pytest.raises(ValueError, match=r"v_proj: adapted by PEFT.*quantise the model first"):
            quantize_base(model)
        assert_unchanged(model, before)

    def test_a_second_quantisation_is_refused(self):
        model = quantize_base(make("llama"))
        before, expected = picture(model), logits(model)
        with pytest.raises(ValueError, match=r"layers.0.self_attn.q_proj: .* in 4 bits already"):
            quantize_base(model)
        assert_unchanged(model, before)
        assert torch.equal(logits(model), expected)

    def test_a_model_with_adapters_is_not_made_plain(self):
        model = quantize_base(make("llama"))
        model.add_adapter(peft.LoraConfig(target_modules=["v_proj"]))
        with pytest.raises(ValueError, match="the model has adapters: merge_and_unload"):
            dequantize_base(model)
        assert model(tokens()).logits.isfinite().all()
