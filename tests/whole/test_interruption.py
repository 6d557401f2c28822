"""What is on the disk after kill -9 at any moment, on a full disk, in a read-only folder, and with two runs
in one folder.

Every fault is real and happens to a process of its own. The moments of the kills are drawn from a seed, as
shares of the time that an unbroken run takes. Whatever has a file's proper name must be whole: equal to the
file of the unbroken run.
"""
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import random_image, environment, python, save_aligner

import cxr_stn.data.cache
from cxr_stn.runs import atomic_write, Run
from cxr_stn.data.images import write_png
from cxr_stn.data.cache import open_cache
from cxr_stn.sources import load_dataset
from cxr_stn.aligner.checkpoints import read_network

linux = pytest.mark.skipif(sys.platform != "linux", reason="the faults are made by means of Linux")

BEGIN = """
import os, sys, time
from pathlib import Path
target, out, slow = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
replace = os.replace
def slowly(*names): time.sleep(slow); replace(*names)  # so that many kills fall between writing and renaming
os.replace = slowly
"""
READY = """
print("ready", flush=True)
"""
ALIGNMENT = BEGIN + """
import torch
from cxr_stn.runs import Run
from cxr_stn.sources import load_dataset
from cxr_stn.inference import Aligner
from cxr_stn.aligner.batch import align_dataset, write_results
""" + READY + """
dataset, file = load_dataset("folder", target/"images"), target/"aligner.safetensors"
aligner = Aligner.load(file)
torch.set_num_threads(1)
with Run(out, {}, dataset.manifest_hash()) as run:
    table = align_dataset(dataset, aligner, run.path, target/"images", progress=False)
    write_results(run, dataset, table, aligner, file, target/"images")
"""
CACHE = BEGIN + """
import cxr_stn.data.cache as f
from cxr_stn.sources import load_dataset
f.BLOCK = 4
""" + READY + """
f.build_cache(load_dataset("folder", target/"images"), 32, out, workers=1)
"""
PREDICTIONS = BEGIN + """
import numpy as np, pandas as pd
from cxr_stn.classifier.predictions import write_predictions
n, rng = 3000, np.random.default_rng(0)
table = pd.DataFrame(dict(image=[f"{k}.png" for k in range(n)], patient=np.arange(n),
                          split="test", view="PA", sex="F", age=50.0,
                          label_Mass=rng.integers(0, 2, n), prob_Mass=rng.random(n)))
""" + READY + """
out.mkdir(exist_ok=True)
write_predictions(out/"predictions.parquet", table, dict(arm="standard", seed=0, data="none"))
"""
TRAINING = BEGIN + """
from cxr_stn.aligner.data import TrainParams
from cxr_stn.aligner.training import fit_aligner
""" + READY + """
fit_aligner(TrainParams(n_images=60, n_phantoms=40, input_size=64, frame_height=60, frame_width=48,
                        batch_size=8, epochs=4, accelerator="cpu", out_dir=str(out),
                        cache_dir=str(target/"cache"), weight_decay=int((sys.argv + [0])[4]) / 100))
"""
CLASSIFYING = BEGIN + """
from cxr_stn.classifier.training import ClassifyParams, fit_classifier
""" + READY + """
fit_classifier(ClassifyParams(n_images=90, input_size=32, batch_size=16, epochs=4, phantom_prevalence=6.0,
                              classifier_weights="none", accelerator="cpu", out_dir=str(out),
                              cache_dir=str(target/"cache"), weight_decay=int((sys.argv + [0])[4]) / 100))
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    "An aligner and a folder of images, two of them broken"
    target = tmp_path_factory.mktemp("interruption")
    save_aligner(target/"aligner.safetensors")
    for k in range(22): write_png(target/"images"/f"ward {k % 2}"/f"{k:02}.png", random_image(k, (70, 60)))
    for k in (5, 13): (target/"images"/"ward 1"/f"{k:02}.png").write_bytes(b"")
    return target


def files(folder):
    "Name and content of all files but hidden ones, and those that say when and how a run was started"
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and "tensorboard" not in p.parts)
    told = {"provenance.json", "params.yaml", "records.jsonl"}
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths if p.name not in told
            and not p.name.startswith(".")}


def run(program, *words):
    "Run a program to its end; the seconds it took once it was ready"
    process = python(program, *words)
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    began = time.monotonic()
    said, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return time.monotonic() - began, said


def kill(program, *words, after):
    "Start a program, kill -9 it so many seconds after it was ready; whether it was still at work then"
    process = python(program, *words)
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


# --- kill -9 ------------------------------------------------------------------------------------------------

def check_alignment(out, whole):
    for name, content in files(out).items(): assert content == whole[name], f"{name} is not whole"


def check_cache(out, whole):
    "Squares are believed only if the index says so, and then they are all there"
    dataset = load_dataset("folder", out.parent/"images")
    for index in out.glob("*/index.json"):
        assert f"{index.parent.name}/index.json" in whole
        cache = open_cache(dataset, 32, index.parent, verify=True)
        assert cache is not None
        assert (index.parent/"kept.u8").read_bytes() == whole[f"{index.parent.name}/kept.u8"]


@pytest.mark.parametrize("name, seed",
                         [("cache", 0), *(pytest.param(name, seed, marks=pytest.mark.slow) for name, seed in
                                                     [("cache", 1), ("alignment", 0), ("alignment", 1)])])
def test_killed_at_random_moments(target, monkeypatch, name, seed):
    monkeypatch.setattr(cxr_stn.data.cache, "BLOCK", 4)
    program, check = (ALIGNMENT, check_alignment) if name == "alignment" else (CACHE, check_cache)
    seconds, _ = run(program, target, target/f"whole {name} {seed}", .01)
    whole, out = files(target/f"whole {name} {seed}"), target/f"broken {name} {seed}"
    hits = 0
    for share in np.random.default_rng(seed).uniform(.02, .9, 5):
        hits += kill(program, target, out, .01, after=share * seconds)
        check(out, whole)
    assert hits >= 2, "the program was hardly ever killed"
    run(program, target, out, 0)
    assert files(out) == whole
    assert name == "cache" or not list(out.rglob(".part-*"))


def test_killed_while_a_damaged_cache_is_made_again(target, tmp_path):
    "An index of squares that are no more must not lend its authority to those that are being made"
    shutil.copytree(target/"images", tmp_path/"images")
    for k in (5, 13): (tmp_path/"images"/"ward 1"/f"{k:02}.png").unlink()
    run(CACHE, tmp_path, tmp_path/"cache", 0)
    [images], dataset = (tmp_path/"cache").glob("*/images.u8"), load_dataset("folder", tmp_path/"images")
    whole = images.read_bytes()
    images.write_bytes(whole[:1000])
    process = python(CACHE, tmp_path, tmp_path/"cache", .2)
    while not list(images.parent.glob("block_*.json")): time.sleep(.01)
    process.kill()
    process.communicate()
    assert images.stat().st_size == len(whole) and images.read_bytes() != whole
    assert open_cache(dataset, 32, images.parent) is None
    run(CACHE, tmp_path, tmp_path/"cache", 0)
    assert images.read_bytes() == whole


def test_killed_while_a_file_is_replaced(tmp_path):
    "One of two contents, never a mixture; large, so that most kills fall into the writing"
    program = BEGIN + "from cxr_stn.runs import atomic_write" + READY + """
for k in range(10**6): atomic_write(out, bytes([65 + k % 2]) * 8_000_000)
"""
    for after in np.random.default_rng(0).uniform(0, .2, 6):
        assert kill(program, tmp_path, tmp_path/"weights", 0, after=after)
        if (tmp_path/"weights").exists():
            content = (tmp_path/"weights").read_bytes()
            assert len(content) == 8_000_000 and content.count(content[:1]) == len(content)
    assert (tmp_path/"weights").exists()


def same_networks(a, b):
    one, two = (read_network(run/"aligner.safetensors")[0].state_dict() for run in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("program", [TRAINING, CLASSIFYING], ids=["aligner", "classifier"])
def test_killed_training_ends_where_the_unbroken_one_does(tmp_path, program):
    seconds, _ = run(program, tmp_path, tmp_path/"whole", 0)
    whole, out = files(tmp_path/"whole"), tmp_path/"broken"
    result = {"aligner.safetensors", "log.csv"} if program is TRAINING \
        else {"predictions.parquet", "log.csv", "affines.csv"}
    for share in np.random.default_rng(3).uniform(.2, .9, 3):
        assert kill(program, tmp_path, out, 0, after=share * seconds) or files(out).keys() >= result
        last = out/"checkpoints"/"last.ckpt"
        if last.exists():
            assert torch.load(last, weights_only=True)["state_dict"], "a checkpoint is whole or not there"
    run(program, tmp_path, out, 0)
    assert {name: files(out)[name] for name in result} == {name: whole[name] for name in result}
    assert program is CLASSIFYING or same_networks(out, tmp_path/"whole")


@pytest.mark.slow
def test_killed_training_goes_on_and_does_not_begin_anew(tmp_path):
    process, log = python(TRAINING, tmp_path, tmp_path/"out", 0), tmp_path/"out"/"log.csv"
    while process.poll() is None and not (log.exists() and len(pd.read_csv(log)) >= 2): time.sleep(.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (tmp_path/"out"/"aligner.safetensors").exists()
    _, said = run(TRAINING, tmp_path, tmp_path/"out", 0)
    assert "epoch 1/4" not in said and "epoch 4/4" in said


# --- full disks and read-only folders -----------------------------------------------------------------------

LIMITED = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""
UNPRIVILEGED = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # the superuser loses CAP_DAC_OVERRIDE: permissions bind it, too
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
NAMES = {"alignment": ALIGNMENT, "cache": CACHE, "predictions": PREDICTIONS, "training": TRAINING,
         "classifying": CLASSIFYING}
LONG = {"alignment", "training", "classifying"} # they take seconds to start
BY_NAME = [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in NAMES]
# another weight decay: the earlier run does not count, its images do
NEWER = {"training": ["1"], "classifying": ["1"]}


def earlier(name, target, tmp_path):
    "A folder with what the program has written there before, and a target where it has more to do now"
    run(NAMES[name], target, tmp_path/"out", 0)
    shutil.copytree(target, tmp_path/"place", ignore=shutil.ignore_patterns("whole*", "broken*"),
                    dirs_exist_ok=True)
    for k in range(30, 40):
        write_png(tmp_path/"place"/"images"/"ward 2"/f"{k}.png", random_image(k, (70, 60)))
    return tmp_path/"place", tmp_path/"out"


def refused(process, out, before, *reasons):
    "The program has failed with a clear error, and all that was there is still there"
    errors = process.communicate(timeout=300)[1]
    last = errors.strip().split("\n")[-1]
    assert process.returncode == 1 and any(reason in last for reason in reasons), errors
    assert str(out) in last, "the error should say which file"
    after = files(out)
    assert {name: after.get(name) for name in before} == before
    assert not (out/".lock").exists() and not list(out.rglob(".part-*"))


@linux
@pytest.mark.parametrize("name", BY_NAME)
def test_full_disk_at_the_start(target, tmp_path, name):
    more, out = earlier(name, target, tmp_path)
    before = files(out)
    limited = NAMES[name].replace(READY, READY + LIMITED)
    refused(python(limited, more, out, 0, *NEWER.get(name, [])), out, before, "cannot write",
            "File too large")
    run(NAMES[name], more, out, 0, *NEWER.get(name, []))
    run(NAMES[name], more, tmp_path/"whole", 0, *NEWER.get(name, []))
    for file, content in files(tmp_path/"whole").items():
        assert name in NEWER and file.endswith(".ckpt") or files(out)[file] == content, file


@linux
@pytest.mark.parametrize("name", BY_NAME)
def test_read_only_folder(target, tmp_path, name):
    more, out = earlier(name, target, tmp_path)
    before, folders = files(out), [out, *(p for p in out.rglob("*") if p.is_dir())]
    for folder in folders: folder.chmod(0o555)
    try:
        probe = python(UNPRIVILEGED, "-c", f"open({str(out/'probe')!r}, 'w')")
        assert "Permission denied" in probe.communicate()[1], "this folder is not read-only for this user"
        process = python(UNPRIVILEGED, "-c", NAMES[name], more, out, 0, *NEWER.get(name, []))
        refused(process, out, before, "Permission denied")
    finally:
        for folder in folders: folder.chmod(0o755)


SMALL_DISK = ('mount -t tmpfs -o size="$0" none "$1" || exit 77; '
              '"${@:3}"; code=$?; cp -a "$1/." "$2/"; exit $code')


@linux
@pytest.mark.parametrize("name, size", [("cache", "24k"), ("predictions", "24k"),
                                        pytest.param("alignment", "24k", marks=pytest.mark.slow),
                                        pytest.param("training", "90m", marks=pytest.mark.slow)])
def test_disk_that_fills_up_on_the_way(target, tmp_path, name, size):
    """A file system of its own that is too small; what is on it when the program fails is copied out and gone
    on with"""
    whole, out, saved = tmp_path/"whole", tmp_path/"out", tmp_path/"saved"
    for folder in (out, saved): folder.mkdir()
    run(NAMES[name], target, whole, 0)
    command = [sys.executable, "-c", NAMES[name], target, out, "0"]
    process = subprocess.run(["unshare", "-m", "bash", "-c", SMALL_DISK, size, out, saved, *command],
                             text=True, capture_output=True,
                             env=environment(), timeout=300)
    if process.returncode in (1, 77) and "ready" not in process.stdout:
        pytest.skip(f"no file system can be mounted here: {process.stderr}")
    last = process.stderr.strip().split("\n")[-1]
    assert process.returncode == 1 and "cannot write" in last and "No space left" in last, process.stderr
    assert str(out) in last
    made, wanted = files(saved), files(whole)
    for file in made:
        if file.endswith((".png", ".csv", ".parquet", ".safetensors")) and file != "log.csv":
            assert made[file] == wanted[file], file
        if file.endswith(".ckpt"): assert torch.load(saved/file, weights_only=True)["state_dict"]
    assert name == "predictions" or made, "nothing was written before the disk was full"
    run(NAMES[name], target, saved, 0)
    assert {k: v for k, v in files(saved).items() if not k.endswith(".ckpt")} == \
        {k: v for k, v in wanted.items() if not k.endswith(".ckpt")}


# --- two runs in one folder ---------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize("name", ["alignment", "training", "classifying"])
def test_the_second_run_in_a_folder_is_refused(target, tmp_path, name):
    out, atomic = tmp_path/"out", .05
    first = python(NAMES[name], target, out, atomic)
    while first.poll() is None and not (out/"provenance.json").exists(): time.sleep(.005)
    first.send_signal(signal.SIGSTOP)  # or it might have ended before the second has started
    second = python(NAMES[name], target, out, 0)
    try: errors = second.communicate(timeout=120)[1]
    finally: first.send_signal(signal.SIGCONT)
    assert second.returncode == 1 and f"another run is writing to {out} (process {first.pid} " in errors, \
        errors
    assert "wait for it, or choose another out_dir" in errors
    said, errors = first.communicate(timeout=600)
    assert first.returncode == 0, errors
    run(NAMES[name], target, tmp_path/"alone", 0)
    for file, content in files(tmp_path/"alone").items():
        assert file.endswith(".ckpt") or files(out)[file] == content, file


def test_no_lock_is_left_that_keeps_everybody_out(tmp_path):
    "Neither by a kill at any moment, nor on a full disk"
    program = BEGIN + "from cxr_stn.runs import Run" + READY + """
for k in range(10**6): Run(out, {}).close()
"""
    for after in np.random.default_rng(1).uniform(0, .3, 5):
        kill(program, tmp_path, tmp_path/"run", 0, after=after)
        with Run(tmp_path/"run", {}): pass
    limited = python(BEGIN + LIMITED + "from cxr_stn.runs import Run; Run(out, {})", tmp_path,
                     tmp_path/"full", 0)
    assert "cannot write" in limited.communicate()[1] and not (tmp_path/"full"/".lock").exists()
    for folder in ("run", "full"): atomic_write(tmp_path/folder/"free", "")
    run(BEGIN + "from cxr_stn.runs import Run" + READY + "Run(out, {}).close()", tmp_path, tmp_path/"run", 0)
