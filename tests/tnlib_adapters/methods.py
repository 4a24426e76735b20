"""Every method in the forms that the tests go through."""

from __future__ import annotations

from tnlib_adapters import DoTAConfig, LoRETTAConfig, LoRTAConfig, LoTRConfig

METHODS = {
    "dota": lambda **kwargs: DoTAConfig(**({"r": 4} | kwargs)),
    "lotr": lambda **kwargs: LoTRConfig(**({"r": 4, "alpha": 16.0} | kwargs)),
    "lorta": lambda **kwargs: LoRTAConfig(**({"r": 4} | kwargs)),
    "rep": lambda **kwargs: LoRETTAConfig(**({"dropout": 0.0} | kwargs)),
    "adp": lambda **kwargs: LoRETTAConfig(**({"variant": "adp", "bottleneck": 8} | kwargs)),
}
MERGEABLE = [name for name in METHODS if name != "adp"]
