"""Small real architectures with random weights: BERT, grouped-query Llama, GPT-2."""

from __future__ import annotations

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

VOCABULARY = 64


def bert():
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def llama():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=80,
        )
    )


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(
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


MAKERS = {"bert": bert, "llama": llama, "gpt2": gpt2}
TARGETS = {
    "bert": ["query", "value", "intermediate.dense"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
}


def make(name, dtype=torch.float32):
    """A model of an architecture, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MAKERS[name]().to(dtype).eval()


def tokens(rows=3, length=11):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, VOCABULARY, (rows, length), generator=generator)


@torch.no_grad()
def logits(model):
    """Outputs on fixed tokens."""
    return model.eval()(tokens()).logits.clone()


def train(model, steps=3, lr=1e-2):
    """A few Adam steps towards large logits of class 0; returns the losses."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr)
    losses = []
    for _ in range(steps):
        output = model(tokens()).logits.float()
        loss = -output.log_softmax(-1)[..., 0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
