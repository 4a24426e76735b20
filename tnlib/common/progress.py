"""Progress bars of work that may last."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

# Seconds of work after which a bar appears.
_DELAY = 2.0


def bar(items: Iterable[T], what: str, shown: bool) -> Iterable[T]:
    """`items`, with a bar on the standard error stream if going through them takes a while."""
    return tqdm(items, desc=what, disable=not shown, delay=_DELAY)
