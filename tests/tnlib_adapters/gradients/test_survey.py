"""How much of the gradients methods hold."""

from __future__ import annotations

import peft
import pytest
import torch

from tests.tnlib_adapters.forms import FITTED, METHODS
from tests.tnlib_adapters.gradients.test_weight_gradients import batches
from tests.tnlib_adapters.models import make
from tnlib_adapters import DoTAConfig, LoTRConfig, count, gradient_survey, weight_gradients

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def test_loras_share_is_that_of_the_leading_singular_values():
    model = make("llama").eval()
    names = [f"model.layers.{k}.self_attn.q_proj" for k in range(2)]
    gradients = weight_gradients(model, batches(), names, kept=10**6)
    values = [torch.linalg.svdvals(gradients[name].leading.dense()) for name in names]
    energy = sum(gradient.energy for gradient in gradients.values())
    configs = {f"r {r}": peft.LoraConfig(r=r, target_modules=["q_proj"]) for r in (1, 3)}
    rows = gradient_survey(model, batches(), configs).rows
    for row, r in zip(rows, (1, 3), strict=True):
        expected = sum(float(v[:r].square().sum()) for v in values) / energy
        assert row.held == pytest.approx(expected, rel=1e-4)
        assert row.parameters == count(model, configs[row.name]).adapter


@pytest.mark.parametrize("form", [*FITTED, "dota"])
def test_larger_networks_hold_more_and_none_more_than_all(form):
    config = METHODS[form]
    field = config().size_field
    sizes = {str(size): config(**{field: size}, target_modules=["q_proj"]) for size in (1, 4, 16)}
    small, middle, large = gradient_survey(make("llama"), batches(), sizes).rows
    assert 0 < small.held <= middle.held * 1.01
    assert middle.held <= large.held * 1.01
    assert large.held <= 1


def test_it_prints_a_table_and_leaves_configurations_alone():
    configs = {"small": LoTRConfig(r=2), "operator": DoTAConfig(r=2, target_modules=["q_proj"])}
    before = {name: dict(vars(config)) for name, config in configs.items()}
    table = str(gradient_survey(make("llama"), batches(), configs))
    assert table.splitlines()[0].split() == ["method", "parameters", "of", "the", "gradients"]
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["small", "operator"]
    assert {name: dict(vars(config)) for name, config in configs.items()} == before


def test_gradients_may_come_from_before():
    model = make("llama").eval()
    names = [f"model.layers.{k}.self_attn.q_proj" for k in range(2)]
    configs = {"LoTR": LoTRConfig(r=4, target_modules=["q_proj"])}
    found = weight_gradients(model, batches(), names)
    (before,), (now,) = (gradient_survey(model, b, configs).rows for b in (found, batches()))
    assert before.held == pytest.approx(now.held, rel=1e-4)
    with pytest.raises(ValueError, match=r"no gradient for model\.layers\.1"):
        gradient_survey(model, {names[0]: found[names[0]]}, configs)
    with pytest.raises(ValueError, match="configs is empty"):
        gradient_survey(model, found, {})


def test_large_ranks_are_seen_whole():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(100, 100))
    data, loss = [torch.randn(200, 100)], lambda m, x: m(x).square().sum()
    configs = {str(r): peft.LoraConfig(r=r, target_modules=["0"]) for r in (80, 100)}
    some, whole = gradient_survey(model, data, configs, loss=loss).rows
    gradient = weight_gradients(model, data, ["0"], loss=loss, kept=100)["0"].leading.dense()
    values = torch.linalg.svdvals(gradient).square()
    assert some.held == pytest.approx(float(values[:80].sum() / values.sum()), rel=1e-4)
    assert whole.held == pytest.approx(1, abs=1e-4)


def test_series_adapters_are_refused():
    with pytest.raises(TypeError, match="not a change of weights; set variant='rep'"):
        gradient_survey(make("llama"), batches(), {"adp": METHODS["adp"]()})
