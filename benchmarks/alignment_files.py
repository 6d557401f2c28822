"""Times the alignment of files to files against decoding the same images and encoding the same aligned
images.

    CXR_STN_DATA=folder python benchmarks/alignment_files.py [--copies 4] [--repetitions 3]

All rates are images per second and core: images over processor time, in the median of interleaved rounds.
`align_dataset` is what nbs/align.ipynb does: read, check, preprocess, predict the frame, warp, write the
image and its record. Its baselines are the least that any such program has to do: bare OpenCV decoding of the
image and encoding of the aligned image; and the network alone. Images: copies of the originals (1024 px) of
nih14-sample, else phantoms of 512 px; in the command's own size, `native`, in which an image keeps about as
many pixels as it has, and in the aligner's frame.
"""
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import shutil

import cv2
import numpy as np
import pandas as pd
import torch

from benchmarks.timing import command_line, data_folder, per_second, processor_seconds, write_report, scratch
from cxr_stn.data.images import write_png
from cxr_stn.data.datasets import load_folder
from cxr_stn.sources import load_dataset
from cxr_stn.inference import Aligner
from cxr_stn.aligner.batch import align_dataset

SIZES = {"native": "native", "{} x {}": None} # name -> as `align_dataset` takes it


def make_folder(folder, copies):
    "A folder of images as files, and what they are."
    folder.mkdir()
    data = data_folder()
    if data:
        for k in range(copies):
            for path in sorted((data / "nih14-sample" / "originals").glob("*.png")):
                shutil.copy(path, folder / f"{k}-{path.name}")
        return "originals of nih14-sample"
    dataset = load_dataset("phantom", n_images=18 * copies, size=512)
    for i in range(len(dataset)): write_png(folder / f"{i}.png", dataset.read(i))
    return "phantoms of 512 px"


def main():
    ask = command_line(__doc__)
    ask.add_argument("--copies", type=int, default=4)
    ask.add_argument("--repetitions", type=int, default=3)
    given = ask.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rows = []
    with scratch() as folder:
        name = make_folder(folder / "images", given.copies)
        dataset, aligner = load_folder(folder / "images"), Aligner.load()
        paths, done = [Path(path) for path in dataset.table["path"]], iter(range(10**6))
        for label, size in SIZES.items():
            first = align_dataset(dataset, aligner, folder / f"first{size}", folder / "images", size)
            if (first["status"] != "aligned").any(): sys.exit("some images could not be aligned")
            aligned = [cv2.imread(str(folder / f"first{size}" / file), cv2.IMREAD_UNCHANGED)
                       for file in first["file"]]
            inputs = np.stack([aligner.preprocess(dataset.read(i)) for i in range(len(dataset))])
            def decode():
                return [cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED) for path in paths]
            def encode():
                return [cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1]) for image in aligned]
            works = {"decoding and encoding alone": lambda: (decode(), encode()), "decoding alone": decode,
                     "the network alone": lambda: aligner.predict(inputs),
                     "files to files": lambda: align_dataset(dataset, aligner, folder / f"run{next(done)}",
                                                             folder / "images", size)}
            rates = per_second(works, dict.fromkeys(works, len(dataset)), given.repetitions,
                               processor_seconds)
            baseline = rates["decoding and encoding alone"]
            rows += [(label.format(*aligner.frame_size), stage, rate, rate / baseline)
                     for stage, rate in rates.items()]
    table = pd.DataFrame(rows, columns=["aligned images", "work", "images / s / core",
                                        "times decoding and encoding alone"])
    write_report("alignment_files", f"{len(dataset)} files, {name}; {aligner}", table,
                 ["torch", "opencv-python-headless"])


if __name__ == "__main__": main()
