"""Memory of a training step: saved activations, the optimizer's state, the peak."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from typing import Any

import harness
import torch
from step_models import Setting, Step, adapted, base_model, held, trained
from torch import Tensor, nn

_M_MMAP_THRESHOLD = -3  # glibc's malloc.h
# What a process that measures a peak is forked with.
PRELOAD = ("torch", "peft", "transformers", "tnlib_adapters")


def saved_bytes(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes that a forward pass keeps for the backward one, every storage once.

    What the model holds is not counted: it is there anyway.
    """
    own = held(model)
    found: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        output = forward()
    del output
    return sum(found.values())


def optimizer_bytes(model: nn.Module) -> int:
    """Bytes of AdamW's state after a step; gradients have to be there."""
    weights = [weight for weight in trained(model) if weight.grad is not None]
    if not weights:
        return 0
    optimizer = torch.optim.AdamW(weights, lr=0.0, weight_decay=0.0)
    optimizer.step()
    values = itertools.chain.from_iterable(s.values() for s in optimizer.state.values())
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def prepared(method: str, setting: Setting) -> Step:
    """A step that is ready to be measured."""
    return settled(Step.of(adapted(base_model(setting), method, setting), setting))


def settled(step: Step) -> Step:
    """The step, done once, with the memory it took given back to the system."""
    step()
    for weight in trained(step.model):
        weight.grad = None
    step.inputs.grad = None
    trim_memory()
    return step


def trim_memory() -> None:
    """Give back freed memory that glibc keeps, which would hide in the rise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_bytes(device: str, prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> Any:
    """Bytes that a step, ``prepare(*arguments)``, needs at its peak beside the prepared model.

    On the CPU as `harness.peak_memory` has it; None where the system does not tell.
    """
    if device == "cuda":
        return _cuda_peak(prepare(*arguments))
    return harness.peak_memory(prepare, *arguments, preload=PRELOAD)


def unpooled(prepare: Callable[..., Any], *arguments: Any) -> Any:
    """``prepare(*arguments)``, with a mapping of its own for all that takes 64 kB and more.

    What is freed then leaves resident memory at once, so that a rise is that of the tensors. By
    default glibc keeps part of it, how much depends on the order in which memory was taken.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 16)
    return prepare(*arguments)


def _cuda_peak(step: Callable[[], Any]) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before
