"""What fine-tuning changed: weights that a method can adapt, what travels in full, and the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tnlib_adapters.base_model.peft_names import PREFIX, is_named
from tnlib_adapters.base_model.sites import Site
from tnlib_adapters.convert.checkpoint_pair import CheckpointPair
from tnlib_adapters.parameter_count import targeted
from tnlib_adapters.peft_plugin.config import NetworkConfig
from tnlib_adapters.peft_plugin.targets import ALL_LINEAR

_REMEDY = "name its module in modules_to_save to have it"


@dataclass(frozen=True)
class FinetunedChange:
    """The change of a model, sorted by where it goes.

    Attributes
    ----------
    pair : CheckpointPair
        The model before and after.
    config : NetworkConfig
        The method, with everything that depends on the model decided.
    sites : dict of str to Site
        The weights to adapt.
    full : dict of str to Tensor
        What is in the adapter in full, by its name in an adapter's file.
    saved : tuple of str
        Modules that are in it.
    bias : bool
        Whether biases outside of these are.
    left_out : dict of str to str
        Parameters that changed and are in no adapter, with how much or why.
    unchanged : tuple of str
        Targets that did not change.
    """

    pair: CheckpointPair
    config: NetworkConfig
    sites: Mapping[str, Site]
    full: Mapping[str, Tensor]
    saved: tuple[str, ...]
    bias: bool
    left_out: Mapping[str, str]
    unchanged: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        """The matrices to adapt: names of layers, and of experts ``name[e]``."""
        return [key for name, site in self.sites.items() for key in site_keys(name, site)]


def site_keys(name: str, site: Site) -> list[str]:
    """The matrices of a site."""
    return [f"{name}[{e}]" for e in range(site.experts)] if site.experts else [name]


def change_of(pair: CheckpointPair, config: Any) -> FinetunedChange:
    """Compare the two models.

    Raises
    ------
    ValueError
        If they are not the same model, or nothing that is targeted changed.
    """
    _check_same_model(pair)
    if not config.target_modules and not config.target_parameters:
        config = dataclasses.replace(config, target_modules=ALL_LINEAR)
    resolved, sites = targeted(pair.model, config)
    weights = {name: _parameter(pair, name, site) for name, site in sites.items()}
    for name, problem in _not_compared(pair, weights).items():
        # Who says "all linear layers" means those that can be; who names one is told.
        if config.target_modules != ALL_LINEAR:
            raise ValueError(f"{name} {problem}; leave it out of target_modules")
        del weights[name], sites[name]
    changes = {parameter: pair.change(parameter) for parameter in dict.fromkeys(weights.values())}
    adapted = {name: site for name, site in sites.items() if changes[weights[name]][0]}
    if not adapted:
        raise ValueError(
            f"none of the {len(sites)} targeted weights changed; is {pair.base.weights.label} the "
            "base, and were other weights trained?"
        )
    full, saved, bias, left_out = _others(pair, set(weights.values()), adapted, resolved)
    unchanged = tuple(name for name in sites if name not in adapted)
    return FinetunedChange(pair, resolved, adapted, full, saved, bias, left_out, unchanged)


def _not_compared(pair: CheckpointPair, weights: Mapping[str, str]) -> dict[str, str]:
    """Targets that only one model has, or both in other shapes, with what is wrong."""
    found = {}
    for name, parameter in weights.items():
        shapes = pair.base.shape(parameter), pair.finetuned.shape(parameter)
        if not pair.base.has(parameter):
            found[name] = "is not in the base"
        elif not pair.finetuned.has(parameter):
            found[name] = "is not in the fine-tuned checkpoint"
        elif None not in shapes and shapes[0] != shapes[1]:
            found[name] = f"has shape {shapes[1]}, and {shapes[0]} in the base"
    return found


def _check_same_model(pair: CheckpointPair) -> None:
    """Raise ValueError unless both checkpoints have most of the model, in one shape."""
    names = [name for name, _ in pair.model.named_parameters()]
    for stored in (pair.base, pair.finetuned):
        found = sum(map(stored.has, names))
        if 2 * found < len(names):
            raise ValueError(
                f"{stored.weights.label} has {found} of the {len(names)} parameters of "
                f"{type(pair.model).__name__}: it is another model"
            )
    both = [n for n in names if pair.base.shape(n) and pair.finetuned.shape(n)]
    other = [name for name in both if pair.base.shape(name) != pair.finetuned.shape(name)]
    if 2 * len(other) > len(both):
        raise ValueError(
            f"{other[0]} has shape {pair.finetuned.shape(other[0])} in the fine-tuned model and "
            f"{pair.base.shape(other[0])} in {pair.base.weights.label}, and so have most: it is "
            "not its base"
        )


def _parameter(pair: CheckpointPair, name: str, site: Site) -> str:
    """The parameter that a site is the weight of, or a part of."""
    return pair.parameter_of(name) if site.experts else f"{name}.weight"


def _others(
    pair: CheckpointPair,
    targets: set[str],
    adapted: Mapping[str, Site],
    config: NetworkConfig,
) -> tuple[dict[str, Tensor], tuple[str, ...], bool, dict[str, str]]:
    """What goes along in full, the modules of it, whether biases are in it, and what does not."""
    wanted: Sequence[str] = tuple(config.modules_to_save or ())
    both: Mapping[str, str] = getattr(pair.model, "all_tied_weights_keys", None) or {}
    tied = {*both, *both.values()}
    full: dict[str, Tensor] = {}
    saved: dict[str, None] = {}
    biases: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name, problem in pair.others(targets):
        module, _, leaf = name.rpartition(".")
        asked = any(is_named(module, entry) for entry in wanted)
        if asked and name in tied:
            raise ValueError(
                f"{name} is one tensor with {', '.join(sorted(tied - {name}))}, and would be saved "
                "apart from it; leave its module out of modules_to_save"
            )
        if problem and not (asked and pair.finetuned.shape(name)):
            remedy = f"; {_REMEDY}" if pair.finetuned.shape(name) else ""
            left_out[name] = problem + remedy
            continue
        off, norm = (1.0, 1.0) if problem else pair.change(name)
        if not off and not asked:
            continue
        parameter = pair.model.get_parameter(name)
        if asked or (parameter.ndim == 1 and leaf != "bias"):
            saved[module] = None
        elif leaf == "bias" and parameter.ndim == 1:
            biases[name] = f"{module}.base_layer.bias" if module in adapted else name
        else:
            share = f"{off / norm:.2%}" if norm else f"a norm of {off:.3g} from zero"
            left_out[name] = f"changed by {share}; {_REMEDY}"
    for module in saved:
        for leaf, _ in pair.model.get_submodule(module).named_parameters():
            value = pair.finetuned.read(f"{module}.{leaf}")
            full[f"{PREFIX}{module}.{leaf}"] = value.contiguous()
    if biases:
        full |= _biases(pair, adapted, set(saved))
    for name, value in full.items():
        if not torch.isfinite(value).all():
            raise ValueError(
                f"{name.removeprefix(PREFIX)} holds nan or inf in the fine-tuned model"
            )
    unknown = pair.unknown
    left_out |= dict.fromkeys(unknown, "is in the fine-tuned checkpoint and not in the model")
    return full, (*saved, *(["biases"] if biases else [])), bool(biases), left_out


def _biases(
    pair: CheckpointPair, adapted: Mapping[str, Site], saved: set[str]
) -> dict[str, Tensor]:
    """All biases of the model by their names in an adapter's file, but those of saved modules."""
    found = {}
    for name, _ in pair.model.named_parameters():
        module, _, leaf = name.rpartition(".")
        if leaf == "bias" and module not in saved:
            place = f"{module}.base_layer.bias" if module in adapted else name
            found[f"{PREFIX}{place}"] = pair.finetuned.read(name).to(torch.float32)
    return found
