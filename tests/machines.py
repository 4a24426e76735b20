"""The numeric tests as other processors, other numbers of threads and other luck would run them.

A processor chooses the code of every library at run time, and each library has a variable that
makes it choose as another processor would: OPENBLAS_CORETYPE and NPY_DISABLE_CPU_FEATURES for NumPy
and SciPy, MKL_CBWR, ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA for torch. ``make test-machines``
runs the tests once for every setting below; a setting that this processor cannot run is left out,
and one that does not take effect has failed. What no variable can show, such as another make of
processor or BLAS, `tests.perturbed` imitates.

    python -m tests.machines --list
    python -m tests.machines --setting nehalem --setting perturbed tests/tnlib
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATHS = ("tests/tnlib", "tests/tnlib_adapters", "tnlib", "tnlib_adapters")
# They start programs, or check words and files: the processor cannot matter to them, or their
# time would.
NOT_NUMERIC = (
    "tests/tnlib/contraction/test_arguments.py",
    "tests/tnlib/io/test_files.py",
    "tests/tnlib_adapters/peft_plugin/test_bad_configs.py",
    "tests/tnlib_adapters/commands/test_cli.py",
    "tests/tnlib_adapters/layers/test_compile.py",
    "tests/tnlib_adapters/peft_plugin/test_distributed.py",
    "tests/tnlib_adapters/convert/test_exchange_errors.py",
    "tests/tnlib_adapters/methods/test_golden_counts.py",
    "tests/tnlib_adapters/peft_plugin/test_oldest_peft.py",
    "tests/tnlib_adapters/networks/test_drawing.py",
)
# Prints what each library has chosen; the lines of MKL and oneDNN are their own.
PROBE = """
import json, numpy, scipy.linalg, threadpoolctl, torch
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
blas = [i["architecture"] for i in threadpoolctl.threadpool_info() if "architecture" in i]
ones = torch.ones(64, 64)
ones @ ones, torch.nn.functional.conv2d(ones[None, None], ones[None, None, :3, :3])
print(json.dumps({
    "openblas": sorted(set(blas)),
    "aten": torch.backends.cpu.get_cpu_capability(),
    "numpy": [name for name in __cpu_dispatch__ if __cpu_features__[name]],
}))
"""


@dataclass(frozen=True)
class Setting:
    """One way to run the tests.

    `flags` are those that the processor must have; `shows`, for each library of the probe, the
    pattern by which it says that it has followed; `threads` those of one process, None for two
    processes of one thread.
    """

    why: str
    environment: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    shows: dict[str, str] = field(default_factory=dict)
    threads: int | None = None
    options: tuple[str, ...] = ()
    busy: bool = False


def code_path(why, openblas, mkl, aten, onednn, flags=(), kernels=None, numpy=None):
    """The code that every library has for one kind of processor."""
    environment = {
        "OPENBLAS_CORETYPE": openblas,
        "MKL_CBWR": mkl,
        "ATEN_CPU_CAPABILITY": aten,
        "ONEDNN_MAX_CPU_ISA": onednn,
    }
    shows = {"openblas": kernels or openblas, "mkl": mkl, "aten": aten.upper()}
    if numpy is not None:
        environment["NPY_DISABLE_CPU_FEATURES"] = " ".join(numpy)
    return Setting(why, environment, flags, shows)


def newer_than(*kept: str) -> list[str]:
    """What NumPy has code for and this processor can run, less `kept`."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return [name for name in __cpu_dispatch__ if __cpu_features__[name] and name not in kept]


AVX2, AVX512 = ("avx2", "fma"), ("avx512f", "avx512bw", "avx512dq", "avx512vl")
NO_AVX512 = newer_than("AVX", "F16C", "FMA3", "AVX2", "X86_V3")
NEHALEM = code_path(
    "SSE only: other sums, no fused products", "Nehalem", "COMPATIBLE", "default", "SSE41",
    numpy=newer_than(),
)  # fmt: skip
# Threads that wait sleep instead of spinning: there may be fewer cores than threads.
PATIENT = {"OPENBLAS_THREAD_TIMEOUT": "4", "OMP_WAIT_POLICY": "PASSIVE"}
SETTINGS = {
    "here": Setting("as this processor is"),
    "nehalem": NEHALEM,
    "haswell": code_path("AVX2 of Intel", "Haswell", "AVX2", "avx2", "AVX2", AVX2, numpy=NO_AVX512),
    # Builds without kernels of its own for Zen use Haswell's.
    "zen": code_path(
        "AVX2 of AMD", "Zen", "AVX2", "avx2", "AVX2", AVX2, "Zen|Haswell", numpy=NO_AVX512
    ),
    "skylakex": code_path("AVX512", "SkylakeX", "AVX512", "avx512", "AVX512_CORE", AVX512),
    **{f"threads-{n}": Setting(f"sums split among {n}", PATIENT, threads=n) for n in (1, 2, 4)},
    **{
        f"seed-{n}": Setting("other examples", options=(f"--hypothesis-seed={n}",))
        for n in (1, 2, 3)
    },
    "busy": Setting("every core is taken", busy=True),
    **{
        f"perturbed-{n}": Setting(
            "every product and factorisation rounded in another way",
            {"PERTURBED_SEED": str(n)},
            options=("-p", "tests.perturbed"),
        )
        for n in (1, 2)
    },
    "foreign": Setting(
        "as far from here as it gets, for CI",
        NEHALEM.environment | {"TEST_EXAMPLES": "12"},
        shows=NEHALEM.shows,
        options=("-p", "tests.perturbed", "--hypothesis-seed=4"),
    ),
}


def processor_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    return set(" ".join(re.findall(r"^flags\s*:(.*)$", text, re.MULTILINE)).split())


def ineffective(setting: Setting) -> list[str]:
    """The libraries that did not follow the setting, with what they said."""
    verbose = {"MKL_VERBOSE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env=os.environ | setting.environment | verbose,
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    chosen = {"openblas": said["openblas"], "aten": [said["aten"]]}
    chosen["mkl"] = re.findall(r"CNR:(\w+)", done.stdout)  # none in a build without MKL
    return [
        f"{library} uses {value}"
        for library, pattern in setting.shows.items()
        for value in sorted(set(chosen[library]))
        if not re.fullmatch(pattern, value)
    ]


@contextmanager
def every_core_taken() -> Iterator[None]:
    spin = [sys.executable, "-c", "while True: pass"]
    spinning = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def run(name: str, setting: Setting, arguments: list[str]) -> dict[str, object]:
    """Run the tests under a setting; a row of the table."""
    row: dict[str, object] = {"setting": name, "result": "left out", "tests": "", "seconds": 0}
    missing = [flag for flag in setting.flags if flag not in processor_flags()]
    if missing:
        return row | {"tests": f"this processor has no {', '.join(missing)}"}
    wrong = ineffective(setting)
    if wrong:
        return row | {"result": "failed", "tests": f"no effect: {'; '.join(wrong)}"}
    threads = str(setting.threads or 1)
    environment = os.environ | setting.environment | {"TEST_THREADS": threads}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    command += [] if setting.threads else ["-n", "2"]
    command += [f"--ignore={path}" for path in NOT_NUMERIC]
    command += [*setting.options, *(arguments or PATHS)]
    start = time.monotonic()
    with every_core_taken() if setting.busy else open(os.devnull):
        process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line if re.search(r"\d+ (passed|failed|error)", line) else last
        failed = process.wait() != 0
    counts = ", ".join(re.findall(r"\d+ (?:passed|failed|errors?|skipped)", last))
    row |= {"result": "failed" if failed else "passed", "tests": counts or "no test ran"}
    return row | {"seconds": round(time.monotonic() - start)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run the numeric tests under other processors' code paths.",
        epilog="Other arguments go to pytest: paths instead of all numeric tests, -k, -x.",
    )
    parser.add_argument("--list", action="store_true", help="show the settings and stop")
    parser.add_argument("--setting", action="append", choices=SETTINGS, help="one of them; again")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failed setting")
    parser.add_argument("--json", type=Path, help="write the table to this file too")
    options, arguments = parser.parse_known_args()
    if options.list:
        for name, setting in SETTINGS.items():
            variables = " ".join(f"{key}={value!r}" for key, value in setting.environment.items())
            print(f"{name:12} {setting.why}\n{'':12} {variables}".rstrip())
        return 0
    rows = []
    # What CI runs is made of settings that a full run has one by one.
    for name in options.setting or [name for name in SETTINGS if name != "foreign"]:
        print(f"== {name}: {SETTINGS[name].why}", flush=True)
        rows.append(run(name, SETTINGS[name], arguments))
        if rows[-1]["result"] == "failed" and not options.keep_going:
            break
    print("\nsetting       result    seconds  tests")
    for row in rows:
        print(f"{row['setting']:12}  {row['result']:8}  {row['seconds']:7}  {row['tests']}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(any(row["result"] == "failed" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
