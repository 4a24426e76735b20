"""Pictures of networks."""

from __future__ import annotations

import pytest

from tnlib_adapters import DoTAConfig, LoRETTAConfig, LoRTAConfig, LoTRConfig, Site, draw

pytest.importorskip("matplotlib")
SITE = Site("layers.0.q", 48, 36, role="q", depth=3, layer=1, n_matrices=4, heads=4, kv_heads=4)
CONFIGS = [DoTAConfig(), LoTRConfig(), LoRTAConfig(), LoRETTAConfig(), LoRETTAConfig(bottleneck=32)]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_core_and_every_open_leg_is_drawn(config, tmp_path):
    network = config.network(SITE)
    figure = draw(network)
    (ax,) = figure.axes
    texts = " ".join(text.get_text() for text in ax.texts)
    for core in network.cores:
        assert core.name in texts
    for leg in (*network.out_legs, *network.in_legs):
        assert f"{leg}\n{network.sizes[leg]}" in texts
    for leg, index in network.fixed_indices.items():
        assert f"{leg}\n{index} of {network.sizes[leg]}" in texts
    assert f"{network.n_params:,} parameters" in ax.get_title()
    figure.savefig(tmp_path / "network.png")
    assert (tmp_path / "network.png").stat().st_size > 1000
    assert figure._repr_png_().startswith(b"\x89PNG")  # what a notebook shows


def test_declarations_of_several_networks_have_one_below_the_other():
    fused = Site("layers.0.c", 144, 48, role="qkv", n_matrices=4, heads=4, kv_heads=4)
    for network, parts in (
        (LoRTAConfig().network(fused), 3),
        (LoRETTAConfig(variant="adp").network(SITE), 2),
        (LoRETTAConfig(tt_head=True).network(Site("pooler.dense", 48, 48)), 1),
    ):
        assert len(draw(network).axes) == parts
