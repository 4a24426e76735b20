"""The pages' Python runs as it is printed, page by page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[1] / "docs"
RUN = (
    "planning.md",
    "ranks.md",
    "adapters.md",
    "own_method.md",
    "peft.md",
    "speed.md",
    "exchange.md",
    "quantization.md",
)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("page", RUN)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(), re.DOTALL):
        exec(block, names)
    assert {"mpo", "plans", "view", "merged", "model"} & set(names)
