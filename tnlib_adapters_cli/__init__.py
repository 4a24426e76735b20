"""The command ``tnlib-adapters``: its parser; how it runs is :mod:`tnlib_cli.driver`."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tnlib_cli.driver import command as _command
from tnlib_cli.driver import place as _place
from tnlib_cli.driver import positive as _positive
from tnlib_cli.driver import positive_number as _error
from tnlib_cli.driver import run

TASKS = ("CAUSAL_LM", "QUESTION_ANS", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS")
_SPEC = """
A METHOD is a name, with fields of its configuration where wanted:

    lotr   lotr:r=16   loretta:variant=rep,bottleneck=8   dota:r=8,target_modules=q_proj+v_proj

Several values of a field are joined by +, mode lists are written 8x8x9/8x8x9.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments, by default those of the process.

    Raises
    ------
    SystemExit
        By argparse: after help, and with code 2 for wrong usage.
    """
    return run(parser(), argv, "rank|eps|base|dtype|max_params")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="tnlib-adapters",
        description="Count, look into, merge and convert tensor-network adapters.",
        epilog="tnlib-adapters COMMAND --help has examples.",
    )
    version = importlib.metadata.version("tnlib")
    top.add_argument("--version", action="version", version=f"%(prog)s {version}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    _count(commands)
    _inspect(commands)
    _merge(commands)
    _to_lora(commands)
    _from_lora(commands)
    _extract(commands)
    return top


def _count(commands: Any) -> None:
    command = _command(
        commands,
        "count",
        ("tnlib_adapters.commands.count", "run"),
        "what methods would train in a model, without its weights",
        f"""{_SPEC}
Targets are those of each method unless --targets or target_modules name others. File: the
parameters of an adapter in float32, with DoTA's frozen start, without the file's header. Gradients
take 4 bytes per trained parameter, the state of AdamW 8.

examples:
  tnlib-adapters count config.json lora:r=8 lotr:r=8 lorta:r=8 dota loretta
  tnlib-adapters count ./Llama-3-70B lora:r=16 lotr:r=64 --targets all-linear
  tnlib-adapters count ./bert lora lotr --task SEQ_CLS --json""",
    )
    command.add_argument(
        "model", metavar="MODEL", type=_place, help="model folder, config.json, or hub name"
    )
    command.add_argument("methods", metavar="METHOD", nargs="+", type=_method)
    command.add_argument(
        "--targets", metavar="NAMES", help="name endings of the layers, with +; or all-linear"
    )
    command.add_argument("--task", choices=TASKS, help="count the head that PEFT trains for it too")
    command.add_argument("--json", action="store_true", help="print JSON")


def _inspect(commands: Any) -> None:
    command = _command(
        commands,
        "inspect",
        ("tnlib_adapters_cli.inspection", "run"),
        "what an adapter folder holds; the base model is not needed",
        """
examples:
  tnlib-adapters inspect ./adapter
  tnlib-adapters inspect ./adapter --json""",
    )
    command.add_argument(
        "adapter", metavar="FOLDER", type=_place, help="folder of a saved adapter, or LoRA"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _merge(commands: Any) -> None:
    command = _command(
        commands,
        "merge",
        ("tnlib_adapters.commands.exchange", "merge_command"),
        "write the base model with an adapter merged into it",
        """
examples:
  tnlib-adapters merge ./adapter ./merged
  tnlib-adapters merge ./adapter ./merged --base ./Llama-3-8B --dtype bfloat16""",
    )
    _adapter_and_output(command)
    _base(command)
    command.add_argument(
        "--dtype",
        choices=["float64", "float32", "bfloat16", "float16"],
        help="default: that of the base",
    )


def _to_lora(commands: Any) -> None:
    command = _command(
        commands,
        "to-lora",
        ("tnlib_adapters.commands.exchange", "to_lora_command"),
        "write an adapter as a LoRA that any PEFT loads",
        """
Without --rank and --eps the LoRA is exact, which DoTA has none of.

examples:
  tnlib-adapters to-lora ./adapter ./lora
  tnlib-adapters to-lora ./adapter ./lora --rank 16
  tnlib-adapters to-lora ./adapter ./lora --eps 0.01 --base ./Llama-3-8B""",
    )
    _adapter_and_output(command)
    command.add_argument("--rank", type=_positive, metavar="N", help="largest rank of a weight")
    command.add_argument("--eps", type=_error, metavar="X", help="largest error of an update")
    _base(command)


def _from_lora(commands: Any) -> None:
    command = _command(
        commands,
        "from-lora",
        ("tnlib_adapters.commands.exchange", "from_lora_command"),
        "write a LoRA as an adapter of another method",
        """
A METHOD is a name, with what sets its size: lotr:r=16, lorta:r=16, loretta:tt_rank=8,bottleneck=8.
Targets, saved modules and task are the LoRA's.

examples:
  tnlib-adapters from-lora ./lora ./adapter lotr:r=32
  tnlib-adapters from-lora ./lora ./adapter lotr:r=256 --eps 0.1
  tnlib-adapters from-lora ./lora ./adapter loretta:tt_rank=8,bottleneck=8 --base ./bert""",
    )
    command.add_argument("lora", metavar="LORA", type=_place, help="folder of the LoRA")
    command.add_argument(
        "output", metavar="OUTPUT", type=_place, help="folder to write, new or empty"
    )
    command.add_argument("method", metavar="METHOD", type=_method)
    command.add_argument(
        "--eps", type=_error, metavar="X", help="smallest size with this error, up to the METHOD's"
    )
    _base(command)


def _extract(commands: Any) -> None:
    command = _command(
        commands,
        "extract",
        ("tnlib_adapters.commands.exchange", "extract_command"),
        "write what fine-tuning changed of a model as an adapter",
        f"""{_SPEC}
Targets are all linear layers but the output unless target_modules names others. Norms and biases
that changed are in the adapter in full, and what modules_to_save names. With --eps or --budget the
METHOD's size is the largest one.

examples:
  tnlib-adapters extract ./Llama-3-8B ./finetuned lora:r=32 --output ./lora
  tnlib-adapters extract ./Llama-3-8B ./finetuned lora:r=256 --budget 40000000 --output ./lora
  tnlib-adapters extract ./bert ./finetuned lotr:r=64,target_modules=query+value --output ./lotr""",
    )
    command.add_argument("base", metavar="BASE", type=_place, help="model before fine-tuning")
    command.add_argument("finetuned", metavar="FINETUNED", type=_place, help="and after it")
    command.add_argument("method", metavar="METHOD", type=_method)
    command.add_argument(
        "--output", metavar="FOLDER", type=_place, required=True, help="new or empty"
    )
    command.add_argument(
        "--eps", type=_error, metavar="X", help="relative error of all weights that is enough"
    )
    command.add_argument(
        "--budget", type=_positive, metavar="N", help="largest number of parameters"
    )


def _adapter_and_output(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "adapter", metavar="ADAPTER", type=_place, help="folder of a saved adapter"
    )
    command.add_argument(
        "output", metavar="OUTPUT", type=_place, help="folder to write, new or empty"
    )


def _base(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--base", metavar="FOLDER", type=_place, help="default: the base the adapter names"
    )


def methods() -> list[str]:
    """The names of the methods, which are those of their files: nothing is imported for them."""
    spec = importlib.util.find_spec("tnlib_adapters")
    folders = (spec.submodule_search_locations if spec else None) or ()
    files = [path for folder in folders for path in Path(folder, "methods").glob("[!_]*.py")]
    return sorted(path.stem for path in files)


def _method(text: str) -> str:
    """A METHOD, as it is written."""
    known = methods()
    name, colon, fields = text.partition(":")
    if name not in known:
        raise argparse.ArgumentTypeError(f"no method {name!r}; there are {', '.join(known)}")
    if colon and not all(re.fullmatch(r"\w+=[^,=]+", entry) for entry in fields.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not {name}:FIELD=VALUE,FIELD=VALUE")
    return text


if __name__ == "__main__":
    sys.exit(main())
