"""Several processes: torchrun and Lightning's ddp on two CPU processes train as one process does with twice
the batch."""
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, papermill

from cxr_stn.data.chestxray14 import FINDINGS
from cxr_stn.classifier.metrics import macro_auroc
from cxr_stn.classifier.predictions import read_predictions
from cxr_stn.runs import Run

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cxr_stn.train"]
ALONE = ["-m", "cxr_stn.train"]
# Batch norm sees the images of its own device only, which is why it is frozen where curves are compared.
ALIGNER = dict(n_images=91, n_phantoms=60, input_size=64, frame_height=60, frame_width=48, epochs=2,
               batch_norm="frozen",
               pixel_weight=1.0, perceptual_weight=1.0, update_canonical=1, valid_fraction=0.2,
               accelerator="cpu")
CLASSIFIER = dict(n_images=150, input_size=32, epochs=2, phantom_prevalence=6.0, batch_norm="frozen",
                  accelerator="cpu",
                  valid_fraction=0.2)


def train(program, what, folder, name, given):
    given = dict(given, out_dir=folder / name, cache_dir=folder / "cache")
    done = subprocess.run([sys.executable, *program, what,
                           *[w for n, v in given.items() for w in ("-p", n, str(v))]],
                          cwd=ROOT, text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / name, done.stdout


def failing(run, given):
    given = dict(given, out_dir=run, cache_dir=run.parent / "cache")
    done = subprocess.run([sys.executable, *TORCHRUN, "aligner",
                           *[w for n, v in given.items() for w in ("-p", n, str(v))]],
                          cwd=ROOT, text=True, capture_output=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def aligners(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligners")
    return (train(ALONE, "aligner", folder, "one", ALIGNER | dict(batch_size=16)),
            train(TORCHRUN, "aligner", folder, "two", ALIGNER | dict(batch_size=8)))


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifiers")
    return (train(ALONE, "classifier", folder, "one", CLASSIFIER | dict(batch_size=16)),
            train(TORCHRUN, "classifier", folder, "two", CLASSIFIER | dict(batch_size=8)))


def logs(runs): return [pd.read_csv(run / "log.csv") for run, _ in runs]


@pytest.mark.slow
def test_two_processes_have_the_curve_of_twice_the_batch(aligners):
    one, two = logs(aligners)
    assert list(one) == list(two) and len(one) == 2
    assert {"loss", "orientation", "mirrored", "equivariance", "lung_consistency", "pose_supervision",
            "lung_segmentation", "pixel", "perceptual"} < set(one)
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-4)
    assert one["loss"].nunique() == 2, "the curve moves"


@pytest.mark.slow
def test_two_classifiers_have_the_curve_of_twice_the_batch(classifiers):
    one, two = logs(classifiers)
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_every_image_of_an_odd_set_counts_once(classifiers):
    "The logged AUROC is that of the predictions, in which each image stands once, made by one process"
    for run, _ in classifiers:
        table, metadata = read_predictions(run / "predictions.parquet")
        valid = table[table["split"] == "valid"]
        assert len(valid) % 2 == 1 and valid["image"].is_unique, \
            "the set must be odd for this to show anything"
        probs, labels = (valid[[f"{what}_{name}" for name in FINDINGS]].to_numpy()
                         for what in ("prob", "label"))
        assert macro_auroc(probs, labels) == \
            pytest.approx(pd.read_csv(run / "log.csv")["valid_auroc"].max(), abs=1e-5)


@pytest.mark.slow
def test_only_the_first_process_writes(aligners, classifiers):
    for pair in (aligners, classifiers):
        for (run, said), processes in zip(pair, (1, 2)):
            assert said.count("epoch 1/2") == 1 and said.count("the run is in") == 1, said
            assert len(list(run.glob("tensorboard/events*"))) == 1 and not list(run.glob(".*"))
            metadata = json.loads((run / "provenance.json").read_text())
            assert metadata["parameters"]["devices"] == processes and "earlier" not in metadata
    files = [sorted(p.name for p in run.iterdir() if p.name[0] != ".") for run, _ in aligners]
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_finished_run_is_finished_for_both(aligners):
    run, _ = aligners[1]
    stamp = (run / "aligner.safetensors").stat().st_mtime_ns
    train(TORCHRUN, "aligner", run.parent, run.name, ALIGNER | dict(batch_size=8))
    assert (run / "aligner.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_ddp_without_torchrun_is_the_same(aligners):
    "Lightning starts the second process itself; the first has locked the folder by then"
    run, _ = aligners[1]
    other, said = train(ALONE, "aligner", run.parent, "ddp",
                        ALIGNER | dict(batch_size=8, devices=2, strategy="ddp"))
    assert (other / "log.csv").read_bytes() == (run / "log.csv").read_bytes()
    assert said.count("epoch 1/2") == 1 and not list(other.glob(".*"))


@pytest.mark.slow
def test_the_second_launch_in_a_folder_is_refused_as_a_whole(aligners):
    run, _ = aligners[1]
    with Run(run, {}, rank=0):
        code, said = failing(run, ALIGNER | dict(batch_size=8, epochs=3))
    assert code != 0 and said.count(f"another run is writing to {run} (process {os.getpid()} ") >= 1, said
    assert pd.read_csv(run / "log.csv")["epoch"].tolist() == [0, 1] and (run / "aligner.safetensors").exists()


@pytest.mark.slow
def test_what_fails_in_the_first_process_ends_the_others(tmp_path):
    "Here it is the record of the run, which is written while the others wait"
    (tmp_path / "run" / "params.yaml").mkdir(parents=True)
    code, said = failing(tmp_path / "run", ALIGNER | dict(n_images=60, batch_size=8))
    assert code != 0 and f"cannot write {tmp_path / 'run' / 'params.yaml'}" in said, said


@pytest.mark.slow
def test_a_notebook_forks(tmp_path):
    given = ALIGNER | dict(n_images=60, epochs=1, batch_size=8, devices=2, out_dir=tmp_path / "run",
                           cache_dir=tmp_path / "cache",
                           perceptual_weight=0, backbone_weights="none", loss_network_weights="none")
    papermill("nbs/train.ipynb", tmp_path / "out.ipynb", **given)
    assert (tmp_path / "run/aligner.safetensors").is_file()


def test_a_wrong_count_is_said_once_and_at_once(tmp_path):
    done = subprocess.run([sys.executable, *TORCHRUN, "-p", "devices", "3", "-p", "out_dir",
                           str(tmp_path / "run")],
                          cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert done.returncode != 0 and done.stderr.count("'devices': 3, but 2 were started") == 1
    assert not (tmp_path / "run").exists()
