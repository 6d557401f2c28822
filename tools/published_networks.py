"""Compare two published networks on ChestX-ray14, by NLP labels and by radiologists' labels:
results/published-networks/.

    CXR_STN_DATA=folder python tools/published_networks.py [folder for the results]

The folder of the data has `nih14-predictions`, `nih14-expert-labels` and `nih14-sample` (of which the
metadata alone are read). Takes half a minute; the same data give the same bytes.
"""
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pandas as pd

from cxr_stn.runs import atomic_write
from cxr_stn.study.compare import compare_files, CompareFilesParams
from cxr_stn.study.experts import PARTS

ROOT = Path(__file__).resolve().parent.parent
PATIENT, IMAGE = "Patient ID", "Image Index"
FOUR = PARTS["expert_four"]  # finding that radiologists judged: findings of ChestX-ray14, any of which counts
MARGIN = 0.02  # of results/PROTOCOL.md: a smaller difference of the macro mean does not matter
KEPT = ("classes.csv", "verdict.md", "forest.png", "inputs.csv")


def four_probabilities(path, out):
    "Predictions of the four findings: the largest of the probabilities that a finding is made of"
    table = pd.read_csv(path)
    made = {f"prob_{name}": table[[f"prob_{part}" for part in parts]].max(axis=1) for name,
            parts in FOUR.items()}
    pd.DataFrame({IMAGE: table[IMAGE]} | made).to_csv(out, index=False)
    return str(out)


def nlp_labels(metadata, images, out, findings):
    "NLP labels of some images, the findings made of those of ChestX-ray14"
    table = metadata[metadata[IMAGE].isin(images)]
    found = table["Finding Labels"].str.split("|").map(set)
    made = {name: found.map(lambda f, parts=parts: int(bool(f & set(parts)))) for name,
            parts in findings.items()}
    pd.DataFrame({IMAGE: table[IMAGE], PATIENT: table[PATIENT]} | made).to_csv(out, index=False)
    return str(out)


def comparisons(data, work):
    "name: parameters of `compare_files`"
    published = {x: data / "nih14-predictions" / f"{name}.csv" for x,
                 name in (("a", "densenet121"), ("b", "retrained"))}
    (work / "four").mkdir()
    whole = {x: str(path) for x, path in published.items()}
    four = {x: four_probabilities(path, work / "four" / path.name) for x, path in published.items()}
    nlp = data / "nih14-sample" / "Data_Entry_2017_v2020.csv"
    experts = {name: data / "nih14-expert-labels" / f"{name}_findings" / "test_labels.csv"
               for name in ("all", "four")}
    metadata = pd.read_csv(nlp)
    images = {name: set(pd.read_csv(path).filter(like="Image I").iloc[:, 0]) for name,
              path in experts.items()}
    fourteen = {c[5:]: [c[5:]] for c in pd.read_csv(whole["a"], nrows=0) if c.startswith("prob_")}
    same = {name: nlp_labels(metadata, images[name], work / f"nlp_{name}.csv", findings)
            for name, findings in (("all", fourteen), ("four", FOUR))}
    return {"nlp": whole | dict(labels=str(nlp)),
            "expert_all": whole | dict(labels=str(experts["all"]), common=True),
            "nlp_all": whole | dict(labels=same["all"], common=True),
            "expert_four": four | dict(labels=str(experts["four"]), common=True),
            "nlp_four": four | dict(labels=same["four"], common=True)}


def main(data, out):
    "Make all tables and figures, and put the tables into the page"
    page = (ROOT / "results" / "published-networks" / "README.md").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as work:
        for name, params in comparisons(data, Path(work)).items():
            done = compare_files(CompareFilesParams(**params, patient=PATIENT, margin=MARGIN,
                                                    out_dir=f"{work}/out/{name}"))
            (out / name).mkdir(parents=True, exist_ok=True)
            for file in KEPT: shutil.copyfile(done.path / file, out / name / file)
            block = (f"<!-- {name} -->\n\n{(done.path / 'classes.md').read_text()}\n{done.verdict}\n\n"
                     "<!-- end -->")
            page, count = re.subn(rf"<!-- {name} -->.*?<!-- end -->", lambda _, block=block: block, page,
                                  flags=re.DOTALL)
            assert count == 1, f"the page has no place for {name}"
            print(f"{name}: {done.outcome}")
    atomic_write(out / "README.md", page)


if __name__ == "__main__":
    if not (folder := os.environ.get("CXR_STN_DATA")): sys.exit("CXR_STN_DATA must be the folder of the data")
    main(Path(folder), Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "results" / "published-networks")
