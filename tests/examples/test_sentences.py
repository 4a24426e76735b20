"""Reading and splitting the demo's sentences."""

from __future__ import annotations

from pathlib import Path

import pytest
from assets import DemoError
from sentences import Sentence, label_of, read_sentences, split_by_review


@pytest.mark.parametrize(
    ("rating", "label"), [(2.3, 1), (-0.6, 0), (0.5, None), (-0.5, None), (0.0, None), (0.51, 1)]
)
def test_label(rating: float, label: int | None) -> None:
    assert label_of(rating) == label


def write(folder: Path, text: str) -> Path:
    path = folder / "data.tsv"
    path.write_bytes(text.encode())
    return path


def test_reads_lines_ids_and_labels(tmp_path: Path) -> None:
    text = "1_1\t2.5\tGood\u2028fun.\r\n1_2\t0.1\tHm.\r\n\r\n7\t-3\tBad.\r\n8\t-3\tBad."
    assert read_sentences(write(tmp_path, text)) == [
        Sentence("1", "Good\u2028fun.", 1),
        Sentence("7", "Bad.", 0),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,label\n", r"line 1: expected id<TAB>rating<TAB>text.*got 1 tab-separated field"),
        ("1\t2.0\tGood\n2\tbad\tBad\n", r"line 2: expected.*got the rating 'bad'"),
        ("1\t2.0\tGood\n2\t0.0\tBad\n", "needs both positive and negative.*got 1 sentences"),
        ("", "got 0 sentences"),
    ],
)
def test_unusable_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DemoError, match=message):
        read_sentences(write(tmp_path, text))


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "x", tmp_path / "missing"):
        with pytest.raises(DemoError, match=f"cannot read {path} as UTF-8 text"):
            read_sentences(path)


def many(reviews: int, each: int) -> list[Sentence]:
    return [
        Sentence(str(review), f"{review} {number}", number % 2)
        for review in range(reviews)
        for number in range(each)
    ]


def test_splits_share_no_review_and_lose_no_sentence() -> None:
    sentences = many(reviews=60, each=5)
    splits = split_by_review(sentences, n_validation=20, n_test=40)
    parts = [splits.train, splits.validation, splits.test]
    reviews = [{sentence.review for sentence in part} for part in parts]
    assert sum(map(len, reviews)) == 60
    assert set.union(*reviews) == {str(review) for review in range(60)}
    assert [len(part) for part in parts] == [240, 20, 40]


def test_the_split_is_always_the_same_and_shuffled() -> None:
    sentences = many(reviews=100, each=1)
    assert split_by_review(sentences) == split_by_review(sentences)
    assert split_by_review(sentences).test != sentences[:20]


def test_too_few_reviews() -> None:
    with pytest.raises(DemoError, match="40 sentences of 2 review"):
        split_by_review(many(reviews=2, each=20))
