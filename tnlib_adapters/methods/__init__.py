"""The methods, one readable file each."""

from tnlib_adapters.methods.dota import DoTAConfig
from tnlib_adapters.methods.loretta import LoRETTAConfig
from tnlib_adapters.methods.lorta import LoRTAConfig
from tnlib_adapters.methods.lotr import LoTRConfig

__all__ = ["DoTAConfig", "LoRETTAConfig", "LoRTAConfig", "LoTRConfig"]
