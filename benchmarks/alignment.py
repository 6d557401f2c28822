"""Times the released aligner against the peers of the evaluation, film by film on one thread, and against itself in batches.

    CXR_STN_DATA=folder python benchmarks/alignment.py [--films 60] [--rounds 7] [--checkpoint chest]

Every program gets films in memory and returns a matrix, preparation included; reading from disk is not. All take turns,
some rounds; printed is for each the least time of its rounds, on the clock, which another program on the same machine
disturbs least, and its ratio to `ecc`, whose pictures have the size of the aligner's input. The aligner is timed by
each runtime and precision (openvino if installed): one film at a time on one thread, in batches on one thread, and in
batches on all. Compiling a network is not timed. Films: the first of lungmask-dev, else of the phantom.
"""
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import time

import cv2
import pandas as pd
import torch

from benchmarks.timing import command_line, data_folder, interleaved, report
from cxr_stn.films import load_films, load_masked
from cxr_stn.inference import Aligner
from cxr_stn.peers import AlignmentFailed, PeerUnavailable, make_peer, mean_chest
from cxr_stn.runtimes import PRECISIONS

SLOW = ("simpleitk", "kornia")  # peers that see a fifth of the films only


def load(count):
    "Films to align, films for the template of registering peers, and where the first are from."
    folder = data_folder()
    if folder: films, others = load_masked(folder / "lungmask-dev"), load_films("nih", folder / "nih14-sample").select("train")
    else: films, others = load_films("phantom", n_films=count, size=512), load_films("phantom", n_films=100, seed=1)
    return [films.read(i) for i in range(min(count, len(films)))], [others.read(i) for i in range(60)], films.name


def one_by_one(place, films):
    "Work that places one film after the other."
    def work():
        for film in films:
            try: place(film)
            except AlignmentFailed: pass
    return work


def peers(films, others, shape):
    "Name -> (work, films in it) of all peers that are installed."
    works = {}
    for name in ("ecc", "simpleitk", "kornia", "lungs_finder"):
        try: place = make_peer(name, shape, mean_chest(others, shape))
        except PeerUnavailable as error: print(error, file=sys.stderr); continue
        few = films[:max(5, len(films) // 5)] if name in SLOW else films
        works[f"{name}, one film, one thread"] = one_by_one(place, few), len(few)
    return works


def kind(aligner): return f"{aligner.runtime} {aligner.fast.precision}" if aligner.fast else "torch float32"


def single(aligner, films): return one_by_one(lambda film: aligner.find(aligner.prepare(film)[None]), films)


def together(aligner, films): return lambda: aligner.find(aligner.prepare_all(films))


def main():
    ask = command_line(__doc__)
    ask.add_argument("--films", type=int, default=60)
    ask.add_argument("--rounds", type=int, default=7)
    ask.add_argument("--checkpoint", default=None)
    given = ask.parse_args()
    films, others, name = load(given.films)
    threads = torch.get_num_threads()
    ways = [("torch", "float32")] + [("openvino", precision) for precision in PRECISIONS if find_spec("openvino")]
    aligners = [Aligner.load(given.checkpoint, runtime=runtime, precision=precision) for runtime, precision in ways]
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    alone = peers(films, others, aligners[0].output_shape)
    for aligner in aligners:
        alone[f"aligner, {kind(aligner)}, one film, one thread"] = single(aligner, films), len(films)
        alone[f"aligner, {kind(aligner)}, batch, one thread"] = together(aligner, films), len(films)
    seconds = interleaved({name: work for name, (work, _) in alone.items()}, given.rounds, time.perf_counter)
    torch.set_num_threads(threads)
    again = [Aligner.load(given.checkpoint, runtime=runtime, precision=precision) for runtime, precision in ways]
    shared = {f"aligner, {kind(aligner)}, batch, {threads} threads": (together(aligner, films), len(films)) for aligner in again}
    seconds |= interleaved({name: work for name, (work, _) in shared.items()}, given.rounds, time.perf_counter)
    each = pd.Series({name: 1000 * min(seconds[name]) / count for name, (_, count) in (alone | shared).items()})
    first = {name: name.rsplit(", ", 2)[0] + ", one film, one thread" for name in each.index}
    table = pd.DataFrame({"method": each.index, "ms per film": each.values, "times ecc": (each / each.iloc[0]).values,
                          "speed against the same, one film": [each[first[name]] / each[name] for name in each.index],
                          "speed against torch, one film": [each[f"aligner, {kind(aligners[0])}, one film, one thread"] / ms for ms in each]})
    report("alignment", f"{len(films)} films of {name}; {aligners[0]}", table, ["torch", "openvino", "opencv-python-headless"])


if __name__ == "__main__": main()
