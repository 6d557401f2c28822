"""The classifier as people run it: every arm, interruptions, ChestMNIST, an aligned copy, experiments, and wrong parameters."""
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from cxr_stn.chestxray14 import FINDINGS
from cxr_stn.classification import (ClassifierTraining, ClassifyParams, RepeatParams, fit_classifier, is_finished,
                                    planned_runs, repeat)
from cxr_stn.comparison import read_predictions
from cxr_stn.networks import AlignerNetwork, save_network

ROOT = Path(__file__).resolve().parents[1]
TINY = dict(n_films=90, output_size=32, batch_size=16, epochs=1, phantom_prevalence=6.0, classifier_weights="none",
            stn_weights="none", stn_input_size=32, accelerator="cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with an aligner that was fitted, so it says, on the training films of these runs"
    folder = tmp_path_factory.mktemp("classify")
    torch.manual_seed(0)
    network = AlignerNetwork(weights="none", input_size=64)
    torch.nn.init.normal_(network.localiser.answer.weight, std=0.3)
    network.localiser.answer.bias.data[2:4] = -0.3  # frames smaller than the film
    save_network(folder / "aligner.safetensors", network, data="phantom", seed=0)
    return folder


def params(place, name, **given):
    return ClassifyParams(**TINY | dict(out_dir=str(place / name), cache_dir=str(place / "cache"),
                                        aligner=str(place / "aligner.safetensors")) | given)


@pytest.fixture(scope="module")
def standard(place): return fit_classifier(params(place, "standard"))


def places_of(run): return pd.read_csv(run / "places.csv").set_index("image")


def test_papermill_runs_it_and_writes_all_that_is_promised(place):
    words = [w for name, value in (TINY | dict(images="aligned", aligner=place / "aligner.safetensors",
             cache_dir=place / "cache", out_dir=place / "notebook")).items() for w in ("-p", name, str(value))]
    done = subprocess.run([sys.executable, "-m", "papermill", "classify.ipynb", str(place / "out.ipynb"), *words],
                          cwd=ROOT / "nbs", text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("log.csv", "params.yaml", "provenance.json", "arm.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (place / "notebook" / name).is_file(), name
    table, facts = read_predictions(place / "notebook" / "predictions.parquet")
    assert {"image", "patient", "split", "view", "sex", "age"} | {f"{w}_{f}" for w in ("label", "prob") for f in FINDINGS} == set(table)
    assert set(table["split"]) == {"valid", "test"} and facts["arm"] == "aligned" and len(facts["aligner"]) == 64


def test_arms_differ_in_the_places_alone(place, standard):
    runs = dict(standard=standard) | {arm: fit_classifier(params(place, arm, images=arm))
                                      for arm in ("aligned", "lung_crop", "joint", "oracle")}
    read = {arm: read_predictions(run / "predictions.parquet") for arm, run in runs.items()}
    for arm, (table, facts) in read.items():
        known = [c for c in table if not c.startswith("prob_")]
        pd.testing.assert_frame_equal(table[known], read["standard"][0][known])
        assert facts["arm"] == arm and facts["n_train"] == read["standard"][1]["n_train"]
    assert len({tuple(table["prob_Mass"]) for table, _ in read.values()}) == 5
    whole = places_of(runs["standard"])
    assert (whole == [1, 0, 0, 0, 1, 0]).all(axis=None) and places_of(runs["joint"]).equals(whole)
    assert places_of(runs["lung_crop"]).nunique().max() == 1 and places_of(runs["aligned"])["m02"].nunique() > 20
    assert np.isclose(read["lung_crop"][1]["area"], min(1, read["aligned"][1]["area"]), atol=0.1)
    assert (runs["joint"] / "learned_places.csv").is_file()


def test_two_runs_write_the_same_bytes(place, standard):
    again = fit_classifier(params(place, "again"))
    for name in ("predictions.parquet", "places.csv", "log.csv"):
        assert (again / name).read_bytes() == (standard / name).read_bytes(), name
    other = fit_classifier(params(place, "other", seed=1))
    a, b = (read_predictions(run / "predictions.parquet")[0] for run in (standard, other))
    assert a["image"].equals(b["image"]) and not a["prob_Mass"].equals(b["prob_Mass"]), "a seed changes the training, not the films"


@pytest.mark.parametrize("arm", ["standard", "joint"])
def test_an_interrupted_run_ends_with_the_same_bytes(place, arm):
    given = dict(images=arm, epochs=3, patience=2, angle=10, brightness_contrast_p=0.5, loss="weighted")
    whole = fit_classifier(params(place, f"whole-{arm}", **given))
    start = ClassifierTraining.on_train_epoch_start
    def break_off(self):
        if self.current_epoch == 1: raise RuntimeError("the power went out")
        start(self)
    broken = params(place, f"broken-{arm}", **given)
    with mock.patch.object(ClassifierTraining, "on_train_epoch_start", break_off), pytest.raises(RuntimeError):
        fit_classifier(broken)
    assert (place / f"broken-{arm}" / "checkpoints" / "last.ckpt").exists()
    fit_classifier(broken)
    for name in ("predictions.parquet", "log.csv"):
        assert (place / f"broken-{arm}" / name).read_bytes() == (whole / name).read_bytes(), name


def test_another_aligner_is_noticed(place):
    given = params(place, "moving", images="aligned", aligner=str(place / "moving.safetensors"))
    for step in (0, 1):
        torch.manual_seed(step)
        network = AlignerNetwork(weights="none", input_size=64)
        torch.nn.init.normal_(network.localiser.answer.weight, std=0.3)
        save_network(place / "moving.safetensors", network, data="phantom", seed=0)
        assert not is_finished(given)
        run = fit_classifier(given)
        assert is_finished(given)
        found = places_of(run)
        if step == 0: first = found
    assert not found.equals(first)
    save_network(place / "moving.safetensors", network, data="phantom", seed=0, valid_fraction=0.3)
    with pytest.raises(ValueError, match="valid_fraction 0.3 there, 0.1 here"): fit_classifier(given)


def test_an_aligned_copy(place):
    words = dict(n_films=90, seed=0, checkpoint=place / "aligner.safetensors", out_dir=place / "copy", output_height=64,
                 output_width=64)
    done = subprocess.run([sys.executable, "-m", "papermill", str(ROOT / "nbs" / "align.ipynb"), str(place / "align.ipynb"),
                           *[w for name, value in words.items() for w in ("-p", name, str(value))]],
                          text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    with pytest.raises(ValueError, match="labels differ"):
        fit_classifier(params(place, "copied", images="aligned", aligned_dir=str(place / "copy")))
    run = fit_classifier(params(place, "copied", images="aligned", aligned_dir=str(place / "copy"), phantom_prevalence=1.0))
    assert (places_of(run) == [1, 0, 0, 0, 1, 0]).all(axis=None)
    assert len(read_predictions(run / "predictions.parquet")[1]["aligner"]) == 64


@pytest.fixture(scope="module")
def mnist(place):
    "A file of ChestMNIST's format with made-up films"
    rng, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 48), ("val", 20), ("test", 24)):
        arrays |= {f"{split}_images": rng.integers(0, 256, (n, 64, 64), dtype=np.uint8),
                   f"{split}_labels": rng.integers(0, 2, (n, 14), dtype=np.uint8)}
    (place / "mnist").mkdir()
    np.savez(place / "mnist" / "chestmnist_64.npz", **arrays)
    return arrays


def test_chestmnist_with_its_own_split(place, mnist, capsys):
    given = dict(data="chestmnist", data_dir=str(place / "mnist"), n_films=None, images="aligned")
    run = fit_classifier(params(place, "mnist-run", **given))
    table, facts = read_predictions(run / "predictions.parquet")
    assert facts["data"] == "ChestMNIST" and table["split"].value_counts().to_dict() == {"test": 24, "valid": 20}
    assert (table.loc[table["split"] == "test", [f"label_{f}" for f in FINDINGS]].to_numpy() == mnist["test_labels"]).all()
    assert "The aligner was fitted on other films: phantom" in capsys.readouterr().out


def test_a_validation_set_without_findings(place, mnist, capsys):
    empty = mnist | dict(val_labels=np.zeros_like(mnist["val_labels"]))
    (place / "empty").mkdir()
    np.savez(place / "empty" / "chestmnist_64.npz", **empty)
    run = fit_classifier(params(place, "empty-run", data="chestmnist", data_dir=str(place / "empty"), n_films=None))
    assert "0 of 14 findings; the checkpoint is chosen by validation loss" in capsys.readouterr().out
    log = pd.read_csv(run / "log.csv")
    assert "valid_auroc" not in log and (log["score"] == -log["valid_loss"]).all()


def test_an_experiment_does_what_is_missing(place):
    shared = TINY | dict(cache_dir=str(place / "cache"), n_films=80)
    given = dict(experiment="pair", out_dir=str(place / "experiments"), arms=["standard", "oracle"], parameters=shared)
    assert repeat(RepeatParams(**given, seeds=[0]))["state"].tolist() == ["run now", "run now"]
    stamp = (place / "experiments/pair/standard-0/predictions.parquet").stat().st_mtime_ns
    (place / "experiments/pair/oracle-0/predictions.parquet").unlink()
    assert repeat(RepeatParams(**given, seeds=[0]))["state"].tolist() == ["finished before", "run now"]
    assert (place / "experiments/pair/standard-0/predictions.parquet").stat().st_mtime_ns == stamp
    assert sorted(p.name for p in (place / "experiments/pair").glob("*.ipynb")) == ["oracle-0.ipynb", "standard-0.ipynb"]


@pytest.mark.parametrize("wrong, said", [
    (dict(imagse="aligned"), "did you mean 'images'"),
    (dict(images="oracle", data="nih", data_dir="/no/such/folder"), "needs data = 'phantom'"),
    (dict(aligned_dir="runs/align"), "aligned_dir is for images = 'aligned'"),
    (dict(data="nih", data_dir="/no/such/folder"), "/no/such/folder"),
    (dict(data="chestmnist", data_dir="/no/such/folder"), "/no/such/folder"),
    (dict(classifier="densenet121", classifier_weights="bundled"), "bundled weights exist for"),
    (dict(images="aligned", aligner="/no/such/file"), "/no/such/file"),
    (dict(batch_size=90), "lower batch_size"),
    (dict(lr="fast"), "'lr': 'fast' is not a number"),
])
def test_wrong_parameters_say_why(place, wrong, said):
    with pytest.raises((ValueError, FileNotFoundError)) as error: fit_classifier(params(place, "wrong", **wrong))
    assert said in str(error.value)
    assert not (place / "wrong" / "predictions.parquet").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "nbs" / "params").glob("classify_*.yaml")), ids=lambda p: p.name)
def test_parameter_sets_are_valid(path):
    assert ClassifyParams(**yaml.safe_load(path.read_text())).data in path.name.replace("classify_", "")


EXPERIMENTS = sorted((ROOT / "nbs" / "params" / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=[path.stem for path in EXPERIMENTS])
def test_the_experiments_can_be_planned(path):
    "Every parameter set of an experiment is valid, is named after its file, and has a reference and several seeds"
    plan = RepeatParams(**yaml.safe_load(path.read_text()))
    assert plan.experiment == path.stem and "standard" in plan.arms and len(plan.seeds) >= 3
    runs = planned_runs(plan)
    assert len(runs) == len(plan.arms) * len(plan.seeds)
    without = [run.model_dump(exclude={"images", "seed", "out_dir"}) for run in runs.values()]
    assert all(facts == without[0] for facts in without)  # the runs differ in nothing else


def test_fewer_training_films_leave_the_test_films_alone(place, standard):
    fewer = fit_classifier(params(place, "fewer", n_train=32))
    table, facts = read_predictions(fewer / "predictions.parquet")
    whole, all_facts = read_predictions(standard / "predictions.parquet")
    assert facts["n_train"] == 32 < all_facts["n_train"] and list(table["image"]) == list(whole["image"])
    with pytest.raises(ValueError, match="n_train is 5000"): fit_classifier(params(place, "more", n_train=5000))
