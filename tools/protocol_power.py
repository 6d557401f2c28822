"""What each experiment of results/PROTOCOL.md can find, by simulation: results/protocol_power.csv; and
whether the test of its cross-validation keeps its error rate: results/protocol_folds.csv.

    CXR_STN_DATA=folder python tools/protocol_power.py [folder for the tables]

Patients and labels are those of the experiment (`nih14-sample`, `nih14-sample-2` and the metadata of
ChestX-ray14); the scores are simulated, as in nbs/62_study.simulation.ipynb. No image is read and no network
trained. Takes six minutes of one core; the same data give the same bytes.
"""
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from cxr_stn.runs import atomic_write
from cxr_stn.data.chestxray14 import find_lists, find_metadata, FINDINGS, is_listed, read_metadata
from cxr_stn.study.auroc import influence, interval, patient_codes, scatter, weighted_mean
from cxr_stn.data.folds import fold_split
from cxr_stn.study.report import outcome
from cxr_stn.study.simulation import SHARES, simulate_folds

ROOT = Path(__file__).resolve().parent.parent
FEWEST = 20        # positive patients of a finding in the macro mean
MARGIN = 0.02      # a smaller difference of the macro mean does not matter
TWO_ARMS = np.array([[-1], [1]])             # what is estimated, as weights of (arm, strength)
INTERACTION = np.array([[1, -1], [-1, 1]])   # what moving the images costs the second arm less than the first


def simulated(positive, codes, rng, aurocs):
    "(N, arms, strengths) scores: half of what an image means to an arm is lost when the image is moved"
    arms, strengths = aurocs.shape
    sd, n, count = {name: share**.5 for name, share in SHARES.items()}, len(codes), codes.max() + 1
    delta = 2**.5 * stats.norm.ppf(aurocs)
    common = sd["patient"] * rng.standard_normal(count)[codes] + sd["image"] * rng.standard_normal(n)
    patient = sd["arm_patient"] * rng.standard_normal((count, arms))[codes]
    kept, lost = rng.standard_normal((n, arms, 1)), rng.standard_normal((n, arms, strengths))
    image = sd["arm_image"] * (kept if strengths == 1 else (kept + lost) / 2**.5)
    return positive[:, None, None] * delta + common[:, None, None] + patient[:, :, None] + image


def one_study(labels, codes, rng, weights, difference, auroc):
    "Estimate and 95% interval of one simulated study; the difference is that of its last arm and strength"
    aurocs = np.full(weights.shape, auroc)
    aurocs[-1, -1] += difference
    count, used = codes.max() + 1, []
    for y in labels.T == 1:
        area, h = influence(simulated(y, codes, rng, aurocs).reshape(len(y), -1), y)
        used.append((area @ weights.ravel(), scatter(h @ weights.reshape(-1, 1), y, codes, count)))
    value, total = weighted_mean(used)
    low, high = interval(value, total.variance[0], total.df[0])
    return float(value), float(low), float(high)


def power(name, images, weights, differences, auroc=0.7, repetitions=400, seed=0):
    "A row for each true difference: how wide the interval is and how often each answer is given"
    often = [f for f in FINDINGS if images.loc[images[f] == 1, "patient"].nunique() >= FEWEST]
    labels, codes = images[often].to_numpy(), patient_codes(images["patient"], len(images))[0]
    for difference in differences:
        rng = np.random.default_rng(seed)
        made = [one_study(labels, codes, rng, weights, difference, auroc) for _ in range(repetitions)]
        said = pd.Series([outcome(dict(low=low, high=high), MARGIN) for _, low, high in made])
        shares = {word: (said == word).mean() for word in ("improved", "worse", "equivalent", "inconclusive")}
        yield dict(experiment=name, images=len(images), patients=codes.max() + 1, findings=len(often),
                   difference=difference, repetitions=repetitions,
                   width=np.median([high - low for _, low, high in made]), **shares)


def crossed(images, differences, n_folds=5, repetitions=200):
    "Rates of experiment 1: three seeds, and in each fold networks with luck and a scale of their own"
    splits = pd.DataFrame({fold: fold_split(images, n_folds, fold) for fold in range(n_folds)})
    given = images[list(FINDINGS)].to_numpy(), images["patient"], splits.eq("test").idxmax(axis=1)
    return pd.concat([simulate_folds(*given, repetitions=repetitions, difference=difference)
                     .assign(difference=difference) for difference in differences])


def main(data, out):
    "Make the tables"
    folder, steps = data / "nih14-sample", (0, .01, .02, .03, .04, .05)
    table = read_metadata(find_metadata(folder))
    there = {path.name for part in ("nih14-sample", "nih14-sample-2")
             for path in (data / part).glob("images/*")}
    ours, official = (table[is_listed(table["image"], names)] for names in (there, find_lists(folder)[1]))
    rows = [*power("1 cross-validation, 4 few labels", ours, TWO_ARMS, steps),
            *power("2 positioning", ours, INTERACTION, steps),
            *power("3 test on PA", ours[ours["view"] == "PA"], TWO_ARMS, steps),
            *power("3 test on AP", ours[ours["view"] == "AP"], TWO_ARMS, steps),
            *power("make nih", official, TWO_ARMS, (0, .0014, .005, .01), .8, 200)]
    for name, made in (("power", pd.DataFrame(rows)), ("folds", crossed(ours, (0, .02, .03)))):
        text = made.to_csv(index=False, float_format="%.4g", lineterminator="\n")
        atomic_write(out / f"protocol_{name}.csv", text)


if __name__ == "__main__":
    if not (folder := os.environ.get("CXR_STN_DATA")): sys.exit("CXR_STN_DATA must be the folder of the data")
    main(Path(folder), Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "results")
