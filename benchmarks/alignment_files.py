"""Times the alignment of files to files against decoding the same films and encoding the same aligned images.

    CXR_STN_DATA=folder python benchmarks/alignment_files.py [--copies 4] [--repetitions 3]

All rates are images per second and core: images over processor time, in the median of interleaved rounds. `align_films` is
what nbs/align.ipynb does: read, check, prepare, find the frame, draw, write the picture and its record. Its peers are the least
that any such program has to do: bare OpenCV decoding of the film and encoding of the aligned image; and the network alone.
Films: copies of the originals (1024 px) of nih14-sample, else phantoms of 512 px; to the aligner's own frame and to a large one.
"""
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import shutil

import cv2
import numpy as np
import pandas as pd
import torch

from benchmarks.timing import command_line, data_folder, per_second, processor_seconds, report, scratch
from cxr_stn.aligning import align_films
from cxr_stn.films import load_films, load_folder
from cxr_stn.images import write_png
from cxr_stn.inference import Aligner

LARGE = (960, 768)


def make_folder(folder, copies):
    "A folder of films as files, and what they are."
    folder.mkdir()
    data = data_folder()
    if data:
        for k in range(copies):
            for path in sorted((data / "nih14-sample" / "originals").glob("*.png")): shutil.copy(path, folder / f"{k}-{path.name}")
        return "originals of nih14-sample"
    films = load_films("phantom", n_films=18 * copies, size=512)
    for i in range(len(films)): write_png(folder / f"{i}.png", films.read(i))
    return "phantoms of 512 px"


def main():
    ask = command_line(__doc__)
    ask.add_argument("--copies", type=int, default=4)
    ask.add_argument("--repetitions", type=int, default=3)
    given = ask.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rows = []
    with scratch() as place:
        name = make_folder(place / "films", given.copies)
        films, aligner = load_folder(place / "films"), Aligner.load()
        paths, done = [Path(path) for path in films.table["path"]], iter(range(10**6))
        for shape in (aligner.output_shape, LARGE):
            first = align_films(films, aligner, place / f"first{shape}", place / "films", shape)
            if (first["status"] != "aligned").any(): sys.exit("some films could not be aligned")
            aligned = [cv2.imread(str(place / f"first{shape}" / file), cv2.IMREAD_UNCHANGED) for file in first["file"]]
            squares = np.stack([aligner.prepare(films.read(i)) for i in range(len(films))])
            def decode(): return [cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED) for path in paths]
            def encode(): return [cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1]) for image in aligned]
            works = {"decoding and encoding alone": lambda: (decode(), encode()), "decoding alone": decode,
                     "the network alone": lambda: aligner.find(squares),
                     "files to files": lambda: align_films(films, aligner, place / f"run{next(done)}", place / "films", shape)}
            rates = per_second(works, dict.fromkeys(works, len(films)), given.repetitions, processor_seconds)
            peer = rates["decoding and encoding alone"]
            rows += [(f"{shape[0]} x {shape[1]}", stage, rate, rate / peer) for stage, rate in rates.items()]
    table = pd.DataFrame(rows, columns=["aligned images", "work", "images / s / core", "times decoding and encoding alone"])
    report("alignment_files", f"{len(films)} files, {name}; {aligner}", table, ["torch", "opencv-python-headless"])


if __name__ == "__main__": main()
