"""What the benchmarks share: times that other programs on the machine disturb little, and tables with their
hardware.

A script of this folder begins with

    sys.path[0] = str(Path(__file__).resolve().parents[1])

so that it finds `benchmarks.timing` and `cxr_stn`, and not this folder's `statistics.py` in place of Python's
own.
"""
import argparse
import contextlib
import importlib.metadata
import os
import platform
import resource
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil

RESULTS = Path(__file__).resolve().parents[1] / "results" / "benchmarks"


def processor_seconds():
    "Seconds of processor time of this process, and of those it started that have ended."
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def interleaved(works, repetitions, clock=time.process_time):
    """Run every work (name -> function) in turn, some rounds; name -> seconds of each round. The first round
    is not counted."""
    seconds = {name: [] for name in works}
    for turn in range(repetitions + 1):
        for name, work in works.items():
            start = clock()
            work()
            if turn: seconds[name].append(clock() - start)
    return seconds


def per_second(works, counts, repetitions, clock=time.process_time):
    "How many of its `counts` (name -> number) each work does in a second: in the median round."
    seconds = interleaved(works, repetitions, clock)
    return {name: counts[name] / statistics.median(seconds[name]) for name in works}


def processor_name():
    "The model of the processor, as far as the system tells."
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"): return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def hardware(packages):
    "One line: processor, cores, memory, Python and the versions of some packages."
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    versions = []
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return (f"{processor_name()}, {cores} of {os.cpu_count()} cores, {memory.total / 2**30:.0f} GiB; "
            f"Python {platform.python_version()}, {', '.join(versions)}")


def data_folder():
    "The folder of real images that CXR_STN_DATA names, or None."
    folder = os.environ.get("CXR_STN_DATA")
    return Path(folder) if folder and Path(folder, "nih14-sample").is_dir() else None


def command_line(description):
    "A parser that shows the script's own text as its help."
    return argparse.ArgumentParser(description=description,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


@contextlib.contextmanager
def scratch():
    "A folder for the time of a benchmark; TMPDIR says where."
    with tempfile.TemporaryDirectory(prefix="cxr_stn-benchmark-") as folder: yield Path(folder)


def write_report(name, description, table, packages, notes=""):
    "Print a table with the hardware it is of, and write both to results/benchmarks/NAME.md."
    command = shlex.join(["python", f"benchmarks/{name}.py", *sys.argv[1:]])
    digits = ["g" if pd.api.types.is_numeric_dtype(kind) else "" for kind in table.dtypes]
    printed = table.to_markdown(index=False, floatfmt=[f".4{d}" if d else "" for d in digits])
    text = "\n\n".join(part for part in (f"`{command}`: {description}. {hardware(packages)}.", printed, notes)
                       if part) + "\n"
    print(text, flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
