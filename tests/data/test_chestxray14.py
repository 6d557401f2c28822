"""The metadata of ChestX-ray14: both releases, every way to break them, and the real files as a whole."""
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_stn.data.images import write_png
from cxr_stn.data.chestxray14 import (check_patients, ChestXray14, find_images, FINDINGS, MetadataError,
                                      parse_labels, read_boxes, read_list, read_metadata, split_by_patient)

real = pytest.mark.data("nih14-sample")

NEW = ("Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
       "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]")
OLD = NEW + ","
ROWS = ["1_0.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.143,0.143",
        "1_1.png,No Finding,1,1,58,M,PA,2894,2729,0.143,0.143",
        "2_0.png,Mass|Nodule,0,2,80,F,AP,2500,2048,0.171,0.171"]


def write(path, header=NEW, rows=ROWS, end="\n", mark=""):
    path.write_bytes((mark + end.join([header, *rows]) + end).encode())
    return path


@pytest.fixture
def dataset(tmp_path):
    "Three loaded of two patients in the official layout."
    write(tmp_path / "Data_Entry_2017_v2020.csv")
    (tmp_path / "train_val_list.txt").write_text("1_0.png\n1_1.png\n")
    (tmp_path / "test_list.txt").write_text("2_0.png\n")
    for folder, name in (("images", "1_0"), ("images_001/images", "1_1"), ("images_012/images", "2_0")):
        (tmp_path / folder).mkdir(parents=True)
        write_png(tmp_path / folder / f"{name}.png", np.zeros((8, 8), np.uint8))
    return tmp_path


@pytest.mark.parametrize("header, tail", [(NEW, ""), (OLD, ","), (OLD, ""), (NEW, ","),
                                          (NEW.replace("Gender", "Sex"), "")])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_both_releases_in_every_dress(tmp_path, header, tail, end, mark):
    table = read_metadata(write(tmp_path / "a.csv", header, [row + tail for row in ROWS], end, mark))
    assert table["image"].tolist() == ["1_0.png", "1_1.png", "2_0.png"]
    assert table["patient"].tolist() == [1, 1, 2] and table["age"].tolist() == [57, 58, 80]
    assert table["width"].tolist() == [2682, 2894, 2500] and table["height"].tolist() == [2749, 2729, 2048]
    assert np.allclose(table["spacing_y"], [0.143, 0.143, 0.171])
    assert table[list(FINDINGS)].to_numpy().sum() == 3
    assert set(table[list(FINDINGS)].dtypes) == {np.dtype(np.uint8)}


@pytest.mark.parametrize("text, age", [("414", None), ("058Y", 58), ("011M", 0), ("013D", 0), ("0", 0),
                                       ("120", 120), ("121", None),
                                       ("", None), (" 44 ", 44), ("44.0", 44), ("024m", 2)])
def test_ages(tmp_path, text, age):
    counts = {}
    table = read_metadata(write(tmp_path / "a.csv", rows=[ROWS[0].replace("57", text)]), counts)
    assert table["age"].tolist() == [age] if age is not None else table["age"].isna().all()
    assert counts["ages not known"] == (age is None) and table["Cardiomegaly"].tolist() == [1]


def test_spaces_blank_lines_and_quotes_are_harmless(tmp_path):
    rows = [ROWS[0].replace("Cardiomegaly", " Cardiomegaly | Effusion "), "", ",,,",
            '"1_1.png","No Finding",1,1,58,M,PA,1,1,1,1']
    table = read_metadata(write(tmp_path / "a.csv", rows=rows))
    assert table[list(FINDINGS)].sum(axis=1).tolist() == [2, 0]


def test_row_numbers_count_blank_lines(tmp_path):
    with pytest.raises(MetadataError, match="row 5"):
        read_metadata(write(tmp_path / "a.csv",
                            rows=[ROWS[0], "", "", ROWS[1].replace("No Finding", "Msas")]))


def test_optional_columns_may_be_missing(tmp_path):
    rows = [row.rsplit(",", 4)[0] for row in ROWS]
    table = read_metadata(write(tmp_path / "a.csv", NEW.rsplit(",", 4)[0], rows))
    assert table["width"].isna().all() and table["follow_up"].tolist() == [0, 1, 0]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(FINDINGS), min_size=1, unique=True), st.text(" ", max_size=2))
def test_labels_survive_joining_and_parsing(names, space):
    flags = parse_labels("|".join(space + name + space for name in names))
    assert flags.dtype == np.uint8 and {FINDINGS[k] for k in np.flatnonzero(flags)} == set(names)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_no_text_becomes_healthy_by_accident(text):
    try: flags = parse_labels(text)
    except ValueError: return
    assert flags.sum() or text.replace("|", "").strip().lower().replace(" ", "_").startswith("no_finding")


def test_boxes_and_lists(tmp_path):
    header = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    (tmp_path / "b.csv").write_text(header + "a.png,Infiltrate,1.5,2,3,4,,,\r\nb.png,Mass,0,0,1,1\n")
    boxes = read_boxes(tmp_path / "b.csv")
    assert boxes["finding"].tolist() == ["Infiltration", "Mass"] and boxes["x"].tolist() == [1.5, 0]
    for bad in ("a.png,Mass,1,2,3,-4", "a.png,Mass,1,2,3,wide", "a.png,Masss,1,2,3,4",
                "a.png,No Finding,1,2,3,4",
                "../a.png,Mass,1,2,3,4", "a.png,Mass,,2,3,4"):
        (tmp_path / "b.csv").write_text(header + bad)
        with pytest.raises(MetadataError, match="row 2"): read_boxes(tmp_path / "b.csv")
    (tmp_path / "l.txt").write_bytes("\ufeffa.png\r\n\r\n b.png\r\na.png\r\n".encode())
    assert read_list(tmp_path / "l.txt") == ["a.png", "b.png"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=200), st.floats(0, 0.9), st.integers(0, 9))
def test_synthetic_splits_never_share_a_patient(patients, fraction, seed):
    table = pd.DataFrame({"patient": patients, "image": [f"{k}.png" for k in range(len(patients))]})
    split = split_by_patient(table, None, None, fraction, seed)
    assert set(split) <= {"train", "valid", "test"} and split.groupby(table["patient"]).nunique().max() == 1


def test_dataset_reads_every_layout(dataset):
    loaded = ChestXray14(dataset)
    assert loaded.table["split"].tolist()[2] == "test" and len(loaded.boxes) == 0
    assert [Path(path).parent.name for path in loaded.table["path"]] == ["images"] * 3
    assert loaded.counts["images"] == {"test": 1, "train": 2} and loaded.counts["split"] == "official lists"


def test_dataset_counts_what_does_not_fit(dataset):
    os.remove(dataset / "images" / "1_0.png")
    (dataset / "images" / "stray.png").write_bytes(b"")
    (dataset / "images" / "._1_0.png").write_bytes(b"")
    (dataset / "train_val_list.txt").write_text("1_0.png\n1_1.png\n7_0.png\n")
    counts = ChestXray14(dataset).counts
    assert (counts["rows"], counts["rows without a file"], counts["files without a row"]) == (3, 1, 1)
    assert counts["listed names without a row"] == 1 and counts["images"] == {"test": 1, "train": 1}


def test_dataset_leaves_out_images_on_no_list(dataset):
    (dataset / "train_val_list.txt").write_text("1_0.png\n")
    loaded = ChestXray14(dataset)
    assert loaded.counts["rows on no list"] == 1 and "1_1.png" not in set(loaded.table["image"])


def test_without_lists_the_counts_says_so(dataset):
    for name in ("train_val_list.txt", "test_list.txt"): os.remove(dataset / name)
    loaded = ChestXray14(dataset, test_fraction=0.5)
    assert "drawn here" in loaded.counts["split"] and loaded.counts["patients"] == {"test": 1, "train": 1}


def test_wrong_folders_are_named(dataset, tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere"): ChestXray14(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="Data_Entry_2017"): ChestXray14(dataset / "images")
    (dataset / "Data_Entry_2017_v2020.csv").write_text(NEW + "\nother.png,Mass,0,9,50,M,PA,1,1,1,1\n")
    with pytest.raises(MetadataError, match="none of the 3 images"): ChestXray14(dataset)


def test_shared_patients_are_found_in_any_table():
    table = pd.DataFrame({"image": ["a", "b"], "patient": [5, 5], "split": ["valid", "train"]})
    with pytest.raises(MetadataError, match="patient 5 is in two splits .'a' in valid, 'b' in train."):
        check_patients(table)


@pytest.fixture(scope="module")
def official():
    sample = Path(DATA, "nih14-sample")
    table = read_metadata(sample / "Data_Entry_2017_v2020.csv")
    table["split"] = split_by_patient(table, read_list(sample / "train_val_list.txt"),
                                      read_list(sample / "test_list.txt"))
    return table


@real
def test_all_rows_load_and_split(official):
    assert len(official) == 112_120 and official["patient"].nunique() == 30_805
    counts = official["split"].value_counts()
    assert counts["test"] == 25_596 and counts["train"] + counts["valid"] == 86_524
    assert 0.08 < counts["valid"] / 86_524 < 0.12
    assert official.groupby("patient")["split"].nunique().max() == 1
    assert official.groupby("patient").size().max() == 184


@real
def test_numbers_of_findings_are_those_of_the_paper(official):
    expected = [11559, 2776, 13317, 19894, 5782, 6331, 1431, 5302, 4667, 2303, 2516, 1686, 3385, 227]
    assert official[list(FINDINGS)].sum().tolist() == expected
    assert (official[list(FINDINGS)].sum(axis=1) == 0).sum() == 60_361


@real
def test_all_boxes_load(official):
    boxes = read_boxes(Path(DATA, "nih14-sample", "BBox_List_2017.csv"))
    assert len(boxes) == 984 and boxes["image"].nunique() == 880
    assert set(boxes["finding"]) <= set(FINDINGS) and boxes["image"].isin(official["image"]).all()
    assert ((boxes["x"] + boxes["w"] <= 1024) & (boxes["y"] + boxes["h"] <= 1024)).mean() > 0.99


@real
def test_the_sample_is_a_part_of_the_whole(official):
    loaded = ChestXray14(Path(DATA, "nih14-sample"))
    assert len(loaded) == 798 and loaded.counts["rows without a file"] == 111_322
    assert loaded.counts["images"]["test"] == 123 and loaded.counts["files without a row"] == 0
    whole = official.set_index("image")["split"]
    assert (loaded.table["split"].to_numpy() == whole[loaded.table["image"]].to_numpy()).all()
    assert len(find_images(loaded.folders[0])) == 798


@real
def test_first_release_of_the_metadata_gives_the_same_table(official, tmp_path):
    lines = Path(DATA, "nih14-sample", "Data_Entry_2017_v2020.csv").read_text().splitlines()
    (tmp_path / "a.csv").write_bytes(("\ufeff" + ",\r\n".join(lines) + ",\r\n").encode())
    pd.testing.assert_frame_equal(read_metadata(tmp_path / "a.csv"), official.drop(columns="split"))
