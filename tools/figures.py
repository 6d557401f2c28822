"""Images of real radiographs, unaligned beside aligned by the released aligner.

    CXR_STN_DATA=folder python tools/figures.py

The folder holds `lungmask-dev`, `nih14-sample` and `nih14-sample-2`. Written are
    results/lungmask-dev/mean_before_after.png   mean of all images, lungs outlined
    results/nih14-sample/before_after.png        six test images of ChestX-ray14 (NIH Clinical Center)
    results/nih14-sample/stored_mirrored.png     three training images of it that are stored mirrored
"""
import os
from pathlib import Path

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from cxr_stn.resampling import resample
from cxr_stn.data.images import to_unit
from cxr_stn.data.datasets import evenly_spaced, load_chestxray14, load_masked
from cxr_stn.inference import Aligner
from cxr_stn.evaluation.tables import aligner_method, make_method, read_all
from cxr_stn.evaluation.figures import plot_mean_images

RESULTS = Path(__file__).resolve().parent.parent/"results"
SETS = ("lungmask-dev", "nih14-sample", "nih14-sample-2")
STORED_MIRRORED = ("00002645_002.png", "00018902_000.png", "00020440_000.png") # by letters and hearts


def data_folder():
    "The folder that CXR_STN_DATA names; SystemExit says what is missing"
    named = os.environ.get("CXR_STN_DATA")
    if not named: raise SystemExit(f"CXR_STN_DATA is not set; it names the folder with {' and '.join(SETS)}")
    missing = [name for name in SETS if not (Path(named)/name).is_dir()]
    if missing: raise SystemExit(f"CXR_STN_DATA={named} holds no folder {' and no folder '.join(missing)}")
    return Path(named)

def two_methods(aligner, shape):
    "Whole image in the output frame, and aligned"
    letterbox = make_method("letterbox", shape, None)
    letterbox.name = "unaligned"
    return [letterbox, aligner_method("aligned", aligner, shape)]

def mean_before_after(folder, aligner, shape=(300, 240)):
    "Mean of all images with lung masks, unaligned and aligned"
    images, kept, _ = read_all(load_masked(folder))
    masks = [kept.mask(i) for i in range(len(kept))]
    figure = plot_mean_images([to_unit(p) for p in images], two_methods(aligner, shape), shape, masks)
    for ax in figure.axes:
        for outlines in ax.collections: outlines.set(alpha=0.15, linewidth=0.5)
    return figure

def before_after(folder, aligner, n=6, shape=(225, 180)):
    "Test images at even distances in the list, unaligned above and aligned below"
    tests = load_chestxray14(folder).select("test")
    images = [tests.read(i) for i in evenly_spaced(len(tests), n)]
    figure, axes = plt.subplots(2, n, figsize=(1.2 * n, 3.6))
    for row, method in zip(axes, two_methods(aligner, shape)):
        for ax, image, matrix in zip(row, images, method.matrices(images)):
            ax.imshow(resample(to_unit(image), matrix, shape), cmap="gray", vmin=0, vmax=1)
            ax.axis("off")
        row[0].set_title(method.name, fontsize=9, loc="left")
    figure.tight_layout(pad=0.3, h_pad=0.8)
    return figure

def stored_mirrored(folders, aligner):
    "Images of ChestX-ray14 whose letters and hearts lie on the wrong side, as they are stored"
    dataset = load_chestxray14(folders)
    rows = [list(dataset.table["image"]).index(name) for name in STORED_MIRRORED]
    figure, axes = plt.subplots(1, len(rows), figsize=(1.7 * len(rows), 2.1))
    for ax, i in zip(axes, rows):
        image = dataset.read(i)
        assert aligner(image).mirrored, f"{dataset.table['image'].iat[i]} is not called mirrored"
        ax.imshow(to_unit(image), cmap="gray", vmin=0, vmax=1)
        ax.set_title(dataset.table["image"].iat[i], fontsize=7)
        ax.axis("off")
    figure.tight_layout(pad=0.3)
    return figure

def save(figure, path, colors=96, dpi=130):
    "Write a figure as a PNG of few colours"
    figure.set_dpi(dpi)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    Image.fromarray(pixels).quantize(colors, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"results/{path.relative_to(RESULTS)}: {path.stat().st_size / 1000:.0f} kB")

def main():
    folder, aligner = data_folder(), Aligner.load()
    save(mean_before_after(folder/"lungmask-dev", aligner), RESULTS/"lungmask-dev"/"mean_before_after.png")
    save(before_after(folder/"nih14-sample", aligner), RESULTS/"nih14-sample"/"before_after.png")
    both = f"{folder/'nih14-sample'}{os.pathsep}{folder/'nih14-sample-2'}"
    save(stored_mirrored(both, aligner), RESULTS/"nih14-sample"/"stored_mirrored.png")


if __name__ == "__main__": main()
