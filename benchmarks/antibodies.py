"""A protein model that knows heavy chains of antibodies, to learn light ones.

The model is Sapiens (Prihoda et al., mAbs 2022), a RoBERTa of amino acids. Its checkpoint,
checkpoint_vh.pt, is in the wheel of the package sapiens 1.0.3. The sequences are a FASTA file of
amino acids whose names begin with the gene, as IGKV1-5*01.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from text_tasks import Batch, Score, Task
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaForMaskedLM

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
BEGIN, PAD, END, UNKNOWN, MASK = 0, 1, 2, 3, 4 + len(LETTERS)
BATCH, MASKED = 16, 0.15
# What fairseq calls the parts of a model, in the order of replacement, and transformers' names.
NAMES = {
    "decoder.sentence_encoder.": "roberta.",
    "decoder.lm_head.weight": "lm_head.decoder.weight",
    "decoder.lm_head": "lm_head",
    "emb_layer_norm": "embeddings.LayerNorm",
    "embed_tokens": "embeddings.word_embeddings",
    "embed_positions": "embeddings.position_embeddings",
    "roberta.layers.": "roberta.encoder.layer.",
    "self_attn_layer_norm": "attention.output.LayerNorm",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "output.LayerNorm",
}


def sapiens(checkpoint: Path) -> nn.Module:
    """The model of a fairseq checkpoint."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
    shape = vars(saved["args"])
    config = RobertaConfig(
        vocab_size=MASK + 1,
        hidden_size=shape["encoder_embed_dim"],
        num_hidden_layers=shape["encoder_layers"],
        num_attention_heads=shape["encoder_attention_heads"],
        intermediate_size=shape["encoder_ffn_embed_dim"],
        max_position_embeddings=shape["max_positions"] + PAD + 1,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-5,
        bos_token_id=BEGIN,
        pad_token_id=PAD,
        eos_token_id=END,
    )
    model = RobertaForMaskedLM(config)
    weights = {}
    for name, weight in saved["model"].items():
        for old, new in NAMES.items():
            name = name.replace(old, new)
        weights[name] = weight
    # fairseq has no types of tokens, and one bias where transformers has two names for it.
    weights["roberta.embeddings.token_type_embeddings.weight"] = torch.zeros(1, config.hidden_size)
    weights["lm_head.decoder.bias"] = weights["lm_head.bias"]
    model.load_state_dict(weights)
    return model.eval()


def light_chains(path: Path) -> dict[str, list[str]]:
    """The light chains of a FASTA file by gene: alleles of a gene differ in a letter or two."""
    found: dict[str, list[str]] = {}
    for entry in path.read_text().split(">")[1:]:
        header, *rows = entry.splitlines()
        if header.startswith(("IGKV", "IGLV")):
            found.setdefault(header.split()[0].split("*")[0], []).append("".join(rows))
    return found


def encoded(chains: list[str]) -> Tensor:
    """Their tokens, padded, a row each."""
    rows = [
        torch.tensor(
            [BEGIN, *(4 + LETTERS.index(x) if x in LETTERS else UNKNOWN for x in chain), END]
        )
        for chain in chains
    ]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


def masked(rows: Tensor, generator: torch.Generator) -> Batch:
    """A batch in which a part of the letters is to be found."""
    letters = (rows >= 4) & (rows < MASK)
    chosen = letters & (torch.rand(rows.shape, generator=generator) < MASKED)
    return {
        "input_ids": rows.masked_fill(chosen, MASK),
        "attention_mask": (rows != PAD).long(),
        "labels": rows.masked_fill(~chosen, -100),
    }


@torch.inference_mode()
def loss_of(model: nn.Module, batch: Batch) -> Score:
    return model.eval()(**batch).loss.item(), None


def antibodies(checkpoint: Path, sequences: Path) -> Task:
    """Masked letters of light chains; of every six genes one is for validation and one the test."""
    genes = sorted(light_chains(sequences).items())

    def of(*which: int) -> Tensor:
        picked = [chains for number, (_, chains) in enumerate(genes) if number % 6 in which]
        return encoded([*itertools.chain(*picked)])

    training = of(0, 1, 2, 3)

    def batches(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            rows = torch.randint(len(training), (BATCH,), generator=generator)
            yield masked(training[rows], generator)

    held_out = [
        masked(part.repeat(4, 1), torch.Generator().manual_seed(0)) for part in (of(4), of(5))
    ]
    scores = [partial(loss_of, batch=batch) for batch in held_out]
    return Task("antibodies", sapiens(checkpoint), None, batches, *scores)
