"""What one checkpoint changed of another, tensor by tensor."""

from __future__ import annotations

from dataclasses import replace

from tnlib.weights.source import Weights
from tnlib.weights.tensor import Difference, WeightTensor


def difference(finetuned: Weights, base: Weights) -> Weights:
    """The changes of all tensors that both have in one shape; the others are problems.

    A LoRA is a change already: of it `base` only says whether it fits.

    Raises
    ------
    ValueError
        If they have no tensor in common.
    """
    if base.is_update:
        raise ValueError(f"{base.label} is a LoRA and no checkpoint; give the base model")
    problems = dict(finetuned.problems)
    changed: dict[str, WeightTensor] = {}
    for name, new in finetuned.tensors.items():
        old = base.tensors.get(name)
        if old is None:
            reason = base.problems.get(name)
            problems[name] = (
                f"cannot be compared: the base's {reason}"
                if reason
                else ("is in the fine-tuned model only")
            )
        elif old.shape != new.shape:
            problems[name] = f"has shape {new.shape}, and {old.shape} in the base"
        else:
            changed[name] = new if finetuned.is_update else Difference(new, old)
    if not changed:
        raise ValueError(
            f"{finetuned.label} and {base.label} have no tensor of one name and shape; is "
            f"{base.label} the base of it?"
        )
    tied = []
    for name in base.tensors:
        if not finetuned.is_update and name not in finetuned.tensors and name not in problems:
            tied.append(name)
    notes = finetuned.notes
    if tied:
        more = f" and {len(tied) - 1} others" if len(tied) > 1 else ""
        notes += (f"{tied[0]}{more} of the base are not in the fine-tuned model",)
    label = f"{finetuned.label} less {base.label}"
    if finetuned.is_update:
        label = finetuned.label
    return replace(
        finetuned, label=label, tensors=changed, problems=problems, notes=notes, is_update=True
    )
