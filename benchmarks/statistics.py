"""Times the clustered comparison of two arms against pauc and MLstatkit, on the same films, findings and scores.

    python benchmarks/statistics.py [--films 25596] [--repetitions 5] [--seed 0]

Each program compares two arms on 14 findings: both AUROCs with intervals and the p value of their difference. The
peers take every film for a patient; `compare_arms` does the same once (their figures must agree) and once with films
clustered in patients. Printed: processor time of each (the least of the repetitions, which another program on the same
machine disturbs least), its ratio to the clustered comparison, and the time on the clock. The folder that CXR_STN_DATA
names gives the labels and patients of the real test films; without it, the phantom's are used.
"""
import argparse
import os
import sys
import time
from pathlib import Path

# a script's own folder comes first on Python's path, where this file would hide Python's own module `statistics`
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

from cxr_stn.chestxray14 import FINDINGS
from cxr_stn.phantom import Phantom
from cxr_stn.statistics import SimulationParams, compare_arms, simulate_scores, simulation_films


def films(count):
    "Patients and labels, and where they are from."
    folder = Path(os.environ.get("CXR_STN_DATA", "")) / "nih14-sample"
    if os.environ.get("CXR_STN_DATA") and folder.is_dir():
        table = simulation_films(SimulationParams(data="nih", data_dir=str(folder)))
        return table.iloc[:count], "patients and labels of the test films of ChestX-ray14"
    return Phantom(n_films=count, seed=0, films_per_patient=9).table, "patients and labels of the phantom"


def pauc_compare(a, b, labels):
    import pauc
    out = []
    for c in range(labels.shape[1]):
        one, two = (pauc.ROC(labels[:, c], scores[:, c], direction="<") for scores in (a, b))
        pauc.ci_auc(one), pauc.ci_auc(two)
        result = pauc.compare(two, one)
        out.append((one.auc, two.auc, result.p_value))
    return np.array(out)


def mlstatkit_compare(a, b, labels):
    from MLstatkit import Delong_test
    out = []
    for c in range(labels.shape[1]):
        _, p, _, _, one, two, _ = Delong_test(labels[:, c], a[:, c], b[:, c])
        out.append((one, two, p))
    return np.array(out)


def ours(a, b, labels, patients=None):
    table = compare_arms(a, b, labels, patients, FINDINGS).iloc[1:]
    return table[["auroc_a", "auroc_b", "p"]].to_numpy(float)


def timed(function, repetitions):
    "Least seconds of the processor and on the clock, and what came out."
    seconds = []
    for _ in range(repetitions):
        start = time.process_time(), time.perf_counter()
        result = function()
        seconds.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    return *map(min, zip(*seconds)), result


def line(name, processor, clock, base, more=""):
    print(f"{name:26s} {processor:7.3f} s   ratio {processor / base:6.2f}   (clock {clock:7.3f} s)   {more}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=25596)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    table, source = films(args.films)
    labels, rng = table[list(FINDINGS)].to_numpy(), np.random.default_rng(args.seed)
    codes = pd.factorize(table["patient"])[0]
    a, b = np.moveaxis(np.stack([simulate_scores(y, codes, rng) for y in labels.T], 2), 1, 0)
    print(f"{len(table)} films of {codes.max() + 1} patients x {labels.shape[1]} findings, two arms; {source}")
    ours(a, b, labels, codes)  # the first call loads what is loaded once
    base, clock, _ = timed(lambda: ours(a, b, labels, codes), args.repetitions)
    line("compare_arms, by patient", base, clock, base)
    seconds, clock, naive = timed(lambda: ours(a, b, labels), args.repetitions)
    line("compare_arms, naive", seconds, clock, base)
    for name, function in (("pauc", pauc_compare), ("MLstatkit", mlstatkit_compare)):
        try: seconds, clock, result = timed(lambda: function(a, b, labels), args.repetitions)
        except ImportError:
            print(f"{name} is not installed: pip install {name}")
            continue
        line(name, seconds, clock, base, f"differs from naive by {np.nanmax(np.abs(result - naive)):.1e}")


if __name__ == "__main__": main()
