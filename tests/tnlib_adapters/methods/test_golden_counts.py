"""Published numbers of trainable parameters, on models without weights."""

from __future__ import annotations

import copy
import functools
import json

import peft
import pytest
import torch
import transformers as hf

from tnlib_adapters import DoTAConfig, LoRETTAConfig, LoRTAConfig, LoTRConfig, TTLoRAConfig, count

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def _roberta(width, layers, heads):
    return hf.RobertaForSequenceClassification, hf.RobertaConfig(
        vocab_size=50_265,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=514,
        type_vocab_size=1,
        num_labels=2,
    )


def _llama(width, layers, heads, inner, kv_heads=None):
    return hf.LlamaForCausalLM, hf.LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
    )


MODELS = {
    "roberta-base": lambda: _roberta(768, 12, 12),
    "roberta-large": lambda: _roberta(1024, 24, 16),
    "llama-2-7b": lambda: _llama(4096, 32, 32, 11_008),
    "llama-2-13b": lambda: _llama(5120, 40, 40, 13_824),
    "deberta-base": lambda: (
        hf.DebertaForSequenceClassification,
        hf.DebertaConfig(
            num_labels=2, type_vocab_size=0, relative_attention=True, pos_att_type=["c2p", "p2c"]
        ),
    ),
}


@functools.cache
def on_meta(name):
    kind, config = MODELS[name]()
    with torch.device("meta"):
        return kind(config)


LOTR = {
    "roberta-base": {
        1: 1_560,
        2: 3_168,
        4: 6_528,
        8: 13_824,
        16: 30_720,
        32: 73_728,
        64: 196_608,
    },
    "roberta-large": {8: 19_456, 16: 45_056, 32: 114_688, 64: 327_680},
    "llama-2-7b": {8: 69_632, 32: 327_680, 64: 786_432},
}


@pytest.mark.parametrize(
    ("model", "r", "expected"),
    [(model, r, n) for model, row in LOTR.items() for r, n in row.items()],
)
def test_lotr(model, r, expected):
    assert count(on_meta(model), LoTRConfig(r=r)).adapter == expected


def test_lotr_with_the_head_of_roberta_base():
    config = LoTRConfig(r=2, task_type="SEQ_CLS")
    model = on_meta("roberta-base")
    assert count(model, config).total == 595_298
    kind, configuration = MODELS["roberta-base"]()
    with torch.device("meta"):
        adapted = peft.get_peft_model(kind(configuration), config)
    assert adapted.get_nb_trainable_parameters()[0] == 595_298
    # The published total has the head once; PEFT keeps the untrained copy beside it.
    everything = sum(p.numel() for p in model.parameters())
    assert everything + 595_298 - 592_130 == 124_650_338


LORTA = {
    "roberta-base": 860,
    "roberta-large": 1_132,
    "llama-2-7b": 4_292,
    "llama-2-13b": 5_332,
}


# Ranks multiply; which models have them is in the paper.
@pytest.mark.parametrize(
    ("model", "r"),
    [("roberta-base", r) for r in (1, 4, 8, 12, 64, 256)]
    + [("roberta-large", 4), ("llama-2-7b", 8), ("llama-2-13b", 12)],
)
def test_lorta(model, r):
    one = LORTA[model]
    assert count(on_meta(model), LoRTAConfig(r=r)).adapter == r * one
    # Whichever of the matrices are targeted, and on whichever side the heads are.
    some = LoRTAConfig(r=r, heads="output", target_modules=".*(q_proj|query)")
    assert count(on_meta(model), some).adapter == r * one


def test_ttlora():
    config = TTLoRAConfig(r=5, dims=[[64, 4, 3], [3, 4, 64]])
    assert count(on_meta("roberta-base"), config).adapter == 23_760


DEEP = [[16, 16, 16, 4, 4, 4], [4, 4, 4, 16, 16, 16]]
LORETTA = [
    ("deberta-base", {"variant": "adp"}, 57_408, 99_194),
    ("deberta-base", {"shapes": [[8, 8, 12, 8], [8, 8, 8, 4, 9]]}, 13_980, 55_766),
    ("roberta-base", {"variant": "adp"}, 57_408, 99_194),
    ("roberta-base", {}, 27_840, 69_626),
    ("llama-2-7b", {"variant": "adp", "shapes": DEEP}, 610_560, 876_800),
    ("llama-2-7b", {"shapes": [[16, 16, 8, 4, 4], [4, 4, 8, 16, 16]]}, 102_400, 368_640),
    (
        "llama-2-7b",
        {"tt_rank": 8, "shapes": [[16, 16, 8, 4, 4], [4, 4, 8, 16, 16]]},
        249_856,
        516_096,
    ),
]


@pytest.mark.parametrize(("model", "fields", "adapter", "total"), LORETTA)
def test_loretta(model, fields, adapter, total):
    encoder = "llama" not in model
    if encoder:
        fields = fields | {"tt_head": True, "task_type": "SEQ_CLS"}
    found = count(on_meta(model), LoRETTAConfig(**fields))
    head = sum(
        row.values for row in found.rows if row.name.startswith("head") or row.name == "bias"
    )
    assert found.adapter - head == adapter
    assert found.total == total


def test_loretta_as_peft_builds_it():
    kind, configuration = MODELS["roberta-base"]()
    config = LoRETTAConfig(variant="adp", tt_head=True, task_type="SEQ_CLS")
    with torch.device("meta"):
        adapted = peft.get_peft_model(kind(configuration), config)
    assert adapted.get_nb_trainable_parameters()[0] == 99_194


@pytest.mark.parametrize(
    ("widths", "expected"),
    [((4096, 32, 32, 11_008), 56_098_816), ((4096, 32, 32, 14_336, 8), 56_623_104)],
)
def test_lora_baselines_written_as_a_network(widths, expected):
    from own_methods import PlainLoRAConfig

    kind, configuration = _llama(*widths)
    with torch.device("meta"):
        model = kind(configuration)
    targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    assert count(model, PlainLoRAConfig(r=32, target_modules=targets)).adapter == expected


def test_a_count_from_a_configuration_file_alone(tmp_path):
    kind, configuration = _llama(8192, 80, 64, 28_672, 8)
    configuration.architectures = [kind.__name__]
    configuration.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["hidden_size"] == 8192
    # d + d_h + H + H_kv + L + 4: keys and values have a factor for their own number of heads.
    expected = 8 * (8192 + 128 + 64 + 8 + 80 + 4)
    for source in (tmp_path, str(tmp_path / "config.json"), configuration):
        found = count(source, LoRTAConfig(r=8))
        assert found.adapter == expected
        assert len(found.targets) == 320
    anchored = count(tmp_path, DoTAConfig(r=8, target_modules=["q_proj"]))
    assert anchored.anchored == anchored.adapter
    assert "80" in str(anchored)


@pytest.mark.filterwarnings(
    "ignore:target_modules entries:UserWarning", "ignore:modules_to_save entries:UserWarning"
)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"target_modules": "all-linear"},
        {"target_modules": ["query", "dense"], "exclude_modules": ["classifier.dense"]},
        {"layers_to_transform": [1, 2], "bias": "lora_only"},
        {"modules_to_save": ["classifier", "pooler"], "bias": "all"},
        {"rank_pattern": {"query": 4, "layer.3.*value": 2}},
        {"trainable_token_indices": {"word_embeddings": [1, 7]}},
    ],
)
def test_a_lora_is_counted_as_peft_counts_it(fields):
    config = peft.LoraConfig(r=8, task_type="SEQ_CLS", **fields)
    model = peft.get_peft_model(copy.deepcopy(on_meta("roberta-base")), config)
    assert count(on_meta("roberta-base"), config).total == model.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("fields", [{"use_dora": True}, {"lora_bias": True}])
def test_a_lora_of_another_form_is_not_counted(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))}.*cannot be counted"):
        count(on_meta("roberta-base"), peft.LoraConfig(r=8, **fields))
