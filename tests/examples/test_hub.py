"""Models in the place where the hub's library looks for them."""

from __future__ import annotations

import hub
import huggingface_hub
import pytest


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "weights.bin").write_bytes(b"123")
    return folder


def found(cache, filename):
    """What huggingface_hub finds without the network."""
    return huggingface_hub.hf_hub_download(
        "owner/name", filename, cache_dir=cache, local_files_only=True
    )


def test_the_hubs_library_finds_every_file_by_the_models_name(model, tmp_path):
    hub.place("owner/name", model, tmp_path / "hub")
    for path in model.iterdir():
        with open(found(tmp_path / "hub", path.name), "rb") as file:
            assert file.read() == path.read_bytes()


def test_placing_again_changes_nothing_and_mends_a_link_that_points_nowhere(model, tmp_path):
    snapshot = hub.place("owner/name", model, tmp_path / "hub")
    (snapshot / "weights.bin").unlink()
    (snapshot / "weights.bin").symlink_to(tmp_path / "gone")
    before = (snapshot / "config.json").lstat().st_mtime_ns
    assert hub.place("owner/name", model, tmp_path / "hub") == snapshot
    assert (snapshot / "weights.bin").read_bytes() == b"123"
    assert (snapshot / "config.json").lstat().st_mtime_ns == before
