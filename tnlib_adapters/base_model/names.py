"""Names that PEFT gives and expects."""

from __future__ import annotations

# What PEFT's wrapper puts before the names of the model it wraps.
PREFIX = "base_model.model."
# Modules that PEFT trains in full for a task.
TASK_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
ALL_TASK_HEADS = tuple(dict.fromkeys(head for heads in TASK_HEADS.values() for head in heads))


def public_name(name: str) -> str:
    """The name of a layer in the model without adapters."""
    return name.removeprefix(PREFIX).removesuffix(".base_layer").removesuffix(".base")
