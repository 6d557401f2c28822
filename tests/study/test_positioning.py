"""Test images of finished runs are moved and read once more; what is found, and what is refused."""
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from cxr_stn.data.chestxray14 import FINDINGS
from cxr_stn.classifier.predictions import PredictionError, read_predictions
from cxr_stn.classifier.training import fit_classifier
from cxr_stn.study import positioning
from cxr_stn.study.comparison import class_table, make_study
from cxr_stn.study.interaction import (curve_table, interaction_table, join_levels, load_moved,
                                       PositioningParams, simulate_moved)
from cxr_stn.study.positioning import load_classifier, move_affine, move_run, open_run, read_moved, run_cache
from cxr_stn.study.simulation import simulate_scores
from cxr_stn.study.sweep import planned_runs, SweepParams

PROBS = [f"prob_{finding}" for finding in FINDINGS]
ARMS = ["standard", "center_crop", "aligned", "end_to_end"]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    "Four arms of a cross-validation of two folds on phantoms, one epoch each"
    folder = tmp_path_factory.mktemp("runs")
    for params in planned_runs(SweepParams(
            experiment="crossed", arms=ARMS, seeds=[0], out_dir=str(folder), parameters=dict(
                n_images=60, n_folds=2, input_size=32, epochs=1, batch_size=8, phantom_prevalence=10.0,
                accelerator="cpu", stn_init="aligner", cache_dir=str(folder / "cache")))).values():
        fit_classifier(params)
    (folder / "crossed/standard-0-0.ipynb").touch()  # as sweep.ipynb leaves one beside each run
    return folder / "crossed"


def runs(experiment, arm, fold=0): return open_run(experiment / f"{arm}-0-{fold}" / "predictions.parquet")


def parameters(experiment, out, arms=ARMS, **changes):
    patterns = {arm: f"{experiment}/{arm}-*" for arm in arms}
    return PositioningParams(**dict(arms=patterns, strengths=[0, 2], out_dir=str(out)) | changes)


@pytest.mark.parametrize("arm", ARMS)
def test_images_that_are_not_moved_give_the_predictions_of_the_run(experiment, arm, monkeypatch):
    "The whole path, as for moved images, with moves that are none"
    run = runs(experiment, arm)
    cache = run_cache(run)
    monkeypatch.setattr(positioning, "SPREAD", dict.fromkeys(positioning.SPREAD, 0.0))
    probs, affines = read_moved(run, load_classifier(run.folder, run.params, cache.dataset), cache, 1.0)
    np.testing.assert_allclose(probs, run.table[PROBS].to_numpy(), atol=1e-5)
    np.testing.assert_allclose(affines, positioning.recorded_affines(run), atol=1e-5)
    recorded, _ = read_moved(run, None, cache, 0)
    np.testing.assert_array_equal(recorded, run.table[PROBS].to_numpy())


def test_all_arms_see_the_same_move_and_are_compared_within_folds(experiment, tmp_path, capsys):
    params = parameters(experiment, tmp_path)
    moved = load_moved(params)
    assert (moved.arms, moved.levels) == (ARMS, [0, 2]) and len(moved.study.images) == 60
    made = {path: path.read_bytes() for path in sorted((tmp_path / "moved").glob("*/*"))}
    assert len(made) == 4 * 2 * 2 * 2  # arms, folds, strengths, and two files each
    moves = {read_predictions(path)[1]["moves"] for path in made if path.name == "0-1-2.parquet"}
    assert len(moves) == 1
    tables = {arm: read_predictions(tmp_path / "moved" / arm / "0-1-2.parquet")[0] for arm in ARMS}
    for arm in ARMS:
        still, run = read_predictions(tmp_path / "moved" / arm / "0-1-0.parquet")[0], runs(experiment, arm, 1)
        pd.testing.assert_frame_equal(still, run.table)
        pd.testing.assert_frame_equal(tables[arm].drop(columns=PROBS), still.drop(columns=PROBS))
        assert (tables[arm][PROBS] != still[PROBS]).to_numpy().mean() > .5, arm
    assert "strength 0, 2" in capsys.readouterr().out
    load_moved(params)
    assert capsys.readouterr().out == "" and all(path.read_bytes() == data for path, data in made.items())
    curve = curve_table(moved)
    own = class_table(make_study([(arm, str(fold), *read_predictions(experiment / f"{arm}-0-{fold}" /
                                                                     "predictions.parquet"))
                                  for arm in ("standard", "aligned") for fold in (0, 1)]))
    at_zero = curve[curve["strength"] == 0].set_index("arm")["auroc"]
    assert at_zero["standard"] == pytest.approx(own["auroc_a"][0], abs=1e-12)
    assert at_zero["aligned"] == pytest.approx(own["auroc_b"][0], abs=1e-12)


def test_an_interruption_costs_one_strength_and_changes_nothing(experiment, tmp_path, monkeypatch):
    run = runs(experiment, "standard")
    whole = {s: path.read_bytes() for s, path in move_run(run, [0, 1, 2], tmp_path / "all").items()}
    def stop(*words):
        if len(list((tmp_path / "part").glob("*.parquet"))) == 2: raise KeyboardInterrupt
        return read_moved(*words)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(positioning, "read_moved", stop)
        move_run(run, [0, 1, 2], tmp_path / "part")
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "part").glob("*")}
    assert len(done) == 4
    paths = move_run(run, [0, 1, 2], tmp_path / "part")
    assert {s: path.read_bytes() for s, path in paths.items()} == whole
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())


def copied(experiment, tmp_path):
    shutil.copytree(experiment, tmp_path / "crossed")
    return tmp_path / "crossed"


def test_what_is_missing_is_said_before_anything_is_moved(experiment, tmp_path):
    copy, out = copied(experiment, tmp_path), tmp_path / "out"
    (copy / "aligned-0-1/checkpoints/best.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match="aligned-0-1: no checkpoints/best.ckpt.*execute the run"):
        load_moved(parameters(copy, out))
    (copy / "aligned-0-1/predictions.parquet").unlink()
    with pytest.raises(PredictionError, match="arm 'aligned at 0', seed 0: folds 0 are there.*sweep.ipynb"):
        load_moved(parameters(copy, out))
    with pytest.raises(FileNotFoundError, match="oracle-.*: no predictions.parquet"):
        load_moved(parameters(copy, out, ["standard", "oracle"]))
    assert not out.exists()


def test_what_has_changed_since_the_training_is_refused(experiment, tmp_path):
    copy = copied(experiment, tmp_path)
    shutil.copy(copy / "standard-0-1/checkpoints/best.ckpt", copy / "standard-0-0/checkpoints/best.ckpt")
    with pytest.raises(ValueError, match="standard-0-0: its network gives other probabilities"):
        move_run(runs(copy, "standard"), [0, 2], tmp_path / "moved")
    arm = copy / "aligned-0-0/arm.json"
    arm.write_text(arm.read_text().replace('"aligner": "', '"aligner": "0'))
    with pytest.raises(ValueError, match="aligned-0-0: its aligner None is another one today"):
        runs(copy, "aligned")
    text = (copy / "center_crop-0-0/params.yaml").read_text()
    (copy / "center_crop-0-0/params.yaml").write_text(text.replace("n_images: 60", "n_images: 64"))
    with pytest.raises(ValueError, match="center_crop-0-0: the images of phantom are not those"):
        move_run(runs(copy, "center_crop"), [0, 2], tmp_path / "moved")


def test_twice_the_strength_is_twice_as_far():
    once, twice = (move_affine("00000001_000.png", strength) for strength in (1, 2))
    np.testing.assert_allclose(twice[:, 2], 2 * once[:, 2])
    np.testing.assert_allclose(twice[:, :2], once[:, :2] @ once[:, :2], atol=1e-12)


def crossed_scores(gain, seed=0, n=1200):
    "Simulated predictions of five folds: at strength 2 `standard` loses `gain` of AUROC, `aligned` nothing"
    rng = np.random.default_rng(seed)
    patients = np.sort(rng.integers(0, n // 2, n))
    labels = (rng.random((n, len(FINDINGS))) < .15).astype(float)
    fold = patients % 5
    base = pd.DataFrame(dict(image=[f"{i:05d}.png" for i in range(n)], patient=patients, split="test",
                             view="PA", sex="M", age=50.0))
    base[[f"label_{f}" for f in FINDINGS]] = labels
    common = [simulate_scores(y, patients, rng, .7, 0) for y in labels.T]
    made = []
    for k, arm in enumerate(("standard", "aligned")):
        for strength in (0, 2):
            lost = gain if (arm, strength) == ("standard", 2) else 0
            shift = 2**.5 * (0.5244 - torch.special.ndtri(torch.tensor(.7 - lost)).item())
            scores = np.stack([s[:, k] - shift * y + .1 * rng.standard_normal(n)
                               for s, y in zip(common, labels.T)], 1)
            table = base.assign(**dict(zip(PROBS, (1 / (1 + np.exp(-scores))).T)))
            made += [(arm, strength, f"{arm} {strength} {f}", table[fold == f].reset_index(drop=True),
                      dict(arm=arm, seed=0, data="phantom", n_folds=5, fold=f)) for f in range(5)]
    return join_levels(made)


def test_a_known_interaction_is_found_and_none_is_not():
    row = interaction_table(crossed_scores(.05, 1), margin=.02).iloc[0]
    assert row["outcome"] == "improved" and row["low"] < .05 < row["high"] and row["endpoint"] == "primary"
    row = interaction_table(crossed_scores(0, 1), margin=.02).iloc[0]
    assert row["outcome"] == "equivalent" and row["low"] < 0 < row["high"]


@pytest.mark.slow
def test_the_interval_of_an_interaction_covers_no_interaction():
    "A false one is found in 5% of studies; of these thirty, in three at most"
    rows = [interaction_table(crossed_scores(0, seed, 400)).iloc[0] for seed in range(30)]
    assert sum(row["p"] < .05 for row in rows) <= 3


def test_a_run_of_arms_is_named_in_order():
    moved = join_levels(simulate_moved([0, 2]), "aligned")
    table = interaction_table(moved, "standard")
    assert moved.arms == ["aligned", "standard"] and set(table["comparator"]) == {"aligned"}
    assert table["difference"][0] < 0
