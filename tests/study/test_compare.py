"""Files of predictions as other people write them: what is refused, what makes no difference, and two
published networks."""
import hashlib, subprocess, sys

import numpy as np
import pandas as pd
import pytest
from helpers import DATA, environment, ROOT
from sklearn.metrics import roc_auc_score

from cxr_stn.classifier.predictions import PredictionError
from cxr_stn.study.auroc import paired_test
from cxr_stn.study.compare import compare_files, CompareFilesParams, load_files
from cxr_stn.study.comparison import class_table

FINDINGS = ["Mass", "Rib fracture", "Edema"]


def tables(seed=0, images=300):
    "Predictions of two classifiers and labels, all sorted differently"
    rng = np.random.default_rng(seed)
    names, patients = np.array([f"{n:04}.png" for n in range(images)]), rng.integers(0, 90, images)
    truth = (rng.random((images, 3)) < [.2, .3, .4]).astype(int)
    common = truth + rng.normal(size=(90, 3))[patients] + rng.normal(size=(images, 3))
    def arm():
        scores = 1 / (1 + np.exp(-common - rng.normal(size=(images, 3))))
        table = pd.DataFrame({"image": names} | {f"prob_{f}": scores[:, c] for c, f in enumerate(FINDINGS)})
        return table.sample(frac=1, random_state=rng.integers(99))
    labels = pd.DataFrame({"image": names, "patient": patients}
                          | {f: truth[:, c] for c, f in enumerate(FINDINGS)})
    return {"a": arm(), "b": arm(), "labels": labels}


def write(folder, parts, ending="csv", **more):
    "The tables as files, and the parameters that name them"
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: str(folder/f"{name}.{ending}") for name in parts}
    for name, table in parts.items():
        if ending == "csv": table.to_csv(paths[name], index=False)
        else: table.to_parquet(paths[name], index=False)
    named = {name: path for name, path in paths.items() if name in CompareFilesParams.model_fields}
    return CompareFilesParams(**named | dict(out_dir=str(folder/"out")) | more)


def classes(params): return class_table(load_files(params).study)


def numbers(params): return classes(params).select_dtypes("number")


# What makes no difference

def test_order_spelling_format_and_where_labels_stand_make_no_difference(tmp_path):
    parts = tables()
    wanted = numbers(write(tmp_path/"csv", parts))
    spelt = {"a": parts["a"].rename(columns=lambda c: c.replace("Rib fracture",
                                                                "rib_fracture").replace("image",
                                                                                        "Image Index")),
             "b": parts["b"].rename(columns=lambda c: c.removeprefix("prob_")),
             "labels": parts["labels"].rename(columns={"patient": "Person",
                                                       "Edema": "label_Edema"}).sample(frac=1,
                                                                                       random_state=2)}
    spelt["labels"]["Mass"] = spelt["labels"]["Mass"].map({0: "NO", 1: "Yes"})
    listed = parts["labels"].assign(**{"Finding Labels": [
        "|".join(f for f in FINDINGS
                 if row[f]) or "No Finding" for _, row in parts["labels"].iterrows()]}).drop(columns=FINDINGS)
    inside = {name: parts[name].merge(parts["labels"].rename(columns=lambda c: f"label_{c}" if c in FINDINGS
                                                             else c), on="image")
              for name in "ab"}
    for made in (write(tmp_path/"parquet", parts, "parquet"),
                 write(tmp_path/"spelt", spelt, patient="Person"),
                 write(tmp_path/"listed", parts | {"labels": listed}), write(tmp_path/"inside", inside)):
        pd.testing.assert_frame_equal(numbers(made), wanted, rtol=0, atol=1e-12)


def test_seeds_in_one_file_or_in_several(tmp_path):
    parts = [tables(seed) | {"labels": tables()["labels"]} for seed in (0, 1)]
    several = {f"{name}-{n}": part[name] for n, part in enumerate(parts)
               for name in "ab"} | {"labels": parts[0]["labels"]}
    folder = tmp_path/"several"
    one = {name: pd.concat([part[name].assign(run=n) for n, part in enumerate(parts)]) for name in "ab"}
    wanted = numbers(write(tmp_path/"one", one | {"labels": parts[0]["labels"]}, seed="run"))
    write(folder, several | {"a": several["a-0"], "b": several["b-0"]})
    params = CompareFilesParams(a=f"{folder}/a-*.csv", b=f"{folder}/b-0.csv, {folder}/b-1.csv",
                                labels=str(folder/"labels.csv"),
                                out_dir=str(tmp_path/"out"))
    done = compare_files(params)
    pd.testing.assert_frame_equal(done.classes.select_dtypes("number").drop(columns="detectable"), wanted)
    assert "2 trainings in each arm" in done.verdict and done.classes["se_seeds"].notna().all()
    assert (done.study.comparator, done.study.others) == ("a", ["b"])


def test_patients_change_the_interval_and_their_lack_is_said(tmp_path):
    parts = tables()
    by_patient, naive = (compare_files(write(tmp_path/name, parts, patient=patient)) for name,
                         patient in (("p", "patient"), ("n", "none")))
    assert np.allclose(by_patient.classes["difference"], naive.classes["difference"], atol=1e-12)
    assert by_patient.classes["se_patients"][1] != naive.classes["se_patients"][1]
    assert by_patient.notes == [] and "taken for another patient" in (naive.path/"verdict.md").read_text()


def test_uncertain_labels_and_common_images(tmp_path):
    parts = tables()
    parts["labels"].loc[:20, "Mass"] = -1
    with pytest.raises(PredictionError, match="column 'Mass', row 2 .*'-1' is uncertain; say"):
        load_files(write(tmp_path/"r", parts))
    counts = {u: classes(write(tmp_path/u, parts, uncertain=u)).loc[1, ["images", "positives"]].tolist()
              for u in ("exclude", "positive", "negative")}
    assert (counts["exclude"][0] == 279
            and counts["positive"][1] == counts["negative"][1] + 21 == counts["exclude"][1] + 21)
    fewer = parts | {"b": parts["b"].iloc[10:], "labels": tables()["labels"]}
    with pytest.raises(PredictionError, match=r"b.csv: 10 of 300 images are missing.*--common"):
        load_files(write(tmp_path/"m", fewer))
    done = compare_files(write(tmp_path/"c", fewer, common=True))
    assert done.classes["images"][0] == 290 and "10 of 300 images" in (done.path/"verdict.md").read_text()


# What is refused

def change(name, column, row, value):
    def spoil(parts):
        table = parts[name].astype({column: object}).reset_index(drop=True)
        table.loc[row, column] = value
        return parts | {name: table}
    return spoil


WRONG = {
    "a probability of 1.5": (change("b", "prob_Edema", 7, 1.5), {},
                             r"b.csv, column 'prob_Edema', row 9 \(\d+.png\): '1.5' is no prob"),
    "no probability": (change("a", "prob_Edema", 7, np.nan), {},
                       r"a.csv, column 'prob_Edema', row 9 .*: '' is no prob"),
    "text": (change("a", "prob_Mass", 0, "high"), {}, r"row 2 .*'high' is no prob"),
    "a logit": (change("a", "prob_Mass", 0, -3.2), {}, "apply a sigmoid"),
    "a label 2": (change("labels", "Mass", 3, 2), {},
                  r"labels.csv, column 'Mass', row 5 \(0003.png\): '2' is no label"),
    "a label maybe": (change("labels", "Mass", 3, "maybe"), {}, "'maybe' is no label"),
    "an image twice": (change("b", "image", 4, "0001.png"), {},
                       "b.csv, column 'image', row .*'0001.png' is duplicated"),
    "a label twice": (change("labels", "image", 4, "0001.png"), {},
                      "labels.csv, column 'image', row 6: '0001.png' is duplicated"),
    "no name": (change("b", "image", 4, ""), {}, "b.csv, column 'image', row 6: '' is no name"),
    "no patient": (change("labels", "patient", 4, ""), {},
                   r"labels.csv, column 'patient', row 6 .*'' is no patient"),
    "another image": (change("b", "image", 4, "x.png"), {}, "missing, the first is"),
    "labels of fewer images": (lambda p: p | {"labels": p["labels"][:100]}, {},
                               "labels.csv: 200 of 300 images are missing"),
    "no image in common": (lambda p: p | {"labels": p["labels"].assign(image="dir/" + p["labels"]["image"])},
                           {}, "names like 'dir/0000.png'"),
    "a finding in one file": (lambda p: p | {"b": p["b"].drop(columns="prob_Edema")}, {},
                              "b.csv: no predictions of Edema; .*--findings"),
    "a finding without labels": (lambda p: p | {"labels": p["labels"].drop(columns="Edema")}, {},
                                 "labels.csv: no labels of Edema"),
    "a finding that is not there": (lambda p: p, dict(findings="Mass,Gout"),
                                    "a.csv: no predictions of Gout; there are"),
    "no column of patients": (lambda p: p, dict(patient="Patient ID"),
                              "no column 'Patient ID' with the patient; there are image, patient"),
    "no column of images": (lambda p: p, dict(image="name"), "no column 'name'; name the one .*--image"),
    "no column of seeds": (lambda p: p, dict(seed="run"), "a.csv: no column 'run'"),
    "seeds of one arm": (lambda p: p | {"a": pd.concat([p["a"].assign(seed=n) for n in (1, 2)])}, {},
                         "has the seeds 1, 2, .*both arms need"),
    "no probabilities": (lambda p: p | {"a": p["a"].rename(columns=lambda c: c.replace("prob_", "p."))}, {},
                         "a.csv: no predictions|no column prob"),
    "two columns": (lambda p: p | {"labels": p["labels"].rename(columns={"Edema": "patient"})},
                    dict(findings="Mass"), "labels.csv: column 'patient' is duplicated"),
}


@pytest.mark.parametrize("spoil, more, said", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path, spoil, more, said):
    params = write(tmp_path, spoil(tables()), **more)
    with pytest.raises(PredictionError, match=said): compare_files(params)
    assert not (tmp_path/"out").exists()


def test_files_that_are_none(tmp_path):
    params = write(tmp_path, tables())
    with pytest.raises(FileNotFoundError, match="nothing.csv: there is no such file"):
        compare_files(params.model_copy(update=dict(b=str(tmp_path/"nothing.csv"))))
    (tmp_path/"b.csv").write_text("image;prob_Mass\n1.png;0.1\n")
    with pytest.raises(PredictionError, match="b.csv: the columns are separated by ';'"):
        compare_files(params)


# What it takes

WITHOUT = ["torch", "sklearn", "statsmodels", "pyarrow", "matplotlib", "seaborn"]


def test_it_runs_without_the_packages_of_the_study(tmp_path):
    "As where `pip install cxr_stn` has brought the base alone: no figure, and a note that says why"
    params, parquet = write(tmp_path, tables()), tmp_path/"x.parquet"
    tables()["a"].to_parquet(parquet)
    code = (f"import sys; sys.modules.update(dict.fromkeys({WITHOUT}))\n"
            "from cxr_stn.study.compare import compare_files, CompareFilesParams\n"
            "def run(a): return compare_files(CompareFilesParams(a=a, b=sys.argv[2], labels=sys.argv[3], "
            "out_dir=sys.argv[4]))\n"
            "print(run(sys.argv[1]))\n"
            "try: run(sys.argv[5])\n"
            "except ImportError as error: print(error)\n"
            "sys.modules.update({name: None for name in sys.modules if name.startswith('scipy')} "
            "| {'scipy': None})\n"
            "try: run(sys.argv[1])\n"
            "except ImportError as error: print(error)")
    words = [params.a, params.b, params.labels, params.out_dir, str(parquet)]
    ran = subprocess.run([sys.executable, "-c", code, *words], text=True, env=environment(),
                         capture_output=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    done = ran.stdout
    assert "macro mean" in done and "No forest plot: it needs matplotlib" in done
    assert "x.parquet: Parquet files need pyarrow: pip install 'cxr_stn[compare]'" in done
    assert "a comparison needs SciPy: pip install 'cxr_stn[compare]'" in done
    assert {"classes.csv", "classes.md", "verdict.md"} <= {p.name for p in (tmp_path/"out").iterdir()}
    whole = compare_files(params.model_copy(update=dict(out_dir=str(tmp_path/"whole"))))
    assert (tmp_path/"out"/"classes.csv").read_bytes() == (whole.path/"classes.csv").read_bytes()


# Two published networks

@pytest.fixture(scope="module")
def published(tmp_path_factory):
    out = tmp_path_factory.mktemp("published")
    done = subprocess.run([sys.executable, "tools/published_networks.py", str(out)], cwd=ROOT, text=True,
                          capture_output=True,
                          env=environment() | {"CXR_STN_DATA": str(DATA)})
    assert done.returncode == 0, done.stderr[-2000:]
    return out


NEEDED = ("nih14-predictions", "nih14-sample/Data_Entry_2017_v2020.csv", "nih14-expert-labels")


@pytest.mark.data(*NEEDED)
def test_published_networks_agree_with_scikit_learn():
    a, b = (DATA/"nih14-predictions"/f"{name}.csv" for name in ("densenet121", "retrained"))
    metadata = DATA/"nih14-sample"/"Data_Entry_2017_v2020.csv"
    study = load_files(CompareFilesParams(a=str(a), b=str(b), labels=str(metadata),
                                          patient="Patient ID")).study
    table = class_table(study).set_index("finding")
    rows = pd.read_csv(metadata).set_index("Image Index")
    first, second = (pd.read_csv(path).set_index("Image Index") for path in (a, b))
    rows = rows.loc[first.index]
    areas = {}
    for finding in study.findings:
        truth = rows["Finding Labels"].str.split("|").map(lambda found: finding in found)
        areas[finding] = [roc_auc_score(truth, arm.loc[truth.index, f"prob_{finding}"])
                          for arm in (first, second)]
        ours = table.loc[finding, ["auroc_a", "auroc_b"]].to_numpy(float)
        assert np.abs(ours - areas[finding]).max() < 1e-12, finding
        assert table.loc[finding, "positives"] == truth.sum()
    macro = table.loc["macro mean"]
    assert np.abs(macro[["auroc_a", "auroc_b"]].to_numpy(float) - np.mean(list(areas.values()),
                                                                          0)).max() < 1e-12
    assert (macro["images"], macro["patients"], round(macro["auroc_a"], 3)) == (22_433, 6_187, .838)
    c, owner = study.findings.index("Effusion"), study.images["patient"]
    pair = [study.scores[arm][0, :, c] for arm in ("densenet121", "retrained")]
    clustered, naive = (paired_test(*pair, study.labels[:, c], patients) for patients in (owner, None))
    assert (table.loc["Effusion", "se_patients"] == pytest.approx(clustered["se"], rel=1e-12)
            and clustered["se"] > 1.1 * naive["se"])


@pytest.mark.data(*NEEDED)
def test_the_page_of_published_networks_is_made_again_byte_for_byte(published):
    there = ROOT/"results"/"published-networks"
    names = sorted(str(p.relative_to(there)) for p in there.rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(published)) for p in published.rglob("*")
                           if p.is_file()) and len(names) == 21
    for name in names: assert (there/name).read_bytes() == (published/name).read_bytes(), name


@pytest.mark.data(*NEEDED)
def test_the_inputs_of_the_page_are_the_files(published):
    inputs = pd.read_csv(published/"nlp"/"inputs.csv").set_index("file")
    for name in ("densenet121.csv", "retrained.csv"):
        assert (inputs.loc[name, "sha256"]
                == hashlib.sha256((DATA/"nih14-predictions"/name).read_bytes()).hexdigest())
