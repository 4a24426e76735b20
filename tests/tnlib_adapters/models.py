"""Small real architectures with random weights, each with another way to hold its projections."""

from __future__ import annotations

import torch
import transformers as hf

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


def make(name, dtype=torch.float32):
    """A model of an architecture, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MAKERS[name]().to(dtype).eval()


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
        output = model(**inputs(model)).logits.float()
        loss = -output.log_softmax(-1)[..., 0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
