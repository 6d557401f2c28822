"""`seed` governs everything: on a CPU the same run, started again in another process, writes the same bytes
with any number of workers.

Every run is a process of its own with a cache of its own, and Python hashes strings in another order in each.
What GPUs cannot promise is said in the README: some of their sums are made in an order that changes from run
to run.
"""
import os
import subprocess
import sys

import pytest
from helpers import ROOT
import torch

RUNS = {"once": dict(num_workers=0), "again": dict(num_workers=0), "two workers": dict(num_workers=2),
        "two again": dict(num_workers=2), "another seed": dict(num_workers=0, seed=1)}
GIVEN = {
    "aligner": dict(n_images=60, n_phantoms=40, input_size=64, frame_height=60, frame_width=48,
                    batch_size=8, epochs=2,
                    update_canonical=1, pixel_weight=1.0, perceptual_weight=1.0, backbone_weights="none",
                    loss_network_weights="none", accelerator="cpu"),
    "classifier": dict(n_images=90, input_size=32, batch_size=16, epochs=2, phantom_prevalence=6.0,
                       classifier_weights="none",
                       angle=10, brightness_contrast_p=0.5, accelerator="cpu"),
}
FILES = {"aligner": ["log.csv", "aligner.safetensors"],
         "classifier": ["log.csv", "affines.csv", "predictions.parquet"]}


@pytest.fixture(scope="module", params=GIVEN)
def runs(request, tmp_path_factory):
    "What was trained, and the folder of each run"
    what, folder = request.param, tmp_path_factory.mktemp(f"same {request.param}")
    for number, (name, more) in enumerate(RUNS.items()):
        given = GIVEN[what] | more | dict(out_dir=folder / name, cache_dir=folder / f"cache of {name}")
        words = [word for key, value in given.items() for word in ("-p", key, str(value))]
        done = subprocess.run([sys.executable, "-m", "cxr_stn.train", what, *words], cwd=ROOT, text=True,
                              capture_output=True,
                              env=os.environ | {"PYTHONHASHSEED": str(number)}, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
    return what, folder


def weights(run):
    "All that a training leaves behind for going on: weights, statistics, the optimiser's moments"
    kept = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    moments = kept["optimizer_states"][0]["state"]
    return kept["state_dict"] | {f"{k} {name}": value for k, state in moments.items()
                                 for name, value in state.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name]))
                                        for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["again", "two workers", "two again"])
def test_the_same_run_ends_with_the_same_bits(runs, name):
    what, folder = runs
    for file in FILES[what]:
        assert (folder / name / file).read_bytes() == (folder / "once" / file).read_bytes(), file
    assert same(weights(folder / name), weights(folder / "once"))


@pytest.mark.slow
def test_another_seed_is_another_run(runs):
    what, folder = runs
    assert not same(weights(folder / "another seed"), weights(folder / "once")), \
        "or equal bits would show nothing"
    for file in set(FILES[what]) - {"affines.csv"}:
        assert (folder / "another seed" / file).read_bytes() != (folder / "once" / file).read_bytes(), file
