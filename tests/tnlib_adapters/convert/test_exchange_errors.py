"""What is wrong with the files of an export is said, before anything is written."""

from __future__ import annotations

import json

import peft
import pytest
import torch

from tests.tnlib_adapters.models import make
from tnlib_adapters import LoTRConfig, merge, to_lora

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def folders(tmp_path):
    """A base of several shards and an adapter of it."""
    base = make("llama")
    with torch.no_grad():
        base.model.embed_tokens.weight[0, 0] = 1e6
    base.save_pretrained(tmp_path / "base", max_shard_size="40KB")
    config = LoTRConfig(r=2, target_modules=["q_proj"], init_weights=False)
    model = peft.get_peft_model(base, config)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path


@pytest.mark.parametrize("export", [to_lora, merge])
def test_a_file_that_is_cut_off_is_named(folders, export):
    path = folders / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cut off"):
        export(folders / "adapter", folders / "out")
    assert not (folders / "out").exists()


@pytest.mark.parametrize("export", [to_lora, merge])
@pytest.mark.parametrize("text", ["[]", "{"])
def test_a_configuration_without_fields_is_named(folders, export, text):
    (folders / "adapter" / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"adapter_config.json (is not JSON|holds no fields)"):
        export(folders / "adapter", folders / "out")


def test_a_link_to_an_empty_folder_is_followed(folders):
    (folders / "real").mkdir()
    (folders / "link").symlink_to(folders / "real")
    to_lora(folders / "adapter", folders / "link")
    assert (folders / "real" / "adapter_config.json").is_file()


def test_numbers_that_a_dtype_cannot_hold_are_not_made_infinite(folders):
    with pytest.raises(ValueError, match=r"embed_tokens.weight has numbers that torch.float16"):
        merge(folders / "adapter", folders / "out", dtype="torch.float16")
    assert not (folders / "out").exists()
    assert merge(folders / "adapter", folders / "out", dtype=torch.bfloat16).n_weights == 2


def test_chat_templates_and_an_index_without_metadata_come_along(folders):
    templates = folders / "base" / "additional_chat_templates"
    templates.mkdir()
    (templates / "tools.jinja").write_text("{{ messages }}")
    path = folders / "base" / "model.safetensors.index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metadata": None}))
    merge(folders / "adapter", folders / "out")
    copied = folders / "out" / "additional_chat_templates" / "tools.jinja"
    assert copied.read_text() == "{{ messages }}"
