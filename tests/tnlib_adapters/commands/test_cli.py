"""The command line: what every command prints and writes, its exit codes, and wrong usage."""

from __future__ import annotations

import collections
import dataclasses
import errno
import importlib
import json
import os
import re
import shutil
import signal
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
from tests.tnlib_adapters.expert_models import mixture
from tests.tnlib_adapters.forms import METHODS
from tests.tnlib_adapters.models import (
    TARGETS,
    assert_same_outputs,
    cores_in,
    logits,
    make,
    train,
)
from tnlib_adapters.base_model import peft_names
from tnlib_adapters.commands.method_argument import CONFIGS, configuration
from tnlib_adapters.convert import folder as exchange_folder
from tnlib_adapters.convert import merge as merging
from tnlib_adapters.layers.multipliers import MULTIPLIERS
from tnlib_adapters.layers.stored_cores import ANCHOR
from tnlib_adapters.peft_plugin.core_store import STORE
from tnlib_adapters.quantization import quantize_base
from tnlib_adapters_cli import inspection

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
ROOT = Path(__file__).parents[3]


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
        saved = counted.total + counted.anchored + counted.multipliers
        assert row["file_bytes"] == 4 * saved
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
    assert found["trained"] + found["frozen"] == sum(v.numel() for v in cores_in(saved).values())
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
        *("g", "multipliers"),
    }


def test_inspect_tells_of_experts_and_patterns(tmp_path, capsys):
    fields = {"target_parameters": ["experts.down_proj"], "experts": [3, 1]}
    config = ta.LoTRConfig(
        r=2, rank_pattern={"down_proj": 3}, alpha_pattern={"down_proj": 2.0}, **fields
    )
    peft.get_peft_model(mixture("Qwen3MoeExperts", "eager"), config).save_pretrained(tmp_path)
    code, out, _ = run(capsys, "inspect", tmp_path)
    assert code == 0
    facts, table = out.strip().split("\n\n")
    said = dict(re.split(r"  +", line, maxsplit=1) for line in facts.splitlines())
    assert said["weights of experts"] == "experts.down_proj"
    assert said["experts"] == "1, 3"
    assert (said["rank pattern"], said["alpha pattern"]) == ("down_proj: 3", "down_proj: 2.0")
    assert "targets" not in said
    assert re.search(r"^g +weight +2x3x3 ", table, re.M)


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
        ["count", "", "lotr"],
        ["inspect", ""],
        ["merge", "adapter"],
        ["merge", "adapter", "output", "--dtype", "int8"],
        ["to-lora", "adapter", "output", "--rank", "0"],
        ["to-lora", "adapter", "output", "--eps", "-1"],
        ["from-lora", "lora", "output", "lotr", "--eps", "nan"],
    ],
)
def test_wrong_usage_ends_with_two(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    assert "usage: tnlib-adapters" in capsys.readouterr().err


def test_a_method_that_no_lora_becomes_is_wrong_usage(capsys):
    code, out, err = run(capsys, "from-lora", "lora", "output", "dota")
    assert (code, out) == (2, "")
    assert re.match(r"error: a LoRA cannot become 'dota'; it can become .*lotr", err)


def test_the_parser_knows_the_methods_that_the_package_has():
    assert sorted(CONFIGS) == cli.methods()


@pytest.mark.parametrize("command", ["count", "inspect", "merge", "to-lora", "from-lora"])
def test_help_of_every_command_has_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"\n  tnlib-adapters {command} " in capsys.readouterr().out


def test_ctrl_c_ends_with_130(monkeypatch, folder, capsys):
    module = importlib.import_module("tnlib_adapters_cli.inspection")

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
        "sys.modules['tnlib_adapters_cli.inspection'] = command\n"
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


def test_inspect_tells_what_the_adapter_is(folder, capsys):
    code, out, _ = run(capsys, "inspect", folder / "lotr")
    assert code == 0
    assert re.search(r"settings +alpha 16\.0, init scaled, r 4\nscale +4\n", out)
    code, out, _ = run(capsys, "inspect", folder / "dota", "--json")
    facts = json.loads(out)
    assert (code, facts["settings"], facts["scale"]) == (0, {"dims": 3, "r": 4}, 1.0)
    assert facts["start"].startswith("the pretrained weights")
    code, out, _ = run(capsys, "inspect", folder / "lora", "--json")
    assert json.loads(out)["settings"] == {"r": 2, "lora_alpha": 8}
    assert json.loads(out)["scale"] == 4.0


def test_inspect_tells_over_which_4_bits_it_was_trained(folder, tmp_path, capsys):
    base = quantize_base(make("llama"))
    peft.get_peft_model(base, METHODS["lotr"](target_modules=["q_proj"])).save_pretrained(tmp_path)
    code, out, _ = run(capsys, "inspect", tmp_path)
    assert code == 0
    assert re.search(r"base in 4 bits +nf4, blocks of 64, double quantisation\n", out)


def test_inspect_imports_neither_torch_nor_peft(folder):
    script = (
        "import sys, tnlib_adapters_cli as cli\n"
        f"code = cli.main(['inspect', {str(folder / 'lotr')!r}])\n"
        "sys.exit(code or bool({'torch', 'peft', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_the_words_of_files_are_the_librarys():
    """They stand in two places, since one is read without the package."""
    assert inspection.PREFIX == peft_names.PREFIX
    assert (inspection.STORE, inspection.ANCHOR) == (STORE, ANCHOR)
    assert inspection.MULTIPLIERS == MULTIPLIERS
    common = {field.name for field in dataclasses.fields(ta.NetworkConfig)}
    assert common == set(inspection._COMMON)


@pytest.mark.filterwarnings("always")
def test_count_warns_as_adapting_does(folder, capsys):
    code, out, err = run(
        capsys,
        "count",
        folder / "base",
        "lotr:target_modules=q_proj+nowhere,modules_to_save=nothing",
    )
    assert code == 0
    assert "1,0" not in err
    assert "warning: target_modules entries that matched no module: ['nowhere']" in err
    assert "warning: modules_to_save entries that matched no module: ['nothing']" in err
    assert "lotr" in out


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("lotr:rank=4", "lotr has no field 'rank'; of its own it has r, alpha"),
        ("lotr:r=x", "r must be an int"),
        ("lotr:r=8,r=16", "r is given twice"),
        ("lotr:r=0", "r must be at least 1"),
        ("dota:dims=3x3", "modes are those of rows / columns, such as 8x8/6x6"),
        ("lotr:target_modules=q_proj+", "target_modules has an empty name"),
    ],
)
def test_wrong_fields_are_wrong_usage(folder, capsys, method, message):
    code, out, err = run(capsys, "count", folder / "base", method)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err


def test_a_model_that_is_nowhere_is_called_so(capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, err = run(capsys, "count", "no-such-model", "lotr")
    assert code == 1
    assert err.startswith("error: there is no folder no-such-model, and no model of this name")


def test_messages_are_in_the_shells_words(folder, tmp_path, capsys):
    code, _, err = run(capsys, "to-lora", folder / "dota", tmp_path / "lora")
    assert code == 1
    assert "give --rank or --eps" in err
    assert "rank=" not in err
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((folder / "lotr" / name).read_bytes())
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    fields["base_model_name_or_path"] = None
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    code, _, err = run(capsys, "merge", tmp_path, tmp_path / "merged")
    assert code == 1
    assert "give --base" in err
    assert "PosixPath" not in err


def test_what_the_disk_has_no_room_for_is_not_begun(folder, tmp_path, capsys, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(exchange_folder.shutil, "disk_usage", lambda _: usage(10, 9, 1))
    code, _, err = run(capsys, "merge", folder / "lotr", tmp_path / "merged")
    assert code == 1
    assert "needs 0.00 GB, and its disk has 0.00 GB free; nothing was written" in err
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_named_with_the_folder(folder, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(merging, "rewrite", full)
    code, _, err = run(capsys, "merge", folder / "lotr", tmp_path / "merged")
    assert code == 1
    assert f"the disk was full while {tmp_path / 'merged'} was written" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("always")
def test_leftovers_of_a_killed_run_are_removed_and_named(folder, tmp_path, capsys):
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from tnlib_adapters.convert.folder import whole\n"
        f"with whole(Path({str(tmp_path / 'merged')!r})) as place:\n"
        "    (place / 'half').write_bytes(bytes(1000))\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".merged-")
    with exchange_folder.whole(tmp_path / "other"):
        assert left.exists()
    code, _, err = run(capsys, "merge", folder / "lotr", tmp_path / "merged")
    assert code == 0
    assert f"warning: removed {left}" in err
    assert not left.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"merged", "other"}


def test_what_a_running_process_writes_is_no_leftover(tmp_path):
    with exchange_folder.whole(tmp_path / "merged") as first:
        with exchange_folder.whole(tmp_path / "merged"):
            assert first.exists()
        (tmp_path / "merged").rmdir()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_a_command_and_leaves_nothing(tmp_path, number, code):
    script = (
        "import os, signal, sys, time, types\n"
        "from pathlib import Path\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import tnlib_adapters_cli as cli\n"
        "from tnlib_adapters.convert.folder import whole\n"
        "def run(options):\n"
        f"    with whole(Path({str(tmp_path / 'merged')!r})):\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "        time.sleep(60)\n"
        "sys.modules['tnlib_adapters_cli.inspection'] = types.SimpleNamespace(run=run)\n"
        "sys.exit(cli.main(['inspect', 'folder']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (code, b"stopped")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_during_imports_ends_quietly(tmp_path):
    (tmp_path / "slow_command.py").write_text(
        "import os, signal, time\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
        "except BaseException:\n"
        "    print('a library was surprised')\n"
    )
    script = (
        f"import signal, sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tnlib_cli import driver\n"
        "driver._imported('slow_command', 'run')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"stopped\n")


def test_without_torch_the_import_says_what_to_install():
    script = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n, *a: None if n in ('torch', 'peft') else find(n, *a)\n"
        "import tnlib_adapters\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: tnlib_adapters needs torch and peft: "
        "run pip install 'tnlib[adapters]'"
    )


def test_inspect_asks_the_method_where_an_earlier_file_does_not_describe_it(
    folder, tmp_path, capsys
):
    for method in ("dota", "adp"):
        shutil.copytree(folder / method, tmp_path / method)
        path = tmp_path / method / "adapter_config.json"
        config = json.loads(path.read_text())
        del config["described"]
        path.write_text(json.dumps(config))
        told = [run(capsys, "inspect", place / method, "--json") for place in (folder, tmp_path)]
        (_, now, _), (_, before, _) = told
        keys = ("scale", "merges", "low_rank", "settings")
        assert [json.loads(now)[k] for k in keys] == [json.loads(before)[k] for k in keys]
