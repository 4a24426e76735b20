"""Small real architectures with random weights, each with another way to hold its projections."""

from __future__ import annotations

import copy
import functools

import torch
import transformers as hf

from tests.tolerances import assert_close, rounding

VOCABULARY = 64
_SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_ENCODER = _SMALL | {
    "vocab_size": VOCABULARY,
    "intermediate_size": 96,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_DECODER = _SMALL | {
    "vocab_size": VOCABULARY,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
}


def bert():
    return hf.BertForSequenceClassification(hf.BertConfig(**_ENCODER))


def roberta():
    return hf.RobertaForSequenceClassification(hf.RobertaConfig(**_ENCODER, pad_token_id=1))


def deberta():
    return hf.DebertaForSequenceClassification(
        hf.DebertaConfig(**_ENCODER, pooler_dropout=0.0, pooler_hidden_size=48)
    )


def llama():
    return hf.LlamaForCausalLM(hf.LlamaConfig(**_DECODER))


def qwen2():
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**_DECODER, tie_word_embeddings=True))


def phi3():
    """Queries, keys and values in one projection, with fewer key heads than query heads."""
    return hf.Phi3ForCausalLM(hf.Phi3Config(**_DECODER, pad_token_id=0))


def gpt2():
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=32,
            n_embd=48,
            n_layer=2,
            n_head=4,
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def vit():
    return hf.ViTForImageClassification(
        hf.ViTConfig(
            **_SMALL,
            intermediate_size=96,
            image_size=16,
            patch_size=8,
            num_labels=3,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


MAKERS = {
    "bert": bert,
    "deberta": deberta,
    "gpt2": gpt2,
    "llama": llama,
    "phi3": phi3,
    "qwen2": qwen2,
    "roberta": roberta,
    "vit": vit,
}
# Attention and feed-forward layers of every architecture.
TARGETS = {
    "bert": ["query", "value", "intermediate.dense"],
    "deberta": ["in_proj", "intermediate.dense"],
    "gpt2": ["c_attn", "c_fc"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "phi3": ["qkv_proj", "down_proj"],
    "qwen2": ["q_proj", "k_proj", "o_proj", "up_proj"],
    "roberta": ["query", "key", "attention.output.dense"],
    "vit": ["q_proj", "v_proj", "fc1"],
}


# What an output has behind it: two layers of projections and attentions with sums of 11 to 96
# terms, adapters in them, and a head. In half precision, the arrays that are rounded on the way.
TERMS, ARRAYS = 1000, 40
HALVES = (torch.float16, torch.bfloat16)


@functools.cache
def _template(name, dtype):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MAKERS[name]().to(dtype).eval()


def make(name, dtype=torch.float32):
    """A model of an architecture, always with the same weights."""
    return copy.deepcopy(_template(name, dtype))


def precise(name):
    """The widest dtype that an architecture computes in: some have their norms in float32."""
    return torch.float64 if name in ("bert", "gpt2", "roberta", "vit") else torch.float32


def assert_same_outputs(found, expected, dtype=None):
    """Outputs of one function, computed in two ways, perhaps with values rounded to `dtype`.

    Norms keep what is added up in every layer about as large as the outputs, so roundings add up
    as in one long sum. In half precision that sum is of arrays, each off by u in norm.
    """
    dtype = found.dtype if dtype is None else dtype
    if dtype not in HALVES:
        return assert_close(found, expected, TERMS, dtype=dtype)
    off = torch.linalg.norm((found - expected).double())
    allowed = rounding(dtype, ARRAYS / 2, torch.linalg.norm(expected.double()))
    assert off <= allowed, f"off by {off:.3g}, rounding explains {allowed:.3g}"


def assert_other_outputs(found, expected):
    """Outputs that are apart by ten times what rounding explains."""
    off = float((found - expected).abs().max())
    assert off > 10 * rounding(found.dtype, TERMS, expected.abs().max())


def assert_same_model(found, expected):
    """Equal values, bit for bit, and so the same outputs.

    Files leave tensors at other places in memory, which may choose another code for a product.
    """
    state, values = found.state_dict(), expected.state_dict()
    assert state.keys() == values.keys()
    assert [name for name in state if not torch.equal(state[name], values[name])] == []
    assert_same_outputs(logits(found), logits(expected))


def tokens(rows=3, length=11):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(2, VOCABULARY, (rows, length), generator=generator)


def inputs(model):
    """What a model of :data:`MAKERS` is called with."""
    if model.config.model_type != "vit":
        return {"input_ids": tokens()}
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 16, 16, generator=generator)
    return {"pixel_values": pixels.to(next(model.parameters()).dtype)}


@torch.no_grad()
def logits(model):
    """Outputs on fixed inputs."""
    return model.eval()(**inputs(model)).logits.clone()


def train(model, steps=3, lr=1e-2):
    """A few Adam steps towards large logits of class 0; returns the losses."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr)
    losses = []
    for _ in range(steps):
        output = model(**inputs(model)).logits
        output = output.float() if output.dtype in HALVES else output
        loss = -output.log_softmax(-1)[..., 0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def cores_in(saved):
    """What a file has beside the multipliers."""
    return {name: value for name, value in saved.items() if not name.endswith(".multipliers")}
