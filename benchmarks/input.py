"""Times everything between an image's file and the network: decoding, the image cache, the loader,
augmentation.

    CXR_STN_DATA=folder python benchmarks/input.py [--repetitions 3]

All rates are images per second and core: images over the processor time of all processes that took part, in
the median of interleaved rounds. Each stage stands beside its baseline: decoders beside bare OpenCV on the
same bytes, the cache beside a copy of the same bytes in memory and beside bare decoding, the batched
augmentation beside albumentations image by image. Decoders that are not installed are left out; to have them
all: pip install pyspng imagecodecs. Images: the 18 originals of nih14-sample for decoding, its 798 images,
repeated, for the cache; without CXR_STN_DATA phantoms, enlarged to 1024 pixels.
"""
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import io
import time
from functools import partial

import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_png

from benchmarks.timing import command_line, data_folder, per_second, processor_seconds, write_report, scratch
from cxr_stn.data.images import read_image, write_png
from cxr_stn.data.datasets import load_folder
from cxr_stn.data.cache import build_cache, CachedRows, ImageCache, preprocess_image
from cxr_stn.data.augment import AlbumentationsAugment, augment_config, BatchAugment
from cxr_stn.sources import load_dataset
from cxr_stn.trainer import loader
from cxr_stn.aligner.data import AugmentedDataset, TrainParams
from cxr_stn.classifier.arms import ArmDataset, Augmentation, InputParams

SIZE, CACHED, BATCH = 224, 3200, 32


def opencv(data): return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
def pillow(data): return np.asarray(Image.open(io.BytesIO(data)))


def torchvision(data):
    tensor = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    return tensor.permute(1, 2, 0).numpy()


def decoders():
    "Name -> function from bytes to pixels, of all decoders that are installed."
    found = dict(OpenCV=opencv, Pillow=pillow, torchvision=torchvision)
    try:
        import pyspng
        found["pyspng (libspng)"] = pyspng.load
    except ImportError: pass
    try:
        import imagecodecs
        found["imagecodecs, libpng"] = imagecodecs.png_decode
        found["imagecodecs, libspng"] = imagecodecs.spng_decode
    except ImportError: pass
    return found


def is_exact(pixels, wanted):
    "Whether a decoder's pixels are OpenCV's, whose colours stand in the opposite order."
    wanted = wanted if wanted.ndim == 2 else wanted[..., [2, 1, 0, 3][:wanted.shape[2]]]
    return np.array_equal(np.squeeze(pixels), wanted)


def find_dataset(folder):
    "Folder of 1024-pixel files, images for the cache, and what they are."
    data = data_folder()
    if data:
        return data / "nih14-sample" / "originals", load_dataset("nih", data / "nih14-sample"), "nih14-sample"
    dataset = load_dataset("phantom", n_images=200, size=SIZE)
    for i in range(12):
        write_png(folder / f"{i}.png", cv2.resize(dataset.read(i), (1024, 1024),
                                                  interpolation=cv2.INTER_CUBIC))
    return folder, dataset, "the phantom"


def repeated(cache, folder):
    "As many cached images as the cache of this benchmark holds, in a file of their own."
    rows = np.arange(CACHED) % len(cache)
    path = folder / "repeated.u8"
    with open(path, "wb") as out:
        for some in np.array_split(rows, 20): out.write(cache.images[some].tobytes())
    images = np.memmap(path, np.uint8, "r", shape=(CACHED, *cache.images.shape[1:]))
    return ImageCache(images, cache.dataset.select(rows % len(cache)), cache.failures)


def decoding_rates(paths, repetitions):
    """Images per second and core of every decoder and of this package's reading and preprocessing; names of
    inexact decoders."""
    content, dataset = [path.read_bytes() for path in paths], load_folder(paths[0].parent)
    wanted = [opencv(data) for data in content]
    every, wrong = decoders(), []
    for name, decode in every.items():
        if not all(is_exact(decode(data), pixels) for data, pixels in zip(content, wanted)):
            wrong.append(name)
    def all_of(decode): return lambda: [decode(data) for data in content]
    works = {name: all_of(decode) for name, decode in every.items()}
    works |= {"bytes from the page cache": lambda: [path.read_bytes() for path in paths],
              "read_image (checked, grey)": lambda: [read_image(path) for path in paths],
              f"preprocess_image to {SIZE} px":
                  lambda: [preprocess_image(dataset, i, SIZE) for i in range(len(dataset))]}
    return per_second(works, dict.fromkeys(works, len(paths)), repetitions), wrong


def copy_rows(images, rows, out):
    for row in rows: np.copyto(out, images[row])


def run_through(batches):
    for batch in batches: pass


def cache_rates(cache, repetitions):
    """Images per second and core: a copy in memory, rows of the cache, batches; and on the clock of the
    batches."""
    rows = np.random.default_rng(0).permutation(len(cache))
    out = np.empty((SIZE, SIZE), np.uint8)
    memory = np.array(cache.images)
    dataset = AugmentedDataset(CachedRows(cache, np.arange(len(cache))), None)
    settings = InputParams(input_size=SIZE, cache_size=SIZE)
    labelled = ArmDataset(cache, torch.eye(2, 3).expand(len(cache), 2, 3), np.arange(len(cache)),
                          Augmentation(settings))
    def batches(dataset, workers):
        params = TrainParams(batch_size=BATCH, num_workers=workers, input_size=SIZE)
        return run_through(loader(dataset, params))
    works = {"memcpy of the same bytes": lambda: copy_rows(memory, rows, out),
             "cache, rows shuffled": lambda: copy_rows(cache.images, rows, out),
             "cache, batches for the aligner": lambda: batches(dataset, 0),
             "cache, batches for the classifier": lambda: batches(labelled, 0),
             "cache, batches for the aligner, 2 workers": lambda: batches(dataset, 2)}
    counts = dict.fromkeys(works, len(cache))
    rates = per_second(works, counts, repetitions, processor_seconds)
    clock = {name: works[name] for name in works if "aligner" in name}
    return rates, per_second(clock, counts, repetitions, time.perf_counter)


def augmentation_rates(cache, repetitions):
    "Views per second and core: albumentations image by image, and in batches on the device."
    both = TrainParams(augment_backend="albumentations", **dict.fromkeys(
        ("anisotropy", "invert_p", "mirror_p", "bias_field_p", "local_contrast_p", "blur_p", "erase_p"), 0))
    dataset = [image.astype(np.float32) / 255 for image in cache.images[:BATCH]]
    tensor = torch.from_numpy(np.stack(dataset))[:, None]
    uniforms = torch.rand(BATCH, 64, generator=torch.Generator().manual_seed(0))
    rates = AlbumentationsAugment(augment_config(both))
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    works = {"albumentations, image by image":
             lambda: [rates(image, seed) for seed, image in enumerate(dataset)]}
    for device in devices:
        for name, params in (("same changes", both), ("all changes of the recipe", TrainParams())):
            make = BatchAugment(augment_config(params), SIZE).to(device)
            images = tensor.to(device)
            numbers = uniforms.to(device)
            works[f"batch on the {device}, {name}"] = partial(make_augmented, make, images, numbers)
    return per_second(works, dict.fromkeys(works, BATCH), repetitions, time.perf_counter if devices[1:]
                      else time.process_time)


def make_augmented(make, images, uniforms):
    make(images, uniforms)
    if images.is_cuda: torch.cuda.synchronize()


def lines(rates, baseline, to):
    "Rows of the table, with the ratio to one of the rates."
    return [(stage, rate, rate / baseline, to) for stage, rate in rates.items()]


def main():
    ask = command_line(__doc__)
    ask.add_argument("--repetitions", type=int, default=3)
    given = ask.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with scratch() as folder:
        originals, dataset, name = find_dataset(folder)
        paths = sorted(originals.glob("*.png"))
        decoded, wrong = decoding_rates(paths, given.repetitions)
        start = time.process_time()
        cache = build_cache(dataset, SIZE, folder / "cache", 1)
        built = len(dataset) / (time.process_time() - start)
        cached, clock = cache_rates(repeated(cache, folder), given.repetitions)
        rates = augmentation_rates(cache, given.repetitions)
    rows = lines(decoded, decoded["OpenCV"], "bare OpenCV on originals")
    batches = [name for name in cached if "batches" in name]
    rows += lines(cached, cached["memcpy of the same bytes"], "memcpy")
    rows += lines({name: cached[name] for name in batches}, decoded["OpenCV"], "bare OpenCV on originals")
    workers = [name for name in clock if "workers" in name]
    rows += lines({f"{name}, on the clock": clock[name] for name in workers},
                  clock["cache, batches for the aligner"], "no workers, on the clock")
    rows += lines(rates, rates["albumentations, image by image"], "albumentations")
    table = pd.DataFrame(rows, columns=["stage", "images / s / core", "ratio", "to"])
    exact = f"inexact: {', '.join(wrong)}" if wrong else "all decoders give the same pixels"
    description = (f"{len(paths)} originals of {name}; {CACHED} cached images of {SIZE} px "
             f"({CACHED * SIZE**2 / 2**20:.0f} MiB) in batches of {BATCH}; {exact}")
    write_report("input", description, table, ["opencv-python-headless", "pillow", "torchvision",
                                               "pyspng", "imagecodecs", "albumentations", "torch"],
           f"The cache was built from {len(dataset)} images, at {built:.0f} images / s / core.")


if __name__ == "__main__": main()
