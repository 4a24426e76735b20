"""Fine-tuning adapters made of tensor networks, in plain torch and as PEFT methods.

Importing the package makes the methods known to PEFT; a program that loads a saved adapter has to
import it first.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from tnlib_adapters import requirements as requirements  # first: says what is to be installed

# isort: split
from tnlib.common.deprecation import renamed as _renamed
from tnlib_adapters import methods as methods
from tnlib_adapters.base_model.expert_parameters import find_expert_sites
from tnlib_adapters.base_model.sites import Site, find_sites
from tnlib_adapters.convert.conversion import Conversion, ConvertedWeight
from tnlib_adapters.convert.extract import extract
from tnlib_adapters.convert.extraction import Extraction
from tnlib_adapters.convert.from_lora import from_lora
from tnlib_adapters.convert.merge import MergeReport, merge
from tnlib_adapters.convert.write_lora import to_lora
from tnlib_adapters.gradients.routing_counts import routing_counts
from tnlib_adapters.gradients.start import GradientStart, start_from_gradients
from tnlib_adapters.gradients.survey import GradientSurvey, SurveyRow, gradient_survey
from tnlib_adapters.gradients.weight_gradients import WeightGradient, weight_gradients
from tnlib_adapters.layers.cached import cached
from tnlib_adapters.layers.network_linear import NetworkLinear
from tnlib_adapters.layers.shared_cores import SharedCores
from tnlib_adapters.layers.strategy_report import LayerPlan, Plans, plans
from tnlib_adapters.methods import *  # noqa: F403 (the methods, as their room exports them)
from tnlib_adapters.networks.as_tnlib import UpdateView
from tnlib_adapters.networks.core import Core
from tnlib_adapters.networks.drawing import draw
from tnlib_adapters.networks.fused_projection import FusedProjection
from tnlib_adapters.networks.initializers import Initializer, normal, ones, uniform, zeros
from tnlib_adapters.networks.network import Network
from tnlib_adapters.networks.nonlinear import BottleneckAdapter, ReplacedLinear
from tnlib_adapters.parameter_count import Count, CountRow, count
from tnlib_adapters.peft_plugin.config import NetworkConfig
from tnlib_adapters.peft_plugin.hotswap import hotswap
from tnlib_adapters.peft_plugin.loraplus import create_loraplus_optimizer
from tnlib_adapters.peft_plugin.rescaling import rescale_adapter_scale

__all__ = [
    "BottleneckAdapter",
    "Conversion",
    "ConvertedWeight",
    "Core",
    "Count",
    "CountRow",
    "Extraction",
    "FusedProjection",
    "GradientStart",
    "GradientSurvey",
    "Initializer",
    "LayerPlan",
    "MergeReport",
    "Network",
    "NetworkConfig",
    "NetworkLinear",
    "Plans",
    "ReplacedLinear",
    "SharedCores",
    "Site",
    "SurveyRow",
    "UpdateView",
    "WeightGradient",
    "cached",
    "count",
    "create_loraplus_optimizer",
    "draw",
    "extract",
    "find_expert_sites",
    "find_sites",
    "from_lora",
    "gradient_survey",
    "hotswap",
    "merge",
    "normal",
    "ones",
    "plans",
    "rescale_adapter_scale",
    "routing_counts",
    "start_from_gradients",
    "to_lora",
    "uniform",
    "weight_gradients",
    "zeros",
]
__all__ += methods.__all__

if _TYPE_CHECKING:
    Replacement = ReplacedLinear
    Series = BottleneckAdapter
    Stacked = FusedProjection
    Start = Initializer
else:
    _EARLIER = {
        "Replacement": ReplacedLinear,
        "Series": BottleneckAdapter,
        "Stacked": FusedProjection,
        "Start": Initializer,
    }

    def __getattr__(name: str) -> object:
        return _renamed(__name__, name, _EARLIER)
