"""The README's code runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tnlib
from tests.tnlib_adapters.models import make

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_table_of_speed_is_that_of_the_results():
    table = (ROOT / "benchmarks" / "results" / "summary.md").read_text()
    assert table in (ROOT / "README.md").read_text()


def test_the_analysis_examples(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(BLOCKS[0], names)
    exec(BLOCKS[1], names)
    assert names["small"].ranks == names["mpo"].ranks
    assert names["row"].shape == (12, 16, 16)
    assert set(tnlib.load(tmp_path / "parts.safetensors")) == {"weight", "terms"}
    assert "(8, 8, 12) (12, 16, 16) (1, 64, 64, 1)" in capsys.readouterr().out
    assert names["tight"].error <= 0.1
    assert names["y"].shape == (5, 768)
    exec(BLOCKS[2], names)
    assert names["small"].n_params <= 200_000
    assert names["profile"].n_params[-1] <= 400_000
    assert len(names["plans"].breakeven) == 1


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_training_example(tmp_path, monkeypatch, capsys):
    make("bert").save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS[3].replace("path/to/a/model", str(tmp_path / "model")), {})
    assert "trainable params" in capsys.readouterr().out
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        path.name for path in (tmp_path / "adapter").iterdir()
    }
