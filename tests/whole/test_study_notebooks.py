"""The study notebooks as people run them: with papermill, from different folders, with good and bad
parameters."""

import numpy as np
import pandas as pd
import pytest
from helpers import DATA, ROOT, papermill

from cxr_stn.aligner.checkpoints import read_network
from cxr_stn.aligner.data import AlignerData, TrainParams
from cxr_stn.inference import Aligner

SMALL = dict(n_images=40, n_phantoms=60, input_size=64, frame_height=60, frame_width=48, batch_size=8,
             epochs=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A run of train.ipynb as it is, from inside nbs/, as in the README"
    folder = tmp_path_factory.mktemp("study")
    papermill("train.ipynb", folder / "out.ipynb", cwd=ROOT / "nbs", lr="1e-4", out_dir=folder / "train",
              cache_dir=folder / "cache")
    return folder


def evaluate(trained, name):
    "The folder of an evaluation of that run"
    papermill("nbs/evaluate.ipynb", trained / f"{name}.ipynb", checkpoint=trained / "train",
              out_dir=trained / name, n_images=12, synthetic_warps=6)
    return trained / name


@pytest.fixture(scope="module")
def evaluated(trained): return evaluate(trained, "evaluate")


def test_train_writes_all_that_is_promised(trained):
    run = trained / "train"
    for name in ("aligner.safetensors", "log.csv", "params.yaml", "provenance.json", "checkpoints/last.ckpt"):
        assert (run / name).is_file(), name
    assert "lr: 0.0001" in (run / "params.yaml").read_text()
    assert len(pd.read_csv(run / "log.csv")) == TrainParams().epochs
    assert list((run / "tensorboard").glob("events.*"))


def test_train_learns_from_training_images_only(trained):
    data = AlignerData(TrainParams.from_yaml(trained / "train" / "params.yaml"))
    assert set(data.cache.dataset.table["split"].iloc[data.train_rows]) == {"train"}
    network, canonical, metadata = read_network(trained / "train" / "aligner.safetensors")
    assert metadata["images"] == len(data.train_rows) and canonical.std() > 0.05


def test_evaluate_and_align_use_the_run(trained, evaluated):
    for name, rows in (("poses.csv", 3), ("masks.csv", 3), ("synthetic_warps.csv", 3)):
        assert len(pd.read_csv(evaluated / name)) == rows, name
    papermill("nbs/align.ipynb", trained / "align.ipynb", checkpoint=trained / "train",
              out_dir=trained / "align", n_images=6)
    transforms = pd.read_csv(trained / "align" / "transforms.csv")
    assert len(transforms) == 6 and len(list((trained / "align" / "images").rglob("*.png"))) == 6


def test_two_runs_write_the_same_numbers(trained, evaluated):
    again = evaluate(trained, "again")
    for name in ("poses.csv", "masks.csv", "synthetic_warps.csv"):
        assert (again / name).read_bytes() == (evaluated / name).read_bytes(), name


@pytest.mark.parametrize("wrong, said", [
    (dict(lrr="1e-4", epochs="many", data="mimic"), ["did you mean 'lr'", "'epochs'", "'phantom'"]),
    (dict(data="nih", data_dir="/no/such/folder"), ["/no/such/folder"]),
])
def test_wrong_parameters_fail_at_once_and_say_why(tmp_path, wrong, said):
    errors = papermill("nbs/train.ipynb", tmp_path / "out.ipynb", wrong=True, out_dir=tmp_path / "run",
                       **wrong)
    assert all(part in errors for part in said), errors
    assert not (tmp_path / "run" / "aligner.safetensors").exists()


def test_two_devices_in_the_notebook(tmp_path):
    "Two forked processes on the CPU train one network, and one of them writes"
    papermill("nbs/train.ipynb", tmp_path / "out.ipynb", devices=2, accelerator="cpu",
              out_dir=tmp_path / "run",
              cache_dir=tmp_path / "cache", **SMALL)
    assert len(pd.read_csv(tmp_path / "run" / "log.csv")) == 1
    assert Aligner.load(tmp_path / "run").metadata["data"]


@pytest.mark.data("nih14-sample", "lungmask-dev")
def test_real_images_from_training_to_scores(tmp_path):
    papermill("nbs/train.ipynb", tmp_path / "train.ipynb", data="nih", data_dir=DATA / "nih14-sample",
              out_dir=tmp_path / "run",
              cache_dir=tmp_path / "cache", **SMALL | dict(n_images=80, batch_size=16))
    papermill("nbs/evaluate.ipynb", tmp_path / "evaluate.ipynb", data="masked",
              data_dir=DATA / "lungmask-dev",
              checkpoint=tmp_path / "run", out_dir=tmp_path / "scores", n_images=40, synthetic_warps=0)
    scores = pd.read_csv(tmp_path / "scores" / "masks.csv").set_index("method")
    assert list(scores.index) == ["resize", "letterbox", "box_limit", "mask_limit", "aligner"]
    assert (scores["images"] == 40).all()
    assert np.isfinite(scores[["dice", "dispersion", "coverage"]]).all(axis=None)
