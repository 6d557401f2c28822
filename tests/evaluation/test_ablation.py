"""The ablation as people run it: restarted, shared by two processes, and with its variants for real
images."""
from pathlib import Path

from papermill import inspect_notebook
import pandas as pd
import pytest
from helpers import ROOT, papermill
import yaml

from cxr_stn.config import ParameterError
from cxr_stn.runs import claim
from cxr_stn.aligner.checkpoints import read_network
from cxr_stn.evaluation.ablation import ablate, AblateParams, planned_variants, what_changes, write_ablation

SET = yaml.safe_load((ROOT / "nbs" / "params" / "ablation.yaml").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "The ablation that the notebook makes as it is: two networks, three variants"
    folder = tmp_path_factory.mktemp("ablate")
    papermill("ablate.ipynb", folder / "out.ipynb", cwd=ROOT / "nbs", out_dir=folder / "runs")
    return AblateParams.from_yaml(folder / "runs" / "params.yaml")


def test_papermill_finds_the_parameters():
    assert set(inspect_notebook(str(ROOT / "nbs" / "ablate.ipynb"))) == set(AblateParams.model_fields)


def test_it_writes_all_that_is_promised(done):
    folder = Path(done.out_dir)
    table = pd.read_csv(folder / "ablation.csv", keep_default_na=False)
    assert list(table["variant"]) == ["base", "no_lung_map", "no_refinement"] and set(table["seed"]) == {0}
    assert list(table["changes"]) == ["", "lung_segmentation_weight=0.0; lung_consistency_weight=0.0",
                                      "refine=False"]
    assert table["weights"].nunique() == 1 and (table["steps"] > 0).all()
    assert table[["dice", "dispersion", "full_lung_rate", "corner_error"]].notna().all(axis=None)
    for name in ("summary.csv", "ablation.png", "provenance.json", "evaluate/base-0.ipynb"):
        assert (folder / name).exists()
    assert sorted(p.name for p in (folder / "train").glob("*-0")) == ["base-0", "no_lung_map-0"]


def test_lungs_that_nothing_taught_stay_unknown(done):
    file = lambda name: Path(done.out_dir) / "train" / f"{name}-0" / "aligner.safetensors"
    lungs = {name: read_network(file(name))[0].lung_template.sum() for name in ("base", "no_lung_map")}
    assert lungs["base"] > 0 and lungs["no_lung_map"] == 0


def test_refinement_is_seen_in_the_figures(done):
    table = pd.read_csv(Path(done.out_dir) / "ablation.csv").set_index("variant")
    assert table.loc["base", "dice"] != table.loc["no_refinement", "dice"]


def test_what_is_finished_is_not_repeated_and_the_table_is_the_same(done):
    before = (Path(done.out_dir) / "ablation.csv").read_bytes()
    assert set(ablate(done, None)[["training", "evaluation"]].stack()) == {"finished before"}
    write_ablation(done)
    assert (Path(done.out_dir) / "ablation.csv").read_bytes() == before


def test_what_another_process_is_at_is_left_alone(done, tmp_path):
    "One variant is being trained, one judged; neither is an error"
    (Path(done.out_dir) / "evaluate" / "no_refinement-0.ipynb").rename(tmp_path / "aside.ipynb")
    with claim(Path(done.out_dir) / "evaluate" / "no_refinement-0"):
        assert ablate(done, None)["evaluation"].tolist() == \
            ["finished before", "finished before", "run elsewhere"]
    (tmp_path / "aside.ipynb").rename(Path(done.out_dir) / "evaluate" / "no_refinement-0.ipynb")
    elsewhere = done.model_copy(update=dict(out_dir=str(tmp_path / "other"), only=["base"]))
    with claim(tmp_path / "other" / "train" / "base-0"): states = ablate(elsewhere, None)
    assert states[["training", "evaluation"]].values.tolist() == [["run elsewhere", "waits"]]


def test_the_variants_for_real_images():
    "Every one is valid, changes something, takes as many steps as the base, and the prior method is itself"
    runs = {run.variant: run
            for run in planned_variants(AblateParams(**SET | dict(seeds=[0], data_dir="x", masked_dir="y")))}
    assert set(runs) == {"base", *SET["variants"]}
    changes = {name: what_changes(run, runs["base"]) for name, run in runs.items()}
    assert [name for name, what in changes.items() if not what] == ["base"]
    assert {run.train.epochs for name, run in runs.items() if name != "prior_method"} == \
        {runs["base"].train.epochs}
    first = yaml.safe_load((ROOT / "nbs" / "params" / "nih_prior_method.yaml").read_text())
    machine = {"n_images", "input_size", "frame_height", "frame_width", "backbone", "backbone_weights",
               "loss_network",
               "loss_network_weights", "epochs", "batch_size"}    # what it shares with the base
    prior = runs["prior_method"].train.model_dump()
    assert {k: prior[k] for k in first.keys() - machine} == {k: first[k] for k in first.keys() - machine}


def test_a_wrong_variant_is_refused_before_anything_runs(tmp_path):
    wrong = AblateParams(out_dir=str(tmp_path / "runs"), variants=dict(a=dict(epoch=3)))
    with pytest.raises(ParameterError, match="variant 'a'.*did you mean 'epochs'"): ablate(wrong, None)
    assert not (tmp_path / "runs").exists()
