"""compare.ipynb as people run it, and prediction files that cannot be used."""
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers import papermill
from sklearn.metrics import roc_auc_score

from cxr_stn.data.chestxray14 import FINDINGS
from cxr_stn.classifier.predictions import PredictionError, read_predictions, write_predictions
from cxr_stn.study.comparison import (class_table, CompareParams, find_runs, load_study, make_study,
                                      subgroup_table, threshold_table)
from cxr_stn.study.report import printed_classes, verdict
from cxr_stn.study.simulation import simulate_runs



@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Prediction files of two arms and two seeds, said to be made from the phantom"
    folder = tmp_path_factory.mktemp("runs")
    for arm, _, table, metadata in simulate_runs(n_images=800, seed=3):
        write_predictions(folder / f"{arm}-{metadata['seed']}" / "predictions.parquet", table,
                          metadata | dict(data="phantom"))
    return folder


def arms(runs): return [f"standard={runs}/standard-*", f"aligned={runs}/aligned-*"]


def test_two_runs_of_the_notebook_write_the_same_bytes(runs, tmp_path):
    for again in ("one", "two"):
        papermill("nbs/compare.ipynb", tmp_path / f"{again}.ipynb", arms=", ".join(arms(runs)),
                  bootstrap=20, out_dir=tmp_path / again)
    names = {p.name for p in (tmp_path / "one").iterdir()}
    for stem in ("classes", "subgroups", "measures", "thresholds", "reliability", "bootstrap"):
        assert f"{stem}.csv" in names
    for stem in ("forest", "roc", "precision_recall", "reliability"):
        assert {f"{stem}.png", f"{stem}.svg"} <= names
    for stem in ("classes_aligned", "subgroups_aligned"): assert {f"{stem}.md", f"{stem}.tex"} <= names
    same = [n for n in names if n.endswith((".csv", ".md", ".tex", ".svg", ".png"))]
    for name in same:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    table = pd.read_csv(tmp_path / "one" / "classes.csv")
    areas = []
    for path in sorted(runs.glob("aligned-*/predictions.parquet")):
        test = pq.read_table(path).to_pandas().query("split == 'test'")
        areas.append(roc_auc_score(test["label_Infiltration"], test["prob_Infiltration"]))
    assert table.set_index("finding").loc["Infiltration", "auroc_b"] == \
        pytest.approx(np.mean(areas), abs=1e-9)
    said = (tmp_path / "one" / "verdict.md").read_text()
    assert "aligned" in said and "SIMULATED" not in said
    assert json.loads((tmp_path / "one" / "provenance.json").read_text())["manifest_hash"] == \
        load(runs).digest()


@pytest.mark.parametrize("wrong, said", [
    (dict(armes="a=b"), "did you mean 'arms'"), (dict(arms="runs/a"), "'arm=pattern'"),
    (dict(arms="a=/no/such/run*"), "no predictions.parquet there"), (dict(level="2"), "level")])
def test_wrong_parameters_fail_and_say_why(wrong, said):
    with pytest.raises(Exception, match=said): load_study(CompareParams.from_namespace(wrong))


# Files

def load(runs): return load_study(CompareParams(arms=arms(runs)))


def test_files_are_found_by_folder_by_file_and_by_pattern(runs):
    whole = find_runs(str(runs / "*"))
    assert len(whole) == 4 and find_runs(str(runs / "*" / "*.parquet")) == whole
    assert find_runs(str(runs / "aligned-0")) == [runs / "aligned-0" / "predictions.parquet"]


def test_an_arm_may_be_renamed(runs):
    study = load_study(CompareParams(arms={"ours": f"{runs}/aligned*", "theirs": f"{runs}/standard*"},
                                     comparator="theirs"))
    assert (study.comparator, study.others) == ("theirs", ["ours"])
    assert np.array_equal(study.scores["ours"], load(runs).scores["aligned"])


def spoil(runs, tmp_path, column, row, value):
    "A copy of one file, with one value changed behind the back of `write_predictions`"
    stored = pq.read_table(runs / "aligned-0" / "predictions.parquet")
    table = stored.to_pandas()
    table[column] = table[column].astype(object)
    table.loc[row, column] = value
    table[column] = table[column].infer_objects()
    path = tmp_path / "predictions.parquet"
    schema = pq.read_schema(runs / "aligned-0" / "predictions.parquet").metadata
    arrow = stored.schema.empty_table().from_pandas(table, preserve_index=False)
    pq.write_table(arrow.replace_schema_metadata(schema), path)
    return path


@pytest.mark.parametrize("column, value, said", [
    ("prob_Edema", np.nan, "nan is no probability"), ("prob_Edema", -.5, "-0.5 is no probability"),
    ("label_Edema", 3, "3 is neither 0, 1 nor empty"), ("split", "Test", "'Test' is not one of"),
    ("view", "LL", "'LL' is not one of"), ("age", 411, "411.0 is not an age|411 is not an age")])
def test_a_spoilt_file_is_named_with_column_and_row(runs, tmp_path, column, value, said):
    with pytest.raises(PredictionError, match=said) as error:
        read_predictions(spoil(runs, tmp_path, column, 17, value))
    for part in ("predictions.parquet", repr(column), "row 17"): assert part in str(error.value)


def test_files_that_do_not_belong_together(runs, tmp_path):
    table, metadata = read_predictions(runs / "aligned-0" / "predictions.parquet")
    row = table.index[table["split"] == "test"][5]
    other = table.copy()
    other.loc[row, "label_Mass"] = 1 - other.loc[row, "label_Mass"]
    for wrong, said in ((other, f"row {row} .*in .*standard-0"),
                        (table.drop(index=row), "not the same images")):
        path = write_predictions(tmp_path / "predictions.parquet", wrong, metadata)
        with pytest.raises(PredictionError, match=said):
            load_study(CompareParams(arms={"standard": f"{runs}/standard-0", "aligned": str(path)}))


# Tables

def test_three_arms_are_each_compared_with_the_reference():
    runs = simulate_runs(n_images=600, seeds=1)
    third = [("cropped", "simulated cropped", table, metadata) for arm, _, table, metadata in runs
             if arm == "aligned"]
    study = make_study(runs + third)
    table = class_table(study)
    assert study.others == ["aligned", "cropped"] and len(table) == 2 * 15
    one, two = (table[table["arm"] == arm]["difference"].to_numpy() for arm in study.others)
    assert np.array_equal(one, two, equal_nan=True)
    assert "another seed" in verdict(table, "cropped", 1)


def test_labels_and_groups_that_nobody_knows():
    runs = []
    for arm, path, table, metadata in simulate_runs(n_images=600):
        table = table.assign(view=None, sex=None, age=np.nan, label_Hernia=np.nan)
        runs.append((arm, path, table[table["split"] == "test"], metadata))
    study = make_study(runs)
    table = class_table(study).set_index("finding")
    assert table.loc["Hernia", "note"] == "not estimable"
    assert "of 14 findings" in table.loc["macro mean", "note"]
    assert len(subgroup_table(study)) == 0 and len(threshold_table(study)) == 0
    printed = printed_classes(class_table(study), "aligned")
    assert printed.iloc[-1]["p"] == "n.e." and len(printed) == 15


def test_other_label_sets():
    runs = []
    for arm, path, table, metadata in simulate_runs(n_images=400):
        keep = [c for c in table if not c.startswith(("prob_", "label_")) or c.endswith(("Mass", "Effusion"))]
        names = {c: c.replace("Mass", "Lump") for c in keep}
        runs.append((arm, path, table[keep].rename(columns=names), metadata))
    assert list(class_table(make_study(runs))["finding"]) == ["macro mean", "Effusion", "Lump"]
    assert "Lump" not in FINDINGS
