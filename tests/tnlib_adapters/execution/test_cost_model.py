"""What a strategy costs: operations counted, and the bytes that are saved."""

from __future__ import annotations

import math

from tnlib_adapters import DoTAConfig, Site


def test_predicted_costs_count_what_is_saved_and_what_is_computed_again():
    site = Site("q", 576, 576)
    (known,) = DoTAConfig(r=8).network(site).strategies
    kept = next(one for one in known.all if one.name == "activations")
    again = next(one for one in known.all if one.checkpointed)
    first, second = (known.cost(one, 512, training=True) for one in (kept, again))
    assert first.saved_bytes > 0 == second.saved_bytes
    assert second.backward_flops == first.backward_flops + first.flops
    fused = known.cost(known.all[-1], 512, training=True)
    assert fused.saved_bytes == 0
    product = 2 * 512 * math.prod((576, 576))
    assert fused.backward_flops > product
