"""The aligner that ships with the package: it loads, it tells what it cannot align, and it gives the
published figures."""
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from helpers import DATA, ROOT

import cxr_stn
from cxr_stn.data.datasets import load_masked
from cxr_stn.phantom.dataset import Phantom
from cxr_stn.aligner.networks import predict_poses
from cxr_stn.aligner.checkpoints import read_network
from cxr_stn.inference import Aligner, find_checkpoint
from cxr_stn.evaluation.metrics import alignment_scores, corner_error



@pytest.fixture(scope="module")
def aligner(): return Aligner.load()

def test_it_is_the_default_and_part_of_the_package(aligner):
    path = find_checkpoint()
    assert path == Path(cxr_stn.__file__).parent / "released" / "chest.onnx"
    assert path.stat().st_size < 20e6
    assert aligner.metadata["data"] == "ChestX-ray14" and aligner.passes == 1
    assert (path.parent / "README.md").is_file()

def test_lungs_of_synthetic_images_fall_onto_each_other(aligner):
    phantom = Phantom(n_images=24, size=192, seed=11, rot90_p=0.0)
    dataset = [phantom[i] for i in range(24)]
    found = aligner.batch([image.image for image in dataset])
    masks = [image.lungs.any(0) for image in dataset]
    scores = alignment_scores(masks, np.stack([a.matrix for a in found]), aligner.frame_size)
    assert scores.dice > 0.9 and scores.dispersion < 0.06
    assert np.mean([a.flagged for a in found]) < 0.1

@pytest.mark.parametrize("k", [1, 2, 3])
def test_images_on_their_side_are_put_upright(aligner, k):
    image = Phantom(n_images=3, size=192, seed=12, rot90_p=0.0)[1].image
    upright, rotated = aligner(image), aligner(np.rot90(image, k).copy())
    back = np.eye(3)
    for _ in range(k): back = back @ [[0, -1, 191], [1, 0, 0], [0, 0, 1]]
    assert corner_error(upright.matrix, back @ rotated.matrix, aligner.frame_size) < 6

def test_inverted_images_come_out_with_air_black(aligner):
    image = Phantom(n_images=3, size=192, seed=12, rot90_p=0.0)[1].image
    a = aligner(255 - image)
    assert a.inverted and not a.flagged
    assert np.corrcoef(a.image.ravel(), aligner(image).image.ravel())[0, 1] > 0.95

@pytest.mark.parametrize("kind", ["noise", "stripes"])
def test_what_is_no_chest_is_flagged_and_left_as_it_is(aligner, kind):
    image = np.random.default_rng(0).integers(0, 256, (150, 200), dtype=np.uint8)
    if kind == "stripes": image = np.tile(np.uint8([0, 0, 0, 255, 255, 255]), (150, 34))
    a = aligner(image)
    assert a.flagged and a.confidence < 0.6 and a.pose.theta == 0

def corners_apart(aligner, images):
    """Largest distance between corners of the frame as the graph and as the network see them,
    pixels of the frame"""
    network, _, _ = read_network(find_checkpoint(ending=".safetensors"))
    inputs = np.stack([aligner.preprocess(image) for image in images])
    with torch.no_grad(): theirs = predict_poses(network, torch.from_numpy(inputs[:, None]).float() / 255)
    flagged = (theirs.confidence < network.min_confidence).numpy()
    corners, apart = np.array([[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]]).T, [0.0]
    for estimate, affine, refused in zip(aligner.predict(inputs), theirs.affine.numpy(), flagged,
                                         strict=True):
        assert estimate.flagged == refused
        if not refused: apart.append(np.abs((estimate.affine - affine) @ corners).max())
    return max(apart) * max(aligner.frame_size) / 2

def test_the_graph_is_the_network_on_synthetic_images(aligner):
    phantom = Phantom(n_images=24, size=192, seed=13)
    assert corners_apart(aligner, [phantom[i].image for i in range(24)]) < 1e-3

@pytest.mark.data("lungmask-dev")
def test_the_graph_is_the_network_on_real_images(aligner):
    dataset = load_masked(DATA / "lungmask-dev")
    images = [dataset.read(i) for i in range(0, len(dataset), 2)]
    assert corners_apart(aligner, [np.rot90(image, i % 4).copy() for i, image in enumerate(images)]) < 1e-3

@pytest.mark.data("lungmask-dev")
def test_it_gives_the_published_figures(aligner):
    dataset = load_masked(DATA / "lungmask-dev")
    matrices = np.stack([a.matrix for a in aligner.batch([dataset.read(i) for i in range(len(dataset))])])
    found = alignment_scores([dataset.mask(i) for i in range(len(dataset))], matrices, aligner.frame_size)
    table = pd.read_csv(ROOT / "results" / "lungmask-dev" / "masks.csv")
    published = table.set_index("method").loc["aligner"]
    for name in ("dice", "dice_p5", "dispersion", "full_lung_rate"):
        assert f"{found[name]:.3f}" == f"{published[name]:.3f}", name
