"""Times the released aligner against the peers of the evaluation, film by film, on one thread, and against itself in batches.

    CXR_STN_DATA=folder python benchmarks/alignment.py [--films 60] [--repetitions 3] [--checkpoint chest]

Every program gets films in memory and returns a matrix, preparation included; reading from disk is not. Printed for
each: milliseconds per film (the least of the repetitions, which another program on the same machine disturbs least) and
the ratio to `ecc`, whose pictures have the size of the aligner's input. Then the aligner by each runtime and
precision (openvino if installed): one film at a time on one thread, in batches on one thread, and on all. Compiling a
network is not timed. Films: the first of lungmask-dev, else of the phantom.
"""
import argparse
import os
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import pandas as pd
import torch

from cxr_stn.films import load_films, load_masked
from cxr_stn.inference import Aligner
from cxr_stn.peers import AlignmentFailed, PeerUnavailable, make_peer, mean_chest
from cxr_stn.runtimes import PRECISIONS


def load(count):
    "Films to align, films for the template of registering peers, and where both are from."
    folder = Path(os.environ.get("CXR_STN_DATA", ""))
    if os.environ.get("CXR_STN_DATA") and folder.is_dir():
        films, others = load_masked(folder / "lungmask-dev"), load_films("nih", folder / "nih14-sample").select("train")
    else: films, others = load_films("phantom", n_films=count, size=512), load_films("phantom", n_films=100, seed=1)
    return [films.read(i) for i in range(min(count, len(films)))], [others.read(i) for i in range(60)], films.name


def milliseconds(work, repetitions, count):
    "The least time of some repetitions, for one of `count` films."
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * min(times) / count


def one_by_one(place, films):
    for film in films:
        try: place(film)
        except AlignmentFailed: pass


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--films", type=int, default=60)
    ask.add_argument("--repetitions", type=int, default=3)
    ask.add_argument("--checkpoint", default=None)
    given = ask.parse_args()
    films, others, name = load(given.films)
    threads = torch.get_num_threads()
    ways = [("torch", "float32")] + [("openvino", p) for p in PRECISIONS if find_spec("openvino")]
    again = lambda: [Aligner.load(given.checkpoint, runtime=runtime, precision=p) for runtime, p in ways]
    kind = lambda aligner: f"{aligner.runtime} {aligner.fast.precision}" if aligner.fast else "torch float32"
    aligners, rows = again(), []
    shape = aligners[0].output_shape
    def add(method, work): rows.append((method, milliseconds(work, given.repetitions, len(films))))
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    for peer in ("ecc", "simpleitk", "kornia", "lungs_finder"):
        try: place = make_peer(peer, shape, mean_chest(others, shape))
        except PeerUnavailable as error: print(error, file=sys.stderr); continue
        few = films[:max(5, len(films) // 5)] if peer in ("simpleitk", "kornia") else films
        rows.append((peer, milliseconds(lambda: one_by_one(place, few), given.repetitions, len(few))))
    for aligner in aligners:
        place = lambda film: aligner.find(aligner.prepare(film)[None])
        many = lambda: aligner.find(aligner.prepare_all(films))
        one_by_one(place, films[:5])
        add(f"{kind(aligner)}, one film, one thread", lambda: one_by_one(place, films))
        many()
        add(f"{kind(aligner)}, batch, one thread", many)
    torch.set_num_threads(threads)
    for aligner in again(): # a compiled network keeps the number of threads it was made for
        many = lambda: aligner.find(aligner.prepare_all(films))
        many()
        if threads > 1: add(f"{kind(aligner)}, batch, {threads} threads", many)
    table = pd.DataFrame(rows, columns=["method", "ms per film"]).set_index("method")
    table["times ecc"] = table["ms per film"] / table.loc["ecc", "ms per film"]
    single = [table["ms per film"].get(f"{m.rsplit(', ', 2)[0]}, one film, one thread", float("nan")) for m in table.index]
    table["times the same, one film"] = table["ms per film"] / single
    used = [f"{package} {version(package)}" for package in ("torch", "openvino") if find_spec(package)]
    print(f"{len(films)} films of {name}; {aligners[0]}; {', '.join(used)}, OpenCV {cv2.__version__}")
    print(table.round(3).to_markdown())


if __name__ == "__main__": main()
