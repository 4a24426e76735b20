"""The command ``tnlib-adapters``: its parser, and what every command has in common.

Nothing heavy is imported before a command runs, so that help and wrong usage answer at once. A
command is a function of the parsed options that returns what is to be printed.

Exit codes: 0 done, 1 the work failed (one line on the error output), 2 wrong usage, 130 stopped by
Ctrl-C and 143 by a signal to terminate. Whatever stops a command, it leaves nothing half-written.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import math
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    options = parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        # Of transformers, about a name that peft asks for.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        try:
            with _stoppable():
                command = _imported(options.module, options.function)
                print(command(options), flush=True)
        except BrokenPipeError:
            # The reader has seen enough; nothing is left to write when Python exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt as stop:
            print("stopped", file=sys.stderr)
            return 143 if isinstance(stop, _Terminated) else 130
        except Exception as error:
            if options.debug:
                traceback.print_exc()
            message = " ".join(str(error).split()) or type(error).__name__
            print(f"error: {_in_shell_words(message)}", file=sys.stderr)
            return getattr(error, "exit_code", 1)
    return 0


class _Terminated(KeyboardInterrupt):
    """A signal to terminate, which stops a command as Ctrl-C does."""


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let a signal to terminate stop the command, so that it cleans up."""

    def stop(*_: object) -> None:
        raise _Terminated

    with _on((signal.SIGTERM,), stop):
        yield


@contextmanager
def _on(numbers: Sequence[signal.Signals], handler: Callable[..., None]) -> Iterator[None]:
    """Handle signals, but for those that the process was told to ignore, as in the background."""
    main = threading.current_thread() is threading.main_thread()
    caught = [n for n in numbers if main and signal.getsignal(n) is not signal.SIG_IGN]
    before = [signal.signal(number, handler) for number in caught]
    try:
        yield
    finally:
        for number, earlier in zip(caught, before, strict=True):
            signal.signal(number, earlier)


def _imported(module: str, function: str) -> Callable[[argparse.Namespace], str]:
    """A command.

    While it is imported there is nothing to clean up, and libraries that are stopped half-way
    complain: a signal then ends the process.
    """

    def leave(number: int, _: object) -> None:
        os.write(2, b"stopped\n")
        os._exit(128 + number)

    with _on((signal.SIGINT, signal.SIGTERM), leave):
        found: Callable[[argparse.Namespace], str] = getattr(
            importlib.import_module(module), function
        )
    return found


def _in_shell_words(message: str) -> str:
    """A message of the library with options as they are written on a command line."""
    message = re.sub(r"(?:Posix|Windows)Path\('([^']*)'\)", r"\1", message)
    option = r"(?<![\w:,-])(rank|eps|base|dtype)="
    return re.sub(option, r"--\1", re.sub(option + r"(?=[\w'])", r"--\1 ", message))


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


def _command(
    commands: Any, name: str, place: tuple[str, str], what: str, more: str
) -> argparse.ArgumentParser:
    """A subcommand, run by a function of a module."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=more.strip("\n"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--quiet", action="store_true", help="no progress bars")
    command.add_argument("--debug", action="store_true", help="show where an error comes from")
    command.set_defaults(module=place[0], function=place[1])
    return command


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


def _place(text: str) -> str:
    """The name of a file, folder or model."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name is given")
    return text


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


def _positive(text: str) -> int:
    if not re.fullmatch(r"\d+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a positive whole number is needed, got {text!r}")
    return int(text)


def _error(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a positive number is needed, got {text!r}")
    return value


def _warn(message: Any, *args: Any, **kwargs: Any) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
