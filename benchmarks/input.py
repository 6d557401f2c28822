"""Times everything between a film's file and the network: decoding, the prepared cache, the loader, augmentation.

    CXR_STN_DATA=folder python benchmarks/input.py [--repetitions 3]

All rates are images per second and core: images over the processor time of all processes that took part, in the median of
interleaved rounds. Each stage stands beside its peer: decoders beside bare OpenCV on the same bytes, the cache beside a
copy of the same bytes in memory and beside bare decoding, the batched augmentation beside albumentations film by film.
Decoders that are not installed are left out; to have them all: pip install pyspng imagecodecs. Films: the 18 originals of
nih14-sample for decoding, its 798 films, repeated, for the cache; without CXR_STN_DATA phantoms, enlarged to 1024 pixels.
"""
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import io
import statistics
import time
from functools import partial

import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_png

from benchmarks.timing import command_line, data_folder, interleaved, per_second, processor_seconds, report, scratch
from cxr_stn.arms import ArmFilms, Augmentation, AugmentParams
from cxr_stn.augment import BatchViews, Views, ViewSettings
from cxr_stn.films import Prepared, PreparedRows, load_films, load_folder, prepare, prepare_film
from cxr_stn.images import read_image, write_png
from cxr_stn.training import FilmViews, TrainParams, loader, view_settings

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
        found["imagecodecs, libpng"], found["imagecodecs, libspng"] = imagecodecs.png_decode, imagecodecs.spng_decode
    except ImportError: pass
    return found


def is_exact(pixels, wanted):
    "Whether a decoder's pixels are OpenCV's, whose colours stand in the opposite order."
    wanted = wanted if wanted.ndim == 2 else wanted[..., [2, 1, 0, 3][:wanted.shape[2]]]
    return np.array_equal(np.squeeze(pixels), wanted)


def find_films(folder):
    "Folder of 1024-pixel files, films for the cache, and what they are."
    data = data_folder()
    if data: return data / "nih14-sample" / "originals", load_films("nih", data / "nih14-sample"), "nih14-sample"
    films = load_films("phantom", n_films=200, size=SIZE)
    for i in range(12): write_png(folder / f"{i}.png", cv2.resize(films.read(i), (1024, 1024), interpolation=cv2.INTER_CUBIC))
    return folder, films, "the phantom"


def repeated(prepared, folder):
    "As many prepared films as the cache of this benchmark holds, in a file of their own."
    rows = np.arange(CACHED) % len(prepared)
    path = folder / "repeated.u8"
    with open(path, "wb") as out:
        for some in np.array_split(rows, 20): out.write(prepared.images[some].tobytes())
    images = np.memmap(path, np.uint8, "r", shape=(CACHED, *prepared.images.shape[1:]))
    return Prepared(images, prepared.films.select(rows % len(prepared)), prepared.failures)


def decoding_rates(paths, repetitions):
    "Images per second and core of every decoder and of this package's reading and preparing; names of inexact decoders."
    content, films = [path.read_bytes() for path in paths], load_folder(paths[0].parent)
    wanted = [opencv(data) for data in content]
    every, wrong = decoders(), []
    for name, decode in every.items():
        if not all(is_exact(decode(data), pixels) for data, pixels in zip(content, wanted)): wrong.append(name)
    def all_of(decode): return lambda: [decode(data) for data in content]
    works = {name: all_of(decode) for name, decode in every.items()}
    works |= {"bytes from the page cache": lambda: [path.read_bytes() for path in paths],
              "read_image (checked, grey)": lambda: [read_image(path) for path in paths],
              f"prepare_film to {SIZE} px": lambda: [prepare_film(films, i, SIZE) for i in range(len(films))]}
    return per_second(works, dict.fromkeys(works, len(paths)), repetitions), wrong


def copy_rows(images, rows, out):
    for row in rows: np.copyto(out, images[row])


def run_through(batches):
    for batch in batches: pass


def cache_rates(prepared, repetitions):
    "Images per second and core: a copy in memory, rows of the cache, batches; and on the clock of the batches."
    rows, out, memory = np.random.default_rng(0).permutation(len(prepared)), np.empty((SIZE, SIZE), np.uint8), np.array(prepared.images)
    films = FilmViews(PreparedRows(prepared, np.arange(len(prepared))), None)
    settings = AugmentParams(output_size=SIZE, prepare_size=SIZE)
    labelled = ArmFilms(prepared, torch.eye(2, 3).expand(len(prepared), 2, 3), np.arange(len(prepared)), Augmentation(settings))
    def batches(dataset, workers):
        return run_through(loader(dataset, TrainParams(batch_size=BATCH, num_workers=workers, input_size=SIZE)))
    works = {"memcpy of the same bytes": lambda: copy_rows(memory, rows, out),
             "cache, rows shuffled": lambda: copy_rows(prepared.images, rows, out),
             "cache, batches for the aligner": lambda: batches(films, 0),
             "cache, batches for the classifier": lambda: batches(labelled, 0),
             "cache, batches for the aligner, 2 workers": lambda: batches(films, 2)}
    counts = dict.fromkeys(works, len(prepared))
    rates = per_second(works, counts, repetitions, processor_seconds)
    clock = {name: works[name] for name in works if "aligner" in name}
    return rates, per_second(clock, counts, repetitions, time.perf_counter)


def augmentation_rates(prepared, repetitions):
    "Views per second and core: albumentations film by film, and in batches on the device."
    both = TrainParams(views="albumentations", **dict.fromkeys(
        ("stretch", "invert_p", "mirror_p", "field_p", "local_contrast_p", "blur_p", "erase_p"), 0))
    films = [image.astype(np.float32) / 255 for image in prepared.images[:BATCH]]
    tensor, draws = torch.from_numpy(np.stack(films))[:, None], torch.rand(BATCH, 64, generator=torch.Generator().manual_seed(0))
    views, devices = Views(view_settings(both)), ["cpu"] + ["cuda"] * torch.cuda.is_available()
    works = {"albumentations, film by film": lambda: [views(film, seed) for seed, film in enumerate(films)]}
    for device in devices:
        for name, params in (("same changes", both), ("all changes of the recipe", TrainParams())):
            make, images, numbers = BatchViews(view_settings(params), SIZE).to(device), tensor.to(device), draws.to(device)
            works[f"batch on the {device}, {name}"] = partial(make_views, make, images, numbers)
    return per_second(works, dict.fromkeys(works, BATCH), repetitions, time.perf_counter if devices[1:] else time.process_time)


def make_views(make, images, draws):
    make(images, draws)
    if images.is_cuda: torch.cuda.synchronize()


def lines(rates, peer, to):
    "Rows of the table, with the ratio to one of the rates."
    return [(stage, rate, rate / peer, to) for stage, rate in rates.items()]


def main():
    ask = command_line(__doc__)
    ask.add_argument("--repetitions", type=int, default=3)
    given = ask.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with scratch() as folder:
        originals, films, name = find_films(folder)
        paths = sorted(originals.glob("*.png"))
        decoded, wrong = decoding_rates(paths, given.repetitions)
        start = time.process_time()
        prepared = prepare(films, SIZE, folder / "cache", 1)
        built = len(films) / (time.process_time() - start)
        cached, clock = cache_rates(repeated(prepared, folder), given.repetitions)
        views = augmentation_rates(prepared, given.repetitions)
    rows = lines(decoded, decoded["OpenCV"], "bare OpenCV on originals")
    batches = [name for name in cached if "batches" in name]
    rows += lines(cached, cached["memcpy of the same bytes"], "memcpy")
    rows += lines({name: cached[name] for name in batches}, decoded["OpenCV"], "bare OpenCV on originals")
    workers = [name for name in clock if "workers" in name]
    rows += lines({f"{name}, on the clock": clock[name] for name in workers}, clock["cache, batches for the aligner"], "no workers, on the clock")
    rows += lines(views, views["albumentations, film by film"], "albumentations")
    table = pd.DataFrame(rows, columns=["stage", "images / s / core", "ratio", "to"])
    exact = f"inexact: {', '.join(wrong)}" if wrong else "all decoders give the same pixels"
    about = (f"{len(paths)} originals of {name}; {CACHED} prepared films of {SIZE} px "
             f"({CACHED * SIZE**2 / 2**20:.0f} MiB) in batches of {BATCH}; {exact}")
    report("input", about, table, ["opencv-python-headless", "pillow", "torchvision", "pyspng", "imagecodecs", "albumentations", "torch"],
           f"The cache was built from {len(films)} films, at {built:.0f} films / s / core.")


if __name__ == "__main__": main()
