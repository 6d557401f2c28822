"""Times the clustered comparison of two arms against pauc and MLstatkit, on the same images, findings and
scores.

    python benchmarks/statistics.py [--images 25596] [--repetitions 5] [--seed 0]

Each program compares two arms on 14 findings: both AUROCs with intervals and the p value of their difference.
The baselines take every image for a patient; `compare_arms` does the same once (their figures must agree) and
once with images clustered in patients. All take turns. Printed: processor time of each (the least of the
repetitions, which another program on the same machine disturbs least), its ratio to the clustered comparison,
and by how much its AUROCs and p values differ from those without clusters. The folder that CXR_STN_DATA names
gives the labels and patients of the real test images; without it, the phantom's are used.
"""
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder, whose statistics.py is not Python's

import importlib.util
import os

import numpy as np
import pandas as pd

from benchmarks.timing import command_line, interleaved, write_report
from cxr_stn.data.chestxray14 import FINDINGS
from cxr_stn.phantom.dataset import Phantom
from cxr_stn.study.auroc import compare_arms
from cxr_stn.study.simulation import simulate_scores, simulation_images, SimulationParams


def images(count):
    "Patients and labels, and where they are from."
    folder = Path(os.environ.get("CXR_STN_DATA", "")) / "nih14-sample"
    if os.environ.get("CXR_STN_DATA") and folder.is_dir():
        table = simulation_images(SimulationParams(data="nih", data_dir=str(folder)))
        return table.iloc[:count], "patients and labels of the test images of ChestX-ray14"
    return Phantom(n_images=count, seed=0, images_per_patient=9).table, "patients and labels of the phantom"


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


def main():
    ask = command_line(__doc__)
    ask.add_argument("--images", type=int, default=25596)
    ask.add_argument("--repetitions", type=int, default=5)
    ask.add_argument("--seed", type=int, default=0)
    given = ask.parse_args()
    table, source = images(given.images)
    labels, rng = table[list(FINDINGS)].to_numpy(), np.random.default_rng(given.seed)
    codes = pd.factorize(table["patient"])[0]
    a, b = np.moveaxis(np.stack([simulate_scores(y, codes, rng) for y in labels.T], 2), 1, 0)
    found = {}
    works = {"compare_arms, by patient": lambda: ours(a, b, labels, codes),
             "compare_arms, naive": lambda: ours(a, b, labels)}
    for name, function in (("pauc", pauc_compare), ("MLstatkit", mlstatkit_compare)):
        if importlib.util.find_spec(name): works[name] = lambda function=function: function(a, b, labels)
        else: print(f"{name} is not installed: pip install {name}", file=sys.stderr)
    kept = {name: lambda name=name, work=work: found.update({name: work()}) for name, work in works.items()}
    least = {name: min(seconds) for name, seconds in interleaved(kept, given.repetitions).items()}
    naive, base = found["compare_arms, naive"], least["compare_arms, by patient"]
    rows = [dict(program=name, seconds=seconds, ratio=seconds / base,
                 differs=f"{np.nanmax(np.abs(found[name] - naive)):.1e}" if name != "compare_arms, by patient"
                 else "another test")
            for name, seconds in least.items()]
    description = (f"{len(table)} images of {codes.max() + 1} patients x {labels.shape[1]} findings, "
                   f"two arms; {source}")
    write_report("statistics", description,
                 pd.DataFrame(rows).rename(columns={"differs": "differs from naive by"}),
                 ["numpy", "scikit-learn", "pauc", "MLstatkit"])


if __name__ == "__main__": main()
