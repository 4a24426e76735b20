"""The demo's task: which model, which data, which sizes."""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import transformers
from assets import fetch
from peft import PeftModel
from sentences import Splits, read_sentences, split_by_review
from sentiment import (
    Encoder,
    Record,
    Settings,
    Source,
    choose_ranks,
    make_encoder,
    make_model,
    train,
)


@dataclass(frozen=True)
class Task:
    """A model to adapt, the sentences, and each method's rank."""

    source: Source
    splits: Splits
    encoder: Encoder
    ranks: dict[str, int]

    def train(self, method: str, settings: Settings, title: str) -> tuple[PeftModel, Record]:
        """Make and train one model."""
        model = make_model(self.source, method, self.ranks[method], settings.seed)
        return model, train(model, self.encoder, self.splits, settings, title)


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which model is trained on what, and for how long."""
    defaults = Settings(learning_rate=0.0)
    parser.add_argument("--model", help="folder or hub id of an encoder (default: MiniLM, fetched)")
    parser.add_argument(
        "--data",
        type=Path,
        help="UTF-8 file with lines id<TAB>rating<TAB>text, where the rating's sign is the label "
        "(default: VADER's film-review sentences, fetched)",
    )
    parser.add_argument(
        "--target-modules",
        nargs="+",
        default=["query", "value"],
        metavar="NAME",
        help="linear layers to adapt (default: query value, BERT's names)",
    )
    parser.add_argument(
        "--rank",
        type=positive,
        default=9,
        help="DoTA's rank; LoRA's follows from it, for the same size (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=positive,
        default=defaults.steps,
        help="training steps of each method (default: %(default)s)",
    )
    parser.add_argument("--no-progress", action="store_true", help="show no progress bars")


def positive(text: str) -> int:
    """An argument that has to be a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return number


def positive_number(text: str) -> float:
    """An argument that has to be a positive number."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return number


def load_task(options: argparse.Namespace) -> Task:
    """Fetch and read what the options name."""
    source = Source(options.model or str(fetch("minilm")), tuple(options.target_modules))
    splits = split_by_review(read_sentences(options.data or fetch("vader-movies")))
    return Task(source, splits, make_encoder(source), choose_ranks(source, options.rank))


def silence() -> None:
    """Hush what is expected here: that the classifier head is new, and a note meant for peft."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)


def describe(splits: Splits) -> str:
    """How many sentences each part has."""
    parts: dict[str, Sequence[object]] = vars(splits)
    return ", ".join(f"{len(sentences):,} {name}" for name, sentences in parts.items())
