"""The 4-bit layout: bitsandbytes' bits in plain torch, errors, memory, and files."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from tnlib_adapters.fourbit import backend, blocks, stored
from tnlib_adapters.fourbit.bitsandbytes import packed_of, prevent_repacking
from tnlib_adapters.fourbit.packed import Format, PackedWeight
from tnlib_adapters.quantization import QuantizedLinear

bnb = pytest.importorskip("bitsandbytes")

HALVES = (torch.float32, torch.bfloat16, torch.float16)
FORMATS = st.builds(
    Format, st.sampled_from(["nf4", "fp4"]), st.sampled_from(blocks.BLOCKSIZES), st.booleans()
)
# Half a step of the 65,536 in which an 8-bit code is looked up, its rounding in float32 included.
STEP = 1.02 / 65535
# A few roundings in float32.
ROUNDING = 2.0**-21


@st.composite
def matrices(draw, dtypes=HALVES):
    """Matrices of odd and even widths, with blocks of zeros, repeated values, and outliers."""
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(st.integers(1, 24)), draw(st.integers(1, 300))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 16)))
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    kind = draw(st.sampled_from(["normal", "zeros", "few", "outliers", "one"]))
    if kind == "zeros":
        values.view(-1)[: draw(st.integers(0, values.numel() - 1))] = 0
    elif kind == "few":
        values = (4 * values).round() / 4
    elif kind == "outliers":
        values = values**5
    elif kind == "one":
        values = torch.full(shape, draw(st.sampled_from([-1, 0.375, 1])), dtype=torch.float64)
    exponents = st.integers(-4, 0) if dtype == torch.float16 else st.integers(-20, 20)
    return (values * 10.0 ** draw(exponents)).to(dtype)


def gaussian(rows, columns, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator).to(dtype)


def bits(tensor):
    """The dtype and bytes of a tensor, flat: equal where not even the sign of a zero differs."""
    return tensor.dtype, tensor.reshape(-1).contiguous().view(torch.uint8).tolist()


def same(one, two):
    """Equal values; bitsandbytes itself has a -0 of FP4 as 0 at the end of some widths."""
    return one.dtype == two.dtype and torch.equal(one, two)


def contents(packed):
    """All that a packed weight is, but for who computes."""
    nested = () if packed.nested is None else packed.nested
    tensors = [bits(tensor) for tensor in (packed.packed, packed.absmax, *nested)]
    return tensors, packed.format, packed.shape, packed.dtype


def theirs(weight, form):
    """Bytes and state that bitsandbytes makes of a matrix."""
    return bnb.functional.quantize_4bit(
        weight,
        blocksize=form.blocksize,
        compress_statistics=form.double_quant,
        quant_type=form.quant_type,
    )


def dequantized_by_them(data, state):
    """What bitsandbytes reads, from the bytes as one row.

    Its kernel for CPUs with AVX512 or NEON takes the scales of other blocks where a row is no
    multiple of a block, and odd sizes it compiles.
    """
    shape, state.shape = state.shape, torch.Size([1, math.prod(state.shape)])
    with torch.compiler.set_stance("force_eager"):
        values = bnb.functional.dequantize_4bit(data, state)
    state.shape = shape
    return values.view(shape)


def relative_error(values, weight):
    return float((values - weight).norm() / weight.norm())


@settings(deadline=None, max_examples=80)
@given(matrices(), FORMATS)
def test_bytes_scales_and_values_in_plain_torch_are_those_of_bitsandbytes(weight, form):
    packed = PackedWeight.of(weight, form, backend="torch")
    data, state = theirs(weight, form)
    assert bits(packed.packed) == bits(data)
    assert bits(packed.absmax) == bits(state.absmax)
    if form.double_quant:
        second = state.state2
        expected = [bits(tensor) for tensor in (second.absmax, state.offset, second.code)]
        assert [bits(tensor) for tensor in packed.nested] == expected
    assert same(packed.dequantize(), dequantized_by_them(data, state))
    assert (packed.shape, packed.dtype) == (tuple(state.shape), state.dtype)


@settings(deadline=None, max_examples=80)
@given(matrices((*HALVES, torch.float64)), FORMATS, st.sampled_from((*HALVES, torch.float64)))
def test_both_backends_agree_bit_for_bit(weight, form, dtype):
    plain = PackedWeight.of(weight, form, backend="torch")
    native = PackedWeight.of(weight, form, backend="bitsandbytes")
    assert contents(plain) == contents(native)
    assert bits(plain.scales()) == bits(native.scales())
    assert bits(plain.dequantize()) == bits(native.dequantize())
    assert bits(plain.dequantize(dtype)) == bits(native.dequantize(dtype))


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (65, 1), (1, 63), (1, 65), (3, 4099)])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_single_values_and_columns(kind, shape):
    weight = gaussian(*shape)
    for form in (Format(kind, 64, True), Format(kind, 4096, False)):
        data, state = theirs(weight, form)
        for who in ("torch", "bitsandbytes"):
            packed = PackedWeight.of(weight, form, backend=who)
            assert bits(packed.packed) == bits(data)
            assert same(packed.dequantize(), dequantized_by_them(data, state))


@pytest.mark.parametrize(("shape", "double"), [((1, 1), True), ((8, 64), True), ((7, 33), False)])
@pytest.mark.parametrize("who", ["torch", "bitsandbytes"])
def test_a_weight_of_zeros_stays_zero(who, shape, double):
    form = Format("nf4", 32, double)
    packed = PackedWeight.of(torch.zeros(shape), form, backend=who)
    data, state = theirs(torch.zeros(shape), form)
    assert bits(packed.packed) == bits(data)
    assert bits(packed.absmax) == bits(state.absmax)
    assert torch.equal(packed.dequantize(), torch.zeros(shape))


def test_codes_and_maps_are_those_of_bitsandbytes():
    for kind in blocks.CODES:
        expected = bnb.functional.get_4bit_type(kind, device="cpu")
        assert bits(blocks.code(kind, torch.device("cpu"))) == bits(expected)
    expected = bnb.functional.create_dynamic_map()
    assert bits(blocks.dynamic_map(torch.device("cpu"))) == bits(expected)


@pytest.mark.parametrize("who", ["torch", "bitsandbytes"])
def test_slices_of_a_large_weight_change_nothing(monkeypatch, who):
    weight, form = gaussian(3, 8192 + 77, torch.bfloat16), Format("nf4", 4096)
    whole = PackedWeight.of(weight, form, backend=who)
    monkeypatch.setattr(backend, "_CHUNK", 8192)
    assert contents(PackedWeight.of(weight, form, backend=who)) == contents(whole)


def test_without_bitsandbytes_plain_torch_computes(monkeypatch):
    assert backend.best_backend() == "bitsandbytes"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert backend.best_backend() == "torch"
    assert PackedWeight.of(gaussian(8, 8), Format()).backend == "torch"


@pytest.mark.parametrize("dtype", HALVES)
def test_rows_that_are_no_multiple_of_a_block_keep_their_scales(dtype):
    """The kernel of bitsandbytes 0.50.2 for AVX512 and NEON has an error of 25 % here."""
    weight = gaussian(54, 80, dtype)
    data, state = theirs(weight, Format(double_quant=False))
    for who in ("torch", "bitsandbytes"):
        packed = PackedWeight.of(weight, Format(double_quant=False), backend=who)
        assert 0.085 < relative_error(packed.dequantize().double(), weight.double()) < 0.1
        assert same(packed.dequantize(), dequantized_by_them(data, state))


@settings(deadline=None, max_examples=80)
@given(matrices((*HALVES, torch.float64)), FORMATS)
def test_values_are_within_half_a_gap_of_their_code(weight, form):
    """|w - c s| <= s gap / 2; scales in 8 bits are off by half a gap of theirs and half a step."""
    levels = blocks.code(form.quant_type, weight.device).sort().values
    gap = float(levels.diff().max())
    exact = PackedWeight.of(weight, replace(form, double_quant=False))
    packed = PackedWeight.of(weight, form)
    scales = exact.absmax.double()
    bound = scales * (gap / 2 + ROUNDING)
    if packed.nested is not None:
        largest = packed.nested.absmax.double().repeat_interleave(256)[: len(scales)]
        moved = largest * (float(packed.nested.levels.diff().max()) / 2 + STEP + ROUNDING)
        moved += ROUNDING * float(packed.nested.mean)
        assert ((packed.scales() - scales).abs() <= moved).all()
        bound += moved * (1 + ROUNDING)
    error = (packed.dequantize(torch.float32).double() - weight.double()).abs().view(-1)
    assert (error <= bound.repeat_interleave(form.blocksize)[: len(error)]).all()


def gap_of_scales(weight, blocksize):
    """How far an 8-bit scale may be from its own."""
    scales = weight.view(-1, blocksize).abs().amax(1)
    half = float(blocks.dynamic_map(weight.device).diff().max()) / 2
    return float((scales - scales.mean()).abs().max()) * (half + STEP + ROUNDING)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
def test_zeros_and_largest_values_are_kept(kind, double):
    weight = torch.zeros(4, 128)
    weight[1, 5], weight[3] = -3, 3
    values = PackedWeight.of(weight, Format(kind, 128, double)).dequantize()
    atol = gap_of_scales(weight, 128) if double else 0
    torch.testing.assert_close(values, weight, rtol=0, atol=atol)


@pytest.mark.parametrize("double", [True, False])
def test_the_error_on_gaussian_weights_is_that_of_nf4(double):
    weight = gaussian(512, 512)
    normal, floating = (
        relative_error(PackedWeight.of(weight, Format(kind, 64, double)).dequantize(), weight)
        for kind in ("nf4", "fp4")
    )
    assert 0.085 < normal < 0.1 < floating


def test_larger_blocks_have_larger_errors():
    weight = gaussian(256, 4096)
    errors = [
        relative_error(PackedWeight.of(weight, Format("nf4", size)).dequantize(), weight)
        for size in blocks.BLOCKSIZES
    ]
    assert errors == sorted(errors)


def test_memory_is_four_bits_and_the_scales():
    weight = gaussian(1024, 1024)
    single, double = (PackedWeight.of(weight, Format(double_quant=d)) for d in (False, True))
    assert single.nbytes == 1024 * 1024 // 2 + 4 * 1024 * 16
    assert double.nbytes == 1024 * 1024 // 2 + 1024 * 16 + 4 * 64 + 4
    assert single.bits == 4.5
    assert double.bits == pytest.approx(4.127, abs=5e-4)


@settings(deadline=None)
@given(matrices(), FORMATS)
def test_bytes_of_any_size_are_counted(weight, form):
    scales = math.ceil(weight.numel() / form.blocksize)
    of_scales = scales + 4 * math.ceil(scales / 256) + 4 if form.double_quant else 4 * scales
    packed = PackedWeight.of(weight, form)
    assert packed.nbytes == math.ceil(weight.numel() / 2) + of_scales
    assert packed.bits == 8 * packed.nbytes / weight.numel()


@settings(deadline=None)
@given(matrices((*HALVES, torch.float64)), FORMATS)
def test_a_weight_is_read_back_as_it_was(weight, form):
    packed = PackedWeight.of(weight, form)
    state = load(save({"weight": packed.packed, **stored.parts(packed)}))
    again = stored.read(state.pop("weight"), state)
    assert contents(again) == contents(packed)
    assert bits(again.dequantize()) == bits(packed.dequantize())


def test_the_matrix_may_be_called_another_dtype():
    packed = PackedWeight.of(gaussian(8, 64), Format(), dtype=torch.bfloat16)
    assert packed.dtype == packed.dequantize().dtype == torch.bfloat16
    assert torch.equal(packed.dequantize(), packed.dequantize(torch.float32).bfloat16())


def foreign_layer(weight, form, bias=None):
    """A layer of bitsandbytes' with a quantised weight."""
    rows, columns = weight.shape
    layer = bnb.nn.Linear4bit(columns, rows, bias=bias is not None)
    layer.weight = bnb.nn.Params4bit(
        weight,
        requires_grad=False,
        blocksize=form.blocksize,
        compress_statistics=form.double_quant,
        quant_type=form.quant_type,
        module=layer,
    )
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias)
    return layer.to("cpu")


def own_layer(weight, form, bias=None):
    linear = torch.nn.Linear(*weight.shape[::-1], bias=bias is not None)
    linear.weight = torch.nn.Parameter(weight)
    if bias is not None:
        linear.bias = torch.nn.Parameter(bias)
    return QuantizedLinear.from_linear(
        linear,
        quant_type=form.quant_type,
        blocksize=form.blocksize,
        double_quant=form.double_quant,
    )


FILES = [
    (Format(), (54, 80), torch.bfloat16),
    (Format("fp4", 32, False), (7, 9), torch.float32),
    (Format("nf4", 4096, True), (64, 130), torch.float16),
]


@pytest.mark.parametrize(("form", "shape", "dtype"), FILES)
def test_a_state_that_bitsandbytes_wrote_is_loaded(form, shape, dtype):
    weight, bias = gaussian(*shape, dtype), gaussian(1, shape[0])[0]
    source = foreign_layer(weight, form, bias)
    target = own_layer(torch.zeros(shape), Format(), torch.zeros(shape[0]))
    target.load_state_dict(load(save(source.state_dict())))
    assert (target.format, target.dequantize().dtype) == (form, dtype)
    state = source.weight.quant_state
    assert same(target.dequantize(), dequantized_by_them(source.weight.data, state))
    assert torch.equal(target.bias, bias)
    assert math.isnan(target.deviation)


@pytest.mark.parametrize(("form", "shape", "dtype"), FILES)
def test_bitsandbytes_loads_a_state_that_was_written_here(form, shape, dtype):
    layer = own_layer(gaussian(*shape, dtype), form)
    state = load(save(layer.state_dict()))
    data = state.pop("weight")
    made = bnb.nn.Params4bit.from_prequantized(data, state, device="cpu")
    assert same(dequantized_by_them(made.data, made.quant_state), layer.dequantize())
    expected = foreign_layer(gaussian(*shape, dtype), form).state_dict()
    for key, value in layer.state_dict().items():
        if "bitsandbytes__" not in key:
            assert bits(value) == bits(expected[key]), key
    assert set(layer.state_dict()) == set(expected)


@pytest.mark.parametrize("shape", [(54, 80), (16, 128), (9, 33)])
def test_a_layer_of_bitsandbytes_is_read_as_it_computes(shape):
    """With its kernel on the matrix as it stands, whatever that gives for this width."""
    layer = foreign_layer(gaussian(*shape), Format())
    prevent_repacking(layer)
    with torch.compiler.set_stance("force_eager"):
        expected = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert bits(packed_of(layer).dequantize()) == bits(expected)
    assert packed_of(layer).nbytes == own_layer(gaussian(*shape), Format()).nbytes


def damaged(**changes):
    """A packed weight and its state, with other words, or without a tensor (None)."""
    packed = PackedWeight.of(gaussian(48, 64), Format())
    state = stored.parts(packed)
    (key,) = (key for key in state if key.startswith("quant_state"))
    words = json.loads(bytes(state[key].tolist()))
    for name, value in changes.items():
        if name in words:
            words[name] = value
        elif value is None:
            del state[key if name == "quant_state" else name]
        else:
            state[name] = value
    if key in state:
        text = json.dumps(words).encode()
        state[key] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return packed.packed, state


DAMAGES = [
    ({"absmax": None}, r"needs absmax and one quant_state.bitsandbytes__\.\.\., has \["),
    ({"quant_state": None}, "not a weight in 4 bits"),
    ({"nested_absmax": None}, "needs 1 scales of scales, has 0"),
    ({"nested_absmax": torch.ones(3)}, "needs 1 scales of scales, has 3"),
    ({"nested_blocksize": 128}, "in blocks of 256 only"),
    ({"shape": [48, 63]}, "48 x 63 in nf4.* needs 1512 bytes, has 1536"),
    ({"blocksize": 32}, "needs 96 scales, has 48"),
    ({"blocksize": 63}, "blocksize must be one of"),
    ({"quant_type": "int4"}, "quant_type must be one of 'nf4', 'fp4', got 'int4'"),
    ({"absmax": torch.zeros(47, dtype=torch.uint8)}, "needs 48 scales, has 47"),
    ({"absmax": torch.zeros(48)}, r"scales of torch.float32 .*expected torch.uint8"),
    ({"shape": None}, "cannot be read"),
    ({"shape": [-48, -64]}, "needs 1536 bytes"),
    ({"dtype": "int8"}, "a floating dtype"),
    ({"dtype": "nothing"}, "cannot be read"),
    ({"nested_offset": "x"}, "cannot be read"),
    ({"quant_map": torch.zeros(16)}, "quant_map is not the one of nf4"),
]


@pytest.mark.parametrize(("changes", "message"), DAMAGES)
def test_a_damaged_state_is_refused(changes, message):
    data, state = damaged(**changes)
    with pytest.raises(ValueError, match=message):
        stored.read(data, state)
    layer = own_layer(gaussian(48, 64), Format())
    state = {"weight": data} | {f"weight.{key}": value for key, value in state.items()}
    with pytest.raises(RuntimeError, match=f"weight: .*{message}"):
        layer.load_state_dict(state)


def test_bytes_that_are_missing_are_noticed():
    data, state = damaged()
    with pytest.raises(ValueError, match="needs 1536 bytes, has 1535"):
        stored.read(data[:-1], state)
    layer = own_layer(gaussian(48, 64), Format())
    with pytest.raises(RuntimeError, match="needs 1536 bytes, has 1535"):
        layer.load_state_dict({"weight": data[:-1]} | {f"weight.{k}": v for k, v in state.items()})
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "weight"'):
        layer.load_state_dict({f"weight.{key}": value for key, value in state.items()})


def test_a_weight_of_another_shape_is_not_loaded():
    layer = own_layer(gaussian(48, 64), Format())
    other = own_layer(gaussian(64, 48), Format())
    with pytest.raises(RuntimeError, match=r"the file has \(64, 48\), the layer \(48, 64\)"):
        layer.load_state_dict(other.state_dict())
