"""Fine-tuning adapters made of tensor networks, in plain torch and as PEFT methods.

Importing the package makes the methods known to PEFT; a program that loads a saved adapter has to
import it first.
"""

from tnlib_adapters.linear import NetworkLinear
from tnlib_adapters.methods import DoTAConfig
from tnlib_adapters.network import Core, Network, Site

__all__ = ["Core", "DoTAConfig", "Network", "NetworkLinear", "Site"]
