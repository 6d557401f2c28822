"""Images from every source behind one interface, and the built cache: interrupted, doubled, damaged, full
disk."""
import errno
import json
import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import DATA, python, random_image

import cxr_stn.data.cache
from cxr_stn.data.images import write_png
from cxr_stn.data.chestxray14 import FINDINGS, MetadataError
from cxr_stn.data.datasets import ImageDataset, load_folder, load_masked
from cxr_stn.data.cache import build_cache, cache_folder, open_cache, preprocess_image
from cxr_stn.sources import load_dataset

real = pytest.mark.data("nih14-sample")


@pytest.fixture
def folder(tmp_path):
    "A folder of ten images, two of them in a subfolder."
    dataset = tmp_path / "images"
    (dataset / "more").mkdir(parents=True)
    for k in range(10): write_png(dataset / ("more" if k > 7 else "") / f"{k}.png", random_image(k))
    return dataset


def test_a_image_deleted_meanwhile_is_listed(folder, tmp_path):
    dataset = load_folder(folder)
    os.remove(folder / "3.png")
    built = build_cache(dataset, 32, tmp_path / "cache")
    assert built.failures["image"].tolist() == ["3.png"] and "No such file" in built.failures["reason"][0]


def test_a_image_replaced_by_one_of_the_same_size_is_noticed(folder, tmp_path):
    path = folder / "0.bmp"
    for seed in (50, 51):
        assert cv2.imwrite(str(path), random_image(seed))
        os.utime(path, (seed, seed))
        dataset = load_folder(folder)
        assert (build_cache(dataset, 32,
                            tmp_path / "cache").images[0] == preprocess_image(dataset, 0, 32)).all()
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_cache_does_not_depend_on_the_seed_of_the_split(folder, tmp_path):
    one, two = load_folder(folder, seed=1), load_folder(folder, seed=2)
    assert one.manifest_hash() != two.manifest_hash()
    assert cache_folder(one, 32, tmp_path) == cache_folder(two, 32, tmp_path)
    build_cache(one, 32, tmp_path)
    assert build_cache(two, 32, tmp_path).dataset.table["split"].equals(two.table["split"])


def test_damage_is_noticed(folder, tmp_path):
    dataset = load_folder(folder)
    whole = build_cache(dataset, 32, tmp_path).images.copy()
    file = cache_folder(dataset, 32, tmp_path) / "images.u8"
    with open(file, "r+b") as out: out.seek(5000), out.write(b"\xaa\xbb\xcc")
    assert open_cache(dataset, 32, file.parent) is not None
    assert open_cache(dataset, 32, file.parent, verify=True) is None
    assert (build_cache(dataset, 32, tmp_path, verify=True).images == whole).all()
    os.truncate(file, 100)
    assert (build_cache(dataset, 32, tmp_path).images == whole).all()
    (file.parent / "index.json").write_text('{"half')
    assert (build_cache(dataset, 32, tmp_path).images == whole).all()


def test_a_full_disk_is_an_error_and_the_rest_is_resumed(folder, tmp_path, monkeypatch):
    dataset, monkey = load_folder(folder), pytest.MonkeyPatch()
    monkeypatch.setattr(cxr_stn.data.cache, "BLOCK", 4)
    write, calls = os.pwrite, []
    def full(*values):
        calls.append(values)
        if len(calls) > 1: raise OSError(errno.ENOSPC, "No space left on device")
        return write(*values)
    with monkey.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="cannot write .*images.u8: No space left"):
            build_cache(dataset, 32, tmp_path)
    built_in = cache_folder(dataset, 32, tmp_path)
    assert open_cache(dataset, 32, built_in) is None and len(list(built_in.glob("block_*.json"))) == 1
    made = []
    monkeypatch.setattr(cxr_stn.data.cache, "preprocess_image", lambda f, i, s: made.append(i)
                        or preprocess_image(f, i, s))
    built = build_cache(dataset, 32, tmp_path)
    assert sorted(made) == list(range(4, 10))
    assert all((built.images[i] == preprocess_image(dataset, i, 32)).all() for i in range(10))


BUILD = """
import sys, time
import cxr_stn.data.cache as f
from cxr_stn.data.datasets import load_folder
f.BLOCK, one = 4, f.preprocess_image
def slow(*values): time.sleep(float(sys.argv[3])); return one(*values)
f.preprocess_image = slow
f.build_cache(load_folder(sys.argv[1]), 32, sys.argv[2], workers=1)
"""


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def test_a_killed_build_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cxr_stn.data.cache, "BLOCK", 4)
    dataset, cache = load_folder(folder), tmp_path / "cache"
    built_in, process = cache_folder(dataset, 32, cache), python(BUILD, folder, cache, 0.1)
    wait_for(lambda: list(built_in.glob("block_*.json")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert open_cache(dataset, 32, built_in) is None
    done = len(list(built_in.glob("block_*.json")))
    made = []
    monkeypatch.setattr(cxr_stn.data.cache, "preprocess_image", lambda f, i, s: made.append(i)
                        or preprocess_image(f, i, s))
    built = build_cache(dataset, 32, cache)
    assert sorted(made) == list(range(min(4 * done, 10), 10))
    assert all((built.images[i] == preprocess_image(dataset, i, 32)).all() for i in range(10))
    assert not list(built_in.glob("block_*.json"))


@pytest.mark.parametrize("spoilt", [False, True])
def test_two_builds_at_once(folder, tmp_path, monkeypatch, spoilt):
    monkeypatch.setattr(cxr_stn.data.cache, "BLOCK", 4)
    if spoilt: (folder / "bad.png").write_bytes(b"")
    dataset, cache = load_folder(folder), tmp_path / "cache"
    builds = [python(BUILD, folder, cache, pause) for pause in (0.02, 0.03)]
    for build in builds:
        _, errors = build.communicate(timeout=120)
        assert build.returncode == 0, errors
    built = open_cache(dataset, 32, cache_folder(dataset, 32, cache), verify=True)
    assert len(built) == 10 and len(built.failures) == spoilt
    assert all((built.images[i] == preprocess_image(built.dataset, i, 32)).all() for i in range(10))


def test_a_block_that_never_reached_the_disk_is_made_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cxr_stn.data.cache, "BLOCK", 4)
    dataset = load_folder(folder)
    built_in = cache_folder(dataset, 32, tmp_path)
    with cxr_stn.data.cache.open_cache_file(dataset, 32, built_in) as file:
        cxr_stn.data.cache.build_blocks(dataset, 32, file, built_in)
    with open(built_in / "images.u8", "r+b") as out: out.seek(4 * 32 * 32), out.write(bytes(32 * 32))
    built = build_cache(dataset, 32, tmp_path)
    assert all((built.images[i] == preprocess_image(dataset, i, 32)).all() for i in range(10))


def test_processes_draw_the_same_phantoms(tmp_path):
    dataset = load_dataset("phantom", n_images=12, size=64, seed=4)
    alone = build_cache(dataset, 64, tmp_path / "one")
    shared = build_cache(dataset, 64, tmp_path / "two", workers=2)
    assert (alone.images == shared.images).all() and alone.images.std() > 10


def read_row(built, i): return np.array(built.images[i])


def test_cached_images_travel_to_another_process_without_their_bytes(folder, tmp_path):
    built = build_cache(load_folder(folder), 64, tmp_path)
    assert len(pickle.dumps(built)) < built.images.nbytes / 4
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert (pool.apply(read_row, (built, 3)) == built.images[3]).all()


def test_images_are_read_only(folder, tmp_path):
    with pytest.raises(ValueError): build_cache(load_folder(folder), 32, tmp_path).images[0] = 0


def test_phantom_keeps_truth_and_row_together(tmp_path):
    dataset = load_dataset("phantom", n_images=30, size=64, seed=2).select("test")
    assert len(dataset) and set(dataset.table["split"]) == {"test"}
    for i in range(len(dataset)):
        image = dataset.render(i)
        assert image.patient == dataset.table["patient"][i]
        assert image.labels.tolist() == dataset.table.loc[i, list(FINDINGS)].tolist()
    assert (dataset.render(0).image == dataset.read(0)).all() and dataset.mask(0).any()


def test_phantom_options_and_seed_change_the_images():
    hashes = {load_dataset("phantom", n_images=5, size=64, **more).manifest_hash()
              for more in ({}, dict(seed=1), dict(pose=0.0), dict(valid_fraction=0.2))}
    assert len(hashes) == 4


def test_folder_splits_by_patient_and_seed(folder):
    rows = "".join(f"{k}.png,P{k // 3},1\n" for k in range(8))
    (folder / "index.csv").write_text("file,patient,Mass\n" + rows)
    dataset = load_dataset("folder", folder, seed=1, test_fraction=0.4)
    assert dataset.counts == {"images": 8, "patients": 3, "files without a row": 2, "rows without a file": 0}
    assert dataset.table.groupby("patient")["split"].nunique().max() == 1 and dataset.table["Mass"].sum() == 8
    assert load_dataset("folder", folder, seed=1, test_fraction=0.4).manifest_hash() == \
        dataset.manifest_hash()


def test_no_split_holds_a_patient_twice_whatever_made_the_table(folder):
    table = load_folder(folder).table.assign(patient=1)
    with pytest.raises(MetadataError, match="patient 1 "): ImageDataset(table, "one patient")


def test_n_images_draws_by_seed(folder):
    names = [load_dataset("folder", folder, seed=s, n_images=4).table["image"].tolist() for s in (1, 1, 2)]
    assert names[0] == names[1] != names[2] and len(names[0]) == 4 and names[0] == sorted(names[0])


def test_index_json_is_written_last(folder, tmp_path, monkeypatch):
    dataset, order, write = load_folder(folder), [], cxr_stn.data.cache.atomic_write
    monkeypatch.setattr(cxr_stn.data.cache, "atomic_write", lambda path, data: order.append(Path(path).name)
                        or write(path, data))
    build_cache(dataset, 32, tmp_path)
    assert order[-1] == "index.json"
    assert len(json.loads((cache_folder(dataset, 32, tmp_path) / "index.json").read_text())["checksums"]) == 1


@real
def test_real_images_prepare(tmp_path):
    dataset = load_dataset("nih", Path(DATA, "nih14-sample"), seed=0)
    part = dataset.select(np.r_[0:20, np.flatnonzero(dataset.table["image"] == "00000773_001.png")])
    built = build_cache(part, 64, tmp_path)
    assert built.images.shape == (21, 64, 64) and len(built.failures) == 0
    assert built.images.std() > 30 and len(dataset.boxes) == 41
    assert len(dataset.select("test")) == 123 and dataset.counts["rows without a file"] == 111_322


@real
def test_lungmask_images_have_masks_of_their_size():
    dataset = load_masked(Path(DATA, "lungmask-dev"))
    assert len(dataset) == 121 and dataset.table["patient"].nunique() == 79
    assert set(dataset.table["split"]) == {"test"}
    for i in range(0, 121, 10):
        assert dataset.mask(i).shape == dataset.read(i).shape and 0.02 < dataset.mask(i).mean() < 0.9
