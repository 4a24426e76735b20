"""The distributed training script, on a tiny random Llama: one process, two, and bad arguments."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import tokenizers
import torch
import train_distributed
import transformers

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
SCRIPT = train_distributed.__file__
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TEXT = "Anyone lived in a pretty how town (with up so floating many bells down).\n" * 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama, a tokenizer whose tokens are bytes, and a text."""
    folder = tmp_path_factory.mktemp("llama")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return folder


def arguments(folder: Path, output: Path, *more: str) -> list[str]:
    """A short run."""
    given = ["--model", str(folder), "--text", str(folder / "text.txt"), "--output", str(output)]
    return [*given, "--steps", "3", "--batch-size", "4", "--length", "32", "--no-progress", *more]


def losses(line: str) -> tuple[float, float]:
    """The first and the last loss that the script reports."""
    found = re.search(r"loss ([\d.]+) to ([\d.]+), saved", line)
    assert found is not None
    return float(found[1]), float(found[2])


@pytest.mark.parametrize(
    ("method", "strategy"),
    [("lotr", "fsdp"), pytest.param("lorta", "ddp", marks=pytest.mark.slow)],
)
def test_two_processes_report_and_save_what_one_does(
    method: str,
    strategy: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", loopback[0])
    choice = ["--method", method, "--strategy", strategy, "--learning-rate", "0.01"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert train_distributed.main(arguments(folder, one, *choice)) == 0
    alone = capsys.readouterr().out
    command = [sys.executable, "-W", "ignore", *TWO, SCRIPT, *arguments(folder, two, *choice)]
    together = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert alone.count("\n") == together.stdout.count("\n") == 1
    first, last = losses(together.stdout)
    assert last < first
    assert losses(alone) == pytest.approx((first, last), abs=1e-5)
    # The adapter is all that is left, and it loads.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    loaded = peft.PeftModel.from_pretrained(model, one)
    loaded.load_adapter(two, "two")
    outputs = []
    for name in ("default", "two"):
        loaded.set_adapter(name)
        with torch.no_grad():
            outputs.append(loaded(input_ids=torch.arange(32)[None]).logits)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch-size", "4"], "a batch of 4 chunks cannot be divided among 3 processes"),
        (["--output", "."], "exists already; choose another --output"),
        (["--text", "none.txt"], "cannot read none.txt as UTF-8 text"),
        (["--length", "2000"], "has 584 tokens, less than one chunk of 2000"),
        (["--length", "64"], "takes 32 tokens; give a --length up to that"),
        (["--model", "."], "cannot load the model '.'"),
        (["--target-modules", "none"], "cannot adapt"),
    ],
)
def test_what_the_user_can_put_right_is_one_message(
    more: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    given = arguments(folder, tmp_path / "adapter", "--batch-size", "3", *more)
    assert train_distributed.main(given) == 1
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert message in output.err
    assert output.out == ""
    assert list(tmp_path.iterdir()) == []


def test_options_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_distributed.parse_arguments(["--model", "m", "--text", "t", "--steps", "0"])
    assert "expected a whole number of at least 1, got 0" in capsys.readouterr().err
