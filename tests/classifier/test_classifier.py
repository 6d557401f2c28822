"""The classifier as people run it: every arm, interruptions, ChestMNIST, an aligned copy, experiments, and
wrong parameters."""
from unittest import mock

import numpy as np
import pandas as pd
from papermill import execute_notebook
import pytest
from helpers import ROOT, papermill
import torch
import yaml

from cxr_stn.data.chestxray14 import FINDINGS
from cxr_stn.aligner.networks import AlignerNetwork
from cxr_stn.aligner.checkpoints import save_network
from cxr_stn.classifier.predictions import read_predictions
from cxr_stn.classifier.training import ClassifierTraining, ClassifyParams, fit_classifier
from cxr_stn.study.sweep import is_finished, planned_runs, sweep, SweepParams

TINY = dict(n_images=90, input_size=32, batch_size=16, epochs=1, phantom_prevalence=6.0,
            classifier_weights="none",
            stn_weights="none", stn_input_size=32, accelerator="cpu")


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    "A folder with an aligner that was fitted, so it says, on the training images of these runs"
    folder = tmp_path_factory.mktemp("classify")
    torch.manual_seed(0)
    network = AlignerNetwork(weights="none", input_size=64)
    torch.nn.init.normal_(network.localiser.answer.weight, std=0.3)
    network.localiser.answer.bias.data[2:4] = -0.3  # frames smaller than the image
    save_network(folder / "aligner.safetensors", network, data="phantom", seed=0)
    return folder


def params(runs_dir, name, **given):
    return ClassifyParams(**TINY | dict(out_dir=str(runs_dir / name), cache_dir=str(runs_dir / "cache"),
                                        aligner=str(runs_dir / "aligner.safetensors")) | given)


@pytest.fixture(scope="module")
def standard(runs_dir): return fit_classifier(params(runs_dir, "standard"))


def affines_of(run): return pd.read_csv(run / "affines.csv").set_index("image")


def test_papermill_runs_it_and_writes_all_that_is_promised(runs_dir):
    papermill("classify.ipynb", runs_dir / "out.ipynb", cwd=ROOT / "nbs", **TINY | dict(
        arm="aligned", aligner=runs_dir / "aligner.safetensors", cache_dir=runs_dir / "cache",
        out_dir=runs_dir / "notebook"))
    for name in ("log.csv", "params.yaml", "provenance.json", "arm.json", "checkpoints/best.ckpt",
                 "checkpoints/last.ckpt"):
        assert (runs_dir / "notebook" / name).is_file(), name
    table, metadata = read_predictions(runs_dir / "notebook" / "predictions.parquet")
    given = {f"{w}_{f}" for w in ("label", "prob") for f in FINDINGS}
    assert {"image", "patient", "split", "view", "sex", "age"} | given == set(table)
    assert set(table["split"]) == {"valid", "test"} and metadata["arm"] == "aligned"
    assert len(metadata["aligner"]) == 64


def test_arms_differ_in_the_affines_alone(runs_dir, standard):
    runs = dict(standard=standard) | {arm: fit_classifier(params(runs_dir, arm, arm=arm))
                                      for arm in ("aligned", "center_crop", "end_to_end", "oracle")}
    read = {arm: read_predictions(run / "predictions.parquet") for arm, run in runs.items()}
    for arm, (table, metadata) in read.items():
        known = [c for c in table if not c.startswith("prob_")]
        pd.testing.assert_frame_equal(table[known], read["standard"][0][known])
        assert metadata["arm"] == arm and metadata["n_train"] == read["standard"][1]["n_train"]
    assert len({tuple(table["prob_Mass"]) for table, _ in read.values()}) == 5
    whole = affines_of(runs["standard"])
    assert (whole == [1, 0, 0, 0, 1, 0]).all(axis=None) and affines_of(runs["end_to_end"]).equals(whole)
    assert affines_of(runs["center_crop"]).nunique().max() == 1
    assert affines_of(runs["aligned"])["m02"].nunique() > 20
    assert np.isclose(read["center_crop"][1]["area"], min(1, read["aligned"][1]["area"]), atol=0.1)
    assert (runs["end_to_end"] / "learned_affines.csv").is_file()


def test_two_runs_write_the_same_bytes(runs_dir, standard):
    again = fit_classifier(params(runs_dir, "again"))
    for name in ("predictions.parquet", "affines.csv", "log.csv"):
        assert (again / name).read_bytes() == (standard / name).read_bytes(), name
    other = fit_classifier(params(runs_dir, "other", seed=1))
    a, b = (read_predictions(run / "predictions.parquet")[0] for run in (standard, other))
    assert a["image"].equals(b["image"]) and not a["prob_Mass"].equals(b["prob_Mass"]), \
        "a seed changes the training, not the images"


@pytest.mark.parametrize("arm", ["standard", "end_to_end"])
def test_an_interrupted_run_ends_with_the_same_bytes(runs_dir, arm):
    given = dict(arm=arm, epochs=3, patience=2, angle=10, brightness_contrast_p=0.5, loss="weighted")
    whole = fit_classifier(params(runs_dir, f"whole-{arm}", **given))
    start = ClassifierTraining.on_train_epoch_start
    def break_off(self):
        if self.current_epoch == 1: raise RuntimeError("the power went out")
        start(self)
    broken = params(runs_dir, f"broken-{arm}", **given)
    with mock.patch.object(ClassifierTraining, "on_train_epoch_start",
                           break_off), pytest.raises(RuntimeError):
        fit_classifier(broken)
    assert (runs_dir / f"broken-{arm}" / "checkpoints" / "last.ckpt").exists()
    fit_classifier(broken)
    for name in ("predictions.parquet", "log.csv"):
        assert (runs_dir / f"broken-{arm}" / name).read_bytes() == (whole / name).read_bytes(), name


def test_another_aligner_is_noticed(runs_dir):
    given = params(runs_dir, "moving", arm="aligned", aligner=str(runs_dir / "moving.safetensors"))
    for step in (0, 1):
        torch.manual_seed(step)
        network = AlignerNetwork(weights="none", input_size=64)
        torch.nn.init.normal_(network.localiser.answer.weight, std=0.3)
        save_network(runs_dir / "moving.safetensors", network, data="phantom", seed=0)
        assert not is_finished(given)
        run = fit_classifier(given)
        assert is_finished(given)
        found = affines_of(run)
        if step == 0: first = found
    assert not found.equals(first)
    save_network(runs_dir / "moving.safetensors", network, data="phantom", seed=0, valid_fraction=0.3)
    with pytest.raises(ValueError, match="valid_fraction 0.3 there, 0.1 here"): fit_classifier(given)


def test_an_aligned_copy(runs_dir):
    papermill("nbs/align.ipynb", runs_dir / "align.ipynb", n_images=90, seed=0, checkpoint="chest",
              out_dir=runs_dir / "copy", size="64x64")
    with pytest.raises(ValueError, match="labels differ"):
        fit_classifier(params(runs_dir, "copied", arm="aligned", aligned_dir=str(runs_dir / "copy")))
    run = fit_classifier(params(runs_dir, "copied", arm="aligned", aligned_dir=str(runs_dir / "copy"),
                                phantom_prevalence=1.0))
    assert (affines_of(run) == [1, 0, 0, 0, 1, 0]).all(axis=None)
    assert len(read_predictions(run / "predictions.parquet")[1]["aligner"]) == 64


@pytest.fixture(scope="module")
def mnist(runs_dir):
    "A file of ChestMNIST's format with synthetic radiographs"
    rng, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 48), ("val", 20), ("test", 24)):
        arrays |= {f"{split}_images": rng.integers(0, 256, (n, 64, 64), dtype=np.uint8),
                   f"{split}_labels": rng.integers(0, 2, (n, 14), dtype=np.uint8)}
    (runs_dir / "mnist").mkdir()
    np.savez(runs_dir / "mnist" / "chestmnist_64.npz", **arrays)
    return arrays


def test_chestmnist_with_its_own_split(runs_dir, mnist, capsys):
    given = dict(data="chestmnist", data_dir=str(runs_dir / "mnist"), n_images=None, arm="aligned")
    run = fit_classifier(params(runs_dir, "mnist-run", **given))
    table, metadata = read_predictions(run / "predictions.parquet")
    assert metadata["data"] == "ChestMNIST"
    assert table["split"].value_counts().to_dict() == {"test": 24, "valid": 20}
    assert (table.loc[table["split"] == "test", [f"label_{f}" for f in FINDINGS]].to_numpy()
            == mnist["test_labels"]).all()
    assert "The aligner was fitted on other images: phantom" in capsys.readouterr().out


def test_a_validation_set_without_findings(runs_dir, mnist, capsys):
    empty = mnist | dict(val_labels=np.zeros_like(mnist["val_labels"]))
    (runs_dir / "empty").mkdir()
    np.savez(runs_dir / "empty" / "chestmnist_64.npz", **empty)
    run = fit_classifier(params(runs_dir, "empty-run", data="chestmnist", data_dir=str(runs_dir / "empty"),
                                n_images=None))
    assert "0 of 14 findings; the checkpoint is chosen by validation loss" in capsys.readouterr().out
    log = pd.read_csv(run / "log.csv")
    assert "valid_auroc" not in log and (log["score"] == -log["valid_loss"]).all()


def execute(notebook, params, path):
    execute_notebook(ROOT/"nbs"/f"{notebook}.ipynb", path, params.model_dump(mode="json"), progress_bar=False)


def test_an_experiment_does_what_is_missing(runs_dir):
    shared = TINY | dict(cache_dir=str(runs_dir / "cache"), n_images=80)
    given = dict(experiment="pair", out_dir=str(runs_dir / "experiments"), arms=["standard", "oracle"],
                 parameters=shared)
    assert sweep(SweepParams(**given, seeds=[0]), execute)["state"].tolist() == ["run now", "run now"]
    stamp = (runs_dir / "experiments/pair/standard-0/predictions.parquet").stat().st_mtime_ns
    (runs_dir / "experiments/pair/oracle-0/predictions.parquet").unlink()
    assert sweep(SweepParams(**given, seeds=[0]), execute)["state"].tolist() == ["finished before", "run now"]
    assert (runs_dir / "experiments/pair/standard-0/predictions.parquet").stat().st_mtime_ns == stamp
    assert sorted(p.name for p in (runs_dir / "experiments/pair").glob("*.ipynb")) == \
        ["oracle-0.ipynb", "standard-0.ipynb"]


@pytest.mark.parametrize("wrong, said", [
    (dict(amr="aligned"), "did you mean 'arm'"),
    (dict(arm="oracle", data="nih", data_dir="/no/such/folder"), "needs data = 'phantom'"),
    (dict(aligned_dir="runs/align"), "aligned_dir is for arm = 'aligned'"),
    (dict(data="nih", data_dir="/no/such/folder"), "/no/such/folder"),
    (dict(data="chestmnist", data_dir="/no/such/folder"), "/no/such/folder"),
    (dict(classifier="densenet121", classifier_weights="bundled"), "bundled weights exist for"),
    (dict(arm="aligned", aligner="/no/such/file"), "/no/such/file"),
    (dict(batch_size=90), "lower batch_size"),
    (dict(lr="fast"), "'lr': 'fast' is not a number"),
])
def test_wrong_parameters_say_why(runs_dir, wrong, said):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        fit_classifier(params(runs_dir, "wrong", **wrong))
    assert said in str(error.value)
    assert not (runs_dir / "wrong" / "predictions.parquet").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "nbs" / "params").glob("classify_*.yaml")),
                         ids=lambda p: p.name)
def test_parameter_sets_are_valid(path):
    assert ClassifyParams(**yaml.safe_load(path.read_text())).data in path.name.replace("classify_", "")


EXPERIMENTS = sorted((ROOT / "nbs" / "params" / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=[path.stem for path in EXPERIMENTS])
def test_the_experiments_can_be_planned(path):
    """Every parameter set of an experiment is valid, is named after its file, and has a reference and several
    seeds"""
    plan = SweepParams(**yaml.safe_load(path.read_text()))
    assert plan.experiment == path.stem and "standard" in plan.arms and len(plan.seeds) >= 3
    runs = planned_runs(plan)
    assert len(runs) == len(plan.arms) * len(plan.seeds)
    without = [run.model_dump(exclude={"arm", "seed", "out_dir"}) for run in runs.values()]
    assert all(metadata == without[0] for metadata in without)  # the runs differ in nothing else


REAL = sorted((ROOT / "nbs" / "params" / "real" / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", REAL, ids=[path.stem for path in REAL])
def test_the_experiments_on_real_images_can_be_planned(path, monkeypatch):
    "Within a fold runs differ in arm and seed alone, between experiments in what these are about"
    monkeypatch.chdir(ROOT)
    plan = SweepParams(**yaml.safe_load(path.read_text()))
    assert plan.experiment == path.stem
    runs = planned_runs(plan)
    assert len(runs) == len(plan.arms) * len(plan.seeds) * (plan.parameters.get("n_folds") or 1)
    given = ClassifyParams(**yaml.safe_load((path.parent.parent / "classify.yaml").read_text())).model_dump()
    own = {"arm", "seed", "out_dir", "fold", "aligner", *plan.parameters}
    for run in runs.values():
        differ = {name for name, value in run.model_dump().items() if value != given[name]}
        assert differ <= own
        assert "{" not in run.aligner


def test_fewer_training_images_leave_the_test_images_alone(runs_dir, standard):
    fewer = fit_classifier(params(runs_dir, "fewer", n_train=32))
    table, metadata = read_predictions(fewer / "predictions.parquet")
    whole, all_metadata = read_predictions(standard / "predictions.parquet")
    assert metadata["n_train"] == 32 < all_metadata["n_train"]
    assert list(table["image"]) == list(whole["image"])
    with pytest.raises(ValueError, match="n_train is 5000"):
        fit_classifier(params(runs_dir, "more", n_train=5000))
