"""The demo's tables, files and error messages."""

from __future__ import annotations

from pathlib import Path

import demo
import pytest
import torch
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


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "fast"])
def test_a_rate_that_is_none_is_refused(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.parse_arguments(["--learning-rate", rate])
    assert f"expected a positive number, got {rate}" in capsys.readouterr().err


def test_errors_are_one_message_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    path.write_text("")
    assert demo.main(["--output", str(path / "folder")]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("error: cannot make the folder")
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
