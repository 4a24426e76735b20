"""What a method may declare for a weight."""

from __future__ import annotations

from typing import TypeAlias

from tnlib_adapters.networks.fused_projection import FusedProjection
from tnlib_adapters.networks.network import Network
from tnlib_adapters.networks.nonlinear import BottleneckAdapter, ReplacedLinear

AdditiveDeclaration: TypeAlias = Network | FusedProjection
Declaration: TypeAlias = AdditiveDeclaration | BottleneckAdapter | ReplacedLinear
