"""Fine-tune a language model with tensor-network adapters on one device or many.

    python examples/train_distributed.py --model FOLDER --text FILE --method lorta
    torchrun --nproc-per-node N examples/train_distributed.py --model FOLDER --text FILE

Every process trains on its part of each batch, so that N of them do what one does (dropout
apart): on GPUs if there are any, else on the CPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from assets import DemoError
from peft import PeftModel, get_peft_model
from task import positive, silence
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from tnlib_adapters import DoTAConfig, LoRETTAConfig, LoRTAConfig, LoTRConfig

METHODS: dict[str, Any] = {
    "dota": DoTAConfig,
    "loretta": LoRETTAConfig,
    "lorta": LoRTAConfig,
    "lotr": LoTRConfig,
}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Fine-tune a language model on one device or, with torchrun, on many.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    needed: dict[str, Any] = {"required": True, "default": argparse.SUPPRESS}
    add("--model", help="folder or hub id of a causal language model", **needed)
    add("--text", type=Path, metavar="FILE", help="UTF-8 text to train on", **needed)
    add("--method", choices=METHODS, default="lorta", help="kind of adapter")
    add("--rank", type=positive, default=8, help="rank of the tensor network")
    add("--target-modules", nargs="+", metavar="NAME", help="layers; None: the method's choice")
    add("--strategy", choices=("ddp", "fsdp"), default="ddp", help="copy the model, or split it")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the frozen weights")
    add("--steps", type=positive, default=100, help="training steps")
    add("--batch-size", type=positive, default=8, help="chunks a step, of all processes together")
    add("--length", type=positive, default=256, help="tokens a chunk")
    add("--learning-rate", type=float, default=1e-3, help="of AdamW")
    add("--seed", type=int, default=0, help="seed of cores and batches")
    add("--output", type=Path, default=Path("adapter"), help="new folder for the adapter")
    add("--no-progress", action="store_true", help="show no progress bar")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; 0 if all went well, 1 after an error that the user can put right."""
    options = parse_arguments(arguments)
    silence()
    device = join()
    try:
        run(options, device)
    except DemoError as error:
        # In every process: torchrun stops the others as soon as one has ended.
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        distributed.destroy_process_group()
    return 0


def join() -> torch.device:
    """Join the processes that a launcher started, or be the only one; the device to use."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        distributed.init_process_group(backend)
    else:
        store = distributed.HashStore()
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    return device


def run(options: argparse.Namespace, device: torch.device) -> None:
    """Read, adapt, train, save and report."""
    first, world = distributed.get_rank() == 0, distributed.get_world_size()
    if options.batch_size % world:
        raise DemoError(
            f"a batch of {options.batch_size} chunks cannot be divided among {world} processes; "
            f"give --batch-size a multiple of {world}"
        )
    if options.output.exists():
        raise DemoError(f"{options.output} exists already; choose another --output")
    chunks = read_chunks(options)
    model = make_model(options)
    size, _ = model.get_nb_trainable_parameters()
    losses = train(model, chunks, options, device)
    save(model, options.output)
    if first:
        print(
            f"{options.method}: {size:,} parameters trained for {options.steps} steps on {world} x "
            f"{device.type} by {options.strategy}, loss {losses[0]:.6f} to {losses[-1]:.6f}, "
            f"saved to {options.output}"
        )


def read_chunks(options: argparse.Namespace) -> Tensor:
    """The text as tokens, of shape (chunks, length); what is left at the end is dropped."""
    try:
        text = options.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DemoError(f"cannot read {options.text} as UTF-8 text: {error}") from error
    tokenizer = load(AutoTokenizer, options.model)
    tokens = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    count = len(tokens) // options.length
    if count == 0:
        raise DemoError(
            f"{options.text} has {len(tokens)} tokens, less than one chunk of {options.length}; "
            "give a longer --text or a smaller --length"
        )
    return tokens[: count * options.length].view(count, options.length)


def load(factory: Any, model: str, **kwargs: Any) -> Any:
    """Load with one of transformers' Auto classes; say what to do if the model cannot be had."""
    try:
        return factory.from_pretrained(model, **kwargs)
    except (OSError, ValueError) as error:
        raise DemoError(
            f"cannot load the model {model!r}: {error}\nGive --model a folder that holds a "
            "transformers causal language model and its tokenizer, or a model id of the hub."
        ) from error


def make_model(options: argparse.Namespace) -> PeftModel:
    """The adapted model, the same in all processes."""
    model = load(AutoModelForCausalLM, options.model, dtype=getattr(torch, options.dtype))
    longest = getattr(model.config, "max_position_embeddings", options.length)
    if options.length > longest:
        raise DemoError(f"{options.model} takes {longest} tokens; give a --length up to that")
    rank = {"tt_rank" if options.method == "loretta" else "r": options.rank}
    # FSDP needs one dtype among what is trained, and LoRETTA trains norms of the model too.
    wide = not (options.strategy == "fsdp" and options.method == "loretta")
    torch.manual_seed(options.seed)
    try:
        config = METHODS[options.method](
            target_modules=options.target_modules, task_type="CAUSAL_LM", **rank
        )
        return get_peft_model(model, config, autocast_adapter_dtype=wide)
    except (TypeError, ValueError) as error:
        raise DemoError(f"cannot adapt {options.model}: {error}") from error


def distribute(model: PeftModel, strategy: str, device: torch.device) -> nn.Module:
    """The model as the processes train it together; FSDP changes it in place."""
    if strategy == "ddp":
        return DistributedDataParallel(model.to(device))
    base = model.get_base_model()
    for block in base.modules():
        if type(block).__name__ in base._no_split_modules:
            fully_shard(block)
    return fully_shard(model)


def train(
    model: PeftModel, chunks: Tensor, options: argparse.Namespace, device: torch.device
) -> list[float]:
    """Train, in passes over the chunks in random order; the loss of every step."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    trained = distribute(model, options.strategy, device).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=options.learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(options.seed)
    wanted = options.steps * options.batch_size
    passes = -(-wanted // len(chunks))
    order = torch.cat([torch.randperm(len(chunks), generator=generator) for _ in range(passes)])
    batches = order[:wanted].view(options.steps, world, -1)
    torch.manual_seed(options.seed + rank)  # dropout differs between processes
    losses: list[float] = []
    with tqdm(batches, "steps", disable=options.no_progress or rank > 0) as bar:
        for batch in bar:
            tokens = chunks[batch[rank]].to(device)
            loss = trained(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            mean = loss.detach() / world
            distributed.all_reduce(mean)
            losses.append(mean.item())
            bar.set_postfix_str(f"loss {losses[-1]:.3f}")
    return losses


def save(model: PeftModel, output: Path) -> None:
    """Gather the adapter from all processes; the first one writes it, wholly or not at all."""
    gathered = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    state = get_model_state_dict(model, options=gathered)
    if distributed.get_rank() == 0:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".adapter-") as beside:
            fresh = Path(beside) / "adapter"
            model.save_pretrained(str(fresh), state_dict=state, save_embedding_layers=False)
            os.replace(fresh, output)


if __name__ == "__main__":
    sys.exit(main())
