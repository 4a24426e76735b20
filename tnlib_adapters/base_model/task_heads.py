"""Modules that PEFT trains in full for a task."""

from __future__ import annotations

TASK_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
ALL_TASK_HEADS = tuple(dict.fromkeys(head for heads in TASK_HEADS.values() for head in heads))
