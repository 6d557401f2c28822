"""`make nih` rehearsed: from the official layout of ChestX-ray14 to the tables, and killed on the way.

Covered: every step of the makefile, in its order, with its own parameter files and those of
`nbs/params/rehearsal` over them; the metadata, lists and boxes of all 112,120 images where CXR_STN_DATA has
them (else of 1,500 invented ones), in every step; the plan over all of them; one and two devices (processes
that share the runs of the classifier, on a processor); a kill -9 of everything at once in each step but the
last, which copies tables, and the same bytes in the tables afterwards.

Not covered: image files of full size (behind all names are 48 small phantoms), reading more than 400 of
them, GPUs, the networks and epochs of the full run, a full disk (tests/whole/test_interruption.py has that).
About six minutes of one core; several times that where others use it, too.
"""
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest
from helpers import DATA, environment, ROOT

from cxr_stn.data.chestxray14 import find_metadata, FINDINGS, read_list, read_metadata
from cxr_stn.data.images import write_png
from cxr_stn.sources import load_dataset
from cxr_stn.study.experts import FILES, PARTS

pytestmark = pytest.mark.slow

OFFICIAL = ("Data_Entry_2017_v2020.csv", "train_val_list.txt", "test_list.txt", "BBox_List_2017.csv")
FULL = "runs/nih-rehearsal"
# step: a file that is there when the step has begun its work and not yet ended it
BEGUN = {"prepare": "prepare/plan.csv", "train": "train/checkpoints/last.ckpt",
         "evaluate": "evaluate/provenance.json", "align": "align/records.jsonl",
         "sweep": "classify/standard-0/checkpoints/last.ckpt", "compare": "compare/areas.csv",
         "experts": "experts/provenance.json"}


def invent_metadata(folder, n=1500, seed=0):
    "Metadata and lists as the official ones, of images that do not exist"
    rng, patient = np.random.default_rng(seed), np.arange(n) // 3 + 1
    names = [f"{p:08}_{k:03}.png" for p, k in zip(patient, np.arange(n) % 3)]
    has = rng.random((n, len(FINDINGS))) < .15
    labels = ["|".join(f for f, yes in zip(FINDINGS, row) if yes) or "No Finding" for row in has]
    table = pd.DataFrame({"Image Index": names, "Finding Labels": labels, "Follow-up #": np.arange(n) % 3,
                          "Patient ID": patient, "Patient Age": rng.integers(20, 90, n),
                          "Patient Gender": rng.choice(["M", "F"], n),
                          "View Position": rng.choice(["PA", "AP"], n)})
    table.to_csv(folder / OFFICIAL[0], index=False)
    for name, kept in zip(OFFICIAL[1:3], (patient % 4 > 0, patient % 4 == 0)):
        (folder / name).write_text("\n".join(np.array(names)[kept]) + "\n")


def invent_experts(folder, images, seed=0):
    "Labels of radiologists for every second test image: those of the reports, one in ten turned round"
    rng = np.random.default_rng(seed)
    test = images[images["image"].isin(set(read_list(folder / "test_list.txt")))].iloc[::2]
    for source, parts in PARTS.items():
        made = {name: test[part].max(axis=1) ^ (rng.random(len(test)) < .1) for name, part in parts.items()}
        words = {name.replace("_", " "): said.map({1: "YES", 0: "NO"}) for name, said in made.items()}
        table = pd.DataFrame({"Image ID": test["image"]} | words)
        path = folder / "nih14-expert-labels" / FILES[source]
        path.parent.mkdir(parents=True)
        table.to_csv(path, index=False)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    "ChestX-ray14 in its official layout, with links to a few phantoms for images"
    folder = tmp_path_factory.mktemp("data") / "ChestX-ray14"
    folder.mkdir()
    source, phantoms = DATA / "nih14-sample", load_dataset("phantom", n_images=48, size=64)
    if source.exists():
        for name in OFFICIAL: shutil.copyfile(source / name, folder / name)
    else: invent_metadata(folder)
    files = [folder.parent / f"{k}.png" for k in range(len(phantoms))]
    for k, file in enumerate(files): write_png(file, phantoms.read(k))
    table = read_metadata(find_metadata(folder))
    for k in range(12): (folder / f"images_{k + 1:03}" / "images").mkdir(parents=True)
    for k, name in enumerate(table["image"]):
        os.link(files[k % len(files)], folder / f"images_{12 * k // len(table) + 1:03}" / "images" / name)
    invent_experts(folder, table)
    return folder


def repository(folder):
    "A folder that is this repository but for what runs write"
    (folder / "results").mkdir(parents=True)
    parts = [str(path.relative_to(ROOT)) for path in (ROOT / "results").glob("*.mk")] # of the Makefile
    for name in ("Makefile", "settings.ini", "nbs", "cxr_stn", *parts):
        (folder / name).symlink_to(ROOT / name)
    return folder


def make(folder, images, *words, **pipes):
    "Start `make nih` there"
    command = ["make", "--no-print-directory", "nih", f"DATA={images}", "INSTALL=no", f"VENV={sys.prefix}"]
    return psutil.Popen([*command, *words], cwd=folder, env=environment(), text=True, **pipes or dict(
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT))


def finish(process, code=0):
    "Wait for a process; what it printed"
    said = process.communicate(timeout=1800)[0]
    assert process.returncode == code, said[-5000:]
    return said


def steps(said):
    "The steps that make says it has begun"
    return [line.split(":")[0].removeprefix("== ") for line in said.splitlines() if line.startswith("== ")
            and " -> " in line]


def tables(folder):
    "Name and bytes of all that was made for results/"
    return {path.name: path.read_bytes() for path in (folder / FULL / "results").iterdir()}


REHEARSAL = "BUDGET=nbs/params/rehearsal"


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    "An unbroken rehearsal, on one device"
    folder = repository(tmp_path_factory.mktemp("whole") / "cxr_stn")
    assert steps(finish(make(folder, images, REHEARSAL))) == list(BEGUN)
    return folder


def test_the_plan_counts_every_image_and_begins_nothing(images, tmp_path):
    folder = repository(tmp_path / "cxr_stn")
    said = finish(make(folder, images, "PLAN=1", "DEVICES=8"))
    [total] = [line for line in said.splitlines() if line.startswith("| all ")]
    assert f"{len(read_metadata(find_metadata(images))):,}" in total and "8 GPU" in said
    assert not (folder / "runs").exists()


def test_without_a_folder_it_says_what_is_missing(tmp_path):
    assert "make nih DATA=folder" in finish(make(repository(tmp_path / "cxr_stn"), "", REHEARSAL), code=2)


def test_the_tables_are_all_there_and_say_that_they_are_those_of_a_rehearsal(whole):
    made = tables(whole)
    assert set(made) >= {"README.md", "classes.csv", "subgroups.csv", "experts.csv", "measures.csv",
                         "areas.csv", "bootstrap.csv", "verdict.md", "forest.png", "log.csv",
                         "synthetic_warps.csv"}
    page = made["README.md"].decode()
    assert "parameter files of `rehearsal`, not with those of the protocol" in page
    parts = ("Answer", "Every finding", "Subgroups", "Labels that radiologists gave")
    assert all(f"## {part}" in page for part in parts)
    assert not (whole / "results" / "nih").exists()


def test_what_is_done_is_skipped(whole, images):
    before = tables(whole)
    assert steps(finish(make(whole, images, REHEARSAL))) == [] and tables(whole) == before


def kill_in(step, folder, images):
    "Start make on two devices, and kill it and all that it has started when a step is at work"
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process, begun = make(folder, images, REHEARSAL, "DEVICES=2", **quiet), folder / FULL / BEGUN[step]
    while process.poll() is None and not begun.exists(): time.sleep(.02)
    started = [process, *process.children(recursive=True)]
    for one in started: one.kill()
    psutil.wait_procs(started)
    return not (folder / FULL / f"{step}.ipynb").exists()


def test_killed_once_in_each_step_and_continued(whole, images, tmp_path):
    folder = repository(tmp_path / "cxr_stn")
    for step in BEGUN:
        assert not (folder / FULL / BEGUN[step]).exists()
        assert kill_in(step, folder, images), f"{step} had ended before it was killed"
    assert steps(finish(make(folder, images, REHEARSAL, "DEVICES=2"))) == ["experts"]
    assert tables(folder) == tables(whole)
