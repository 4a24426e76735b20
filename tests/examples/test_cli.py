"""The demo's tables, files and error messages, and the tuning script's choice of a rate."""

from __future__ import annotations

import json
from pathlib import Path

import demo
import pytest
import torch
import tune_sentiment
from assets import DemoError
from report import Result, format_table, results_table, save_picture
from sentiment import METHODS, Record

RECORD = Record(73_778, 301_520, [0, 20, 40], [0.69, 0.5, 0.4], 0.3)
RESULTS = [Result(name, 9, 0.002, 0.83, RECORD) for name in METHODS.values()]


def test_table_is_aligned() -> None:
    table = format_table(("name", "n"), [("a", "1,000"), ("longer", "2")])
    assert table.split("\n") == [
        "name        n",
        "------  -----",
        "a       1,000",
        "longer      2",
    ]


def test_results_table_has_a_line_a_method() -> None:
    lines = results_table(RESULTS).split("\n")
    assert len(lines) == 2 + len(METHODS)
    expected = ["DoTA", "9", "0.002", "73,778", "302", "kB", "0.400", "83.0%", "0.300"]
    assert lines[2].split() == expected


def test_picture(tmp_path: Path) -> None:
    save_picture(RESULTS, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_mpo_table_shows_errors_that_fall_with_the_rank() -> None:
    weight = torch.outer(torch.arange(1.0, 65), torch.ones(64))
    table = demo.mpo_table({"smooth": weight})
    assert "64x64" in table
    assert "0.000" in table


def test_the_shipped_rates_can_be_read() -> None:
    rates = demo.read_rates(tune_sentiment.RATES_FILE)
    assert set(rates) == set(METHODS)
    assert all(0 < rate < 0.1 for rate in rates.values())


@pytest.mark.parametrize("content", [None, "{", "{}", '{"chosen": {"lora": 0.1}}', "[]"])
def test_unusable_rates_say_how_to_make_them(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "rates.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DemoError, match=r"cannot read the learning rates.*tune_sentiment\.py"):
        demo.read_rates(path)


def test_errors_are_one_message_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "none.json")
    assert demo.main(["--learning-rates", missing, "--output", str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("error: cannot read the learning rates")
    assert output.out == ""


def test_options_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.parse_arguments(["--steps", "0"])
    assert "expected a whole number of at least 1, got 0" in capsys.readouterr().err


def test_downloads_are_announced_only_where_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TNLIB_CACHE", str(tmp_path))
    demo.announce_downloads(demo.parse_arguments(["--model", "my-folder"]))
    assert capsys.readouterr().out == "Downloading vaderSentiment 3.3.2 (3 MB, once) ...\n"


def runs_of(losses: dict[float, tuple[float, float]]) -> list[tune_sentiment.Run]:
    return [
        {"method": "lora", "learning_rate": rate, "seed": seed, "loss": loss}
        for rate, pair in losses.items()
        for seed, loss in enumerate(pair)
    ]


def test_the_rate_with_the_lowest_mean_loss_is_chosen() -> None:
    runs = runs_of({0.001: (0.5, 0.5), 0.01: (0.4, 0.5), 0.1: (0.1, float("nan"))})
    assert tune_sentiment.choose(runs) == {"lora": 0.01}
    assert tune_sentiment.at_edge(runs) == []
    assert tune_sentiment.at_edge(runs[:4]) == ["LoRA"]
    assert "0.4500" in tune_sentiment.grid_table(runs)


def test_saved_runs_are_found_again_for_the_same_setup_only(tmp_path: Path) -> None:
    path, runs = tmp_path / "rates.json", runs_of({0.01: (0.4, 0.5)})
    assert tune_sentiment.load_runs(path, {"steps": 3}) == []
    tune_sentiment.save_runs(path, {"steps": 3}, runs)
    assert tune_sentiment.load_runs(path, {"steps": 3}) == runs
    assert tune_sentiment.load_runs(path, {"steps": 4}) == []
    assert json.loads(path.read_text())["chosen"] == {"lora": 0.01}
    assert [p.name for p in tmp_path.iterdir()] == ["rates.json"]
