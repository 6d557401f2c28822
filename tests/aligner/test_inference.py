"""The aligner against everything it may be given: images of all kinds, files of all kinds, and an independent
computation."""
import functools
import math
from concurrent.futures import ThreadPoolExecutor

import cv2, numpy as np, pytest, torch

import cxr_stn
from cxr_stn.stn import warp
from cxr_stn.resampling import letterbox, resample
from cxr_stn.data.images import to_unit
from cxr_stn.aligner.networks import AlignerNetwork, predict_poses
from cxr_stn.aligner.checkpoints import save_network
from cxr_stn.aligner.export import export_onnx, to_onnx
from cxr_stn.inference import Aligner


pytestmark = pytest.mark.usefixtures("one_thread")

def network(pose=(.15, -.1, .7, .8, 25), rot90=0, spread=0.0, family="pose"):
    "A network with a fixed answer, or one that is spread about it"
    torch.manual_seed(0)
    net = AlignerNetwork(weights="none", input_size=64, frame_height=60, frame_width=48, family=family)
    tx, ty, sx, sy, angle = pose
    raw = torch.tensor([tx, ty, math.log(sx), math.log(sy), math.radians(angle)]) / net.bounded.bounds
    net.localiser.answer.bias.data = torch.cat([torch.atanh(raw), torch.eye(4)[rot90],
                                                torch.tensor([-5.0, -5.0])])
    torch.nn.init.normal_(net.localiser.answer.weight, std=spread)
    return net

@functools.cache
def exported(*pose, **more):
    "The same network as a graph, made once"
    return to_onnx(network(*pose, **more))

@pytest.fixture(scope="module")
def aligner(): return Aligner(exported())

@pytest.fixture(scope="module")
def varied(): return Aligner(exported(spread=.01))

@pytest.fixture(scope="module")
def chest():
    "Smooth, not square, and without any symmetry"
    y, x = np.mgrid[:130, :190] / 100
    return np.rint(120 + 60 * np.sin(3 * x + y * y) + 60 * np.cos(4 * y - x)).astype(np.uint8)

def opencv(image, aligned):
    h, w = aligned.shape
    return cv2.warpAffine(image, aligned.matrix[:2], (w, h), flags=cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR)


# --- the contract -------------------------------------------------------------------------------------------

KINDS = {"grey": lambda f: f, "one channel": lambda f: f[..., None],
         "grey and alpha": lambda f: np.dstack([f, f * 0 + 255]),
         "RGB": lambda f: np.dstack([f, f, f]), "RGBA": lambda f: np.dstack([f, f, f, f * 0 + 255]),
         "16 bits": lambda f: f.astype(np.uint16) * 257, "float32": lambda f: f / np.float32(255),
         "float64": lambda f: f * 12.5,
         "read-only": lambda f: np.frombuffer(f.tobytes(), np.uint8).reshape(f.shape),
         "other order": np.asfortranarray}

@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image(aligner, chest, kind):
    image = KINDS[kind](chest)
    before = image.copy()
    a = aligner(image, (240, 192))
    assert a.image.dtype == image.dtype and a.image.shape == (240, 192, *image.shape[2:])
    assert a.shape == (240, 192)
    assert a.matrix.shape == (3, 3) and a.matrix.dtype == np.float64
    assert np.array_equal(a.matrix[2], [0, 0, 1])
    assert np.array_equal(image, before)
    np.testing.assert_allclose(a.pose, (.15, -.1, .7, .8, 25), atol=1e-5)
    expected = opencv(np.ascontiguousarray(image), a).reshape(a.image.shape)
    np.testing.assert_array_equal(a.image, expected)
    assert a.image.max() > .9 * image.max() and a.image.max() <= image.max()

@pytest.mark.parametrize("shape", [(130, 190), (190, 130), (64, 64), (300, 40)])
@pytest.mark.parametrize("rot90", [0, 1, 2, 3])
def test_against_the_transformer_itself(chest, shape, rot90):
    "What the study trains with (letterbox, then torch's grid sampling) shows the same image"
    image = cv2.resize(chest, shape[::-1]).astype(np.float32) / 255
    net = network(rot90=rot90).eval()
    a = Aligner(exported(rot90=rot90))(image)
    network_input = torch.from_numpy(letterbox(to_unit(image), 64))[None, None]
    sampled = torch.from_numpy(letterbox(image, 64))[None, None]
    with torch.no_grad(): frame_to_image = predict_poses(net, network_input).affine
    expected = warp(sampled, frame_to_image, (60, 48))[0, 0].numpy()
    ones = torch.from_numpy(letterbox(np.ones_like(image), 64))[None, None]
    inside = warp(ones, frame_to_image, (60, 48))[0, 0] > .999
    inside = cv2.erode(inside.numpy().astype(np.uint8), np.ones((5, 5))) > 0
    assert inside.sum() > 100
    assert np.abs(a.image - expected)[inside].mean() < .01
    assert round(a.pose.theta - 25 + 90 * rot90) % 360 == 0

@pytest.mark.parametrize("kind", ["int16", "one channel first"])
def test_what_dicom_and_torchxrayvision_have(aligner, chest, kind):
    image = chest.astype(np.int16) * 8 - 1024 if kind == "int16" else chest[None].astype(np.float32)
    a = aligner(image)
    assert a.image.dtype == image.dtype and a.shape == a.image.shape == (60, 48)
    np.testing.assert_allclose(a.matrix, aligner(chest).matrix, atol=1e-9)

def test_a_dot_is_where_the_points_say(aligner):
    for x, y in [(60, 40), (100, 90), (120, 70)]:
        image = np.zeros((130, 190), np.float32)
        image[y - 1:y + 2, x - 1:x + 2] = 1
        for shape in [(60, 48), (240, 192), (480, 384)]:
            a = aligner(image, shape)
            total = a.image.sum()
            centre = [(a.image.sum(0) * np.arange(shape[1])).sum() / total,
                      (a.image.sum(1) * np.arange(shape[0])).sum() / total]
            np.testing.assert_allclose(a.to_aligned([[x, y]])[0], centre, atol=.15)

def test_points(aligner, chest):
    a = aligner(chest)
    points = np.random.default_rng(0).uniform(-50, 250, (20, 2))
    np.testing.assert_allclose(a.to_original(a.to_aligned(points)), points, atol=1e-9)
    points[3, 1] = np.nan
    there = a.to_aligned(points)
    assert np.isnan(there[3]).all() and np.isfinite(np.delete(there, 3, 0)).all()
    assert a.to_original(np.zeros((0, 2))).shape == (0, 2)
    for bad in ([1, 2], np.zeros((2, 3)), np.zeros((1, 2, 2))):
        with pytest.raises(ValueError, match=r"\(N, 2\)"): a.to_aligned(bad)

def test_resolution_changes_nothing_else(aligner, chest):
    edges = lambda a: a.to_original(np.array([[0, 0], [a.shape[1], 0], [a.shape[1], a.shape[0]]]) - .5)
    expected = edges(aligner(chest))
    for shape in [(30, 24), (61, 47), (600, 100)]:
        np.testing.assert_allclose(edges(aligner(chest, shape)), expected, atol=1e-6)

def test_outside_is_zero_and_floats_keep_their_values():
    a = Aligner(exported((0, 0, 2, 2, 0)))(np.full((50, 50), 7.5) + np.eye(50))
    assert a.image[0, 0] == 0 and a.image.max() > 7 and a.image[30, 20] == pytest.approx(7.5, abs=.2)

def test_channels_are_transformed_alike_but_not_mixed(aligner, chest):
    image = np.dstack([chest, 255 - chest, chest // 2, np.full_like(chest, 255)])
    a = aligner(image)
    for c in range(4):
        np.testing.assert_array_equal(a.image[..., c], resample(image[..., c], a.matrix, a.shape))

@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_no_aliasing(aligner, dtype):
    """A checkerboard of single pixels is plain grey when shrunk, at every angle; bilinear sampling alone
    shows patterns"""
    y, x = np.mgrid[:700, :900]
    full = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    board = ((x + y) % 2 * full).astype(dtype)
    a = Aligner(exported((0, 0, .6, .6, 10)))(board)
    inside = np.all((a.to_original(np.argwhere(np.ones(a.shape))[:, ::-1]) > 20)
                    & (a.to_original(np.argwhere(np.ones(a.shape))[:, ::-1]) < [880, 680]),
                    1).reshape(a.shape)
    assert inside.sum() > 1000
    assert a.image[inside].std() / full < .02 and opencv(board, a)[inside].std() / full > .1
    assert a.image[inside].mean() / full == pytest.approx(.5, abs=.01)

def test_extreme_sizes(aligner):
    for shape in [(3000, 2500), (5, 3000), (1, 7), (2, 2)]:
        image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        a = aligner(image)
        assert a.image.shape == (60, 48) and np.isfinite(a.image).all()
    assert aligner(image, (1, 1)).image.shape == (1, 1)



# --- many at once -------------------------------------------------------------------------------------------

def test_batch_is_the_same_as_one_by_one(varied, chest):
    images = [chest, chest[:, 60:], chest.T.copy(), np.dstack([chest] * 4), chest.astype(np.uint16) * 100,
              chest[::-1].copy() / 255]
    together = varied.batch(images)
    assert len({round(a.pose.theta, 3) for a in together}) > 3
    for image, many in zip(images, together, strict=True):
        one = varied(image)
        np.testing.assert_array_equal(many.matrix, one.matrix)
        np.testing.assert_array_equal(many.image, one.image)
    assert varied.batch([]) == [] and isinstance(together, list)

def test_batch_takes_an_array_and_a_shape(varied, chest):
    stack = np.stack([chest, chest[::-1], chest[:, ::-1]])
    assert [a.shape for a in varied.batch(stack, (30, 24))] == [(30, 24)] * 3

def test_threads_share_an_aligner(varied, chest):
    images = [np.roll(chest, 7 * i, 1) for i in range(12)]
    alone = [varied(image).matrix for image in images]
    with ThreadPoolExecutor(4) as pool: together = [a.matrix for a in pool.map(varied, images)]
    np.testing.assert_array_equal(together, alone)

def test_more_passes_run_again(varied, chest):
    two = Aligner(exported(spread=.01), passes=2)
    assert np.abs(varied(chest).matrix - two(chest).matrix).max() > .1


# --- torch, which trained the network -----------------------------------------------------------------------

def test_the_answers_are_those_of_the_network_itself(varied, chest):
    "Corners of the frame, in pixels of the frame"
    net = network(spread=.01)
    images = [chest, chest[:, 60:], chest.T.copy(), chest[::-1].copy(), chest[:, ::-1].copy()]
    inputs = np.stack([varied.preprocess(image) for image in images])
    with torch.no_grad(): theirs = predict_poses(net.eval(), torch.from_numpy(inputs[:, None]).float() / 255)
    corners = np.array([[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]]).T
    for mine, affine in zip(varied.predict(inputs), theirs.affine.numpy(), strict=True):
        assert np.abs((mine.affine - affine) @ corners).max() * 60 / 2 < 1e-3


# --- files --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")/"mine.safetensors"
    save_network(path, network(), images="none")
    return export_onnx(path)

def test_a_loaded_aligner_is_the_saved_one(checkpoint, chest):
    aligner = Aligner.load(checkpoint)
    np.testing.assert_allclose(aligner(chest).pose, (.15, -.1, .7, .8, 25), atol=1e-5)
    assert aligner.metadata == {"images": "none"} and aligner.checksum
    assert Aligner.load(str(checkpoint), device="auto").checksum == aligner.checksum

@pytest.fixture
def shipped(tmp_path, monkeypatch):
    "An installation that ships no aligner yet; its folder of released ones"
    (tmp_path/"package"/"released").mkdir(parents=True)
    monkeypatch.setattr(cxr_stn, "__file__", str(tmp_path/"package"/"__init__.py"))
    return tmp_path/"package"/"released"

def test_released_aligners(shipped, checkpoint, chest):
    for wanted in (None, "chest", "chesst"):
        with pytest.raises(FileNotFoundError, match=r"released aligners: none; train one with: papermill"):
            Aligner.load(wanted)
    for name in ("chest", "hand"): (shipped/f"{name}.onnx").write_bytes(to_onnx(network(), name=name))
    assert Aligner.load().metadata == {"name": "chest"} == Aligner.load("chest").metadata
    assert Aligner.load("hand").metadata == {"name": "hand"}
    assert Aligner.load(checkpoint).metadata == {"images": "none"}
    with pytest.raises(FileNotFoundError, match="chesst does not exist.*released aligners: chest, hand"):
        Aligner.load("chesst")
