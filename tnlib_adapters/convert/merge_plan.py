"""What a merge writes where, decided and checked before anything is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tnlib_adapters.base_model.linear_modules import is_transposed
from tnlib_adapters.convert.checkpoint import FLOATING, Change, Checkpoint
from tnlib_adapters.convert.checkpoint_names import names_in_checkpoint
from tnlib_adapters.convert.merge_experts import ExpertMerge, Rounding
from tnlib_adapters.convert.trained_adapter import Adapter
from tnlib_adapters.networks.core import computing
from tnlib_adapters.peft_plugin.layer import NetworkLayer


@dataclass
class MergePlan:
    """What is to be written in the place of which tensor.

    Attributes
    ----------
    source : Adapter
        The adapter.
    checkpoint : Checkpoint
        The base model's.
    weights : dict of str to str
        Names of adapted layers, and of weights of experts, by the names of their tensors in the
        checkpoint.
    full : dict of str to Tensor
        What was trained in full, by its name in the checkpoint.
    changes : dict of str to Change
        Everything to write that is not copied, by its name in the checkpoint.
    rounding : dict of str to Rounding
        By weight, filled while the changes are written: see :class:`MergeReport`.
    """

    source: Adapter
    checkpoint: Checkpoint
    weights: dict[str, str] = field(default_factory=dict)
    full: dict[str, Tensor] = field(default_factory=dict)
    changes: dict[str, Change] = field(default_factory=dict)
    rounding: dict[str, Rounding] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Adapter, checkpoint: Checkpoint, cast: torch.dtype | None) -> MergePlan:
        """Decide everything, and raise ValueError if something has no place.

        With `cast`, all floating-point tensors are written in that dtype.
        """
        plan = cls(source, checkpoint)
        known, made = names_in_checkpoint(source.model, source.parameters, checkpoint.tensors)
        _check_untied(source)
        extras = {name.replace(".base_layer.", "."): v for name, v in source.extras.items()}
        for name, layer in source.layers.items():
            stored = plan._stored(f"{name}.weight", known)
            plan.weights[stored] = name
            # PEFT saves an output embedding that is adapted: a resized one is not the old one.
            base = extras.pop(f"{name}.weight", None)
            plan.changes[stored] = plan._sum(name, layer, stored, base, cast)
        experts = ExpertMerge(source, checkpoint, known, made, plan.rounding)
        for stored, name, change in experts.changes(cast):
            plan.weights[stored] = name
            plan.changes[stored] = change
        # Heads that the checkpoint lacks are written as the adapted weights are.
        usual = next(iter(plan.changes.values())).dtype
        for name, value in extras.items():
            if name not in source.parameters:
                raise ValueError(f"the base model has no {name}, which the adapter has trained")
            if name in made:
                raise ValueError(
                    f"{checkpoint.folder} has {name}, which was trained in full, in another layout "
                    "than the model; load the model and use merge_and_unload()"
                )
            stored = known.get(name, name)
            plan.full[stored] = value
            there = checkpoint.tensors.get(stored)
            dtype = cast or (FLOATING.get(there.dtype, value.dtype) if there else usual)
            dtype = dtype if value.is_floating_point() else value.dtype
            plan.changes[stored] = _replacement(_cast(stored, value, dtype))
        if cast is not None:
            for name, tensor in checkpoint.tensors.items():
                if name not in plan.changes and tensor.dtype in FLOATING:
                    plan.changes[name] = _conversion(name, cast, tensor.shape)
        return plan

    @property
    def n_bytes(self) -> int:
        """About how many bytes the merged checkpoint has."""
        kept = [t for name, t in self.checkpoint.tensors.items() if name not in self.changes]
        made = self.changes.values()
        files = sum(path.stat().st_size for path in self.checkpoint.others if path.is_file())
        return (
            sum(tensor.stop - tensor.start for tensor in kept)
            + sum(math.prod(change.shape) * change.dtype.itemsize for change in made)
            + files
        )

    @property
    def added(self) -> tuple[str, ...]:
        """Names that the checkpoint does not have."""
        return tuple(name for name in self.full if name not in self.checkpoint.tensors)

    @property
    def reshaped(self) -> bool:
        """Whether a tensor of the checkpoint gets another shape."""
        tensors = self.checkpoint.tensors
        return any(n in tensors and tensors[n].shape != v.shape for n, v in self.full.items())

    def changes_in(self, shard: str) -> Iterator[tuple[str, Change]]:
        """Changes of one shard; what is new goes into the last."""
        last = shard == self.checkpoint.shards[-1]
        for name, change in self.changes.items():
            stored = self.checkpoint.tensors.get(name)
            if stored.shard == shard if stored else last:
                yield name, change

    def _stored(self, name: str, known: Mapping[str, str]) -> str:
        if name not in known:
            raise ValueError(
                f"{self.checkpoint.folder} has no tensor for {name}, or has it in another layout; "
                "give the checkpoint that the adapter was trained on as base=, or load the model "
                "and use merge_and_unload()"
            )
        return known[name]

    def _sum(
        self,
        name: str,
        layer: NetworkLayer,
        stored: str,
        base: Tensor | None,
        cast: torch.dtype | None,
    ) -> Change:
        """The stored weight, or `base` in its place, with the layer's update added."""
        tensor = self.checkpoint.tensors[stored]
        transposed = is_transposed(layer.get_base_layer())
        widths = (layer.out_features, layer.in_features)
        expected = widths[::-1] if transposed else widths
        shape = tensor.shape if base is None else tuple(base.shape)
        if shape != expected or tensor.dtype not in FLOATING:
            raise ValueError(
                f"{stored} is {tensor.dtype} {shape} in the checkpoint, and the adapter is for "
                f"{expected} in floating point; give the checkpoint that it was trained on"
            )
        dtype = cast or FLOATING[tensor.dtype]

        def total(weight: Tensor | None) -> Tensor:
            weight = weight if base is None else base
            assert weight is not None
            delta = layer.update(self.source.name).delta().detach()
            delta = delta.mT if transposed else delta
            exact = weight.to(computing([weight, delta])) + delta
            written = exact.to(dtype)
            if not torch.isfinite(written).all():
                raise ValueError(
                    f"{name}: the merged weight is not finite in {dtype}: the adapter holds nan or "
                    "inf, or the dtype is too narrow; nothing was written"
                )
            self.rounding[name] = Rounding()
            self.rounding[name].add(written, exact, delta)
            return written

        return Change(dtype, expected, total)


def _replacement(value: Tensor) -> Change:
    return Change(value.dtype, tuple(value.shape), lambda _: value)


def _conversion(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Change:
    def converted(value: Tensor | None) -> Tensor:
        assert value is not None
        return _cast(name, value, dtype)

    return Change(dtype, shape, converted)


def _cast(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in another dtype, if that does not make numbers infinite."""
    cast = value.to(dtype)
    if value.is_floating_point() and not (torch.isfinite(cast) | ~torch.isfinite(value)).all():
        raise ValueError(f"{name} has numbers that {dtype} cannot hold; choose a wider dtype")
    return cast


def _check_untied(source: Adapter) -> None:
    """Raise ValueError if something trained is one tensor with something that is not."""
    tied: Mapping[str, str] = getattr(source.model, "all_tied_weights_keys", None) or {}
    both = {*tied, *tied.values()}
    changed = {f"{name}.weight" for name in source.layers}
    changed |= {name.replace(".base_layer.", ".") for name in source.extras}
    if both & changed:
        raise ValueError(
            f"{min(both & changed)} was trained, and in the checkpoint it is one tensor with "
            f"another ({', '.join(sorted(both))}); load the model and use merge_and_unload()"
        )
