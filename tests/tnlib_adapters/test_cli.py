"""The command line: what every command prints and writes, its exit codes, and wrong usage."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
import transformers as hf

import tnlib_adapters as ta
import tnlib_adapters_cli as cli
from tests.tnlib_adapters.methods import METHODS
from tests.tnlib_adapters.models import TARGETS, assert_same_outputs, logits, make, train
from tnlib_adapters.commands.methods import configuration

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base model, an adapter of every method and a LoRA, trained a little."""
    place = tmp_path_factory.mktemp("cli")
    make("llama").save_pretrained(place / "base")
    lora = peft.LoraConfig(r=2, target_modules=TARGETS["llama"])
    configs = {name: make(target_modules=TARGETS["llama"]) for name, make in METHODS.items()}
    for name, config in (configs | {"lora": lora}).items():
        base = hf.AutoModelForCausalLM.from_pretrained(place / "base")
        model = peft.get_peft_model(base, config)
        train(model, steps=2)
        model.save_pretrained(place / name)
    return place


def run(capsys, *argv):
    """Exit code, output and errors of a command."""
    code = cli.main([str(word) for word in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_count_prints_what_the_library_counts(folder, capsys):
    methods = ("lora:r=3", "lotr:r=3", "lorta", "dota:r=2", "loretta", "loretta:variant=adp")
    code, out, err = run(capsys, "count", folder / "base", *methods, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    base = make("llama")
    assert found["model"] == "LlamaForCausalLM"
    assert found["parameters"] == sum(p.numel() for p in base.parameters())
    assert [row["method"] for row in found["methods"]] == list(methods)
    for row in found["methods"][1:]:
        counted = ta.count(base, configuration(row["method"]))
        assert row["trained"] == counted.total
        assert row["weights"] == len(counted.targets)
        assert row["file_bytes"] == 4 * (counted.total + counted.anchored)
        assert row["adamw_bytes"] == 2 * row["gradient_bytes"] == 8 * counted.total
    lora = peft.get_peft_model(base, peft.LoraConfig(r=3))
    assert found["methods"][0]["trained"] == lora.get_nb_trainable_parameters()[0]


def test_count_prints_a_table_with_a_row_a_method(folder, capsys):
    code, out, _ = run(capsys, "count", folder / "base" / "config.json", "lora", "lotr:r=3")
    assert code == 0
    heading, _, header, *rows = out.splitlines()
    assert heading.startswith("LlamaForCausalLM, ")
    assert header.split("  ")[0] == "method"
    assert [row.split()[0] for row in rows] == ["lora", "lotr:r=3"]


def test_count_takes_targets_for_all_methods_or_for_one(folder, capsys):
    methods = ("lotr", "lora:target_modules=q_proj", "lotr:target_modules=all-linear")
    _, out, _ = run(
        capsys, "count", folder / "base", *methods, "--targets", "q_proj+v_proj", "--json"
    )
    assert [row["weights"] for row in json.loads(out)["methods"]] == [4, 2, 14]


def test_count_adds_the_head_of_a_task(folder, capsys):
    _, out, _ = run(capsys, "count", folder / "base", "lotr", "--task", "SEQ_CLS", "--json")
    found = json.loads(out)
    model = hf.LlamaForSequenceClassification(make("llama").config)
    assert found["model"] == "LlamaForSequenceClassification"
    assert found["methods"][0]["of_which_modules"] == model.score.weight.numel()


@pytest.mark.parametrize("method", [*METHODS, "lora"])
def test_inspect_tells_what_the_file_holds(method, folder, capsys):
    code, out, err = run(capsys, "inspect", folder / method, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    path = folder / method / "adapter_model.safetensors"
    saved = safetensors.torch.load_file(path)
    assert found["file_bytes"] == path.stat().st_size
    assert found["trained"] + found["frozen"] == sum(v.numel() for v in saved.values())
    assert sum(row["number"] for row in found["tensors"]) == len(saved)
    assert sum(row["bytes"] for row in found["tensors"]) == sum(v.nbytes for v in saved.values())
    assert found["frozen"] == (found["trained"] if method == "dota" else 0)
    assert found["merges"] is (method != "adp")
    assert sorted(found["targets"]) == sorted(TARGETS["llama"])
    # The cores of LoRTA are all shared, so the file does not tell the weights apart.
    assert found["weights"] == (None if method == "lorta" else 6)
    modules = {row["name"] for row in found["tensors"] if row["kind"] == "module"}
    assert bool(modules) == (method in ("rep", "adp"))
    assert all("norm" in name for name in modules)


def test_inspect_prints_facts_and_a_table(folder, capsys):
    code, out, _ = run(capsys, "inspect", folder / "lotr")
    assert code == 0
    facts, table = out.strip().split("\n\n")
    assert facts.splitlines()[0].split() == ["method", "lotr"]
    assert {line.split()[0] for line in table.splitlines()[1:]} == {
        *(f"{core}_{shape}" for core in "uv" for shape in ("48x48", "24x48", "48x80")),
        "g",
    }


def test_merge_writes_the_merged_model(folder, tmp_path, capsys):
    code, out, _ = run(capsys, "merge", folder / "lotr", tmp_path / "merged", "--quiet")
    assert code == 0
    assert "6 weights merged" in out
    assert str(tmp_path / "merged") in out
    base = hf.AutoModelForCausalLM.from_pretrained(folder / "base")
    adapted = peft.PeftModel.from_pretrained(base, folder / "lotr")
    merged = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert_same_outputs(logits(merged), logits(adapted))


def test_merge_writes_the_dtype_that_is_asked_for(folder, tmp_path, capsys):
    words = ("merge", folder / "rep", tmp_path / "merged", "--base", folder / "base")
    assert run(capsys, *words, "--dtype", "bfloat16")[0] == 0
    saved = safetensors.torch.load_file(tmp_path / "merged" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}


def test_to_lora_and_back(folder, tmp_path, capsys):
    code, out, _ = run(capsys, "to-lora", folder / "lotr", tmp_path / "lora")
    assert code == 0
    assert "relative error" in out
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["peft_type"] == (
        "LORA"
    )
    words = ("from-lora", tmp_path / "lora", tmp_path / "lotr", "lotr:r=48", "--quiet")
    code, out, _ = run(capsys, *words)
    assert code == 0
    outputs = []
    for place in (folder / "lotr", tmp_path / "lora", tmp_path / "lotr"):
        base = hf.AutoModelForCausalLM.from_pretrained(folder / "base")
        outputs.append(logits(peft.PeftModel.from_pretrained(base, place)))
    assert_same_outputs(outputs[1], outputs[0])
    assert_same_outputs(outputs[2], outputs[0])


def test_to_lora_truncates_to_a_rank(folder, tmp_path, capsys):
    code, _, _ = run(capsys, "to-lora", folder / "dota", tmp_path / "lora", "--rank", 2)
    assert code == 0
    saved = safetensors.torch.load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {len(value) for key, value in saved.items() if "lora_A" in key} == {2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["count", "{base}", "lotr:q=3"], "lotr has no field 'q'; of its own it has r, alpha"),
        (["count", "{base}", "lotr:r=x"], "lotr:r=x: r must be"),
        (["count", "{base}", "lotr", "--targets", "nothing"], "match no linear layer"),
        (["count", "./nowhere", "lotr"], "there is no ./nowhere; give a model folder"),
        (["count", "{lotr}", "lotr"], "has no config.json"),
        (["inspect", "{base}"], "has no adapter_config.json"),
        (["inspect", "{cut}"], "is cut off: tensor"),
        (["inspect", "{bare}"], "has no adapter_model.safetensors"),
        (["inspect", "{torn}"], "is not JSON"),
        (["merge", "{adp}", "{new}"], "is not a change of the weight"),
        (["merge", "{lotr}", "{base}"], "is not empty"),
        (["to-lora", "{dota}", "{new}"], "rank"),
        (["from-lora", "{lotr}", "{new}", "lotr"], "only 'LORA' can be converted"),
        (["from-lora", "{lora}", "{new}", "loretta:variant=adp"], "not a change of weights"),
        (["from-lora", "{lora}", "{new}", "lotr:target_modules=v_proj"], "come from the LoRA"),
    ],
)
def test_work_that_fails_says_why_in_one_line(words, message, folder, tmp_path, capsys):
    places = {name: folder / name for name in ("base", "lora", *METHODS)}
    places |= {name: tmp_path / name for name in ("new", "cut", "bare", "torn")}
    file = "adapter_model.safetensors"
    for name in ("cut", "bare", "torn"):
        places[name].mkdir()
        (places[name] / "adapter_config.json").write_text('{"peft_type": "LOTR"}')
    (places["cut"] / file).write_bytes((folder / "lotr" / file).read_bytes()[:-100])
    (places["torn"] / "adapter_config.json").write_text('{"peft_ty')
    code, out, err = run(capsys, *(word.format(**places) for word in words))
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not places["new"].exists()


def test_debug_shows_where_an_error_comes_from(folder, capsys):
    code, _, err = run(capsys, "inspect", folder, "--debug")
    assert code == 1
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["unknown"],
        ["count"],
        ["count", "model"],
        ["count", "model", "sora"],
        ["count", "model", "lotr:"],
        ["count", "model", "lotr:r"],
        ["count", "model", "lotr:r=1,"],
        ["count", "model", "lotr", "--task", "POETRY"],
        ["merge", "adapter"],
        ["merge", "adapter", "output", "--dtype", "int8"],
        ["to-lora", "adapter", "output", "--rank", "0"],
        ["to-lora", "adapter", "output", "--eps", "-1"],
        ["from-lora", "lora", "output", "dota"],
        ["from-lora", "lora", "output", "lotr", "--eps", "nan"],
    ],
)
def test_wrong_usage_ends_with_two(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    assert "usage: tnlib-adapters" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["count", "inspect", "merge", "to-lora", "from-lora"])
def test_help_of_every_command_has_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"\n  tnlib-adapters {command} " in capsys.readouterr().out


def test_ctrl_c_ends_with_130(monkeypatch, folder, capsys):
    module = importlib.import_module("tnlib_adapters.commands.inspection")

    def stopped(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run", stopped)
    code, out, err = run(capsys, "inspect", folder / "lotr")
    assert (code, out, err) == (130, "", "stopped\n")


def test_help_and_wrong_usage_import_nothing_heavy():
    script = (
        "import sys, tnlib_adapters_cli as cli\n"
        "for words in (['--help'], ['count', '--help'], ['count', 'model', 'sora']):\n"
        "    try: cli.main(words)\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'peft', 'transformers', 'tnlib', 'tnlib_adapters'}\n"
        "sys.exit(bool(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_stops_early_is_no_error():
    # A command of its own, since those of the package take long to import.
    script = (
        "import sys, types, tnlib_adapters_cli as cli\n"
        "command = types.SimpleNamespace(run=lambda options: 'text')\n"
        "sys.modules['tnlib_adapters.commands.inspection'] = command\n"
        "sys.exit(cli.main(['inspect', 'folder']))\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("lotr", {"r": 8}),
        ("lotr:r=16,alpha=0.5", {"r": 16, "alpha": 0.5}),
        ("lorta:use_rslora=true,num_heads=none", {"use_rslora": True, "num_heads": None}),
        ("dota:dims=4x3/2x6,residual=true", {"dims": [[4, 3], [2, 6]], "residual": True}),
        ("dota:init_weights=random", {"init_weights": "random"}),
        ("loretta:variant=adp,bottleneck=4", {"variant": "adp", "bottleneck": 4}),
        ("lotr:target_modules=q_proj", {"target_modules": {"q_proj"}}),
        ("lotr:target_modules=all-linear", {"target_modules": "all-linear"}),
        (
            "lotr:target_modules=q+v,layers_to_transform=0+2",
            {"target_modules": {"q", "v"}, "layers_to_transform": [0, 2]},
        ),
    ],
)
def test_a_method_is_written_with_its_fields(text, fields):
    config = configuration(text)
    assert {name: getattr(config, name) for name in fields} == fields


def test_fields_of_a_method_win_over_defaults():
    assert configuration("lotr:r=2", r=4, alpha=3.0).r == 2
    assert configuration("lotr:r=2", r=4, alpha=3.0).alpha == 3.0
