"""A training killed inside an epoch, by SIGKILL at a random step, and started again: it ends with the same
bytes."""
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT
import torch

from cxr_stn.aligner.checkpoints import read_network

SMALL = dict(n_images=90, n_phantoms=40, input_size=64, frame_height=60, frame_width=48, batch_size=8,
             epochs=3,
             update_canonical=1, pixel_weight=1.0, backbone_weights="none", accelerator="cpu",
             checkpoint_steps=2)
CLASSIFY = dict(n_images=120, input_size=32, batch_size=8, epochs=3, phantom_prevalence=6.0,
                classifier_weights="none",
                classifier="tf_efficientnet_lite0", accelerator="cpu", checkpoint_steps=2)
# the process kills itself just before a step, as surely as the power would
KILLER = """
import os, signal, sys
import pytorch_lightning as pl
class Killer(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == {step} and trainer.global_rank == {rank}:
            os.kill(os.getpid(), signal.SIGKILL)
start = pl.Trainer.__init__
def with_killer(self, *args, callbacks=(), **kwargs):
    start(self, *args, callbacks=[Killer(), *callbacks], **kwargs)
pl.Trainer.__init__ = with_killer
from cxr_stn.train import main
main(sys.argv[1:])
"""


def words(what, out_dir, cache_dir, given):
    given = dict(given, out_dir=out_dir, cache_dir=cache_dir)
    return [what, *[word for name, value in given.items() for word in ("-p", name, str(value))]]


def run(command):
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=900)
    return done.returncode, done.stdout + done.stderr


def train(what, out_dir, cache_dir, given, kill_at=None):
    program = ["-m", "cxr_stn.train"] if kill_at is None else ["-c", KILLER.format(step=kill_at, rank=0)]
    return run([sys.executable, *program, *words(what, out_dir, cache_dir, given)])


def files_of(folder, names): return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_an_aligner_killed_inside_an_epoch(tmp_path, workers):
    given = SMALL | dict(num_workers=workers)
    code, said = train("aligner", tmp_path / "whole", tmp_path / "cache", given)
    assert code == 0, said
    steps = torch.load(tmp_path / "whole/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert steps % 3 == 0 and steps >= 15
    kills = sorted(random.Random(workers).sample([step for step in range(3, steps) if step % (steps // 3)],
                                                 3))
    for step in kills:
        code, said = train("aligner", tmp_path / "broken", tmp_path / "cache", given, kill_at=step)
        assert code == -signal.SIGKILL, said
        assert not (tmp_path / "broken/aligner.safetensors").exists()
        kept = torch.load(tmp_path / "broken/checkpoints/last.ckpt", weights_only=True)["global_step"]
        assert step - 2 <= kept <= step, "at most checkpoint_steps steps are lost"
    code, said = train("aligner", tmp_path / "broken", tmp_path / "cache", given)
    assert code == 0, said
    a, b = (read_network(tmp_path / name / "aligner.safetensors") for name in ("whole", "broken"))
    for name, value in a[0].state_dict().items(): assert torch.equal(value, b[0].state_dict()[name]), name
    assert torch.equal(a[1], b[1])
    assert files_of(tmp_path / "whole", ["log.csv"]) == files_of(tmp_path / "broken", ["log.csv"]), \
        f"killed at {kills}"


@pytest.mark.slow
def test_a_classifier_killed_inside_an_epoch(tmp_path):
    code, said = train("classifier", tmp_path / "whole", tmp_path / "cache", CLASSIFY)
    assert code == 0, said
    for step in (random.Random(1).choice([4, 5, 6, 7]), random.Random(2).choice([14, 15, 16])):
        code, said = train("classifier", tmp_path / "broken", tmp_path / "cache", CLASSIFY, kill_at=step)
        assert code == -signal.SIGKILL, said
    code, said = train("classifier", tmp_path / "broken", tmp_path / "cache", CLASSIFY)
    assert code == 0, said
    names = ["log.csv", "predictions.parquet"]
    assert files_of(tmp_path / "whole", names) == files_of(tmp_path / "broken", names)


@pytest.mark.slow
def test_killed_from_outside_at_any_moment(tmp_path):
    "The signal may also come while a checkpoint is written, or between two steps"
    code, said = train("aligner", tmp_path / "whole", tmp_path / "cache", SMALL | dict(checkpoint_steps=1))
    assert code == 0, said
    chance, folder = random.Random(3), tmp_path / "broken"
    for _ in range(3):
        command = words("aligner", folder, tmp_path / "cache", SMALL | dict(checkpoint_steps=1))
        process = subprocess.Popen([sys.executable, "-m", "cxr_stn.train", *command], cwd=ROOT,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        last, until = folder / "checkpoints/last.ckpt", time.time() + 300
        before = last.stat().st_mtime_ns if last.exists() else 0
        newer = lambda: last.exists() and last.stat().st_mtime_ns > before
        while process.poll() is None and time.time() < until and not newer():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    code, said = train("aligner", folder, tmp_path / "cache", SMALL | dict(checkpoint_steps=1))
    assert code == 0, said
    assert files_of(tmp_path / "whole", ["log.csv"]) == files_of(folder, ["log.csv"])
    assert not list(folder.rglob(".part-*")), "no half-written file is left behind"


@pytest.mark.slow
def test_two_processes_killed_inside_an_epoch(tmp_path):
    "Killing any of the processes ends the run; it goes on with both"
    given = SMALL | dict(batch_size=4, batch_norm="frozen", backbone_weights="bundled")
    def both(out_dir, kill_at=None, rank=0):
        program = tmp_path / f"program-{kill_at}.py"
        program.write_text(KILLER.format(step=-1 if kill_at is None else kill_at, rank=rank))
        return run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                    "2", str(program),
                    *words("aligner", out_dir, tmp_path / "cache", given)])
    code, said = both(tmp_path / "whole")
    assert code == 0, said
    for step, rank in ((5, 1), (12, 0)): assert both(tmp_path / "broken", step, rank)[0] != 0
    code, said = both(tmp_path / "broken")
    assert code == 0, said
    a, b = (read_network(tmp_path / name / "aligner.safetensors")[0].state_dict()
            for name in ("whole", "broken"))
    for name in a: assert torch.equal(a[name], b[name]), name
    provenance = json.loads((tmp_path / "broken/provenance.json").read_text())
    assert len(provenance["earlier"]) == 2 and os.path.getsize(tmp_path / "broken/log.csv")
