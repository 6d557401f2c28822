"""What several test files need: paths, processes, papermill, images, an aligner, and a pickle that gives
itself away."""
import json, os, subprocess, sys, textwrap
from pathlib import Path

import cv2, numpy as np, torch

from cxr_stn.aligner.networks import AlignerNetwork
from cxr_stn.aligner.checkpoints import save_network
from cxr_stn.aligner.export import export_onnx

ROOT = Path(__file__).resolve().parent.parent
# where real images are; tests marked `data` need it
DATA = Path(os.environ.get("CXR_STN_DATA") or "missing")


def read_cells(path): return json.loads(path.read_text(encoding="utf-8"))["cells"]


def parameter_cell(path):
    "The source of the cell of a notebook that papermill's parameters follow"
    [cell] = [c for c in read_cells(path) if "parameters" in c["metadata"].get("tags", [])]
    return "".join(cell["source"])


def environment():
    "The variables of a process that finds this package and takes one core"
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1"}


def python(code, *words):
    "Start a Python process that runs `code` with `words` as its arguments"
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *map(str, words)], text=True,
                            env=environment(), **pipes)


def papermill(notebook, out, *words, cwd=ROOT, wrong=False, threads=1, **params):
    """Run a notebook by papermill's command line; what it printed. Fails unless the notebook ends well or, if
    `wrong`, fails"""
    words = [*words, *(w for name, value in params.items() for w in ("-p", name, value))]
    done = subprocess.run([sys.executable, "-m", "papermill",
                           *map(str, (notebook, out, "--no-progress-bar", *words))], text=True,
                          capture_output=True, cwd=cwd, env=environment() | {"OMP_NUM_THREADS": str(threads)},
                          timeout=900)
    assert (done.returncode != 0) == wrong, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def random_image(seed=0, shape=(50, 40)):
    "A smooth random image, uint8, from 0 to 255"
    noise = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)


def save_aligner(path, seed=0, **metadata):
    "A small aligner that was never trained, but answers differently for every image"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AlignerNetwork(weights="none", input_size=32, frame_height=30, frame_width=24)
        torch.nn.init.normal_(network.localiser.answer.weight, std=.01)
    save_network(path, network, **metadata)
    export_onnx(path)
    return path


class Payload:
    "Unpickled, it makes a file"
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), "w")
