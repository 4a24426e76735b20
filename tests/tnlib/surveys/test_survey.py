"""A survey is the same however it was run: at once, in pieces, by one process or several."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import tnlib
from tnlib.surveys import running
from tnlib.surveys.options import Options
from tnlib.surveys.store import RECORDS, Store
from tnlib.surveys.tasks import Done

ROOT = Path(__file__).parents[3]


def model(layers=4, seed=0):
    rng = np.random.default_rng(seed)
    found = {}
    for k in range(layers):
        for name, shape in {"q_proj": (24, 24), "up_proj": (36, 24), "down_proj": (24, 36)}.items():
            found[f"model.layers.{k}.{name}.weight"] = rng.standard_normal(shape)
        found[f"model.layers.{k}.norm.weight"] = rng.standard_normal(24)
    found["model.embed.weight"] = rng.standard_normal((60, 24))
    return {name: value.astype(np.float32) for name, value in found.items()}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    save_file(model(), tmp_path / "model" / "model.safetensors")
    return tmp_path


@pytest.fixture
def one_rounding(request):
    """Runs are compared to 1e-12, which holds where every product is rounded as it was before."""
    if request.config.pluginmanager.has_plugin("tests.perturbed"):
        pytest.skip("products are rounded in another way every time")


def comparable(records):
    """Records by what they are of, without the time they took."""
    return {
        (r["record"], r["name"]): {k: v for k, v in r.items() if k != "seconds"} for r in records
    }


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        _assert_close(first[key], second[key], str(key))


def _assert_close(first, second, where):
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            _assert_close(first[key], second[key], f"{where} {key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for k, pair in enumerate(zip(first, second, strict=True)):
            _assert_close(*pair, f"{where} {k}")
    elif isinstance(first, float):
        assert abs(first - second) <= 1e-12 * max(1.0, abs(first)), where
    else:
        assert first == second, where


def lines(path):
    return [json.loads(line) for line in (path / RECORDS).read_text().splitlines()]


@pytest.mark.usefixtures("one_rounding")
def test_files_arrays_and_modules_are_surveyed_alike(folder):
    arrays = model()
    module = torch.nn.Module()
    for name, value in arrays.items():
        inner = module
        *path, leaf = name.split(".")
        for part in path:
            if not hasattr(inner, part):
                inner.add_module(part, torch.nn.Module())
            inner = getattr(inner, part)
        inner.register_parameter(leaf, torch.nn.Parameter(torch.from_numpy(value)))
    before = {name: value.copy() for name, value in arrays.items()}
    found = [
        comparable(tnlib.survey(source, progress=False).records)
        for source in (arrays, module, folder / "model", folder / "model" / "model.safetensors")
    ]
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])
    assert_same(found[0], found[3])
    assert len([key for key in found[0] if key[0] == "matrix"]) == 13
    assert len([key for key in found[0] if key[0] == "stack"]) == 3
    for name, value in before.items():
        np.testing.assert_array_equal(arrays[name], value)


@pytest.mark.usefixtures("one_rounding")
def test_two_processes_find_what_one_does(folder):
    one = tnlib.survey(folder / "model", output=folder / "one", workers=1)
    two = tnlib.survey(folder / "model", output=folder / "two", workers=2)
    assert_same(comparable(one.records), comparable(two.records))
    assert_same(comparable(lines(folder / "one")), comparable(lines(folder / "two")))
    assert {path.name for path in (folder / "one").iterdir()} == {
        "records.jsonl",
        "report.html",
        "survey.json",
        "table.txt",
    }


@pytest.mark.usefixtures("one_rounding")
def test_a_killed_survey_goes_on_where_it_was(folder):
    whole = tnlib.survey(folder / "model", output=folder / "whole", workers=1)
    target = folder / "killed"
    script = (
        "import os, signal, sys, tnlib\n"
        "from tnlib.surveys.store import Store\n"
        "add = Store.add\n"
        "def counted(self, key, done):\n"
        "    add(self, key, done)\n"
        "    if len(self.records) == 5:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "Store.add = counted\n"
        f"tnlib.survey({str(folder / 'model')!r}, output={str(target)!r}, workers=1)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment())
    assert done.returncode == -signal.SIGKILL
    first = lines(target)
    assert len(first) == 5
    with (target / RECORDS).open("ab") as file:
        file.write(b'{"record": "matrix", "name": "half of a')
    resumed = tnlib.survey(folder / "model", output=target, workers=1)
    assert_same(comparable(resumed.records), comparable(whole.records))
    # What was done is as it was, the time it took included: it was not done again.
    after = {(r["record"], r["name"]): r for r in lines(target)}
    for record in first:
        assert after[record["record"], record["name"]] == record


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_survey_is_not_continued_with_another_question(folder):
    tnlib.survey(folder / "model", output=folder / "out", select="q_proj")
    with pytest.raises(FileExistsError, match="options"):
        tnlib.survey(folder / "model", output=folder / "out", select="up_proj")
    changed = load_file(folder / "model" / "model.safetensors")
    changed["model.layers.0.q_proj.weight"] *= 2
    save_file(changed, folder / "model" / "model.safetensors")
    with pytest.raises(FileExistsError, match="fingerprint"):
        tnlib.survey(folder / "model", output=folder / "out", select="q_proj")


def test_folders_with_something_else_are_left_alone(folder):
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match="not empty"):
        tnlib.survey(folder / "model", output=folder / "mine")
    with pytest.raises(ValueError, match="is read"):
        tnlib.survey(folder / "model", output=folder / "model")
    with pytest.raises(FileExistsError, match="not empty"):
        tnlib.survey(folder / "model", output=folder / "mine" / "thesis.txt")
    assert [path.name for path in (folder / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(TypeError, match="output"):
        tnlib.survey(folder / "model", output=3)


def test_what_cannot_be_decomposed_stops_nothing():
    arrays = model(2)
    arrays["model.layers.1.q_proj.weight"][3, 3] = np.nan
    found = tnlib.survey(arrays, progress=False)
    assert len(found.matrices) == 6
    assert "nan" in found.failures["model.layers.1.q_proj"]
    assert "nan" in found.failures["model.layers.*.q_proj"]
    assert "2 could not be looked at" in str(found)


def test_zero_and_odd_matrices_are_surveyed():
    arrays = {
        "zero.weight": np.zeros((4, 6)),
        "row.weight": np.ones((1, 9)),
        "one.weight": np.ones((1, 1)),
        "prime.weight": np.random.default_rng(0).standard_normal((13, 17)),
        "huge.weight": np.full((5, 6), 1e200),
        "tiny.weight": np.full((5, 6), 1e-200),
        "half.weight": np.full((5, 6), 3e4, np.float16),
    }
    found = tnlib.survey(arrays, progress=False)
    assert not found.failures
    norms = {matrix.name: matrix.norm for matrix in found.matrices}
    assert norms["zero"] == 0
    assert norms["huge"] == pytest.approx(1e200 * np.sqrt(30))
    assert norms["tiny"] == pytest.approx(1e-200 * np.sqrt(30))
    assert norms["half"] == pytest.approx(np.float64(np.float16(3e4)) * np.sqrt(30), rel=1e-6)
    json.dumps(found.records, allow_nan=False)


def test_selection_is_by_name():
    found = tnlib.survey(model(3), select="proj", exclude=r"layers\.1\.|down", progress=False)
    assert [matrix.name for matrix in found.matrices] == [
        f"model.layers.{k}.{name}" for k in (0, 2) for name in ("q_proj", "up_proj")
    ]


BAD_CALLS = [
    ({"select": "("}, ValueError, "no regular expression"),
    ({"select": 3}, TypeError, "regular expression"),
    ({"select": "nothing"}, ValueError, "nothing is selected"),
    ({"shapes": ["mpo-1"]}, ValueError, "'mpo-2'"),
    ({"shapes": ["tt-3"]}, ValueError, "even number"),
    ({"budget": 2}, ValueError, "at most 1"),
    ({"budget": []}, ValueError, "above 0"),
    ({"budget": "much"}, TypeError, "number"),
    ({"eps": 0}, ValueError, "above 0"),
    ({"dtype": "float16"}, ValueError, "float32, float64"),
    ({"device": "abacus"}, (ValueError, RuntimeError, TypeError), "abacus"),
    ({"workers": 0}, ValueError, "workers"),
    ({"exact_side": 0}, ValueError, "exact_side"),
    ({"progress": "yes"}, TypeError, "progress"),
    ({"base": {"x": np.ones((2, 2))}}, ValueError, "no tensor of one name"),
    ({"verbose": True}, TypeError, "progress"),
]


@pytest.mark.parametrize(("given", "kind", "message"), BAD_CALLS)
def test_wrong_arguments_are_refused_before_anything_is_done(tmp_path, given, kind, message):
    with pytest.raises(kind, match=message):
        tnlib.survey(model(1), output=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_torch_computes_the_same(folder):
    numpy = tnlib.survey(model(2), select="q_proj", dtype="float64", progress=False)
    other = tnlib.survey(model(2), select="q_proj", dtype="float64", device="cpu", progress=False)
    for first, second in zip(numpy.matrices, other.matrices, strict=True):
        assert first.norm == pytest.approx(second.norm, rel=1e-9)
        assert first.low_rank[-1][2] == pytest.approx(second.low_rank[-1][2], rel=1e-6)


def test_a_full_disk_leaves_whole_lines(tmp_path):
    """A write that stops half-way, as on a full disk, is taken back."""
    store = Store(tmp_path / "out", {"source": "x"})
    store.add("matrix a", Done({"record": "matrix", "name": "a", "seconds": 1.0}))
    size = (tmp_path / "out" / RECORDS).stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, limits[1]))
    try:
        with pytest.raises(OSError, match=r"large|full"):
            store.add("matrix b", Done({"record": "matrix", "name": "b" * 200, "seconds": 1.0}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (tmp_path / "out" / RECORDS).stat().st_size == size
    store.add("matrix c", Done({"record": "matrix", "name": "c", "seconds": 1.0}))
    assert [*Store(tmp_path / "out", {"source": "x"}).records] == ["matrix a", "matrix c"]


def test_factors_are_read_as_they_were_kept(tmp_path):
    store = Store(tmp_path / "out", {})
    left = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(3, 2))
    right = np.arange(8, dtype=np.float32).reshape(4, 2).T
    store.add("matrix a/b", Done({"record": "matrix", "name": "a/b"}, (left, right)))
    np.testing.assert_array_equal(store.factors("a/b")[0], left)
    np.testing.assert_array_equal(store.factors("a/b")[1], right)
    assert store.factors("other") is None


@dataclass(frozen=True)
class Piece:
    """A task that kills the worker that does it, or does not."""

    key: str
    deadly: bool = False
    cost: int = 1

    def run(self):
        if self.deadly:
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)
        return Done({"record": "matrix", "name": self.key})


def test_a_lost_worker_costs_its_own_task_only():
    tasks = [Piece(f"matrix {k}", deadly=k == 1) for k in range(6)]
    found = {task.key: done.record for task, done in running.run(tasks, workers=2)}
    assert {*found} == {task.key for task in tasks}
    failed = [key for key, record in found.items() if record["record"] == "failure"]
    assert failed == ["matrix 1"]


def report_data(path):
    text = path.read_text(encoding="utf-8")
    packed = re.search(r'<script id="data" type="text/plain">([^<]*)<', text)
    return text, json.loads(gzip.decompress(base64.b64decode(packed[1])))


def test_the_report_is_one_page_with_all_numbers(tmp_path):
    arrays = {"layers.0.<b>bold</b>.weight": np.random.default_rng(0).random((12, 12))}
    arrays |= model(2)
    found = tnlib.survey(arrays, output=tmp_path / "out", workers=1)
    text, data = report_data(tmp_path / "out" / "report.html")
    assert len(text) < 3_000_000
    assert [m["name"] for m in data["matrices"]] == [m.name for m in found.matrices]
    shown = text.split('<script id="data"')[0]
    assert not re.search(r"(src|href)=", shown)
    assert "<b>bold" not in text
    for one, matrix in zip(data["matrices"], found.matrices, strict=True):
        assert one["norm"] == pytest.approx(matrix.norm, rel=1e-4)
    assert (tmp_path / "out" / "table.txt").read_text() == f"{found}\n"


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium to show the report")
@pytest.mark.parametrize("update", [False, True])
def test_a_browser_shows_the_report(tmp_path, update):
    base = model(3)
    rng = np.random.default_rng(1)
    new = {k: v + 0.01 * rng.standard_normal(v.shape).astype(v.dtype) for k, v in base.items()}
    new["model.layers.0.q_proj.weight"][0, 0] = np.nan
    found = tnlib.survey(new, base if update else None, progress=False)
    found.report(tmp_path / "report.html")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    done = subprocess.run(
        [
            str(BROWSER),
            *flags.split(),
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=20000",
            "--dump-dom",
            f"file://{tmp_path / 'report.html'}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert 'data-ready="yes"' in done.stdout, done.stdout[-2000:]
    # A picture for every section, and rows for all matrices.
    assert done.stdout.count("js-plotly-plot") >= (5 if update else 4)
    assert done.stdout.count("<tr>") == 1 + len(found.matrices)
    assert ("<h2>Which method" in done.stdout) == update


@pytest.mark.slow
@pytest.mark.usefixtures("one_rounding")
def test_a_cluster_finds_the_same_after_losing_a_worker(folder):
    from dask.distributed import LocalCluster

    whole = tnlib.survey(folder / "model", workers=1)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        add, killed = Store.add, []

        def counted(self, key, done):
            add(self, key, done)
            if len(self.records) == 4:
                killed.append(min(w.pid for w in cluster.workers.values()))
                os.kill(killed[0], signal.SIGKILL)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Store, "add", counted)
            address = cluster.scheduler_address
            found = tnlib.survey(folder / "model", output=folder / "c", scheduler=address)
    assert killed
    assert_same(comparable(found.records), comparable(whole.records))


def test_no_scheduler_is_told():
    with pytest.raises(ValueError, match="no Dask scheduler"):
        next(running.run([Piece("matrix a")], workers=1, scheduler="tcp://127.0.0.1:9"))


def test_options_that_are_kept_are_those_that_matter():
    assert Options().as_json() == Options(**vars(Options())).as_json()
    assert json.loads(json.dumps(Options().as_json()))["shapes"] == ["mpo-2", "mpo-3", "tt-4"]


def test_a_finished_survey_of_an_update_does_nothing_again(tmp_path, monkeypatch):
    monkeypatch.setattr("tnlib.surveys.update_methods.entry_points", lambda group: [])
    base = model(2)
    new = {name: value + np.float32(0.1) for name, value in base.items()}
    first = tnlib.survey(new, base, output=tmp_path / "out", progress=False)
    done = []

    def counted(left, **where):
        done.extend(left)
        return iter(())

    monkeypatch.setattr("tnlib.surveys.survey.run", counted)
    second = tnlib.survey(new, base, output=tmp_path / "out", progress=False)
    assert not done
    assert_same(comparable(first.records), comparable(second.records))


def test_norms_of_the_base_do_not_overflow():
    base = {"layers.0.q.weight": np.full((16, 24), 1e30, np.float32)}
    new = {name: value * np.float32(1.5) for name, value in base.items()}
    (matrix,) = tnlib.survey(new, base, progress=False).matrices
    assert matrix.base_norm == pytest.approx(1e30 * np.sqrt(16 * 24), rel=1e-6)
    assert matrix.norm == pytest.approx(0.5e30 * np.sqrt(16 * 24), rel=1e-6)
