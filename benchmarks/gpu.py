"""Holds a GPU against the CPU, training steps against waiting, and our loops against what bounds them.

    make gpu-check, or
    python benchmarks/gpu.py [--steps 60] [--rounds 3] [--input-size 224] [--batch-size 32] [--workers 4]

Checks: a step of each training, the classifier's also with a transformer in it, computes the same on both
devices; so do the released aligner by ONNX Runtime and the frames of the arm `aligned`; images kept on the
GPU are those that the loader brings; no step makes the host wait for the GPU; two GPUs end with the same
weights. Measures: images a second of each training and of inference, in interleaved rounds, beside a bare
loop and the input pipeline alone, and torch's memory. What goes wrong in one row loses no other, and an
interruption none that is there; the exit status is 1 if any check differs or fails. Images: phantoms.
"""
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import gc
import statistics
import textwrap
import time
import traceback
from functools import partial
from itertools import islice
from typing import NamedTuple
from unittest import mock

import numpy as np
import onnxruntime
import pandas as pd
import pytorch_lightning as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection

from benchmarks.timing import command_line, scratch, write_report
from benchmarks.training import (bare_steps, batches, Clock, fit_steps, kept, lightning_steps, maker, prepare,
                                 Steps)
from cxr_stn.data.cache import build_cache
from cxr_stn.trainer import quiet
from cxr_stn.aligner.networks import predict_poses
from cxr_stn.aligner.checkpoints import read_network
from cxr_stn.classifier.arms import predict_frames
from cxr_stn.classifier.model import end_to_end_network
from cxr_stn.classifier.training import ClassifierTraining, ClassifyParams
from cxr_stn.inference import Aligner, find_checkpoint

# Of themselves, of the gradient's norm, and in pixels: ONNX Runtime may use TF32 on a GPU.
LOSSES, GRADIENT, CORNERS = 1e-8, 1e-6, 0.5
EVERY_LOSS = dict(aligner=dict(pixel_weight=1.0, perceptual_weight=1.0, anchor_weight=1.0))
VARIANTS = {"": {}, ", bf16-mixed": dict(precision="bf16-mixed"), ", compiled": dict(compile=True)}
NO_GPU = (f"gpu-check did not run: it looked for a CUDA device, and torch {torch.__version__} found none; it "
          "needs an NVIDIA GPU with its driver, a torch built for CUDA (pip install torch) and, for the "
          "released aligner, onnxruntime-gpu in place of onnxruntime.")
NOTES = ("Steps are compared in 64 bits, frames in 32 without TF32; measures are with torch's defaults. The "
         "first third of the steps of a round is not counted. A training whose images / s come near those of "
         "the input pipeline waits for it. Peak memory: what torch's allocator gave out beyond what it held; "
         "ONNX Runtime has its own.")


class NotRun(Exception): "Why a check cannot be made here."


class Row(NamedTuple):
    "Of the table."
    check: str
    value: str = ""
    memory: str = ""
    result: str = ""


def places(error):
    "The line that raised an error, and the last one of this package or of the benchmarks before it."
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    ours = [frame for frame in frames if {"cxr_stn", "benchmarks"} & set(frame[0].parts[-3:-1])]
    return ", from ".join(dict.fromkeys("{}:{}".format("/".join(path.parts[-3:]), line)
                                        for path, line in [frames[-1], *ours[-1:]]))


def failure(check, error):
    "The row of a check that did not end: why, and at which line."
    if isinstance(error, NotRun): return Row(check, result=f"not run: {error}")
    traceback.print_exception(error)
    word = "differs" if isinstance(error, AssertionError) else "fails"
    reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300).replace("|", "\\|")
    return Row(check, result=f"{word}: {reason} ({places(error)})")


def checked(check, work, *given):
    "The row of a check, whose work returns a value and how exactly it agrees; its error becomes its row."
    try: value, exactly = work(*given)
    except Exception as error: return failure(check, error)
    return Row(check, value, result=f"agrees: {exactly}")


@contextlib.contextmanager
def in_64_bits():
    """All floating-point numbers have 64 bits. With 32, rounding hides mistakes: another order of the weights
    in memory moves a gradient on a CPU by up to 0.02 of its norm; an H200's was up to 0.15 away."""
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double): yield
    finally: torch.set_default_dtype(torch.float32)


def widened(tensor): return tensor.double() if tensor.is_floating_point() else tensor


def first_step(training, device, weights):
    "Losses (name -> scalar) and gradient of the first step of a training, both brought to the CPU."
    params, data, make = training
    module = make(**weights)().double()
    if hasattr(module, "network"):  # else all sample at pixel centres, where bilinear slopes jump
        torch.nn.init.normal_(module.network.localiser.answer.weight, std=0.01)
    module.to(device)
    module._trainer = Steps(data, 1)
    batch = apply_to_collection(next(batches(data, device)), torch.Tensor, widened)
    with in_64_bits():
        module.on_train_epoch_start()
        losses = module.training_step(batch, 0)
    losses["loss"].backward()
    gradient = torch.cat([w.grad.flatten() for w in module.parameters() if w.grad is not None])
    return {name: loss.detach().cpu() for name, loss in losses.items()}, gradient.cpu()


def step_agrees(training, device, weights):
    "A step on the device beside the same step on the CPU."
    here, gradient = first_step(training, torch.device("cpu"), weights)
    there, other = first_step(training, device, weights)
    torch.testing.assert_close(there, here, rtol=LOSSES, atol=LOSSES)
    apart = float((other - gradient).norm() / gradient.norm())
    assert apart <= GRADIENT, f"the gradients are {apart:.2g} of their norm apart, above {GRADIENT:g}"
    return f"{apart:.2g} of the gradient's norm", f"at most {GRADIENT:g}; each loss within {LOSSES:g}"


def load_aligner(device):
    "The released aligner on a device, and on no other."
    if device.type == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise NotRun("onnxruntime-gpu is not installed")
    return Aligner.load(device=str(device))


def onnx_agrees(images, device):
    "The corners of the frame on some images, by the device's provider and by that of the CPU."
    h, w = load_aligner(device).frame_size
    corners = [[0, 0], [w - 1, 0], [0, h - 1], [w - 1, h - 1]]
    here, there = (np.stack([aligned.to_original(corners) for aligned in load_aligner(where).batch(images)])
                   for where in (torch.device("cpu"), device))
    np.testing.assert_allclose(there, here, rtol=0, atol=CORNERS)
    return f"{np.abs(there - here).max():.2g} px", f"the corners of {len(images)} frames within {CORNERS} px"


def frames_agree(dataset, device, folder):
    "The corners of the frame in the arm `aligned`, by torch on the device beside the CPU."
    network = read_network(find_checkpoint(None, ".safetensors"))[0]
    images = build_cache(dataset, network.input_size, folder / "cache").images[:64]
    corners = torch.tensor([[-1.0, 1, -1, 1], [-1, -1, 1, 1], [1, 1, 1, 1]])
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        here, there = (predict_frames(network.to(where), images) @ corners * network.input_size / 2
                       for where in (torch.device("cpu"), device))
    torch.testing.assert_close(there, here, rtol=0, atol=CORNERS)
    apart = float((there - here).abs().max())
    return f"{apart:.2g} px", f"the corners of {len(images)} frames within {CORNERS} px"


def with_transformer(training):
    "The classifier's training with a transformer in it, which begins as the released aligner."
    params, data, _ = training
    params = params.model_copy(update=dict(arm="end_to_end", stn_init="aligner"))
    prevalence = data.labels("train").mean(0).tolist()

    def begin(settings):
        stn, _ = end_to_end_network(ClassifyParams(**settings), data.cache.dataset)
        return ClassifierTraining(settings, prevalence, stn)
    return params, data, partial(maker, begin, params)


def cache_agrees(data, device):
    "Batches from a cache that was put onto the device, beside those of the loader."
    images = torch.from_numpy(np.array(data.cache.images)).to(device)
    for batch in islice(batches(data, device), 3):
        torch.testing.assert_close(images[batch["row"]][:, None], batch["image"], rtol=0, atol=0)
    return f"{images.nbytes / 2**20:,.0f} MiB", "three batches are equal"


class NoWaiting(pl.Callback):
    "Makes every wait of the host for the GPU an error, in whole steps after the first third."
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if index + 1 == trainer.num_training_batches // 3: torch.cuda.set_sync_debug_mode("error")
        if index + 1 == trainer.num_training_batches: torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, *args): torch.cuda.set_sync_debug_mode("default")


def no_waiting(training, steps, folder):
    "Train while waiting is an error."
    params, data, make = training
    fit_steps(make(), data, params, steps, folder, NoWaiting())
    return f"{steps - steps // 3} steps", "none made the host wait"


class Moment:
    "A point in the GPU's time: nobody waits when it is taken, only when another is subtracted from it."
    def __init__(self):
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def __sub__(self, earlier): # seconds
        self.event.synchronize()
        return earlier.event.elapsed_time(self.event) / 1000


def choose_clock(device): return Moment if device.type == "cuda" else time.perf_counter


def mean_step(times): return float(np.mean(times[len(times) // 3:]))


class Ranks(Clock):
    "Leaves the mean step and the final weights of every process in a folder."
    def __init__(self, clock, folder):
        super().__init__(clock)
        self.folder = folder

    def on_train_end(self, trainer, module):
        weights = torch.cat([w.detach().flatten().cpu() for w in module.parameters()])
        torch.save((mean_step(np.diff(self.times)), weights), self.folder / f"{trainer.global_rank}.pt")


def trained(training, devices, steps, folder, clock):
    "Mean step and final weights of every process of a short training."
    params, data, make = training
    data.trainer = None  # it holds an earlier module
    several, left = dict(devices=devices, strategy="ddp_spawn"), folder / f"{devices}_devices"
    left.mkdir(parents=True)
    fit_steps(make(), data, params.model_copy(update=several), steps, left, Ranks(clock, left))
    return [torch.load(left / f"{rank}.pt") for rank in range(devices)]


def two_devices(training, steps, folder, device, n_devices):
    "A short training on two devices, beside the same on one."
    if n_devices < 2: raise NotRun("one device")
    alone, both = (trained(training, n, steps, folder, choose_clock(device)) for n in (1, 2))
    torch.testing.assert_close(both[1][1], both[0][1], rtol=0, atol=0)
    return f"{2 * alone[0][0] / both[0][0]:.2f} times the images / s of one", "both end with the same weights"


def timed(work, device):
    "Seconds of the mean step, and how many bytes torch took beyond what it held."
    gc.collect()
    if device.type != "cuda": return mean_step(work()), 0
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return mean_step(work()), torch.cuda.max_memory_allocated(device) - held


def measure(name, works, count, rounds, device):
    "A row for each work (label -> function that returns seconds of steps of `count` images), run in turn."
    found, rows = {label: [] for label in works}, {}
    for _ in range(rounds):
        for label in [label for label in works if label not in rows]:
            try: found[label].append(timed(works[label], device))
            except Exception as error: rows[label] = failure(f"{name}: {label}", error)
    rates = {label: count / statistics.median(seconds for seconds, _ in found[label])
             for label in works if label not in rows}
    first = next(iter(works))
    for label, rate in rates.items():
        peak = max(taken for _, taken in found[label])
        ratio = f"{rate / rates[first]:.3f} times {first}" if label != first and first in rates else ""
        rows[label] = Row(f"{name}: {label}", f"{rate:,.1f} images / s",
                          f"{peak / 2**20:,.0f} MiB" if peak else "", ratio)
    return [rows[label] for label in works]


def times_of(loop, *given): return loop(*given)[0]


def call_steps(prepared, steps, clock):
    "Seconds of each call of the function that a function without arguments prepares."
    call, times = prepared(), []
    for _ in range(steps):
        times.append(clock())
        call()
    return np.diff(times)


def training_works(training, steps, folder, device):
    "Label -> function that returns the seconds of training steps, and of batches with which nothing is done."
    (params, data, make), clock = training, choose_clock(device)
    works = {"bare loop": partial(times_of, bare_steps, lambda: make()().to(device), data, params, steps,
                                  clock)}
    for label, more in VARIANTS.items():
        works[f"Lightning{label}"] = partial(times_of, lightning_steps, kept(make(**more)), data,
                                             params.model_copy(update=more), steps, folder, clock)
    return works | {"input pipeline alone": partial(
        call_steps, lambda: partial(next, batches(data, device)), steps, clock)}


def inference(name, training, images, device):
    "A function that shows a batch to the network in evaluation mode."
    params, data, make = training
    module = make()().to(device).eval()
    if name == "classifier": return torch.inference_mode()(partial(module, next(batches(data, device))))
    inputs = torch.from_numpy(np.stack(images))[:, None].to(device) / 255
    return torch.inference_mode()(partial(predict_poses, module.network, inputs))


def all_rows(given, device, n_devices, folder):
    "The rows of the table as they are found, checks first."
    steps, size = given.steps, given.batch_size
    trainings = prepare(dict(n_images=2 * steps * size, num_workers=given.workers), given, folder,
                        accelerator="gpu" if device.type == "cuda" else "cpu")
    data = trainings["classifier"][1]
    images = list(np.array(data.cache.images[:size]))
    yield checked("released aligner, ONNX Runtime, GPU beside CPU", onnx_agrees, images, device)
    yield checked("image cache on the GPU", cache_agrees, data, device)
    yield checked("arm aligned: frames, GPU beside CPU", frames_agree, data.cache.dataset, device, folder)
    whole = trainings | dict(end_to_end=with_transformer(trainings["classifier"]))
    for name, training in whole.items():
        own = folder / name
        yield checked(f"{name}: a step, GPU beside CPU", step_agrees, training, device,
                      EVERY_LOSS.get(name, {}))
        yield checked(f"{name}: no waiting in a step", no_waiting, training, steps, own)
        yield checked(f"{name}: two GPUs", two_devices, training, steps // 2, own, device, n_devices)
    yield from measured_rows(trainings, images, given, device, folder)


def measured_rows(trainings, images, given, device, folder):
    "The rows that say how fast it is; of the classifier with a transformer there are none."
    steps, size, rounds, clock = given.steps, given.batch_size, given.rounds, choose_clock(device)
    whole = partial(call_steps, lambda: partial(load_aligner(device).batch, images), steps, clock)
    yield from measure("released aligner", {"array to aligned array": whole}, size, rounds, device)
    for name, training in trainings.items():
        n_images = dict(aligner=3 * size, classifier=size)[name]  # of the aligner with its phantoms
        alone = partial(call_steps, partial(inference, name, training, images, device), steps, clock)
        yield from measure(name, {"inference, torch": alone}, size, rounds, device)
        works = training_works(training, steps, folder / name, device)
        yield from measure(name, works, n_images, rounds, device)


def run(given, device, card, n_devices):
    "Make and write the table, as far as it comes; the exit status."
    description = (f"{card}; phantoms of {given.input_size} px, {given.batch_size} a step of the classifier, "
                   f"{given.batch_size} and {2 * given.batch_size} with known poses a step of the aligner; "
                   f"{given.rounds} rounds of {given.steps} steps, {given.workers} processes that load")
    rows, packages = [], ["torch", "pytorch-lightning", "timm", "onnxruntime-gpu"]
    try:
        with scratch() as folder, quiet():
            for row in all_rows(given, device, n_devices, folder):
                rows.append(row)
                print(*filter(None, row), sep="; ", flush=True)
    finally:
        if rows:
            table = pd.DataFrame(rows).rename(columns=dict(memory="peak memory"))
            write_report("gpu", description, table, packages, NOTES)
    return int(any(row.result.startswith(("differs", "fails")) for row in rows))


def main():
    ask = command_line(__doc__)
    numbers = {"steps": 60, "rounds": 3, "input-size": 224, "batch-size": 32, "workers": 4}
    for name, value in numbers.items():
        ask.add_argument(f"--{name}", type=int, default=value)
    given = ask.parse_args()
    if not torch.cuda.is_available():
        print(NO_GPU)
        return 0
    card = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return run(given, torch.device("cuda"), card, torch.cuda.device_count())


if __name__ == "__main__": sys.exit(main())
