"""Times the released aligner against the baselines of the evaluation, image by image on one thread, and
against itself in batches.

    CXR_STN_DATA=folder python benchmarks/alignment.py [--images 60] [--rounds 7] [--checkpoint chest]

Every program gets images in memory and returns a matrix, preparation included; reading from disk is not. All
take turns, some rounds; printed is for each the least time of its rounds, on the clock, which another program
on the same machine disturbs least, and its ratio to `ecc`, whose images have the size of the aligner's input.
The aligner is timed from array to pose, as the baselines are, and from array to aligned array ("whole call");
in batches on one core, and on all. Images: the first of lungmask-dev, else of the phantom.
"""
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import time

import cv2
import pandas as pd
import torch

from benchmarks.timing import command_line, data_folder, interleaved, write_report
from cxr_stn.data.datasets import load_masked
from cxr_stn.sources import load_dataset
from cxr_stn.inference import Aligner, count_cores
from cxr_stn.evaluation.baselines import AlignmentFailed, BaselineUnavailable, make_baseline, mean_chest

SLOW = ("simpleitk", "kornia")  # baselines that see a fifth of the images only


def load(count):
    "Images to align, images for the template of registering baselines, and where the first are from."
    folder = data_folder()
    if folder:
        dataset = load_masked(folder / "lungmask-dev")
        others = load_dataset("nih", folder / "nih14-sample").select("train")
    else:
        dataset = load_dataset("phantom", n_images=count, size=512)
        others = load_dataset("phantom", n_images=100, seed=1)
    images = [dataset.read(i) for i in range(min(count, len(dataset)))]
    return images, [others.read(i) for i in range(60)], dataset.name


def one_by_one(align, dataset):
    "Work that aligns one image after the other."
    def work():
        for image in dataset:
            try: align(image)
            except AlignmentFailed: pass
    return work


def baselines(dataset, others, shape):
    "Name -> (work, images in it) of all baselines that are installed."
    works = {}
    for name in ("ecc", "simpleitk", "kornia", "lungs_finder"):
        try: align = make_baseline(name, shape, mean_chest(others, shape))
        except BaselineUnavailable as error: print(error, file=sys.stderr); continue
        few = dataset[:max(5, len(dataset) // 5)] if name in SLOW else dataset
        works[f"{name}, one image, one thread"] = one_by_one(align, few), len(few)
    return works


def main():
    ask = command_line(__doc__)
    ask.add_argument("--images", type=int, default=60)
    ask.add_argument("--rounds", type=int, default=7)
    ask.add_argument("--checkpoint", default=None)
    given = ask.parse_args()
    dataset, others, name = load(given.images)
    aligner, n, cores = Aligner.load(given.checkpoint), len(dataset), os.sched_getaffinity(0)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    works = baselines(dataset, others, aligner.frame_size)
    pose = one_by_one(lambda image: aligner.predict(aligner.preprocess(image)[None]), dataset)
    works["aligner, one image, one thread, pose"] = pose, n
    works["aligner, one image, one thread, whole call"] = one_by_one(aligner, dataset), n
    twice = Aligner.load(given.checkpoint, passes=2)
    works["aligner, one image, one thread, whole call, two passes"] = one_by_one(twice, dataset), n
    works["aligner, batch, 1 core, whole call"] = (lambda: aligner.batch(dataset)), n
    os.sched_setaffinity(0, {min(cores)})
    seconds = interleaved({name: work for name, (work, _) in works.items()}, given.rounds, time.perf_counter)
    os.sched_setaffinity(0, cores)
    everywhere = f"aligner, batch, {count_cores()} cores, whole call"
    works[everywhere] = (lambda: aligner.batch(dataset)), n
    seconds |= interleaved({everywhere: works[everywhere][0]}, given.rounds, time.perf_counter)
    each = pd.Series({name: 1000 * min(seconds[name]) / count for name, (_, count) in works.items()})
    whole = each["aligner, one image, one thread, whole call"]
    table = pd.DataFrame({"method": each.index, "ms per image": each.values,
                          "times ecc": (each / each.iloc[0]).values,
                          "speed against one whole call": (whole / each).values})
    write_report("alignment", f"{n} images of {name}; {aligner}", table,
                 ["onnxruntime", "opencv-python-headless"])


if __name__ == "__main__": main()
