"""``tnlib-adapters merge``, ``to-lora`` and ``from-lora``."""

from __future__ import annotations

import argparse

from tnlib_adapters.commands.method_argument import (
    CONFIGS,
    WrongMethod,
    configuration,
    written_fields,
)
from tnlib_adapters.convert.extract import extract
from tnlib_adapters.convert.from_lora import COPIED, from_lora
from tnlib_adapters.convert.merge import merge
from tnlib_adapters.convert.write_lora import to_lora


def merge_command(options: argparse.Namespace) -> str:
    """Merge an adapter into its base on disk."""
    shown = False if options.quiet else None
    report = merge(
        options.adapter,
        options.output,
        base=options.base,
        dtype=options.dtype,
        progressbar=shown,
    )
    return f"{report}\nwritten to {options.output}"


def to_lora_command(options: argparse.Namespace) -> str:
    """Write an adapter as a LoRA."""
    shown = False if options.quiet else None
    report = to_lora(
        options.adapter,
        options.output,
        rank=options.rank,
        eps=options.eps,
        base=options.base,
        progressbar=shown,
    )
    return f"{report}\nwritten to {options.output}"


def from_lora_command(options: argparse.Namespace) -> str:
    """Write a LoRA as an adapter of another method."""
    shown = False if options.quiet else None
    name = options.method.partition(":")[0]
    fitted = [method for method, kind in CONFIGS.items() if kind.fit_updates]
    if name not in fitted:
        raise WrongMethod(f"a LoRA cannot become {name!r}; it can become {', '.join(fitted)}")
    if given := [field for field in written_fields(options.method) if field in COPIED]:
        raise ValueError(f"{options.method}: {', '.join(given)} come from the LoRA; leave them out")
    report = from_lora(
        options.lora,
        options.output,
        configuration(options.method),
        eps=options.eps,
        base=options.base,
        progressbar=shown,
    )
    return f"{report}\nwritten to {options.output}"


def extract_command(options: argparse.Namespace) -> str:
    """Write what fine-tuning changed as an adapter."""
    if options.eps is not None and options.budget is not None:
        raise WrongMethod("--eps and --budget cannot both be given; leave one out")
    report = extract(
        options.base,
        options.finetuned,
        configuration(options.method),
        options.output,
        eps=options.eps,
        max_params=options.budget,
        progressbar=False if options.quiet else None,
    )
    return f"{report}\nwritten to {options.output}"
