"""What a method says of itself: its networks, where it starts, what becomes of it elsewhere.

Everything outside its own file (counting, conversion, the command line, inspection) asks here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from tnlib_adapters.base_model.sites import Site
from tnlib_adapters.networks.declaration_kinds import AdditiveDeclaration, Declaration
from tnlib_adapters.networks.rate_scaling import gain

# Cores by weight and key, of networks and low-rank updates by weight.
Fit = Callable[..., dict[str, dict[str, Tensor]]]


class MethodBase:
    """A configuration by its method; the fields are those of the subclasses.

    Attributes
    ----------
    uses_weight : bool
        Whether the initial cores depend on the base weight.
    size_field : str
        The field that sets its size.
    survey_sizes : tuple of int
        Sizes at which ``tnlib survey`` fits it to an update.
    additive_form : str
        What to set for an update of weights, where not every configuration is one.
    fit_updates : callable, optional
        How its cores are fitted to the low-rank updates of a LoRA: see
        :mod:`tnlib_adapters.fitting`.
    """

    method: ClassVar[str] = ""
    starts: ClassVar[tuple[bool | str, ...]] = (True, False, "saved")
    uses_weight: ClassVar[bool] = False
    size_field: ClassVar[str] = "r"
    survey_sizes: ClassVar[tuple[int, ...]] = (1, 2, 4, 8, 16, 32)
    additive_form: ClassVar[str] = ""
    fit_updates: ClassVar[Fit | None] = None
    init_weights: bool | str
    rate_scaling: bool

    def strength(self, site: Site) -> float | None:
        """How many times as far as LoRA's a step moves the update; None without rate scaling.

        One at the method's default ``alpha``, and otherwise in proportion to its size.
        """
        if not self.rate_scaling:
            return None
        own = self.for_weight(site.name)
        if own is not self:
            return own.strength(site)
        defaults: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if field.name in ("alpha", "use_rslora"):
                make: Any = field.default_factory
                value = field.default if make is dataclasses.MISSING else make()
                if value is not dataclasses.MISSING:
                    defaults[field.name] = value
        if all(getattr(self, name) == value for name, value in defaults.items()):
            return 1.0
        default = dataclasses.replace(self, **defaults)  # type: ignore[type-var]
        mine, usual = gain(self.network(site)), gain(default.network(site))
        # An update that alpha makes zero is scaled as any other.
        return abs(mine / usual) if mine and usual else 1.0

    def fields_of_sum(self, configs: Sequence[Any], *, exact: bool) -> dict[str, Any]:
        """Fields of an adapter that is a sum of others of the method, without its targets.

        Where the sum is to be `exact` it is as large as all of them together.
        """
        sizes = [getattr(config, self.size_field) for config in configs]
        return {self.size_field: sum(sizes)} if exact else {}

    def for_weight(self, name: str) -> Self:
        """The configuration of one weight, where it differs by module."""
        return self

    @property
    def fit_gradients(self) -> Fit | None:
        """How its cores are fitted to gradients; None where it does not say."""
        return self.fit_updates

    def resized(self, size: int) -> Self:
        """The same configuration of another size."""
        return dataclasses.replace(self, **{self.size_field: size})  # type: ignore[type-var]

    @classmethod
    def for_survey(cls, size: int) -> Self:
        """A configuration of some size that is an update of weights."""
        return cls().resized(size)

    @staticmethod
    def survey_directions(size: int) -> int:
        """To how many leading directions of every weight's update that one is fitted."""
        return 64

    def for_fitting(self, **fields: Any) -> Self:
        """A copy with other fields, of an adapter that is fitted to a LoRA."""
        return dataclasses.replace(self, **fields)  # type: ignore[type-var]

    def weight_ranks(self, network: AdditiveDeclaration) -> tuple[int, ...]:
        """The ranks of one weight, as a conversion reports them: one number, or bonds."""
        return (getattr(self, self.size_field),)

    def network(self, site: Site) -> Declaration:
        """The network that adapts the weight at `site`.

        Examples
        --------
        >>> from tnlib_adapters import LoTRConfig, Site
        >>> LoTRConfig(r=4).network(Site("q_proj", 48, 64)).n_params
        464
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method network(self, site)")

    def initial_cores(
        self,
        network: Declaration,
        weight: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Initial cores by key; `weight` is the dense base weight for methods that use it.

        Examples
        --------
        >>> from tnlib_adapters import LoTRConfig, Site
        >>> config = LoTRConfig(r=4)
        >>> cores = config.initial_cores(config.network(Site("q_proj", 48, 64)))
        >>> {key: (tuple(core.shape), bool(core.any())) for key, core in cores.items()}
        {'u_48x64': ((48, 4), True), 'g': ((4, 4), False), 'v_48x64': ((64, 4), True)}
        """
        return network.initial(generator, zeros=self.init_weights is not False)

    def default_targets(
        self, sites: Mapping[str, Site], usual: set[str] | str | None
    ) -> set[str] | str:
        """Modules to adapt where none are named: PEFT's `usual` ones for LoRA, else q and v."""
        return usual or {site.path for site in sites.values() if site.role in ("q", "v", "qkv")}

    def prepare(self, model: nn.Module) -> None:
        """Complete the fields that depend on the model, before it is adapted."""
