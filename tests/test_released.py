"""The aligner that ships with the package: it loads, it tells what it cannot align, and it gives the published figures."""
import os
from pathlib import Path

import numpy as np, pandas as pd, pytest

import cxr_stn
from cxr_stn.films import load_masked
from cxr_stn.inference import Aligner, find_checkpoint
from cxr_stn.metrics import alignment_scores, corner_error
from cxr_stn.phantom import Phantom

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("CXR_STN_DATA") or "missing")


@pytest.fixture(scope="module")
def aligner(): return Aligner.load()

def test_it_is_the_default_and_part_of_the_package(aligner):
    path = find_checkpoint()
    assert path == Path(cxr_stn.__file__).parent / "released" / "chest.safetensors" and path.stat().st_size < 20e6
    assert aligner.trained and aligner.facts["data"] == "ChestX-ray14" and aligner.passes == 1
    assert (path.parent / "README.md").is_file()

def test_lungs_of_drawn_films_fall_onto_each_other(aligner):
    phantom = Phantom(n_films=24, size=192, seed=11, turned=0.0)
    films = [phantom[i] for i in range(24)]
    found = aligner.batch([film.image for film in films])
    masks = [film.lungs.any(0) for film in films]
    scores = alignment_scores(masks, np.stack([a.matrix for a in found]), aligner.output_shape)
    assert scores.dice > 0.9 and scores.dispersion < 0.06
    assert np.mean([a.flagged for a in found]) < 0.1

@pytest.mark.parametrize("k", [1, 2, 3])
def test_films_on_their_side_are_put_upright(aligner, k):
    film = Phantom(n_films=3, size=192, seed=12, turned=0.0)[1].image
    upright, turned = aligner(film), aligner(np.rot90(film, k).copy())
    back = np.eye(3)
    for _ in range(k): back = back @ [[0, -1, 191], [1, 0, 0], [0, 0, 1]]
    assert corner_error(upright.matrix, back @ turned.matrix, aligner.output_shape) < 6

def test_inverted_films_come_out_with_air_black(aligner):
    film = Phantom(n_films=3, size=192, seed=12, turned=0.0)[1].image
    a = aligner(255 - film)
    assert a.inverted and not a.flagged
    assert np.corrcoef(a.image.ravel(), aligner(film).image.ravel())[0, 1] > 0.95

@pytest.mark.parametrize("kind", ["noise", "stripes"])
def test_what_is_no_chest_is_flagged_and_left_as_it_is(aligner, kind):
    picture = np.random.default_rng(0).integers(0, 256, (150, 200), dtype=np.uint8)
    if kind == "stripes": picture = np.tile(np.uint8([0, 0, 0, 255, 255, 255]), (150, 34))
    a = aligner(picture)
    assert a.flagged and a.confidence < 0.88 and a.pose.theta == 0

@pytest.mark.skipif(not (DATA / "lungmask-dev").is_dir(), reason="CXR_STN_DATA names no folder with lungmask-dev")
@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_it_gives_the_published_figures(runtime):
    if runtime == "openvino": pytest.importorskip("openvino")
    aligner = Aligner.load(runtime=runtime)
    films = load_masked(DATA / "lungmask-dev")
    matrices = np.stack([a.matrix for a in aligner.batch([films.read(i) for i in range(len(films))])])
    found = alignment_scores([films.mask(i) for i in range(len(films))], matrices, aligner.output_shape)
    published = pd.read_csv(ROOT / "results" / "lungmask-dev" / "masks.csv").set_index("method").loc["aligner"]
    for name in ("dice", "dice_p5", "dispersion", "covered"): assert f"{found[name]:.3f}" == f"{published[name]:.3f}", name
