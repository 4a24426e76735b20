"""How often the router of a mixture chooses every expert."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tnlib_adapters.base_model.expert_parameters import uses_interface
from tnlib_adapters.base_model.linear_modules import original_modules
from tnlib_adapters.progress import is_shown


@torch.no_grad()
def routing_counts(
    model: nn.Module, batches: Iterable[Any], *, progressbar: bool | None = None
) -> dict[str, Tensor]:
    """How many tokens go to every expert of every layer.

    Parameters
    ----------
    model : torch.nn.Module
        A model with experts of transformers' experts interface, adapted or not; it is left in its
        mode and computes as in evaluation.
    batches : sequence of mapping
        What the model is called with, moved to its device.
    progressbar : bool, optional
        Show progress; by default for large models only.

    Returns
    -------
    dict of str to Tensor of int64, shape (experts,)
        By the name of the module of experts.

    Raises
    ------
    TypeError
        If a batch is no mapping.
    ValueError
        If the model has no such experts, or there is no batch.

    Examples
    --------
    >>> import transformers
    >>> config = transformers.Qwen3MoeConfig(
    ...     hidden_size=32, num_hidden_layers=2, moe_intermediate_size=16, num_experts=4,
    ...     num_experts_per_tok=2, vocab_size=50,
    ... )
    >>> model = transformers.Qwen3MoeForCausalLM(config)
    >>> counts = routing_counts(model, [{"input_ids": torch.arange(12)[None]}])
    >>> {name: int(count.sum()) for name, count in counts.items()}
    {'model.layers.0.mlp.experts': 24, 'model.layers.1.mlp.experts': 24}
    >>> most = {name: count.topk(2).indices.tolist() for name, count in counts.items()}
    """
    found = {
        name.replace(".base_layer", ""): module
        for name, module in original_modules(model)
        if uses_interface(module) and any(p.ndim == 3 for p in module.parameters(recurse=False))
    }
    if not found:
        raise ValueError(
            f"this {type(model).__name__} has no experts of transformers' experts interface"
        )
    batches = [*batches]
    if not batches:
        raise ValueError("batches is empty; a few batches as for training are needed")
    counts: dict[str, Tensor] = {}
    handles = []
    routers = {name: _place(model, name, module) for name, module in found.items()}

    def counting(name: str, n: int) -> Any:
        def count(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            index = args[1] if len(args) > 1 else kwargs["top_k_index"]
            known = index.reshape(-1)
            counts[name] += torch.bincount(known[known < n], minlength=n).to(counts[name].device)

        return count

    training = model.training
    work = sum(parameter.numel() for parameter in model.parameters()) * len(batches)
    device = next(model.parameters()).device
    try:
        for name, module in found.items():
            n: int = module.num_experts  # type: ignore[assignment]
            counts[name] = torch.zeros(n, dtype=torch.int64)
            hook = counting(name, n)
            handles.append(routers[name].register_forward_pre_hook(hook, with_kwargs=True))
        model.eval()
        shown = is_shown(progressbar, work)
        for batch in tqdm(batches, desc="routing", disable=not shown, unit="batch"):
            if not isinstance(batch, Mapping):
                raise TypeError(f"a batch must be a mapping, got {type(batch).__name__}")
            model(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()})
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    return counts


def _place(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """What is called for the experts: the module, or what adapters have put around it."""
    around = [
        other
        for place, other in model.named_modules()
        if place.replace(".base_layer", "") == name and other is not module
    ]
    return around[0] if around else module
