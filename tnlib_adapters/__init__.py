"""Fine-tuning adapters made of tensor networks, in plain torch and as PEFT methods.

Importing the package makes the methods known to PEFT; a program that loads a saved adapter has to
import it first.
"""

from tnlib_adapters import _needed as _needed  # first: says what is to be installed
from tnlib_adapters.core import Core
from tnlib_adapters.counting import Count, CountRow, count
from tnlib_adapters.exchange.conversion import Conversion, ConvertedWeight
from tnlib_adapters.exchange.from_lora import from_lora
from tnlib_adapters.exchange.merge import MergeReport, merge
from tnlib_adapters.exchange.write_lora import to_lora
from tnlib_adapters.inference import cached
from tnlib_adapters.linear import NetworkLinear
from tnlib_adapters.methods import DoTAConfig, LoRETTAConfig, LoRTAConfig, LoTRConfig
from tnlib_adapters.network import Network
from tnlib_adapters.picture import draw
from tnlib_adapters.plans import LayerPlan, Plans, plans
from tnlib_adapters.plugin.config import NetworkConfig
from tnlib_adapters.series import Replacement, Series
from tnlib_adapters.shared import SharedCores
from tnlib_adapters.sites import Site, find_sites
from tnlib_adapters.stacked import Stacked
from tnlib_adapters.start import Start, normal, ones, uniform, zeros
from tnlib_adapters.view import UpdateView

__all__ = [
    "Conversion",
    "ConvertedWeight",
    "Core",
    "Count",
    "CountRow",
    "DoTAConfig",
    "LayerPlan",
    "LoRETTAConfig",
    "LoRTAConfig",
    "LoTRConfig",
    "MergeReport",
    "Network",
    "NetworkConfig",
    "NetworkLinear",
    "Plans",
    "Replacement",
    "Series",
    "SharedCores",
    "Site",
    "Stacked",
    "Start",
    "UpdateView",
    "cached",
    "count",
    "draw",
    "find_sites",
    "from_lora",
    "merge",
    "normal",
    "ones",
    "plans",
    "to_lora",
    "uniform",
    "zeros",
]
