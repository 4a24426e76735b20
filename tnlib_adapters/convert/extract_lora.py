"""The change of a model as a LoRA: truncated singular value decompositions, weight by weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor
from tqdm.auto import tqdm

from tnlib import RankProfile, allocate_ranks, rank_profile
from tnlib_adapters.base_model.linear_modules import is_transposed
from tnlib_adapters.base_model.peft_names import PREFIX
from tnlib_adapters.convert.conversion import ConvertedWeight
from tnlib_adapters.convert.expert_factors import ExpertFactors, by_owner, wrapper_names
from tnlib_adapters.convert.extraction import Extraction
from tnlib_adapters.convert.finetuned_change import FinetunedChange, site_keys
from tnlib_adapters.convert.folder import whole
from tnlib_adapters.convert.stored_updates import leading
from tnlib_adapters.convert.truncation import LowRank
from tnlib_adapters.convert.write_adapter import extracted_text, model_card
from tnlib_adapters.convert.write_lora import lora_config, write_folder

# Values of a weight whose error is measured at a time.
_BLOCK = 1 << 22


def extract_lora(
    change: FinetunedChange,
    config: Any,
    folder: Path,
    *,
    base: str | None,
    eps: float | None,
    max_params: int | None,
    show: bool,
) -> Extraction:
    """Write the LoRA of a change; see :func:`extract`.

    Raises
    ------
    ValueError
        If `eps` or `max_params` cannot be met.
    """
    keys = change.keys
    ranks = _ranks(change, config.r, eps, max_params, show)
    found: dict[str, LowRank] = {}
    for key in tqdm(keys, desc="extracting", disable=not show, unit="weight"):
        found[key] = _factors(key, change.pair.delta(key), ranks[key])
    layers = {name: found[name] for name, site in change.sites.items() if not site.experts}
    weights = [
        ConvertedWeight(
            name,
            (len(factors.B), factors.A.shape[1]),
            (len(factors.A),),
            factors.A.numel() + factors.B.numel(),
            factors.error,
            factors.norm,
        )
        for name, factors in layers.items()
    ]
    tensors = dict(change.full)
    for name, factors in layers.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = factors.A
        tensors[f"{PREFIX}{name}.lora_B.weight"] = factors.B
    experts = _experts(change, found)
    common = max((one.rank for one in experts.values()), default=0)
    places = _places(change, experts)
    for name, one in experts.items():
        a, b = one.tensors(common)
        tensors[f"{PREFIX}{places[name]}.lora_A.weight"] = a.contiguous()
        tensors[f"{PREFIX}{places[name]}.lora_B.weight"] = b.contiguous()
        weights.append(one.converted(common))
    result = Extraction(tuple(weights), 0, 0, change.saved, change.left_out, change.unchanged)
    lora = _config(change, config, layers, [*experts], common, base)
    with whole(folder) as place:
        labels = change.pair.finetuned.weights.label, change.pair.base.weights.label
        text = extracted_text(*labels, str(result), needs_import=False)
        (place / "README.md").write_text(model_card("LoRA", base, text), encoding="utf-8")
        write_folder(place, lora, tensors)
        size = (place / SAFETENSORS_WEIGHTS_NAME).stat().st_size
    return result.of_size(size)


def _ranks(
    change: FinetunedChange, most: int, eps: float | None, max_params: int | None, show: bool
) -> dict[str, int]:
    """The rank of every matrix: all the largest, or those that a budget or a tolerance need."""
    keys = change.keys
    if eps is None and max_params is None:
        return dict.fromkeys(keys, most)
    if any(site.experts for site in change.sites.values()):
        raise ValueError(
            "a LoRA of experts has one rank for all of them, so eps= and max_params= cannot choose "
            "ranks; give r alone, or leave experts out of target_parameters"
        )
    profiles: dict[str, RankProfile] = {}
    for key in tqdm(keys, desc="spectra", disable=not show, unit="weight"):
        delta = change.pair.delta(key).contiguous()
        profiles[key] = rank_profile(delta, [most], format="tt", progress=False, rng=0)
    sizes = {key: sum(profile.shape) for key, profile in profiles.items()}
    if max_params is not None:
        return _allocated(profiles, max_params)[0]
    assert eps is not None
    limits = {key: profile.spectra.limits[0] for key, profile in profiles.items()}
    low, high = 0, sum(limits[key] * size for key, size in sizes.items())
    ranks, error = _allocated(profiles, high)
    if error > eps:
        raise ValueError(
            f"the relative error is {error:.3g} at the largest size allowed, which is more than "
            f"eps={eps:g}; raise r in the configuration, or eps"
        )
    # To a hundredth of the parameters.
    least = sum(sizes.values())
    while high - max(low, least) > max(high // 100, 1):
        middle = (max(low, least) + high) // 2
        fewer, error = _allocated(profiles, middle)
        if error <= eps:
            ranks, high = fewer, middle
        else:
            low = middle
    return ranks


def _allocated(profiles: Mapping[str, RankProfile], size: int) -> tuple[dict[str, int], float]:
    """Ranks within a number of parameters, and the relative error of all together."""
    found = allocate_ranks(profiles, size, may_be_dense=False, progress=False)
    ranks = {key: found.ranks[key] or (1,) for key in profiles}
    return {key: rank[0] for key, rank in ranks.items()}, found.estimate


def _factors(key: str, delta: Tensor, rank: int) -> LowRank:
    """Balanced float32 factors of one matrix and their error, measured."""
    left, right = leading(key, delta, rank)
    norm = math.sqrt(float(delta.square().sum(dtype=torch.double)))
    if not norm:
        return LowRank(left.new_zeros(len(left), 1), right.new_zeros(1, right.shape[1]), 0.0, 0.0)
    u, values, vh = torch.linalg.svd(right.double(), full_matrices=False)
    root = values.sqrt()
    B = (left.double() @ (u * root)).float().contiguous()
    A = (root[:, None] * vh).float().contiguous()
    off = 0.0
    rows = max(_BLOCK // delta.shape[1], 1)
    for start in range(0, len(delta), rows):
        part = slice(start, start + rows)
        off += float((delta[part] - B[part] @ A).square().sum(dtype=torch.double))
    return LowRank(B, A, math.sqrt(off) / norm, norm)


def _experts(change: FinetunedChange, found: Mapping[str, LowRank]) -> dict[str, ExpertFactors]:
    """The factors of parameters of experts, of which several sites may be parts."""
    parts: dict[str, list[tuple[slice, tuple[LowRank, ...]]]] = {}
    shapes: dict[str, tuple[int, int]] = {}
    for name, site in change.sites.items():
        if site.experts:
            parameter = change.pair.parameter_of(name)
            rows, width = change.pair.rows_of(name)
            own = tuple(found[key] for key in site_keys(name, site))
            parts.setdefault(parameter, []).append((rows, own))
            shapes[parameter] = (width, site.in_features)
    return {name: ExpertFactors(name, tuple(own), shapes[name]) for name, own in parts.items()}


def _places(change: FinetunedChange, names: Mapping[str, object]) -> dict[str, str]:
    """Where PEFT has the factors of every parameter of experts."""
    found = {}
    for module, keys in by_owner(names).items():
        owner = change.pair.model.get_submodule(module)
        for key, place in wrapper_names(keys, owner, module).items():
            found[f"{module}.{key}".removeprefix(".")] = place
    return found


def _config(
    change: FinetunedChange,
    config: Any,
    layers: Mapping[str, LowRank],
    experts: list[str],
    common: int,
    base: str | None,
) -> Any:
    """The configuration of the LoRA, whose products count as they are."""
    model = change.pair.model
    ranks = {name: len(factors.A) for name, factors in layers.items()}
    names = [name for name, _ in model.named_modules() if name]
    parameters = [name for name, _ in model.named_parameters()]
    transposed = any(is_transposed(model.get_submodule(name)) for name in layers)
    old = change.config
    modules = [name for name in change.saved if name != "biases"]
    old.modules_to_save, old.bias = modules or None, "all" if change.bias else "none"
    old.base_model_name_or_path = config.base_model_name_or_path or base
    return lora_config(old, model, ranks, experts, common, (names, parameters), transposed, base)
