"""The command ``tnlib survey``: what it prints, writes and refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import tnlib_cli

ROOT = Path(__file__).parents[3]


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays = {f"layers.{k}.q.weight": rng.standard_normal((24, 30)) for k in range(3)}
    save_file(arrays, folder / "model.safetensors")
    return folder


def test_a_survey_is_printed_and_written(model, tmp_path, capsys):
    output = tmp_path / "out"
    options = ["--shapes", "mpo-2", "--budget", "0.1", "0.3", "--eps", "0.5", "--workers", "1"]
    code = tnlib_cli.main(["survey", str(model), "--output", str(output), "--quiet", *options])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert out.startswith("kind")
    assert out.strip().endswith(f"written to {output / 'report.html'}")
    assert (output / "table.txt").read_text() in out
    # The same command again does nothing anew, and says the same.
    assert tnlib_cli.main(["survey", str(model), "--output", str(output), "--quiet", *options]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--select", "("], "no regular expression"),
        (["--budget", "3"], "at most 1"),
        (["--base", "no/such/folder.safetensors"], "there is no"),
        (["--scheduler", "tcp://127.0.0.1:9"], "no Dask scheduler"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_what_fails_is_one_line(model, tmp_path, capsys, options, message):
    code = tnlib_cli.main(["survey", str(model), "--output", str(tmp_path / "out"), *options])
    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    "arguments",
    [[], ["survey"], ["survey", "x"], ["survey", "x", "--output", "y", "--workers", "0"]],
)
def test_wrong_usage_is_told_by_the_parser(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        tnlib_cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: tnlib" in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    script = (
        "import sys, tnlib_cli\n"
        "try:\n"
        "    tnlib_cli.main(['survey', '--help'])\n"
        "except SystemExit:\n"
        "    sys.exit(bool({'numpy', 'torch', 'tnlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_survey_needs_no_torch(model, tmp_path):
    script = (
        "import sys, tnlib_cli\n"
        f"code = tnlib_cli.main(['survey', {str(model)!r}, '--output', {str(tmp_path / 'o')!r}, "
        "'--workers', '1'])\n"
        "sys.exit(code or bool({'torch', 'transformers', 'peft'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_survey_that_is_stopped_goes_on(tmp_path):
    """After a signal to terminate, the same command finishes what is left."""
    rng = np.random.default_rng(0)
    arrays = {f"layers.{k}.q.weight": rng.standard_normal((200, 300)) for k in range(60)}
    save_file(arrays, tmp_path / "model.safetensors")
    output = tmp_path / "out"
    program = [sys.executable, "-c", "import sys, tnlib_cli; sys.exit(tnlib_cli.main())"]
    command = [*program, "survey", str(tmp_path / "model.safetensors"), "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, "--workers", "1"], env=environment, cwd=ROOT)
    records = output / "records.jsonl"
    while process.poll() is None and not (records.is_file() and records.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() in (0, 143)  # it may have been faster than the signal
    done = subprocess.run([*command, "--workers", "1"], env=environment, cwd=ROOT)
    assert done.returncode == 0
    assert len(records.read_text().splitlines()) == 61
