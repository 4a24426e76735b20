"""Updates of unusual networks as tnlib objects."""

from __future__ import annotations

import peft
import pytest
import torch

from tests.tnlib_adapters.models import make
from tnlib import CP, TT, Tucker
from tnlib_adapters import Core, DoTAConfig, FusedProjection, Network, SharedCores
from tnlib_adapters.layers.update import Update

SIZES = {"in": 6, "out": 5, "in_2": 2, "r": 3, "s": 2, "t": 4, "layer": 3}
# Legs of the cores, and the format in which the update is seen.
NETWORKS = {
    "two cores on one input": (("in r", "in r", "out r"), TT),
    "two cores on one input, in a chain": (("in r", "r in out"), TT),
    "two factors on one input": (("r s t", "out r", "in s", "in t"), TT),
    "ring": (("in r s", "s out t", "t r"), TT),
    "star": (("r s t", "out r", "in s", "in_2 t"), Tucker),
    "cp with weights": (("in r", "out r", "r"), CP),
    "cp with two weights": (("r", "out r", "in r", "r"), CP),
    "one core": (("out in",), TT),
    "an outer product": (("out", "in"), TT),
    "fixed legs": (("in r", "layer r s", "s out"), Tucker),
    "several open legs on a core": (("in in_2 r", "r out"), TT),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_dense_form_is_the_update(name):
    legs, kind = NETWORKS[name]
    cores = tuple(Core(f"c{k}", tuple(own.split())) for k, own in enumerate(legs))
    used = {leg for core in cores for leg in core.legs}
    network = Network(
        cores,
        {leg: size for leg, size in SIZES.items() if leg in used},
        out_legs=("out",),
        in_legs=("in", "in_2") if "in_2" in used else ("in",),
        fixed_indices={"layer": 1} if "layer" in used else {},
        scale=0.5,
    )
    update = Update(network, dtype=torch.float64)
    torch.manual_seed(0)
    update.set_initial({key: core.double() for key, core in network.initial().items()})
    seen = update.view()
    torch.testing.assert_close(seen.to_dense(), update.delta())
    assert isinstance(seen.tensor, kind)


def test_what_is_in_the_form_as_it_is_shares_its_memory():
    network = Network(
        (Core("u", ("out", "r")), Core("g", ("r", "s")), Core("v", ("in", "s"))),
        {"out": 5, "in": 6, "r": 2, "s": 3},
        out_legs=("out",),
        in_legs=("in",),
    )
    update = Update(network)
    tucker = update.view().tensor
    assert tucker.factors[0].data_ptr() == update.cores["u"].data_ptr()
    assert tucker.core.data_ptr() == update.cores["g"].data_ptr()


def test_roles_may_have_cores_of_their_own():
    parts = tuple(
        Network(
            (Core(f"b_{role}", ("out", "r")), Core(f"a_{role}", ("r", "in"))),
            {"out": 4, "in": 6, "r": 2},
            out_legs=("out",),
            in_legs=("in",),
        )
        for role in "qv"
    )
    update = Update(FusedProjection(parts), dtype=torch.float64)
    update.set_initial({key: core.double() for key, core in update.network.initial().items()})
    seen = update.view()
    torch.testing.assert_close(seen.to_dense(), update.delta())
    with pytest.raises(ValueError, match="the update has 2 blocks"):
        _ = seen.tensor
    with pytest.raises(ValueError, match="two parts have a core 'b_q'"):
        FusedProjection((parts[0], parts[0]))


@pytest.mark.parametrize(
    "name", ["cores", "delta", "training", "forward", "network", "multipliers"]
)
def test_names_that_a_module_has_are_refused(name):
    network = Network((Core(name, ("out", "in")),), {"out": 2, "in": 2}, ("out",), ("in",))
    with pytest.raises(ValueError, match=f"a core cannot be called '{name}'"):
        Update(network)


def test_shared_cores_of_two_shapes_are_refused():
    shared = SharedCores()
    for width in (4, 5):
        core = Core("u", ("out", "in"), group="g")
        network = Network((core,), {"out": 2, "in": width}, ("out",), ("in",))
        if width == 4:
            Update(network, shared)
        else:
            with pytest.raises(ValueError, match=r"is \(2, 4\) already and cannot be \(2, 5\)"):
                Update(network, shared)
    with pytest.raises(ValueError, match="pass shared=SharedCores"):
        Update(network)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_layers_of_an_adapted_model_show_the_update_of_each_adapter():
    config = DoTAConfig(r=4, target_modules=["query"], init_weights=False)
    model = peft.get_peft_model(make("bert", torch.float64), config)
    model.add_adapter("other", config)
    layers = [module for module in model.modules() if hasattr(module, "as_tnlib")]
    assert len(layers) == 2
    for layer in layers:
        for adapter in ("default", "other"):
            seen = layer.as_tnlib(adapter)
            torch.testing.assert_close(seen.to_dense(), layer.get_delta_weight(adapter))
        assert not torch.equal(layer.as_tnlib().to_dense(), layer.as_tnlib("other").to_dense())
        for function in (layer.as_tnlib, layer.get_delta_weight, model.base_model.target_report):
            with pytest.raises(ValueError, match=r"no adapter 'third' here; .*'default', 'other'"):
                function("third")
