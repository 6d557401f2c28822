"""Shows that time and memory per image do not grow with the number of images, up to the 112,120 of
ChestX-ray14.

    CXR_STN_DATA=folder python benchmarks/growth.py [--rows 1000 10000 112120]

For each number of rows and each stage a process of its own, which first does the stage once with few rows.
Printed: processor time per row and its ratio to the smallest number; the peak of memory above what the
process needed for the few rows; and its peak in all, mapped images included. Stages: `table` reads, checks
and splits the metadata, lists the images and takes both fingerprints; `cache` builds the image cache;
`loader` runs through an epoch of the aligner's batches; `trainer` is a whole run of the classifier (an epoch,
predictions of validation and test images) with timm's smallest test network; `evaluation` writes and reads
the predictions of two arms, and compares them by AUROC with tests for clustered dataset. The metadata and
lists are the real ones, cut after so many rows; behind every name lies one of 40 images of the sample at 64
px, by a hard link. Without CXR_STN_DATA all of it is made from the phantom.
"""
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import json
import os
import resource
import subprocess
import time

import cv2
import numpy as np
import pandas as pd

from benchmarks.timing import command_line, data_folder, write_report, scratch
from cxr_stn.data.images import read_image, write_png
from cxr_stn.data.chestxray14 import FINDINGS
from cxr_stn.sources import load_dataset

STAGES, SIZE, FEW = ("table", "cache", "loader", "trainer", "evaluation"), 64, 400
METADATA, LISTS = "Data_Entry_2017_v2020.csv", ("train_val_list.txt", "test_list.txt")


def made_up(count):
    "Metadata of phantoms in the form of ChestX-ray14."
    table = load_dataset("phantom", n_images=count, size=SIZE, seed=0).table
    labels = ["|".join(f for f, there in zip(FINDINGS, row) if there) or "No Finding"
              for row in table[list(FINDINGS)].to_numpy()]
    names = [f"{i:08}_000.png" for i in range(count)]
    head = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    lines = [f"{name},{label},0,{patient},50,F,PA"
             for name, label, patient in zip(names, labels, table["patient"])]
    return [head, *lines], {LISTS[k]: [name for name, split in zip(names, table["split"])
                                       if (split == "test") == k] for k in (0, 1)}


def official(count):
    "The metadata and lists of ChestX-ray14, cut after so many rows."
    folder = data_folder() / "nih14-sample"
    lines = (folder / METADATA).read_text().splitlines()[:count + 1]
    names = {line.split(",", 1)[0] for line in lines}
    return lines, {name: [n for n in (folder / name).read_text().split() if n in names] for name in LISTS}


def images(folder):
    "40 small images as files."
    folder.mkdir(parents=True)
    data = data_folder()
    if data:
        dataset = [read_image(path) for path in sorted((data / "nih14-sample" / "images").glob("*.png"))[:40]]
    else:
        dataset = [image for phantom in [load_dataset("phantom", n_images=40, size=SIZE)]
                   for image in map(phantom.read, range(40))]
    for i, image in enumerate(dataset):
        write_png(folder / f"{i}.png", cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA))
    return sorted(folder.iterdir())


def dataset(folder, count, files):
    "A folder in the official layout with so many dataset."
    lines, lists = official(count) if data_folder() else made_up(count)
    (folder / "images").mkdir(parents=True)
    (folder / METADATA).write_text("\n".join(lines) + "\n")
    for name, listed in lists.items(): (folder / name).write_text("\n".join(listed) + "\n")
    for i, line in enumerate(lines[1:]):
        os.link(files[i % len(files)], folder / "images" / line.split(",", 1)[0])


def run_table(folder, cache):
    dataset = load_dataset("nih", folder)
    dataset.manifest_hash(), dataset.content_hash()
    return dataset


def run_cache(folder, cache):
    from cxr_stn.data.cache import build_cache
    return build_cache(load_dataset("nih", folder), SIZE, cache, 1)


def run_loader(folder, cache):
    from cxr_stn.aligner.data import AlignerData, TrainParams
    data = AlignerData(TrainParams(data="nih", data_dir=str(folder), cache_dir=str(cache), input_size=SIZE,
                                   pose_supervision_weight=0.0))
    data.trainer = None
    for batch in data.train_dataloader(): pass


def run_trainer(folder, cache):
    from cxr_stn.classifier.training import ClassifyParams, fit_classifier
    with contextlib.redirect_stdout(sys.stderr):
        fit_classifier(ClassifyParams(data="nih", data_dir=str(folder), cache_dir=str(cache),
                                      out_dir=str(cache / f"run-{folder.name}"),
                                      arm="standard", input_size=SIZE, cache_size=SIZE,
                                      classifier="test_efficientnet",
                                      classifier_weights="none", batch_size=64, epochs=1, accelerator="cpu"))


def run_evaluation(folder, cache):
    from cxr_stn.classifier.predictions import prediction_table, read_predictions, write_predictions
    from cxr_stn.study.auroc import compare_arms
    dataset, rng, arms = load_dataset("nih", folder), np.random.default_rng(0), []
    for arm in ("standard", "aligned"):
        probs = rng.random((len(dataset), len(FINDINGS)), np.float32)
        file = write_predictions(cache / f"{arm}.parquet", prediction_table(dataset.table, probs),
                                 dict(arm=arm, seed=0, data="nih"))
        arms.append(read_predictions(file)[0])
    probs, labels = ([arm[[f"{what}_{f}" for f in FINDINGS]].to_numpy() for arm in arms]
                     for what in ("prob", "label"))
    return compare_arms(*probs, labels[0], arms[0]["patient"].to_numpy(), FINDINGS)


def peak_bytes():
    "The most memory this process ever held, mapped files included."
    try:
        return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status")
                           if line.startswith("VmHWM"))
    except OSError: return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(stage, folder, few, cache):
    "One stage in this process: seconds of the processor, peak before and after in bytes."
    import torch
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    run = globals()[f"run_{stage}"]
    run(few, cache)
    before, start = peak_bytes(), time.process_time()
    run(folder, cache)
    print(json.dumps(dict(seconds=time.process_time() - start, before=before, after=peak_bytes())))


def main():
    ask = command_line(__doc__)
    ask.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 112_120])
    ask.add_argument("--stage", nargs=4,
                     help="of a process that this script starts: "
                          "stage, folder, folder with few images, cache")
    given = ask.parse_args()
    if given.stage: return measure(given.stage[0], *map(Path, given.stage[1:]))
    found = []
    with scratch() as folder:
        files = images(folder / "pictures")
        for count in (FEW, *given.rows): dataset(folder / str(count), count, files)
        for stage in STAGES:
            for count in given.rows:
                words = [sys.executable, __file__, "--stage", stage, folder / str(count), folder / str(FEW),
                         folder / "cache"]
                done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
                if done.returncode: sys.exit(f"{stage} of {count} rows failed:\n{done.stderr}")
                found.append(dict(stage=stage, rows=count) | json.loads(done.stdout.splitlines()[-1]))
    table, base = pd.DataFrame(found), {}
    each = 1e6 * table["seconds"] / table["rows"]
    for stage, value in zip(table["stage"], each): base.setdefault(stage, value)
    shown = pd.DataFrame({"stage": table["stage"], "rows": table["rows"], "µs / row": each,
                          "ratio to the fewest rows": each / table["stage"].map(base),
                          "MiB above few rows": (table["after"] - table["before"]) / 2**20,
                          "KiB / row": (table["after"] - table["before"]) / 2**10 / table["rows"],
                          "peak, MiB": table["after"] / 2**20})
    description = (f"metadata of {'ChestX-ray14' if data_folder() else 'the phantom'}, "
                   f"images of {SIZE} px ({SIZE**2 / 1024:.0f} KiB an image)")
    write_report("growth", description, shown, ["torch", "pytorch-lightning", "pandas"])


if __name__ == "__main__": main()
