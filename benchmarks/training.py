"""Times our Lightning training against a bare PyTorch loop with the same model, data, optimiser and averaged
weights.

    CXR_STN_DATA=folder python benchmarks/training.py \
        [--steps 12] [--rounds 3] [--input-size 64] [--batch-size 8] [--compile]

Both loops begin from the same weights and must log the same losses; short runs of both alternate. A step is
everything from one batch to the next: loading, augmentation, losses, gradients, clipping, optimiser, averaged
weights, log. Printed: processor time of the median step and its ratio to the bare loop; then the loop with
the weights in the other order in memory, and with the perceptual loss switched on; with --compile also
compiled by torch.compile (on the clock, after two minutes of compiling). Small images and batches show the
loop's own cost rather than hide it. Images: the training images of nih14-sample, else phantoms.
"""
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import statistics
import time
from functools import partial

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch

from benchmarks.timing import command_line, data_folder, write_report, scratch
from cxr_stn.sources import load_cache
from cxr_stn.trainer import bare_trainer, EpochLog, quiet
from cxr_stn.aligner.data import AlignerData, TrainParams
from cxr_stn.aligner.training import AlignerTraining
from cxr_stn.classifier.arms import build_arm_cache
from cxr_stn.classifier.training import ClassifierData, ClassifierTraining, ClassifyParams

COMPARED = "bare PyTorch loop"


class Clock(pl.Callback):
    "Notes when every step begins, and the losses of the epoch."
    def __init__(self, clock): self.clock, self.times = clock, []
    def on_train_batch_start(self, *args): self.times.append(self.clock())
    def on_train_end(self, trainer, module):
        self.logged = {k: float(v) for k, v in trainer.callback_metrics.items()}


def fit_steps(make, data, params, steps, folder, callback):
    "Some steps of our loop, watched by a callback."
    module = make()
    trainer = bare_trainer(params, folder, [EpochLog(folder / "log.csv"), callback])
    trainer.limit_train_batches, trainer.limit_val_batches = steps, 0
    trainer.fit(module, datamodule=data)


def lightning_steps(make, data, params, steps, folder, clock):
    "Seconds of each step of our loop, and the logged means."
    watch = Clock(clock)
    fit_steps(make, data, params, steps, folder, watch)
    return np.diff(watch.times), watch.logged


def batches(data, device):
    "The batches of a training, on a device, as Lightning gives them to its step."
    data.trainer = None
    for batch in data.train_dataloader():
        yield data.transfer_batch_to_device(batch[0] if isinstance(batch, tuple) else batch, device, 0)


def bare_steps(make, data, params, steps, clock):
    "The same without Lightning: as one would write it by hand, with the means of the losses."
    module, sums, times = make(), {}, []
    module._trainer = Steps(data, steps)
    module.on_train_epoch_start()
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    module.train()
    for number, batch in zip(range(steps), batches(data, module.device)):
        times.append(clock())
        optimizer.zero_grad()
        losses = module.training_step(batch, number)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_((w for group in optimizer.param_groups for w in group["params"]),
                                       params.clip_grad_norm)
        optimizer.step()
        schedule.step()
        if hasattr(module, "average"): module.average.update(module.network, step=number + 1)
        for name, value in losses.items(): sums[name] = sums.get(name, 0) + value.detach()
    return np.diff(times), {name: float(total) / steps for name, total in sums.items()}


class Steps:
    "What a training asks its trainer for outside of a step."
    def __init__(self, data, steps):
        self.datamodule, self.estimated_stepping_batches, self.current_epoch = data, steps, 0


def compare(name, make, data, params, given, folder):
    "Rows of the table: our loop and the bare one, in turn."
    ours, bare = [], []
    for turn in range(given.rounds):
        times, plain = bare_steps(make, data, params, given.steps, time.process_time)
        bare += times[2:].tolist()
        times, logged = lightning_steps(make, data, params, given.steps, folder / f"{name}{turn}",
                                        time.process_time)
        ours += times[2:].tolist()
        for key, value in plain.items():
            if not np.isclose(logged[key], value, rtol=1e-4):
                sys.exit(f"{name}: {key} is {logged[key]} here and {value} there")
    return [row(f"{name}: {COMPARED}", bare, bare, COMPARED), row(f"{name}: Lightning", ours, bare, COMPARED)]


def row(name, times, baseline, to):
    "Milliseconds of the median step, and its ratio to a baseline's."
    middle = statistics.median(times)
    return name, 1000 * middle, middle / statistics.median(baseline), to


def variants(name, modules, data, params, given, clock=time.process_time):
    "Rows of the table: the bare loop in several variants, in turn; the first is the baseline."
    times = {label: [] for label in modules}
    for _ in range(given.rounds):
        for label, make in modules.items():
            times[label] += bare_steps(make, data, params, given.steps, clock)[0][2:].tolist()
    baseline = next(iter(times))
    return [row(f"{name}: {label}", some, times[baseline], baseline) for label, some in times.items()
            if label != baseline]


def maker(kind, params, *rest, **more):
    "A function that makes a training from the same weights each time."
    def make():
        pl.seed_everything(0, verbose=False)
        return kind(params.model_copy(update=more).model_dump(), *rest)
    return make


def kept(make):
    "The same module each time: what has been compiled stays compiled."
    made = []
    def again():
        if not made: made.append(make())
        return made[0]
    return again


def prepare(images, given, folder, **more):
    "The two trainings: name -> (parameters, data, function that makes one with other parameters)."
    size = given.input_size
    shared = images | dict(batch_size=given.batch_size, epochs=1, cache_dir=str(folder / "cache")) | more
    params = TrainParams(**shared, input_size=size, frame_height=size, frame_width=size, n_phantoms=120)
    classify = ClassifyParams(**shared, input_size=size, cache_size=size, arm="standard")
    alone = dict(num_workers=0)  # a process would import this script first, one after another
    load_cache(params.model_copy(update=alone), size)
    data, cache = AlignerData(params), build_arm_cache(classify.model_copy(update=alone))
    labelled = ClassifierData(classify, cache, torch.eye(2, 3).expand(len(cache), 2, 3).contiguous())
    prevalence = labelled.labels("train").mean(0).tolist()
    return dict(aligner=(params, data, partial(maker, AlignerTraining, params)),
                classifier=(classify, labelled, partial(maker, ClassifierTraining, classify, prevalence)))


def main():
    ask = command_line(__doc__)
    for name, value in (("steps", 12), ("rounds", 3), ("input-size", 64), ("batch-size", 8)):
        ask.add_argument(f"--{name}", type=int, default=value)
    ask.add_argument("--compile", action="store_true")
    given = ask.parse_args()
    folder = data_folder()
    images = dict(data="nih", data_dir=str(folder / "nih14-sample"),
                  n_images=400) if folder else dict(n_images=300)
    torch.set_num_threads(1)
    with scratch() as temporary, quiet():
        trainings, rows = prepare(images, given, temporary, accelerator="cpu"), []
        for name, (params, data, make) in trainings.items():
            rows += compare(name, make(), data, params, given, temporary)
        params, data, make = trainings["aligner"]
        rows += variants("aligner", {"channels-last, no perceptual loss": make(),
                                     "channels first": make(channels_last=False),
                                     "with perceptual loss": make(perceptual_weight=1.0)},
                         data, params, given)
        if given.compile:
            rows += variants("aligner", {"not compiled, on the clock": kept(make()),
                                         "compiled, on the clock": kept(make(compile=True))},
                             data, params, given, time.perf_counter)
    table = pd.DataFrame(rows, columns=["step", "ms", "ratio", "to"])
    description = (
        f"images of {given.input_size} px of {data.cache.dataset.name}, {params.batch_size} of them and "
        f"{2 * params.batch_size} phantoms a step "
             f"of the aligner, {params.batch_size} a step of the classifier, both {params.backbone}; "
             f"{given.rounds} rounds of {given.steps} steps, one thread")
    write_report("training", description, table, ["torch", "pytorch-lightning", "timm"],
                 "Both loops logged the same losses.")


if __name__ == "__main__": main()
