"""A training that is killed, as by a power cut, and started again."""
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from cxr_stn.networks import read_network

PROGRAM = """
import sys
from cxr_stn.training import TrainParams, fit_aligner
fit_aligner(TrainParams(n_films=60, n_phantoms=40, input_size=64, output_height=60, output_width=48, batch_size=8, epochs=4,
                        out_dir=sys.argv[1], cache_dir=sys.argv[2]))
"""


def start(out_dir, cache_dir):
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(out_dir), str(cache_dir)],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_killed_training_ends_where_the_unbroken_one_does(tmp_path):
    whole = start(tmp_path / "whole", tmp_path / "cache")
    assert whole.wait(timeout=900) == 0, whole.stdout.read()

    broken, log = start(tmp_path / "broken", tmp_path / "cache"), tmp_path / "broken" / "log.csv"
    while broken.poll() is None and not (log.exists() and len(pd.read_csv(log)) >= 2): time.sleep(0.1)
    broken.send_signal(signal.SIGKILL)
    assert broken.wait(timeout=60) == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (tmp_path / "broken" / "aligner.safetensors").exists()

    again = start(tmp_path / "broken", tmp_path / "cache")
    assert again.wait(timeout=900) == 0, again.stdout.read()
    assert "epoch 1/4" not in again.stdout.read(), "it began anew instead of going on"
    a, b = (read_network(tmp_path / name / "aligner.safetensors")[0].state_dict() for name in ("whole", "broken"))
    for name in a: assert torch.equal(a[name], b[name]), name
