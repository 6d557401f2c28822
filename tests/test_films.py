"""Films from every source behind one interface, and the prepared cache: interrupted, doubled, damaged, full disk."""
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
from helpers import draw, python

import cxr_stn.films
from cxr_stn.chestxray14 import FINDINGS, MetadataError
from cxr_stn.films import cache_folder, load_films, load_folder, load_masked, open_cache, prepare, prepare_film
from cxr_stn.images import write_png

DATA = os.environ.get("CXR_STN_DATA")
real = pytest.mark.skipif(not DATA, reason="CXR_STN_DATA does not name the folder of real films")


@pytest.fixture
def folder(tmp_path):
    "A folder of ten films, two of them in a subfolder."
    films = tmp_path / "films"
    (films / "more").mkdir(parents=True)
    for k in range(10): write_png(films / ("more" if k > 7 else "") / f"{k}.png", draw(k))
    return films


def test_a_film_deleted_meanwhile_is_reported(folder, tmp_path):
    films = load_folder(folder)
    os.remove(folder / "3.png")
    prepared = prepare(films, 32, tmp_path / "cache")
    assert prepared.failures["image"].tolist() == ["3.png"] and "No such file" in prepared.failures["reason"][0]


def test_a_film_replaced_by_one_of_the_same_size_is_noticed(folder, tmp_path):
    path = folder / "0.bmp"
    for seed in (50, 51):
        assert cv2.imwrite(str(path), draw(seed))
        os.utime(path, (seed, seed))
        films = load_folder(folder)
        assert (prepare(films, 32, tmp_path / "cache").images[0] == prepare_film(films, 0, 32)).all()
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_cache_does_not_depend_on_the_seed_of_the_split(folder, tmp_path):
    one, two = load_folder(folder, seed=1), load_folder(folder, seed=2)
    assert one.manifest_hash() != two.manifest_hash()
    assert cache_folder(one, 32, tmp_path) == cache_folder(two, 32, tmp_path)
    prepare(one, 32, tmp_path)
    assert prepare(two, 32, tmp_path).films.table["split"].equals(two.table["split"])


def test_damage_is_noticed(folder, tmp_path):
    films = load_folder(folder)
    whole = prepare(films, 32, tmp_path).images.copy()
    file = cache_folder(films, 32, tmp_path) / "images.u8"
    with open(file, "r+b") as out: out.seek(5000), out.write(b"\xaa\xbb\xcc")
    assert open_cache(films, 32, file.parent) is not None and open_cache(films, 32, file.parent, verify=True) is None
    assert (prepare(films, 32, tmp_path, verify=True).images == whole).all()
    os.truncate(file, 100)
    assert (prepare(films, 32, tmp_path).images == whole).all()
    (file.parent / "index.json").write_text('{"half')
    assert (prepare(films, 32, tmp_path).images == whole).all()


def test_a_full_disk_is_an_error_and_the_rest_is_resumed(folder, tmp_path, monkeypatch):
    films, monkey = load_folder(folder), pytest.MonkeyPatch()
    monkeypatch.setattr(cxr_stn.films, "BLOCK", 4)
    write, calls = os.pwrite, []
    def full(*values):
        calls.append(values)
        if len(calls) > 1: raise OSError(errno.ENOSPC, "No space left on device")
        return write(*values)
    with monkey.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="cannot write .*images.u8: No space left"): prepare(films, 32, tmp_path)
    place = cache_folder(films, 32, tmp_path)
    assert open_cache(films, 32, place) is None and len(list(place.glob("block_*.json"))) == 1
    made = []
    monkeypatch.setattr(cxr_stn.films, "prepare_film", lambda f, i, s: made.append(i) or prepare_film(f, i, s))
    prepared = prepare(films, 32, tmp_path)
    assert sorted(made) == list(range(4, 10))
    assert all((prepared.images[i] == prepare_film(films, i, 32)).all() for i in range(10))


BUILD = """
import sys, time
import cxr_stn.films as f
f.BLOCK, one = 4, f.prepare_film
def slow(*values): time.sleep(float(sys.argv[3])); return one(*values)
f.prepare_film = slow
f.prepare(f.load_folder(sys.argv[1]), 32, sys.argv[2], workers=1)
"""


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def test_a_killed_build_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cxr_stn.films, "BLOCK", 4)
    films, cache = load_folder(folder), tmp_path / "cache"
    place, process = cache_folder(films, 32, cache), python(BUILD, folder, cache, 0.1)
    wait_for(lambda: list(place.glob("block_*.json")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert open_cache(films, 32, place) is None
    done = len(list(place.glob("block_*.json")))
    made = []
    monkeypatch.setattr(cxr_stn.films, "prepare_film", lambda f, i, s: made.append(i) or prepare_film(f, i, s))
    prepared = prepare(films, 32, cache)
    assert sorted(made) == list(range(min(4 * done, 10), 10))
    assert all((prepared.images[i] == prepare_film(films, i, 32)).all() for i in range(10))
    assert not list(place.glob("block_*.json"))


@pytest.mark.parametrize("spoilt", [False, True])
def test_two_builds_at_once(folder, tmp_path, monkeypatch, spoilt):
    monkeypatch.setattr(cxr_stn.films, "BLOCK", 4)
    if spoilt: (folder / "bad.png").write_bytes(b"")
    films, cache = load_folder(folder), tmp_path / "cache"
    builds = [python(BUILD, folder, cache, pause) for pause in (0.02, 0.03)]
    for build in builds:
        _, errors = build.communicate(timeout=120)
        assert build.returncode == 0, errors
    prepared = open_cache(films, 32, cache_folder(films, 32, cache), verify=True)
    assert len(prepared) == 10 and len(prepared.failures) == spoilt
    assert all((prepared.images[i] == prepare_film(prepared.films, i, 32)).all() for i in range(10))


def test_a_block_that_never_reached_the_disk_is_made_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cxr_stn.films, "BLOCK", 4)
    films = load_folder(folder)
    place = cache_folder(films, 32, tmp_path)
    with cxr_stn.films.open_squares(films, 32, place) as file: cxr_stn.films.build_blocks(films, 32, file, place)
    with open(place / "images.u8", "r+b") as out: out.seek(4 * 32 * 32), out.write(bytes(32 * 32))
    prepared = prepare(films, 32, tmp_path)
    assert all((prepared.images[i] == prepare_film(films, i, 32)).all() for i in range(10))


def test_processes_draw_the_same_phantoms(tmp_path):
    films = load_films("phantom", n_films=12, size=64, seed=4)
    alone, shared = prepare(films, 64, tmp_path / "one"), prepare(films, 64, tmp_path / "two", workers=2)
    assert (alone.images == shared.images).all() and alone.images.std() > 10


def read_row(prepared, i): return np.array(prepared.images[i])


def test_prepared_films_travel_to_another_process_without_their_bytes(folder, tmp_path):
    prepared = prepare(load_folder(folder), 64, tmp_path)
    assert len(pickle.dumps(prepared)) < prepared.images.nbytes / 4
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert (pool.apply(read_row, (prepared, 3)) == prepared.images[3]).all()


def test_images_are_read_only(folder, tmp_path):
    with pytest.raises(ValueError): prepare(load_folder(folder), 32, tmp_path).images[0] = 0


def test_phantom_keeps_truth_and_row_together(tmp_path):
    films = load_films("phantom", n_films=30, size=64, seed=2).select("test")
    assert len(films) and set(films.table["split"]) == {"test"}
    for i in range(len(films)):
        film = films.film(i)
        assert film.patient == films.table["patient"][i]
        assert film.labels.tolist() == films.table.loc[i, list(FINDINGS)].tolist()
    assert (films.film(0).image == films.read(0)).all() and films.mask(0).any()


def test_phantom_options_and_seed_change_the_films():
    hashes = {load_films("phantom", n_films=5, size=64, **more).manifest_hash()
              for more in ({}, dict(seed=1), dict(pose=0.0), dict(valid_fraction=0.2))}
    assert len(hashes) == 4


def test_folder_splits_by_patient_and_seed(folder):
    (folder / "index.csv").write_text("file,patient,Mass\n" + "".join(f"{k}.png,P{k // 3},1\n" for k in range(8)))
    films = load_films("folder", folder, seed=1, test_fraction=0.4)
    assert films.report == {"films": 8, "patients": 3, "files without a row": 2, "rows without a file": 0}
    assert films.table.groupby("patient")["split"].nunique().max() == 1 and films.table["Mass"].sum() == 8
    assert load_films("folder", folder, seed=1, test_fraction=0.4).manifest_hash() == films.manifest_hash()


def test_no_split_holds_a_patient_twice_whatever_made_the_table(folder):
    table = load_folder(folder).table.assign(patient=1)
    with pytest.raises(MetadataError, match="patient 1 "): cxr_stn.films.Films(table, "one patient")


def test_n_films_draws_by_seed(folder):
    names = [load_films("folder", folder, seed=s, n_films=4).table["image"].tolist() for s in (1, 1, 2)]
    assert names[0] == names[1] != names[2] and len(names[0]) == 4 and names[0] == sorted(names[0])


def test_index_json_is_written_last(folder, tmp_path, monkeypatch):
    films, order, write = load_folder(folder), [], cxr_stn.films.atomic_write
    monkeypatch.setattr(cxr_stn.films, "atomic_write", lambda path, data: order.append(Path(path).name) or write(path, data))
    prepare(films, 32, tmp_path)
    assert order[-1] == "index.json"
    assert len(json.loads((cache_folder(films, 32, tmp_path) / "index.json").read_text())["checksums"]) == 1


@real
def test_real_films_prepare(tmp_path):
    films = load_films("nih", Path(DATA, "nih14-sample"), seed=0)
    part = films.select(np.r_[0:20, np.flatnonzero(films.table["image"] == "00000773_001.png")])
    prepared = prepare(part, 64, tmp_path)
    assert prepared.images.shape == (21, 64, 64) and len(prepared.failures) == 0
    assert prepared.images.std() > 30 and len(films.boxes) == 41
    assert len(films.select("test")) == 123 and films.report["rows without a file"] == 111_322


@real
def test_lungmask_films_have_masks_of_their_size():
    films = load_masked(Path(DATA, "lungmask-dev"))
    assert len(films) == 121 and films.table["patient"].nunique() == 79 and set(films.table["split"]) == {"test"}
    for i in range(0, 121, 10): assert films.mask(i).shape == films.read(i).shape and 0.02 < films.mask(i).mean() < 0.9
