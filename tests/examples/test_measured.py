"""Tables of measured numbers, as pages show them."""

from __future__ import annotations

from measured import Table


def test_a_table_is_markdown_with_numbers_on_the_right():
    table = Table(["method", "values"], [["DoTA", 12], ["LoRA", "3"]])
    assert table._repr_markdown_().splitlines() == [
        "| method | values |",
        "| --- | --: |",
        "| DoTA | 12 |",
        "| LoRA | 3 |",
    ]
