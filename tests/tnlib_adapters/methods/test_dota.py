"""DoTA's configuration, its networks and its initial cores."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tolerances import assert_close
from tnlib_adapters import DoTAConfig, Site

SITE = Site("layer.query", 48, 36)
# Sums over the bonds of three cores, of which none is above 36.
TERMS = 2 * 36


def weight(rows=48, columns=36, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=generator).to(dtype)


@pytest.mark.parametrize("r", [1, 2, 8, 10_000])
@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_count_follows_the_formula_of_the_paper(r, dims):
    config = DoTAConfig(r=r, dims=dims)
    network = config.network(Site("", 768, 3072))
    shapes = list(network.shapes.values())
    sizes = [shape[1] * shape[2] for shape in shapes]
    bonds = [
        min(r, math.prod(sizes[:k]), math.prod(sizes[k:])) if 0 < k < dims else 1
        for k in range(dims + 1)
    ]
    assert [shape[0] for shape in shapes] == bonds[:-1]
    assert network.n_params == sum(bonds[k] * sizes[k] * bonds[k + 1] for k in range(dims))
    assert (network.out_features, network.in_features) == (768, 3072)


def test_explicit_modes_are_used_as_given():
    network = DoTAConfig(r=4, dims=([8, 6], [6, 6])).network(SITE)
    assert list(network.shapes.values()) == [(1, 8, 6, 4), (4, 6, 6, 1)]


def test_full_bonds_reproduce_the_weight():
    config = DoTAConfig(r=10_000)
    network = config.network(SITE)
    dense = network.unanchored.delta(config.initial_cores(network, weight()))
    assert_close(dense, weight(), TERMS)


@pytest.mark.parametrize("values", [torch.zeros(48, 36), torch.ones(48, 36)])
def test_weights_that_do_not_fill_their_bonds_get_cores_of_the_declared_shape(values):
    config = DoTAConfig(r=6)
    network = config.network(SITE)
    cores = config.initial_cores(network, values)
    assert {name: tuple(core.shape) for name, core in cores.items()} == network.shapes
    assert_close(network.unanchored.delta(cores), values, TERMS, size=1.0)
    leaves = {name: core.requires_grad_() for name, core in cores.items()}
    anchor = {name: core.detach() for name, core in cores.items()}
    seed = weight()
    (network.delta(leaves, anchor) * seed).sum().backward()
    assert leaves["core_2"].grad.ne(0).all()


def test_random_start_is_zero_and_its_first_cores_are_not():
    config = DoTAConfig(r=4, init_weights="random")
    network = config.network(SITE)
    cores = config.initial_cores(network, weight(), torch.Generator().manual_seed(0))
    assert not network.anchored
    assert not network.delta(cores).any()
    assert cores["core_0"].any()
    again = config.initial_cores(network, weight(), torch.Generator().manual_seed(0))
    assert torch.equal(cores["core_0"], again["core_0"])


def test_random_cores_would_have_the_deviation_of_the_weight():
    config = DoTAConfig(r=16, init_weights=False)
    network = config.network(Site("", 256, 256))
    generator = torch.Generator().manual_seed(0)
    cores = config.initial_cores(network, 0.02 * weight(256, 256), generator)
    dense = network.unanchored.delta(cores)
    assert float(dense.std()) == pytest.approx(0.02, rel=0.2)


def test_half_precision_weights_give_float32_cores():
    config = DoTAConfig(r=4)
    network = config.network(SITE)
    for dtype in (torch.float16, torch.bfloat16):
        cores = config.initial_cores(network, weight(dtype=dtype))
        assert {core.dtype for core in cores.values()} == {torch.float32}


def test_a_prime_width_works_and_warns():
    config = DoTAConfig(r=4)
    with pytest.warns(UserWarning, match=r"head: 97 has no factors.*\(1, 1, 97\)"):
        network = config.network(Site("head", 97, 48))
    cores = config.initial_cores(network, weight(97, 48))
    assert network.delta(cores, cores).shape == (97, 48)


def test_a_saved_configuration_decomposes_nothing(tmp_path):
    config = DoTAConfig(r=4, target_modules=["query"], dims=([8, 6], [6, 6]), residual=True)
    config.save_pretrained(tmp_path)
    loaded = DoTAConfig.from_pretrained(tmp_path)
    assert loaded.init_weights == "saved"
    assert config.init_weights is True
    assert loaded.network(SITE).shapes == config.network(SITE).shapes
    random = DoTAConfig(init_weights="random")
    random.save_pretrained(tmp_path)
    assert DoTAConfig.from_pretrained(tmp_path).init_weights == "random"


BAD_CONFIGS = [
    ({"r": 0}, ValueError, "r must be at least 1, got 0"),
    ({"r": 2.0}, TypeError, r"r must be an int, got 2.0 \(float\)"),
    ({"r": True}, TypeError, "bool"),
    ({"r": "8"}, TypeError, "str"),
    ({"dims": 0}, ValueError, "dims must be at least 1"),
    ({"dims": 2.5}, TypeError, "dims must be an int"),
    ({"dims": ([4, 4],)}, ValueError, "row modes, column modes"),
    ({"dims": ([4, 4], [4])}, ValueError, "equal length"),
    ({"dims": ([4, 4], [4, "4"])}, TypeError, "dims"),
    ({"dims": (4, 4)}, TypeError, "dims"),
    ({"init_weights": "pissa"}, ValueError, "'random', 'saved', got 'pissa'"),
    ({"init_weights": 1}, ValueError, "got 1"),
    ({"bias": "some"}, ValueError, "'dota_only', got 'some'"),
    ({"target_modules": "q", "layers_to_transform": [0]}, ValueError, "regular expression"),
    ({"layers_pattern": "h"}, ValueError, "give both"),
    ({"task_type": "NOTHING"}, ValueError, "Invalid task type"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_CONFIGS)
def test_bad_configurations_say_what_is_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        DoTAConfig(**arguments)


def test_modes_that_do_not_fit_a_target_name_it():
    with pytest.raises(ValueError, match=r"48 x 48 matrix, but layer.query is 48 x 36"):
        DoTAConfig(dims=([8, 6], [8, 6])).network(SITE)
