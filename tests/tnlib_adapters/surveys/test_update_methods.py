"""What a survey says of a method is what the method counts, fits and holds."""

from __future__ import annotations

import copy

import numpy as np
import peft
import pytest
import torch

import tnlib
from tests.tnlib_adapters.expert_models import whole_model
from tests.tnlib_adapters.models import make
from tnlib_adapters import count, methods
from tnlib_adapters.methods.lora import CountedLoRA
from tnlib_adapters.surveys import update_methods

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
KINDS = {"LoRA": CountedLoRA} | {
    kind.__name__.removesuffix("Config"): kind for kind in methods.METHODS.values()
}


def fine_tuned(model, rank, seed=0):
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in other.named_parameters():
            if value.ndim >= 2 and ".layers." in name:
                left = torch.randn(*value.shape[:-1], rank, generator=generator)
                right = torch.randn(*value.shape[:-2], rank, value.shape[-1], generator=generator)
                value += 0.05 * left @ right
    return other


def points_of(found):
    return {record["name"]: record["points"] for record in found.of("method")}


def setting(kind, size):
    return f"{kind.size_field}={size}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base = make("llama")
    base.save_pretrained(folder / "base")
    fine_tuned(base, 3).save_pretrained(folder / "after")
    return folder


@pytest.fixture(scope="module")
def found(folders):
    return tnlib.survey(folders / "after", folders / "base", workers=1, progress=False)


def test_every_method_is_fitted_at_all_its_sizes(found):
    points = points_of(found)
    assert {*points} == {"low rank", *KINDS}
    assert not found.failures
    for name, kind in KINDS.items():
        expected = [setting(kind, size) for size in kind.survey_sizes]
        assert [point["setting"] for point in points[name]] == expected
        assert all(-1e-9 <= point["kept"] <= 1 + 1e-6 for point in points[name])


def test_parameters_are_those_that_count_counts(found):
    model = make("llama")
    for name, kind in KINDS.items():
        for size, point in zip(kind.survey_sizes, points_of(found)[name], strict=True):
            config = kind.for_survey(size)
            config.target_modules = "all-linear"
            counted = count(model, config)
            assert point["params"] == counted.adapter, (name, size)


def test_an_update_of_low_rank_is_held_by_a_lora_of_that_rank(found):
    points = points_of(found)
    kept = {point["setting"]: point["kept"] for point in points["LoRA"]}
    assert kept["r=2"] < 0.999
    assert kept["r=4"] == pytest.approx(1.0, abs=1e-5)
    # The best ranks of all weights together hold as much as equal ones.
    best = {point["setting"]: point["kept"] for point in points["low rank"]}
    for rank in (1, 2, 4):
        assert best[f"mean rank {rank}"] >= kept[f"r={rank}"] - 1e-5


def test_what_is_held_is_what_the_singular_values_say(found, folders):
    new, old = (make("llama").from_pretrained(folders / name) for name in ("after", "base"))
    top = whole = 0.0
    for name, value in new.named_parameters():
        if value.ndim == 2 and ".layers." in name:
            values = np.linalg.svd(
                (value - old.get_parameter(name)).detach().double(), False, False
            )
            top, whole = top + values[0] ** 2, whole + (values**2).sum()
    (first, *_) = points_of(found)["LoRA"]
    assert first["kept"] == pytest.approx(top / whole, abs=1e-5)


def test_an_update_that_layers_share_is_held_by_shared_factors():
    """LoTR of the rank that all layers have in common holds everything."""
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{k}.q_proj.weight": torch.randn(24, 32, generator=generator) for k in range(5)}
    u, v = torch.randn(24, 4, generator=generator), torch.randn(4, 32, generator=generator)
    after = {n: w + u @ torch.randn(4, 4, generator=generator) @ v for n, w in base.items()}
    found = tnlib.survey(after, base, progress=False)
    kept = {point["setting"]: point["kept"] for point in points_of(found)["LoTR"]}
    assert kept["r=4"] == pytest.approx(1.0, abs=1e-4)


def test_a_lora_folder_is_an_update(folders, tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(make("llama"), config).save_pretrained(tmp_path / "lora")
    for base in (None, folders / "base"):
        found = tnlib.survey(tmp_path / "lora", base, workers=1, progress=False)
        assert found.is_update
        assert len(found.matrices) == 4
        kept = {point["setting"]: point["kept"] for point in points_of(found)["LoRA"]}
        assert kept["r=2"] == pytest.approx(1.0, abs=1e-5)
        assert (found.matrices[0].base_norm is None) == (base is None)


def test_experts_are_fitted_in_both_layouts(tmp_path):
    base = whole_model("Qwen3Moe")
    after = fine_tuned(base, 2)
    arrays = [dict(model.state_dict()) for model in (after, base)]
    found = tnlib.survey(*arrays, progress=False)
    assert not found.failures
    kept = {point["setting"]: point["kept"] for point in points_of(found)["LoRA"]}
    assert kept["r=2"] == pytest.approx(1.0, abs=1e-5)
    base.save_pretrained(tmp_path / "base")
    after.save_pretrained(tmp_path / "after")
    stored = tnlib.survey(tmp_path / "after", tmp_path / "base", workers=1, progress=False)
    assert not stored.failures
    # One by one, gate and up are matrices of their own.
    assert any(".experts.0.gate_proj" in matrix.name for matrix in stored.matrices)
    other = {point["setting"]: point["kept"] for point in points_of(stored)["LoRA"]}
    assert other["r=2"] == pytest.approx(1.0, abs=1e-5)
    assert other["r=1"] >= kept["r=1"] - 1e-5


def test_a_method_that_fails_stops_no_other(monkeypatch):
    def broken(update):
        raise ValueError("no such thing")

    known = update_methods.methods()
    monkeypatch.setattr(
        "tnlib.surveys.update_methods.entry_points",
        lambda group: [Entry({"LoRA": known["LoRA"], "broken": broken})],
    )
    base = {"layers.0.q.weight": np.eye(8), "layers.1.q.weight": np.eye(8)}
    after = {name: value + np.ones((8, 8)) for name, value in base.items()}
    found = tnlib.survey(after, base, progress=False)
    assert {*points_of(found)} == {"low rank", "LoRA"}
    assert found.failures == {"broken": "no such thing"}


def test_methods_that_lack_a_library_are_told(monkeypatch):
    """As where tnlib is installed without torch."""

    class Lacking(Entry):
        def load(self):
            raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr("tnlib.surveys.update_methods.entry_points", lambda group: [Lacking({})])
    base = {"layers.0.q.weight": np.eye(8)}
    found = tnlib.survey({"layers.0.q.weight": np.ones((8, 8))}, base, progress=False)
    assert {*points_of(found)} == {"low rank"}
    assert "No module named 'torch'" in found.failures["methods of other"]


class Entry:
    """An entry point of another package."""

    name = "other"

    def __init__(self, given):
        self.given = given

    def load(self):
        return lambda: self.given
