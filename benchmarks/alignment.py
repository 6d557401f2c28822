"""Times the released aligner against the baselines of the evaluation, image by image on one thread, and
against itself in batches.

    CXR_STN_DATA=folder python benchmarks/alignment.py [--images 60] [--rounds 7] [--checkpoint chest]

Every program gets images in memory and returns a matrix, preparation included; reading from disk is not. All
take turns, some rounds; printed is for each the least time of its rounds, on the clock, which another program
on the same machine disturbs least, and its ratio to `ecc`, whose images have the size of the aligner's input.
The aligner is timed by each runtime and precision (openvino if installed): one image at a time on one thread,
in batches on one thread, and in batches on all. Compiling a network is not timed. Images: the first of
lungmask-dev, else of the phantom.
"""
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import time

import cv2
import pandas as pd
import torch

from benchmarks.timing import command_line, data_folder, interleaved, write_report
from cxr_stn.data.datasets import load_masked
from cxr_stn.sources import load_dataset
from cxr_stn.aligner.runtimes import PRECISIONS
from cxr_stn.inference import Aligner, to_network_inputs
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


def one_by_one(folder, dataset):
    "Work that places one image after the other."
    def work():
        for image in dataset:
            try: folder(image)
            except AlignmentFailed: pass
    return work


def baselines(dataset, others, shape):
    "Name -> (work, images in it) of all baselines that are installed."
    works = {}
    for name in ("ecc", "simpleitk", "kornia", "lungs_finder"):
        try: folder = make_baseline(name, shape, mean_chest(others, shape))
        except BaselineUnavailable as error: print(error, file=sys.stderr); continue
        few = dataset[:max(5, len(dataset) // 5)] if name in SLOW else dataset
        works[f"{name}, one image, one thread"] = one_by_one(folder, few), len(few)
    return works


def kind(aligner): return f"{aligner.runtime} {aligner.fast.precision}" if aligner.fast else "torch float32"


def single(aligner, dataset):
    return one_by_one(lambda image: aligner.predict(aligner.preprocess(image)[None]), dataset)


def together(aligner, dataset): return lambda: aligner.predict(to_network_inputs(dataset, aligner.input_size))


def main():
    ask = command_line(__doc__)
    ask.add_argument("--images", type=int, default=60)
    ask.add_argument("--rounds", type=int, default=7)
    ask.add_argument("--checkpoint", default=None)
    given = ask.parse_args()
    dataset, others, name = load(given.images)
    threads = torch.get_num_threads()
    runtimes = [("torch", "float32")] + [("openvino", precision) for precision in PRECISIONS
                                         if find_spec("openvino")]
    aligners = [Aligner.load(given.checkpoint, runtime=runtime, precision=precision)
                for runtime, precision in runtimes]
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    alone = baselines(dataset, others, aligners[0].frame_size)
    for aligner in aligners:
        alone[f"aligner, {kind(aligner)}, one image, one thread"] = single(aligner, dataset), len(dataset)
        alone[f"aligner, {kind(aligner)}, batch, one thread"] = together(aligner, dataset), len(dataset)
    seconds = interleaved({name: work for name, (work, _) in alone.items()}, given.rounds, time.perf_counter)
    torch.set_num_threads(threads)
    again = [Aligner.load(given.checkpoint, runtime=runtime, precision=precision)
             for runtime, precision in runtimes]
    shared = {f"aligner, {kind(aligner)}, batch, {threads} threads":
              (together(aligner, dataset), len(dataset)) for aligner in again}
    seconds |= interleaved({name: work for name, (work, _) in shared.items()}, given.rounds,
                           time.perf_counter)
    each = pd.Series({name: 1000 * min(seconds[name]) / count
                      for name, (_, count) in (alone | shared).items()})
    first = {name: name.rsplit(", ", 2)[0] + ", one image, one thread" for name in each.index}
    table = pd.DataFrame({"method": each.index, "ms per image": each.values,
                          "times ecc": (each / each.iloc[0]).values,
                          "speed against the same, one image":
                              [each[first[name]] / each[name] for name in each.index],
                          "speed against torch, one image":
                              [each[f"aligner, {kind(aligners[0])}, one image, one thread"] / ms
                              for ms in each]})
    write_report("alignment", f"{len(dataset)} images of {name}; {aligners[0]}", table,
                 ["torch", "openvino", "opencv-python-headless"])


if __name__ == "__main__": main()
