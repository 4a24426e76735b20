"""The directive ``lora-options``: every field of PEFT's LoRA, given to the methods.

An answer is what a configuration says: that it takes the field, under which name, or why not.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import peft
from sphinx.util.docutils import SphinxDirective

from tnlib_adapters.checks import WORDS
from tnlib_adapters.methods import METHODS

# Fields that PEFT sets by itself.
_ITS_OWN = {"auto_mapping", "peft_type", "peft_version"}
# Values of fields that are checked; others take None.
_VALUES: dict[str, Any] = {
    "alpha_pattern": {"q_proj": 2.0},
    "bias": "all",
    "ensure_weight_tying": True,
    "exclude_modules": ["lm_head"],
    "experts": [0],
    "inference_mode": True,
    "layers_pattern": ["layers"],
    "layers_to_transform": [0],
    "lora_alpha": 2.0,
    "lora_dropout": 0.1,
    "init_lora_weights": True,
    "modules_to_save": ["head"],
    "r": 4,
    "rank_pattern": {"q_proj": 2},
    "target_modules": ["q_proj"],
    "target_parameters": ["experts.down_proj"],
    "trainable_token_indices": [1],
    "use_rslora": True,
}


def answers() -> dict[str, dict[str, str]]:
    """What every method says to every field of LoRA, by field and name of the method."""
    names = [f.name for f in dataclasses.fields(peft.LoraConfig) if f.name not in _ITS_OWN]
    return {
        name: {
            kind.__name__.removesuffix("Config"): answer(kind, name) for kind in METHODS.values()
        }
        for name in names
    }


def answer(kind: type, name: str) -> str:
    """What a method says to a field: "works", under which name, or the error."""
    known = {field.name for field in dataclasses.fields(kind)}
    own = kind.size_field if name == "r" else WORDS.get(name, name)
    own = own if own in known else name
    value = _VALUES.get(name)
    more = {"layers_to_transform": [0]} if name == "layers_pattern" else {}
    try:
        kind(**{own: value}, **more)
    except (TypeError, ValueError) as error:
        text = str(error).removeprefix(f"{kind.__name__} ")
        return text.removeprefix(f"has no {name}: ").removeprefix(f"{name}: {kind.__name__} ")
    return "works" if own == name else f"works, as {own}"


class LoraOptions(SphinxDirective):
    """The table; what all methods say alike is said once."""

    def run(self):
        """The table, parsed as reStructuredText."""
        lines = [".. list-table::", "   :header-rows: 1", "", "   * - field", "     - answer"]
        for name, found in answers().items():
            said = {*found.values()}
            text = said.pop() if len(said) == 1 else _each(found)
            lines += [f"   * - ``{name}``", f"     - {text}"]
        return self.parse_text_to_nodes("\n".join(lines))


def _each(found: dict[str, str]) -> str:
    """Answers with the methods that give them."""
    methods: dict[str, list[str]] = {}
    for name, text in found.items():
        methods.setdefault(text, []).append(name)
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in methods.items())


def setup(app):
    """Register the directive."""
    app.add_directive("lora-options", LoraOptions)
    return {"parallel_read_safe": True}
