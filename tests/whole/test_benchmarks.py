"""Every benchmark runs, on synthetic radiographs and briefly, and writes a whole table. How fast anything was
decides nothing here."""

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, python

pytestmark = pytest.mark.slow

BRIEFLY = {  # script: its words, what the first column of its table must name
    "alignment": ("--images 5 --rounds 1",
                  ["ecc, one image, one thread", "aligner, one image, one thread, whole call"]),
    "alignment_files": ("--copies 1 --repetitions 1", ["120 x 96", "native"]),
    "growth": ("--rows 150 300", ["table", "cache", "loader", "trainer", "evaluation"]),
    "input": ("--repetitions 1", ["OpenCV", "cache, rows shuffled", "albumentations, image by image"]),
    "statistics": ("--images 4000 --repetitions 1", ["compare_arms, by patient", "compare_arms, naive"]),
    "training": ("--steps 4 --rounds 1 --input-size 64 --batch-size 4",
                 ["aligner: Lightning", "classifier: Lightning"])}


def briefly(name, folder, monkeypatch):
    "Run a benchmark in a process of its own, with its table going to `folder`: exit code, errors"
    monkeypatch.delenv("CXR_STN_DATA", raising=False)
    code = """
        import pathlib, runpy, sys
        import benchmarks.timing
        benchmarks.timing.RESULTS = pathlib.Path(sys.argv.pop(1))
        sys.argv.pop(0)
        runpy.run_path(sys.argv[0], run_name="__main__")
    """
    process = python(code, folder, ROOT / f"benchmarks/{name}.py", *BRIEFLY[name][0].split())
    errors = process.communicate()[1]
    return process.returncode, errors


def read_table(path):
    "The Markdown table of a benchmark"
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in path.read_text().splitlines()
             if line.startswith("|")]
    return pd.DataFrame(lines[2:], columns=lines[0])


def test_every_script_has_its_line():
    "but `gpu`, which test_gpu.py tests"
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} == {*BRIEFLY, "timing", "gpu"}


@pytest.mark.parametrize("name", BRIEFLY)
def test_runs(name, tmp_path, monkeypatch):
    code, errors = briefly(name, tmp_path, monkeypatch)
    assert code == 0, errors
    table = read_table(tmp_path / f"{name}.md")
    assert set(BRIEFLY[name][1]) <= set(table.iloc[:, 0])
    others = ("to", "differs from naive by", "MiB above few rows", "KiB / row")
    rates = table[[column for column in table if column not in others]].iloc[:, 1:]
    numbers = rates.apply(pd.to_numeric, errors="coerce").dropna(axis=1, how="all").to_numpy()
    assert numbers.size and np.isfinite(numbers).all() and (numbers > 0).all()
