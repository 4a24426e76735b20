"""The site's code runs as it is printed, and every public name is on it.

Pages load a model of the hub by name and film reviews by `tutorial.reviews`; here a random BERT of
two layers and made-up sentences take their places, a training ends after three steps, and timings
are taken at few sizes. So what is tested is that every block runs and that the assertions on the
pages hold. `make docs` runs them on the real model.
"""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import peft
import pytest
import tokenizers
import torch
import transformers
import tutorial
from matplotlib import pyplot as plt

import tnlib
import tnlib.testing
import tnlib_adapters
import tnlib_adapters_cli
import tnlib_cli
from tnlib_adapters import quantization

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"```(?:python|\{code-cell\})[^\n]*\n(?::[^\n]*\n)*(.*?)```", re.DOTALL)
PAGES = {
    str(page.relative_to(DOCS)): blocks
    for page in sorted(DOCS.rglob("*.md"))
    if "_build" not in page.parts and (blocks := BLOCK.findall(page.read_text(encoding="utf-8")))
}
SLOW = {"tutorials/distributed.md"}  # starts processes
STEPS = 3
# What a page times or draws at many sizes, and the fewer that do here.
FEWER = {
    "tutorials/planning.md": {
        "*range(1, 256), *range(256, 2049, 64)": "*range(1, 256, 16), *range(256, 2049, 256)",
        "few = (2, 16, 128)": "few = (2,)",
    },
}
REFERENCE = {
    "tnlib": tnlib,
    "testing": tnlib.testing,
    "tnlib_adapters": tnlib_adapters,
    "quantization": quantization,
}
WORDS = ("a", "film", "story", "actor", "plot", "scene", "is", "was", "very", "and")
OPINIONS = (("dull", "bad", "long"), ("good", "fine", "warm"))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder in which the names of the models that the pages use are folders."""
    folder = tmp_path_factory.mktemp("hub")
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = {word: n for n, word in enumerate((*special, *WORDS, *sum(OPINIONS, ())))}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=64,
        **{f"{name[1:-1].lower()}_token": name for name in special},
    )
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=200,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=80,
        pad_token_id=0,
    )
    name = folder / "sentence-transformers" / "all-MiniLM-L6-v2"
    transformers.BertModel(config).save_pretrained(name)
    tokenizer.save_pretrained(name)
    return folder


@pytest.fixture
def sentences(tmp_path):
    """A file of 120 sentences of 40 reviews, in the format of the real one."""
    path = tmp_path / "reviews.txt"
    lines = []
    for n in range(120):
        opinion = OPINIONS[n % 2][n % 3]
        words = (WORDS[n % 7], WORDS[(n * 3) % 10], opinion, f"{n}")
        lines.append(f"{n // 3}_{n}\t{4 * (n % 2) - 2}\t{' '.join(words)}")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def short_trainings(monkeypatch):
    whole = transformers.TrainingArguments.__init__

    def short(self, *arguments, max_steps=STEPS, **options):
        whole(self, *arguments, max_steps=min(max_steps, STEPS), **options)

    monkeypatch.setattr(transformers.TrainingArguments, "__init__", short)


def shortened(page):
    """The blocks of a page at fewer sizes."""
    blocks = PAGES[page]
    for many, few in FEWER.get(page, {}).items():
        assert any(many in block for block in blocks), f"{page} has no longer {many!r}"
        blocks = [block.replace(many, few) for block in blocks]
    return blocks


def run_cell(code, name, names):
    """Run ``code`` as a notebook does: the value of a last expression is the result."""
    tree = ast.parse(code, name)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), names)
    return last and eval(compile(ast.Expression(last.value), name, "eval"), names)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in PAGES],
)
@pytest.mark.usefixtures("short_trainings")
def test_the_code_of_a_page_runs(page, hub, sentences, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tutorial, "fetch", lambda name: sentences)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "examples"))
    place = tmp_path / "page"
    place.mkdir()
    monkeypatch.chdir(place)
    for folder in hub.iterdir():
        (place / folder.name).symlink_to(folder)
    names: dict[str, object] = {"__name__": "__main__"}
    results = [
        run_cell(block, f"{page}, block {number}", names)
        for number, block in enumerate(shortened(page), start=1)
    ]
    plt.close("all")
    assert capfd.readouterr().out.strip() or any(result is not None for result in results)


COMMANDS = sorted(
    {
        line.strip().removeprefix("$ ").split("  #")[0]
        for page in (ROOT / "README.md", *DOCS.rglob("*.md"))
        if "_build" not in page.parts
        for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
        if re.match(r"\s*(\$ )?(tnlib|tnlib-adapters) [a-z]", line)
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_a_page_is_one_that_the_program_takes(command):
    program, *arguments = shlex.split(command)
    parsers = {"tnlib": tnlib_cli.parser, "tnlib-adapters": tnlib_adapters_cli.parser}
    options = parsers[program]().parse_args(arguments)
    assert options.function


@pytest.mark.parametrize("page", REFERENCE)
def test_the_reference_lists_the_public_names_and_no_others(page):
    package = REFERENCE[page]
    text = (DOCS / "reference" / f"{page}.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^   (\w+)$", text, re.MULTILINE)) == sorted(package.__all__)


def _adapted(target, folder):
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    base = transformers.BertModel(config)
    return peft.get_peft_model(base, tnlib_adapters.DoTAConfig(r=2, target_modules=target))


def _occupied(folder):
    _adapted(["query"], folder).save_pretrained(folder / "adapter")
    tnlib_adapters.to_lora(folder / "adapter", folder / "adapter")


def _counted(folder):
    tnlib_adapters.count(_adapted(["query"], folder).base_model.model, _config(["typo"]))


def _config(target):
    return tnlib_adapters.DoTAConfig(r=2, target_modules=target)


REFUSALS = {
    "give ranks= ..., eps= ... or max_params= ...": lambda folder: tnlib.tt_svd(torch.ones(2, 2)),
    "Target modules ... not found in the base model": lambda folder: _adapted(["typo"], folder),
    "... match no linear layer": _counted,
    "entries that matched no module": lambda folder: _adapted(["query", "typo"], folder),
    "... is not empty; name a new folder, or remove this one": _occupied,
    "the tensor is part of an autograd graph": lambda folder: tnlib.tt_svd(
        2 * torch.ones(2, 2, requires_grad=True), 1
    ),
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("quoted", REFUSALS)
def test_what_the_start_page_quotes_is_what_is_said(quoted, tmp_path):
    assert quoted in (DOCS / "start.md").read_text(encoding="utf-8")
    pattern = re.escape(quoted).replace(r"\.\.\.", ".*")
    with pytest.raises((ValueError, OSError, UserWarning), match=pattern):
        REFUSALS[quoted](tmp_path)
