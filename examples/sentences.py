"""Labelled sentences: reading them, and splitting them so that no review is in two parts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from assets import DemoError

SPLIT_SEED = 0  # never the user's seed: the test sentences must stay unseen whatever the seed
NEUTRAL = 0.5  # a sentence whose mean rating is at most this far from zero has no clear label


@dataclass(frozen=True)
class Sentence:
    """One labelled sentence; `label` is 1 for positive and 0 for negative."""

    review: str
    text: str
    label: int


@dataclass(frozen=True)
class Splits:
    """Three disjoint lists of sentences; no review is in two of them."""

    train: list[Sentence]
    validation: list[Sentence]
    test: list[Sentence]


def label_of(rating: float) -> int | None:
    """1 for a positive mean rating, 0 for a negative one, None for one that is near neutral."""
    if abs(rating) <= NEUTRAL:
        return None
    return int(rating > 0)


def read_sentences(path: Path) -> list[Sentence]:
    """Read a UTF-8 file of lines ``id<TAB>rating<TAB>text`` without a header.

    This is the format of the VADER archive. The sign of the rating is the label, and ratings
    within 0.5 of zero are left out. Ids of the form ``review_sentence`` name the review that a
    sentence is from; any other id is a review of its own. Repeated texts are left out.

    Raises
    ------
    DemoError
        If the file cannot be read, has another format, or has only one label.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DemoError(f"cannot read {path} as UTF-8 text: {error}") from error
    sentences: dict[str, Sentence] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, rating, text = parse_line(line, f"{path}, line {number}")
        label = label_of(rating)
        if label is not None:
            sentences.setdefault(text, Sentence(name.split("_")[0], text, label))
    if {sentence.label for sentence in sentences.values()} != {0, 1}:
        raise DemoError(
            f"{path} needs both positive and negative sentences, with ratings above {NEUTRAL} "
            f"and below -{NEUTRAL}; got {len(sentences)} sentences with one label or none"
        )
    return list(sentences.values())


def parse_line(line: str, where: str) -> tuple[str, float, str]:
    """The id, rating and text of one line; `where` names it in the error message."""
    fields = line.split("\t")
    expected = f"{where}: expected id<TAB>rating<TAB>text, the rating a number such as -1 or 2.5"
    if len(fields) != 3:
        raise DemoError(f"{expected}; got {len(fields)} tab-separated field(s): {line[:60]!r}")
    try:
        return fields[0], float(fields[1]), fields[2].strip()
    except ValueError:
        raise DemoError(f"{expected}; got the rating {fields[1]!r}") from None


def split_by_review(
    sentences: Sequence[Sentence], n_validation: int = 500, n_test: int = 1000
) -> Splits:
    """Shuffle the reviews, then deal whole reviews to test, validation and training.

    Small data gives at most a tenth to validation and a fifth to test. The split is always the
    same for the same sentences.
    """
    reviews: dict[str, list[Sentence]] = {}
    for sentence in sentences:
        reviews.setdefault(sentence.review, []).append(sentence)
    order = list(reviews.values())
    random.Random(SPLIT_SEED).shuffle(order)
    n_test = min(n_test, len(sentences) // 5)
    n_validation = min(n_validation, len(sentences) // 10)
    splits = Splits(train=[], validation=[], test=[])
    for review in order:
        if len(splits.test) < n_test:
            splits.test.extend(review)
        elif len(splits.validation) < n_validation:
            splits.validation.extend(review)
        else:
            splits.train.extend(review)
    if not (splits.train and splits.validation and splits.test):
        raise DemoError(
            f"cannot split {len(sentences)} sentences of {len(order)} review(s) into training, "
            "validation and test parts; give at least 10 reviews"
        )
    return splits
