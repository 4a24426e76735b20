"""What the tutorials share: film reviews, a classifier, its training and its test.

    train, test = reviews(tokenizer)
    model = fit(peft.get_peft_model(classifier(name), config), tokenizer, train, rate=0.01)
    print(accuracy(model, tokenizer, test))

where `tokenizer` and `name` belong to an encoder of the hub.
"""

from __future__ import annotations

from typing import Any

import torch
from assets import fetch
from sentences import read_sentences, split_by_review
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

Rows = list[dict[str, Any]]


def reviews(
    tokenizer: PreTrainedTokenizerBase, n_test: int = 300, max_length: int = 32
) -> tuple[Rows, Rows]:
    """Sentences of film reviews with the label 1 (positive) or 0, tokenised.

    Parameters
    ----------
    tokenizer
        The model's.
    n_test
        Number of test sentences; no review is in both parts.
    max_length
        Longer sentences are cut, in tokens.

    Returns
    -------
    train, test : list of dict
        One dictionary a sentence, as `transformers.DataCollatorWithPadding` takes them.
    """
    splits = split_by_review(read_sentences(fetch("vader-movies")))
    parts = []
    for sentences in (splits.train, splits.test[:n_test]):
        ids = tokenizer([s.text for s in sentences], truncation=True, max_length=max_length)
        rows = zip(ids["input_ids"], ids["attention_mask"], sentences, strict=True)
        parts.append([{"input_ids": i, "attention_mask": m, "labels": s.label} for i, m, s in rows])
    return parts[0], parts[1]


def classifier(name: str) -> PreTrainedModel:
    """A pretrained encoder with a new head of two classes, the same one at every call.

    Without dropout: less than one pass over the data is made, so there is nothing to regularise.
    """
    torch.manual_seed(0)
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return AutoModelForSequenceClassification.from_pretrained(name, num_labels=2, **off)


def fit(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Rows, rate: float, steps: int = 20
) -> Any:
    """Train a model in place, on the same batches of 32 rows whatever the model; returns it.

    The learning rate rises over three steps and falls to zero.
    """
    arguments = TrainingArguments(
        "out",
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=rate,
        warmup_steps=3,
        seed=0,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model


@torch.inference_mode()
def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows) -> float:
    """The share of rows whose label the model finds."""
    model.eval()
    correct = 0
    by_length = sorted(rows, key=lambda row: len(row["input_ids"]))
    for start in range(0, len(rows), 32):
        batch = tokenizer.pad(by_length[start : start + 32], return_tensors="pt")
        labels = batch.pop("labels")
        correct += int((model(**batch).logits.argmax(-1) == labels).sum())
    return correct / len(rows)
