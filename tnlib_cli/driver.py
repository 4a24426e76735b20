"""What the command lines of this distribution have in common: how they run, stop and fail.

Nothing heavy is imported before a command runs, so that help and wrong usage answer at once. A
command is a function of the parsed options that returns what is to be printed.

Exit codes: 0 done, 1 the work failed (one line on the error output), 2 wrong usage, 130 stopped by
Ctrl-C and 143 by a signal to terminate. Whatever stops a command, it leaves nothing half-written.
"""

from __future__ import annotations

import argparse
import importlib
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
from typing import Any


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None, options: str) -> int:
    """Run a command line; returns the exit code.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Its commands are made by :func:`command`.
    argv : sequence of str or None
        Arguments; None for those of the process.
    options : str
        Keyword arguments of the library, joined by ``|``, that messages shall write as options.

    Raises
    ------
    SystemExit
        By argparse: after help, and with code 2 for wrong usage.
    """
    found = parser.parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        # Of transformers, about a name that peft asks for.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        try:
            with _stoppable():
                command = _imported(found.module, found.function)
                print(command(found), flush=True)
        except BrokenPipeError:
            # The reader has seen enough; nothing is left to write when Python exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt as stop:
            print("stopped", file=sys.stderr)
            return 143 if isinstance(stop, _Terminated) else 130
        except Exception as error:
            if found.debug:
                traceback.print_exc()
            message = " ".join(str(error).split()) or type(error).__name__
            print(f"error: {_in_shell_words(message, options)}", file=sys.stderr)
            return getattr(error, "exit_code", 1)
    return 0


def command(
    commands: Any, name: str, place: tuple[str, str], what: str, more: str
) -> argparse.ArgumentParser:
    """A subcommand, run by a function of a module."""
    found: argparse.ArgumentParser = commands.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=more.strip("\n"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--quiet", action="store_true", help="no progress bars")
    found.add_argument("--debug", action="store_true", help="show where an error comes from")
    found.set_defaults(module=place[0], function=place[1])
    return found


def place(text: str) -> str:
    """The name of a file, folder or model."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name is given")
    return text


def positive(text: str) -> int:
    """A positive whole number."""
    if not re.fullmatch(r"\d+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a positive whole number is needed, got {text!r}")
    return int(text)


def positive_number(text: str) -> float:
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a positive number is needed, got {text!r}")
    return value


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


def _in_shell_words(message: str, options: str) -> str:
    """A message of the library with options as they are written on a command line."""
    message = re.sub(r"(?:Posix|Windows)Path\('([^']*)'\)", r"\1", message)
    option = rf"(?<![\w:,-])({options})="
    return re.sub(option, r"--\1", re.sub(option + r"(?=[\w'])", r"--\1 ", message))


def _warn(message: Any, *args: Any, **kwargs: Any) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
