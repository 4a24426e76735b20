"""The methods, one readable file each."""

from typing import Any

from tnlib_adapters.methods.dota import DoTAConfig
from tnlib_adapters.methods.loretta import LoRETTAConfig
from tnlib_adapters.methods.lorta import LoRTAConfig
from tnlib_adapters.methods.lotr import LoTRConfig
from tnlib_adapters.methods.ttlora import TTLoRAConfig

__all__ = ["DoTAConfig", "LoRETTAConfig", "LoRTAConfig", "LoTRConfig", "TTLoRAConfig"]

# By name, the classes that are exported.
METHODS: dict[str, Any] = {globals()[name].method: globals()[name] for name in __all__}
