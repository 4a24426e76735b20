"""Every field of PEFT's LoRA is taken, under some name, or answered with what to use."""

from __future__ import annotations

import dataclasses

import peft
import pytest

lora_options = pytest.importorskip("docs.lora_options", reason="needs the extra for docs")
FOUND = lora_options.answers()
# What all methods take, as LoRA does.
ALL = {
    *("bias", "ensure_weight_tying", "exclude_modules", "layers_pattern", "layers_to_transform"),
    *("lora_dropout", "modules_to_save", "r", "rank_pattern", "target_modules"),
    *("target_parameters", "trainable_token_indices"),
}


def test_every_field_has_an_answer():
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert FOUND.keys() == fields - lora_options._ITS_OWN
    for name, answers in FOUND.items():
        for text in answers.values():
            assert text
            assert "none like it" not in text, name


def test_what_works():
    for name in ALL:
        assert all(text.startswith("works") for text in FOUND[name].values()), name
    assert all("PEFT's LoRA" in text for text in FOUND["use_dora"].values())
    without = {name for name, text in FOUND["alpha_pattern"].items() if text != "works"}
    assert without == {"DoTA"}
