"""The fields that every network method's configuration shares with PEFT's own."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.config import PeftConfig
from torch import Tensor

from tnlib_adapters.network import Network, Site


@dataclass
class NetworkConfig(PeftConfig):
    """Base of the method configurations; not a method itself.

    Attributes
    ----------
    target_modules : list of str, str, optional
        Names of the modules to adapt: a list matches name endings, a str is a regular expression,
        "all-linear" is every linear layer but the output. By default PEFT's choice for LoRA on
        the model's architecture.
    exclude_modules : list of str, str, optional
        Names that are not adapted although they match.
    layers_to_transform : int, list of int, optional
        Indices of the layers to adapt; all by default.
    layers_pattern : list of str, str, optional
        Name of the layer list, where it is not a usual one.
    modules_to_save : list of str, optional
        Further modules to train and save in full, such as the classifier.
    bias : str
        "none", "all" or "<method>_only": which biases are trained.
    init_weights : bool or str
        How the update starts; see the method.
    progressbar : bool, optional
        Show progress while the cores are initialised; by default on large models only.
    """

    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    layers_to_transform: list[int] | int | None = field(default=None)
    layers_pattern: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    bias: str = field(default="none")
    init_weights: bool | str = field(default=True)
    progressbar: bool | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                setattr(self, name, set(value))
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(
                "layers_to_transform cannot be used when target_modules is a str (a regular "
                "expression); select the layers in the expression, or give a list"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern says where layers_to_transform counts; give both")

    def network(self, site: Site) -> Network:
        """The network that adapts the weight at `site`."""
        raise NotImplementedError

    def initial_cores(
        self, network: Network, weight: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Initial cores for a dense weight (out_features, in_features)."""
        raise NotImplementedError

    def for_loading(self) -> NetworkConfig:
        """The configuration that a saved adapter carries: one that recomputes nothing."""
        return copy.copy(self)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write ``adapter_config.json``, such that loading only allocates the cores."""
        super(NetworkConfig, self.for_loading()).save_pretrained(save_directory, **kwargs)


def choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if not any(
        value is option or (isinstance(option, str) and value == option) for option in allowed
    ):
        options = ", ".join(map(repr, allowed))
        raise ValueError(f"{name} must be one of {options}, got {value!r}")
