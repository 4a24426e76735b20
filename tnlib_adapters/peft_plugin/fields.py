"""The fields that every method's configuration shares: checked, saved and read."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from peft.config import PeftConfig

from tnlib_adapters.checks import choice, flag, fraction, unknown_field
from tnlib_adapters.peft_plugin.adapter_file_checks import mention_import, shapes_in
from tnlib_adapters.peft_plugin.method import MethodBase
from tnlib_adapters.peft_plugin.peft_type import peft_type, saved_type


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern of PEFT's is the name of a module or the end of it."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


@dataclass
class MethodFields(MethodBase, PeftConfig):
    """The fields of every method's configuration; see :class:`NetworkConfig`, which has them."""

    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    target_parameters: list[str] | str | None = field(default=None)
    experts: list[int] | dict[str, list[int]] | None = field(default=None)
    layers_to_transform: list[int] | int | None = field(default=None)
    layers_pattern: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    rank_pattern: dict[str, int] | None = field(default=None)
    alpha_pattern: dict[str, float] | None = field(default=None)
    dropout: float = field(default=0.0)
    trainable_token_indices: list[int] | dict[str, list[int]] | None = field(default=None)
    ensure_weight_tying: bool = field(default=False)
    bias: str = field(default="none")
    init_weights: bool | str = field(default=True)
    rate_scaling: bool = field(default=True)
    progressbar: bool | None = field(default=None)
    base_quantization: dict[str, Any] | None = field(default=None)
    described: dict[str, Any] | None = field(default=None)

    # Of a configuration that was read with its file, until it is used: shapes by name in the file,
    # as far as they are known.
    file_shapes: ClassVar[dict[str, tuple[int, ...]] | None] = None
    # Whether it was read from a file that does not say how cores are stored.
    older: ClassVar[bool] = False

    def __new__(cls, *_: Any, **fields: Any) -> Self:
        """Name the right word for a field that is not one; PEFT's LoRA has other names."""
        known = [field.name for field in dataclasses.fields(cls) if field.init]
        for name in fields:
            if name not in known:
                raise TypeError(unknown_field(cls.__name__, name, known))
        config = super().__new__(cls)
        # Files of versions without it are of cores as they are.
        config.older = type(fields.get("peft_type")) is str and "rate_scaling" not in fields  # type: ignore[misc]
        return config

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        if not self.method:
            raise TypeError(
                f"{type(self).__name__} is no method; declare a subclass with a name: "
                "class MyConfig(NetworkConfig, method='mine')"
            )
        if type(self.peft_type) is str:
            # PEFT makes it an object of what a file says, whose values are about to be loaded.
            self.file_shapes = {}  # type: ignore[misc]
        self.peft_type = peft_type(self.method)
        flag("rate_scaling", self.rate_scaling)
        if self.older:
            self.rate_scaling = False
        self._check_experts()
        self._check_patterns()
        fraction("dropout", self.dropout or 0.0)
        flag("ensure_weight_tying", self.ensure_weight_tying)
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            _names(name, value)
            if isinstance(value, str):
                _expression(name, value)
            if isinstance(value, list | tuple):
                setattr(self, name, set(value))
        if isinstance(self.modules_to_save, str):
            raise TypeError(
                f"modules_to_save must be a list of names, got {self.modules_to_save!r}"
            )
        _names("modules_to_save", self.modules_to_save)
        layers = self.layers_to_transform
        numbers = layers if isinstance(layers, list | tuple | set) else [layers]
        if layers is not None and not all(type(number) is int for number in numbers):
            raise TypeError(f"layers_to_transform must be an int or a list of ints, got {layers!r}")
        if self.target_modules is not None and not self.target_modules and not self.adapts_experts:
            raise ValueError("target_modules is empty; name modules, or leave it out")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(
                "layers_to_transform cannot be used when target_modules is a str (a regular "
                "expression); select the layers in the expression, or give a list"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern says where layers_to_transform counts; give both")
        choice("bias", self.bias, ("none", "all", f"{self.method}_only"))
        choice("init_weights", self.init_weights, self.starts)

    def _check_patterns(self) -> None:
        for name, kind, field_name in (
            ("rank_pattern", int, self.size_field),
            ("alpha_pattern", (int, float), "alpha"),
        ):
            pattern = getattr(self, name)
            if pattern is None:
                continue
            if not isinstance(pattern, dict) or not all(isinstance(key, str) for key in pattern):
                raise TypeError(f"{name} must be a dict by names of modules, got {pattern!r}")
            if pattern and not hasattr(self, field_name):
                raise ValueError(
                    f"{name}: {type(self).__name__} has no {field_name} that could differ by "
                    "module; leave it out"
                )
            for key, value in pattern.items():
                _expression(name, key)
                if isinstance(value, bool) or not isinstance(value, kind):
                    raise TypeError(f"{name}[{key!r}] must be a number, got {value!r}")
                tried: dict[str, Any] = {name: None, field_name: value}
                dataclasses.replace(self, **tried)

    def for_weight(self, name: str) -> Self:
        """The configuration of one weight: with the size and the alpha that patterns say.

        A pattern is a regular expression for the whole name or its end, as PEFT's.
        """
        fields: dict[str, Any] = {}
        for field_name, pattern in (
            (self.size_field, self.rank_pattern),
            ("alpha", self.alpha_pattern),
        ):
            for key, value in (pattern or {}).items():
                if matches(key, name):
                    fields[field_name] = value
                    break
        if not self.rank_pattern and not self.alpha_pattern:
            return self
        return dataclasses.replace(self, rank_pattern=None, alpha_pattern=None, **fields)

    @property
    def adapts_experts(self) -> bool:
        """Whether weights of experts are adapted."""
        return bool(self.target_parameters)

    def _check_experts(self) -> None:
        entries = self.target_parameters
        if isinstance(entries, str) and entries != "all-experts":
            raise ValueError(
                f"target_parameters={entries!r}: give a list of names such as "
                "['experts.down_proj'], or 'all-experts'"
            )
        _names("target_parameters", entries)
        chosen = self.experts
        if chosen is None:
            return
        if not entries:
            raise ValueError("experts says which of target_parameters are adapted; give both")
        for numbers in chosen.values() if isinstance(chosen, dict) else (chosen,):
            listed = isinstance(numbers, list | tuple)
            if not listed or not all(type(number) is int for number in numbers):
                raise TypeError(
                    "experts must be a list of ints, or one for every module by name, got "
                    f"{chosen!r}"
                )

    def to_dict(self) -> dict[str, Any]:
        """All fields, as they are saved: the method with what has to be imported to load it."""
        fields: dict[str, Any] = super().to_dict()
        return fields | {"peft_type": saved_type(type(self))}

    def for_loading(self) -> Self:
        """The configuration that a saved adapter carries: one that recomputes nothing."""
        config = copy.copy(self)
        config.init_weights = "saved"
        return config

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write ``adapter_config.json``, such that loading only allocates the cores.

        The file is written beside the old one and then put in its place.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tnlib-", dir=folder) as beside:
            super(MethodFields, self.for_loading()).save_pretrained(beside, **kwargs)
            for path in Path(beside).iterdir():
                os.replace(path, folder / path.name)
        mention_import(folder, type(self))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> Any:
        """Read a saved configuration, and check the adapter file beside it.

        Raises
        ------
        ValueError
            If the file is damaged, with what is wrong.
        """
        shapes = shapes_in(Path(pretrained_model_name_or_path) / (subfolder or ""))
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        config.file_shapes = shapes
        return config


def _expression(name: str, value: str) -> None:
    """Raise ValueError unless a str is a regular expression."""
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(
            f"{name}={value!r} is a str and so a regular expression, which it is not ({error}); "
            "give names in a list"
        ) from error


def _names(name: str, value: object) -> None:
    """Raise TypeError unless `value` is None, a str or a collection of strs."""
    ok = value is None or isinstance(value, str)
    if not ok and isinstance(value, list | tuple | set):
        ok = all(isinstance(entry, str) for entry in value)
        if "" in value:
            raise ValueError(f"{name} has an empty name, got {value!r}")
    if not ok:
        raise TypeError(
            f"{name} must be a list of module names or a regular expression, got {value!r}"
        )
