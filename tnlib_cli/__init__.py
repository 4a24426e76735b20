"""The command ``tnlib``: whole checkpoints, looked at without a line of Python."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Any

from tnlib_cli.driver import command, place, positive, positive_number, run


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code, see :mod:`tnlib_cli.driver`.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments, by default those of the process.
    """
    return run(parser(), argv, "base|budget|dtype|device|eps|output|scheduler|select|workers")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="tnlib",
        description="Tensor networks of whole checkpoints.",
        epilog="tnlib COMMAND --help has examples.",
    )
    version = importlib.metadata.version("tnlib")
    top.add_argument("--version", action="version", version=f"%(prog)s {version}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    _survey(commands)
    return top


def _survey(commands: Any) -> None:
    found = command(
        commands,
        "survey",
        ("tnlib_cli.survey", "run"),
        "what is in the matrices of a checkpoint, or in what fine-tuning changed",
        """
SOURCE and BASE are a safetensors file, a folder of them, the name of a model on the hub, or the
folder of a LoRA (as SOURCE). The folder that is written has report.html, one page with all
pictures; table.txt; and records.jsonl with all numbers. The same command continues a survey that
was stopped.

examples:
  tnlib survey ./SmolLM2-135M --output ./survey
  tnlib survey ./finetuned --base ./SmolLM2-135M --output ./changed
  tnlib survey ./Llama-3-8B --output ./survey --select mlp --budget 0.1 --workers 8
  tnlib survey ./Llama-3-70B --output ./survey --scheduler tcp://head:8786""",
    )
    found.add_argument("source", metavar="SOURCE", type=place)
    found.add_argument("--base", metavar="BASE", type=place, help="what SOURCE was trained from")
    found.add_argument("--output", metavar="FOLDER", type=place, required=True)
    found.add_argument("--select", metavar="REGEX", help="matrices whose names have it")
    found.add_argument("--exclude", metavar="REGEX", help="and not those whose names have this")
    found.add_argument(
        "--shapes", nargs="+", metavar="SHAPE", help="such as mpo-2 mpo-3 tt-4, the default"
    )
    found.add_argument(
        "--budget",
        nargs="+",
        type=positive_number,
        metavar="X",
        help="shares of a matrix's values; default 0.01 0.05 0.2",
    )
    found.add_argument(
        "--eps",
        nargs="+",
        type=positive_number,
        metavar="X",
        help="relative errors; default 0.5 0.2 0.1",
    )
    found.add_argument("--dtype", choices=["float32", "float64"], help="default: the weights'")
    found.add_argument("--device", help="compute by torch on it, such as cuda")
    found.add_argument(
        "--exact-side",
        type=positive,
        metavar="N",
        help="smaller sides up to which spectra are exact; default 2048",
    )
    found.add_argument(
        "--workers", type=positive, metavar="N", help="processes; default: as memory allows"
    )
    found.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster that works")


if __name__ == "__main__":
    sys.exit(main())
