"""Memory of a training step: saved activations, the optimizer's state, the peak."""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
from pathlib import Path

import harness
import torch
from step_models import Setting, Step, adapted, base_model, held, trained
from torch import Tensor, nn


def saved_bytes(step: Step) -> int:
    """Bytes that a forward pass keeps for the backward one, every storage once.

    What the model holds is not counted: it is there anyway.
    """
    own = held(step.model)
    found: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        output = step.forward()
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
    """A step that has been done once, with the memory it took given back to the system."""
    step = Step.of(adapted(base_model(setting), method, setting), setting)
    step()
    for weight in trained(step.model):
        weight.grad = None
    step.inputs.grad = None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc keeps freed memory, which would hide in the rise
        trim(0)
    return step


def peak_bytes(method: str, setting: Setting) -> int | None:
    """Bytes that a step needs at its peak beside the prepared model.

    On the CPU as `harness.peak_memory` has it, in a process of its own; these processes are forked
    from one that has imported everything, which takes far longer than the step. None where the
    system does not tell.
    """
    if setting.device == "cuda":
        return _cuda_peak(prepared(method, setting))
    if not Path("/proc/self/clear_refs").exists():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "peft", "transformers", "tnlib_adapters"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=harness._measure, args=(sender, prepared, (method, setting)))
    process.start()
    sender.close()
    try:
        return int(receiver.recv())
    except EOFError:
        return None
    finally:
        process.join()


def _cuda_peak(step: Step) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before
