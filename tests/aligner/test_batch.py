"""Aligning data sets: interruptions of every kind, broken files, changed settings, and align.ipynb as
papermill runs it."""
import json, shutil, signal, time

import nbformat, numpy as np, pandas as pd, pytest
from helpers import DATA, ROOT, papermill, python, save_aligner

import cxr_stn.aligner.batch as aligning
from cxr_stn.geometry import MATRIX_ENTRIES
from cxr_stn.data.images import list_images, read_image, write_png
from cxr_stn.phantom.dataset import Phantom
from cxr_stn.sources import load_dataset
from cxr_stn.inference import Aligner
from cxr_stn.aligner.batch import align_dataset, copy_labels, read_records

N = 24  # images of the folder that can be read


pytestmark = pytest.mark.usefixtures("one_thread")

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An aligner, a folder of images with broken ones among them, and what comes out of it without
    interruption"""
    folder = tmp_path_factory.mktemp("align")
    save_aligner(folder/"aligner.safetensors")
    phantom, dataset = Phantom(n_images=N, size=64, seed=1), folder/"images"
    for i in range(N):
        write_png(dataset/f"ward {i % 3}"/f"{i:02}.png", phantom[i].image if i % 2
                  else phantom[i].image.astype(np.uint16) * 9)
    whole = (dataset/"ward 1"/"01.png").read_bytes()
    for name, data in [("cut.png", whole[:300]), ("empty.png", b""), ("text.png", b"<html>"),
                       ("flip.png", whole[:200] + b"x" + whole[201:])]:
        (dataset/"ward 1"/name).write_bytes(data)
    write_png(dataset/"blank.png", np.full((40, 40), 7, np.uint8))
    run(folder, folder/"whole")
    return folder

def run(folder, out, **options):
    aligner = options.pop("aligner", None) or Aligner.load(folder/"aligner.safetensors")
    dataset = options.pop("images", None) or load_dataset("folder", folder/"images")
    return align_dataset(dataset, aligner, out, folder/"images", progress=False, **options)

def images(out): return {p.relative_to(out).as_posix(): read_image(p) for p in list_images(out)}

def assert_same(out, whole):
    "Same files with the same bytes, nothing left over"
    a, b = ({p.relative_to(run).as_posix(): p.read_bytes() for p in list_images(run)} for run in (out, whole))
    assert a == b and len(a) == N
    assert not list(out.rglob(".part-*"))


# --- a run without interruption -----------------------------------------------------------------------------

def test_broken_files_are_listed_and_the_rest_goes_on(folder):
    table = run(folder, folder/"whole")
    failed = table[table.status == "failed"].set_index("image")["reason"]
    assert sorted(failed.index) == \
        ["blank.png", *(f"ward 1/{n}.png" for n in ("cut", "empty", "flip", "text"))]
    for name, reason in [("ward 1/cut.png", "truncated"), ("ward 1/empty.png", "empty"),
                         ("ward 1/text.png", "web page"),
                         ("ward 1/flip.png", "damaged"), ("blank.png", "same grey value")]:
        assert reason in failed[name]
    assert (table.status == "aligned").sum() == N == len(images(folder/"whole"))
    assert table[table.status == "failed"][list(MATRIX_ENTRIES)].isna().all(axis=None)

def test_layout_names_and_bit_depth_stay(folder):
    for name, image in images(folder/"whole").items():
        original = read_image(folder/"images"/name.removeprefix("images/"))
        assert image.dtype == original.dtype and image.shape == (30, 24)

def test_the_table_repeats_the_images(folder):
    import cv2
    table = run(folder, folder/"whole", size=None).query("status == 'aligned'")
    dataset = load_dataset("folder", folder/"images")
    for _, row in table.iloc[::5].iterrows():
        image = read_image(folder/"images"/row.image)
        matrix = row[list(MATRIX_ENTRIES)].to_numpy(float).reshape(2, 3)
        fine = matrix @ [[1/4, 0, -3/8], [0, 1/4, -3/8], [0, 0, 1]]
        sampled = cv2.resize(cv2.warpAffine(image, fine, (96, 120), flags=cv2.WARP_INVERSE_MAP
                                            | cv2.INTER_LINEAR), (24, 30), interpolation=cv2.INTER_AREA)
        assert np.abs(sampled.astype(float) - read_image(folder/"whole"/row.file)).mean() < .02 * image.max()
    assert len(dataset) == N + 5

def test_originals_are_not_touched(folder, tmp_path):
    state = lambda: [(p, p.stat().st_mtime_ns, p.stat().st_size)
                     for p in sorted((folder/"images").rglob("*"))]
    before = state()
    run(folder, tmp_path/"out")
    assert state() == before
    for out in (folder/"images", folder/"images"/"out", folder):
        with pytest.raises(ValueError, match="one lies in the other"): run(folder, out)
    (tmp_path/"link").symlink_to(folder/"images")
    with pytest.raises(ValueError, match="one lies in the other"): run(folder, tmp_path/"link"/"out")
    assert state() == before

def test_nothing_but_broken_files(folder, tmp_path):
    (tmp_path/"images").mkdir()
    for i in range(3): (tmp_path/"images"/f"{i}.png").write_bytes(b"")
    table = run(tmp_path, tmp_path/"out", aligner=Aligner.load(folder/"aligner.safetensors"))
    assert table.status.tolist() == ["failed"] * 3 and images(tmp_path/"out") == {}

def test_no_image_depends_on_its_neighbours(folder, tmp_path):
    "Any part of the images, each alone or all together: the same bytes"
    dataset = load_dataset("folder", folder/"images")
    some = dataset.select(np.arange(len(dataset)) % 3 == 1)
    run(folder, tmp_path, images=some)
    assert 5 < len(images(tmp_path)) < N
    for path in list_images(tmp_path):
        assert path.read_bytes() == (folder/"whole"/path.relative_to(tmp_path)).read_bytes(), path


# --- interruptions ------------------------------------------------------------------------------------------

class Stop(Exception): pass

@pytest.mark.parametrize("where", ["write_png", "append_records", "align_one", "make_record"])
@pytest.mark.parametrize("when", [1, 3])
def test_interrupted_anywhere(folder, tmp_path, monkeypatch, where, when):
    calls, real = [], getattr(aligning, where)
    def failing(*a, **k):
        calls.append(1)
        if len(calls) > when * (1 if where == "append_records" else 5): raise Stop
        return real(*a, **k)
    monkeypatch.setattr(aligning, where, failing)
    with pytest.raises(Stop): run(folder, tmp_path)
    monkeypatch.undo()
    done = len(read_records(tmp_path/"records.jsonl")[1])
    assert (when == 1 or done > 0) and done < N + 5
    written = []
    monkeypatch.setattr(aligning, "write_png",
                        lambda path, image, real=write_png: (written.append(path), real(path, image)))
    run(folder, tmp_path)
    assert 0 < len(written) <= N + 5 - done
    assert_same(tmp_path, folder/"whole")

SLOW = """
import sys, time
from pathlib import Path
import cxr_stn.aligner.batch as aligning
from cxr_stn.sources import load_dataset
from cxr_stn.inference import Aligner
real = aligning.write_png
def slow(path, image):
    time.sleep(.02)
    real(path, image)
    (path.parent / f".part-x-{path.name}").touch()  # what a killed writer leaves behind
aligning.write_png = slow
place, out = map(Path, sys.argv[1:])
aligning.align_dataset(load_dataset("folder", place/"images"), Aligner.load(place/"aligner.safetensors"),
                       out, place/"images", progress=False)
"""

def test_killed_twice(folder, tmp_path):
    "kill -9 at a moment of its own choosing; each start keeps what the one before has done"
    out, before = tmp_path/"out", 0
    for more in (4, 8):
        process = python(SLOW, folder, out)
        try:
            until = time.monotonic() + 120
            finished = lambda: len(read_records(out/"records.jsonl")[1])
            while process.poll() is None and time.monotonic() < until and finished() < before + more:
                time.sleep(.005)
            assert process.poll() is None, "the process ended before it was killed"
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        done = len(read_records(out/"records.jsonl")[1])
        assert before < done < N + 5
        before = done
    assert list(out.rglob(".part-*"))
    stamps = {p: p.stat().st_mtime_ns for p in list_images(out)}
    run(folder, out)
    kept = sum(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())
    assert kept >= before - 5, "what was recorded should not be done again"
    assert_same(out, folder/"whole")

def test_half_a_line_and_an_unrecorded_image(folder, tmp_path):
    run(folder, tmp_path)
    path = tmp_path/"records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:9]) + lines[9][:40])
    (tmp_path/"images"/"ward 2"/"23.png").write_bytes(b"an image without a record is not trusted")
    run(folder, tmp_path)
    assert len(read_records(path)[1]) == N + 5
    assert_same(tmp_path, folder/"whole")

def test_records_that_are_no_records(folder, tmp_path):
    (tmp_path/"records.jsonl").write_bytes(b"\xff\xfe rubbish\n\n")
    run(folder, tmp_path)
    assert_same(tmp_path, folder/"whole")

def test_a_full_disk_says_so_and_can_be_continued(folder, tmp_path, monkeypatch):
    calls = []
    def full(path, image):
        calls.append(1)
        if len(calls) > 6: raise OSError(28, f"cannot write {path}: No space left on device")
        write_png(path, image)
    monkeypatch.setattr(aligning, "write_png", full)
    with pytest.raises(OSError, match="cannot write .*No space left"): run(folder, tmp_path)
    monkeypatch.undo()
    run(folder, tmp_path)
    assert_same(tmp_path, folder/"whole")


# --- something has changed ----------------------------------------------------------------------------------

def test_a_image_that_broke_loses_its_image(folder, tmp_path):
    shutil.copytree(folder, tmp_path/"p")
    run(tmp_path/"p", tmp_path/"out")
    (tmp_path/"p"/"images"/"ward 0"/"03.png").write_bytes(b"")
    (tmp_path/"p"/"images"/"ward 1"/"cut.png").write_bytes((folder/"images"/"ward 1"/"01.png").read_bytes())
    table = run(tmp_path/"p", tmp_path/"out").set_index("image")
    assert table.status["ward 0/03.png"] == "failed"
    assert not (tmp_path/"out"/"images"/"ward 0"/"03.png").exists()
    assert table.status["ward 1/cut.png"] == "aligned"
    assert (tmp_path/"out"/"images"/"ward 1"/"cut.png").exists()

@pytest.mark.parametrize("change, name", [(dict(size=(60, 48)), "output size"), (dict(passes=2), "passes"),
                                          (dict(seed=1), "checkpoint")])
def test_other_settings_begin_anew(folder, tmp_path, capfd, change, name):
    run(folder, tmp_path)
    capfd.readouterr()
    before = images(tmp_path)
    if "seed" in change: aligner = Aligner.load(save_aligner(tmp_path/"other.safetensors", seed=1))
    else: aligner = Aligner.load(folder/"aligner.safetensors", passes=change.get("passes"))
    run(folder, tmp_path, aligner=aligner, size=change.get("size"))
    said = capfd.readouterr().err
    assert f"{name} changed since the last run in this out_dir: its {N} images are removed" in said
    after = images(tmp_path)
    assert all(after[n].shape != before[n].shape or (after[n] != before[n]).any() for n in after)
    assert len(after) == N
    run(folder, tmp_path, aligner=aligner, size=change.get("size"))
    assert capfd.readouterr().err == ""

def test_other_phantoms_begin_anew(folder, tmp_path, capfd):
    aligner = Aligner.load(folder/"aligner.safetensors")
    for seed, said in [(0, False), (0, False), (1, True)]:
        dataset = load_dataset(n_images=3, seed=seed, size=64)
        align_dataset(dataset, aligner, tmp_path, progress=False)
        assert ("images changed" in capfd.readouterr().err) == said
        written = read_image(tmp_path/"images"/"phantom_000002.png")
        assert np.abs(written.astype(float) - aligner(dataset.read(2)).image).mean() < 1


# --- the notebook -------------------------------------------------------------------------------------------

NOTEBOOK = ROOT/"nbs"/"align.ipynb"

def test_the_notebook_aligns_a_folder_and_goes_on(folder, tmp_path):
    out = tmp_path/"out"
    notebook = tmp_path/"nb.ipynb"
    given = dict(data="folder", data_dir=folder/"images", checkpoint=folder, out_dir=out, size="30x24")
    papermill(NOTEBOOK, notebook, cwd=tmp_path, **given)
    assert_same(out, folder/"whole")
    transforms, failures = pd.read_csv(out/"transforms.csv"), pd.read_csv(out/"failures.csv")
    assert len(transforms) == N + 5 and len(failures) == 5 and transforms.status.eq("aligned").sum() == N
    assert {"tx", "ty", "sx", "sy", "theta", *MATRIX_ENTRIES, "height", "width", "output_height",
            "output_width"} <= set(transforms)
    about = json.loads((out/"provenance.json").read_text())
    assert about["parameters"]["size"] == "30x24" and about["manifest_hash"]
    assert json.loads((out/"aligner.json").read_text())["sha256"] == \
        Aligner.load(folder/"aligner.safetensors").checksum
    assert not (out/".lock").exists()
    shown = [o for c in nbformat.read(notebook, 4).cells for o in c.get("outputs", [])
             if "image/png" in o.get("data", {})]
    assert len(shown) == 2
    stamps = {p: p.stat().st_mtime_ns for p in list_images(out)}
    lost = out/"images"/"ward 2"/"11.png"
    lost.unlink()
    papermill(NOTEBOOK, notebook, cwd=tmp_path, **given)
    assert [p for p, stamp in stamps.items() if p.stat().st_mtime_ns != stamp] == [lost]
    pd.testing.assert_frame_equal(pd.read_csv(out/"transforms.csv"), transforms, rtol=1e-3, atol=1e-3)

def test_mistakes_in_the_notebook_fail_at_once(tmp_path):
    err = papermill(NOTEBOOK, tmp_path/"nb.ipynb", wrong=True, n_image=3, data="dicom",
                    out_dir=tmp_path/"out")
    assert not (tmp_path/"out").exists()
    assert "unknown parameter 'n_image'; did you mean 'n_images'?" in err
    assert "'dicom' is not one of 'phantom', 'nih', 'folder'" in err


# --- real images --------------------------------------------------------------------------------------------

@pytest.mark.data("nih14-sample")
def test_chestxray14_stays_chestxray14(folder, tmp_path):
    source = DATA/"nih14-sample"
    dataset = load_dataset("nih", source, n_images=20)
    table = align_dataset(dataset, Aligner.load(folder/"aligner.safetensors"), tmp_path, source,
                          (60, 48), progress=False)
    assert table.status.eq("aligned").all() and table.image.tolist() == dataset.table.image.tolist()
    written = copy_labels(dataset, table, tmp_path, source)
    assert {"train_val_list.txt", "test_list.txt"} <= set(written)
    assert not (tmp_path/"BBox_List_2017.csv").exists()
    again = load_dataset("nih", tmp_path)
    kept = [c for c in dataset.table if c != "path"]
    assert again.table[kept].astype(str).values.tolist() == dataset.table[kept].astype(str).values.tolist()
    assert all(image.shape == (60, 48) for image in images(tmp_path).values())
