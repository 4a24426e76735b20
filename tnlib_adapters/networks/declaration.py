"""What a method may declare for a weight."""

from __future__ import annotations

from typing import TypeAlias

from tnlib_adapters.networks.fused_projection import Stacked
from tnlib_adapters.networks.network import Network
from tnlib_adapters.networks.nonlinear import Replacement, Series

AdditiveDeclaration: TypeAlias = Network | Stacked
Declaration: TypeAlias = AdditiveDeclaration | Series | Replacement
