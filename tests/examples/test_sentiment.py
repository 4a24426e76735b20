"""The demo's models and training loop, on a tiny random BERT. No network."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
import transformers
from assets import DemoError
from peft import PeftModel
from sentences import Sentence, Splits, split_by_review
from sentiment import (
    METHODS,
    Encoder,
    Settings,
    Source,
    adapter_parameters,
    batch_order,
    choose_ranks,
    evaluate,
    learning_rate_factor,
    make_encoder,
    make_model,
    train,
)

from tests.tolerances import rounding

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
# A loss has sums of at most a few hundred terms behind it: widths of 32, 2 layers, 56 sentences.
ROUNDED = rounding(torch.float32, 400)

WORDS = ["good", "fun", "bad", "dull", "film", "plot", "the", "a"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A folder with a random two-layer BERT and its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return Source(str(folder))


@pytest.fixture(scope="module")
def splits() -> Splits:
    sentences = [
        Sentence(str(number), " ".join(words), int(words[0] in ("good", "fun")))
        for number, words in enumerate(itertools.permutations(WORDS, 2))
    ]
    return split_by_review(sentences)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_at_the_same_loss_and_trains(
    method: str, source: Source, splits: Splits
) -> None:
    encoder = make_encoder(source)
    start = evaluate(make_model(source, "lora", 1, seed=0), encoder, splits.validation)[0]
    settings = Settings(0.01, steps=3, batch_size=8, progress=False)
    record = train(make_model(source, method, 2, seed=0), encoder, splits, settings)
    assert record.validation_losses[0] == pytest.approx(start, rel=ROUNDED)
    assert record.validation_losses[1] != record.validation_losses[0]


def test_lora_gets_the_rank_that_matches_dotas_size(source: Source) -> None:
    ranks = choose_ranks(source, 3)
    sizes = {m: adapter_parameters(make_model(source, m, r, seed=0)) for m, r in ranks.items()}
    assert ranks["dota"] == ranks["dota-random"] == 3
    assert sizes["dota"] == sizes["dota-random"]
    assert abs(sizes["lora"] - sizes["dota"]) <= 4 * (16 + 16) / 2


def test_trains_and_records(source: Source, splits: Splits) -> None:
    model = make_model(source, "lora", 2, seed=0)
    before = {name: value.clone() for name, value in model.named_parameters()}
    settings = Settings(0.01, steps=3, batch_size=8, validate_every=2, progress=False)
    record = train(model, make_encoder(source), splits, settings)
    assert record.validation_steps == [0, 2, 3]
    assert len(record.validation_losses) == 3
    assert all(map(math.isfinite, record.validation_losses))
    assert record.trainable_parameters == 4 * 2 * (16 + 16) + 2 * 16 + 2
    assert record.adapter_bytes > 4 * record.trainable_parameters
    assert record.seconds_per_step > 0
    for name, value in model.named_parameters():
        assert value.requires_grad != torch.equal(value, before[name]), name


def test_training_learns(source: Source, splits: Splits) -> None:
    model = make_model(source, "lora", 4, seed=0)
    settings = Settings(0.03, steps=60, batch_size=16, validate_every=60, progress=False)
    losses = train(model, make_encoder(source), splits, settings).validation_losses
    assert losses[-1] < losses[0] - 0.1


def test_the_same_seed_gives_the_same_run(source: Source, splits: Splits) -> None:
    settings = Settings(0.01, steps=2, batch_size=4, progress=False)
    encoder = make_encoder(source)
    runs = [train(make_model(source, "lora", 2, 5), encoder, splits, settings) for _ in range(2)]
    assert runs[0].validation_losses == runs[1].validation_losses


def head(model: PeftModel) -> torch.Tensor:
    return dict(model.named_parameters())[
        "base_model.model.classifier.modules_to_save.default.weight"
    ]


def test_the_head_depends_on_the_seed_alone(source: Source) -> None:
    weight = head(make_model(source, "lora", 2, seed=3))
    assert torch.equal(weight, head(make_model(source, "lora", 4, seed=3)))
    assert not torch.equal(weight, head(make_model(source, "lora", 2, seed=4)))


def test_adapter_parameters_leave_out_the_head(source: Source) -> None:
    assert adapter_parameters(make_model(source, "lora", 3, seed=0)) == 4 * 3 * (16 + 16)


def test_unknown_targets_name_the_layers_there_are(source: Source) -> None:
    wrong = Source(source.model, ("q_proj", "value"))
    with pytest.raises(DemoError, match=r"no linear layers named q_proj;.*key, query, value"):
        make_model(wrong, "lora", 2, seed=0)


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=r"cannot load the model (.|\n)*Give --model"):
        make_model(Source(str(tmp_path)), "lora", 2, seed=0)


def test_evaluate_is_exact_and_ignores_the_order(source: Source, splits: Splits) -> None:
    model, encoder = make_model(source, "lora", 2, seed=0), make_encoder(source)
    loss, accuracy = evaluate(model, encoder, splits.train)
    model.eval()
    with torch.no_grad():
        inputs, labels = encoder(splits.train)
        logits = model(**inputs).logits
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    assert loss == pytest.approx(expected, rel=ROUNDED)
    # Sentences whose two logits are equal but for rounding may be counted either way.
    close = int(((logits[:, 0] - logits[:, 1]).abs() < ROUNDED).sum())
    expected = (logits.argmax(1) == labels).double().mean().item()
    assert abs(accuracy - expected) <= close / len(labels) + ROUNDED
    assert evaluate(model, encoder, splits.train[::-1])[0] == pytest.approx(loss, rel=ROUNDED)


def test_encoder_pads_to_the_longest_and_cuts(source: Source) -> None:
    encoder = Encoder(make_encoder(source).tokenizer, max_length=5)
    short, long = Sentence("1", "good", 1), Sentence("2", "a film " * 9, 0)
    inputs, labels = encoder([short, short])
    assert inputs["input_ids"].shape == (2, 3)
    assert encoder([short, long])[0]["input_ids"].shape == (2, 5)
    assert labels.tolist() == [1, 1]


def test_batches_cover_every_sentence_once_a_pass() -> None:
    lengths = list(range(100, 0, -1))
    batches = list(itertools.islice(batch_order(lengths, 8, seed=1), 13))
    assert sorted(itertools.chain(*batches)) == list(range(100))
    again = list(itertools.islice(batch_order(lengths, 8, seed=1), 13))
    assert batches == again
    assert batches != list(itertools.islice(batch_order(lengths, 8, seed=2), 13))


def test_batches_are_alike_in_length() -> None:
    lengths = [number % 50 for number in range(1000)]
    for batch in itertools.islice(batch_order(lengths, 8, seed=0), 20):
        assert max(lengths[i] for i in batch) - min(lengths[i] for i in batch) < 25


def test_learning_rate_warms_up_then_decays_to_nearly_zero() -> None:
    factors = [learning_rate_factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 0.02
    assert learning_rate_factor(0, 1) == 1.0
