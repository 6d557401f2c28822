"""Both ways: points, boxes, masks, maps, for every pose and shape, on real masks, against SimpleITK."""
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from helpers import DATA, random_image
from hypothesis import given, settings, strategies as st

from cxr_stn.aligned import Aligned, map_boxes, map_points, Pose, rescale_matrix, resample_filled
from cxr_stn.geometry import MATRIX_ENTRIES
from cxr_stn.resampling import resample

quick = settings(max_examples=60, deadline=None)
def number(low, high): return st.floats(low, high, allow_nan=False)


def pose_matrix(shape, original, pose):
    "The matrix of a pose, from the words of `Pose` alone: aligned pixel centre -> original pixel centre"
    (h, w), (H, W), side, turn = shape, original, max(original), math.radians(pose.theta)
    def at(x, y):
        u, v = (x + .5 - w / 2) / w * pose.sx * side, (y + .5 - h / 2) / h * pose.sy * side
        return [u * math.cos(turn) - v * math.sin(turn) + W / 2 - .5 + pose.tx * side / 2,
                u * math.sin(turn) + v * math.cos(turn) + H / 2 - .5 + pose.ty * side / 2, 1]
    return np.array([at(0, 0), at(1, 0), at(0, 1)]).T @ np.linalg.inv([[0, 1, 0], [0, 0, 1], [1, 1, 1]])


def make(original, shape=(120, 96), pose=Pose(.05, -.02, .8, .85, 12), **more):
    "An aligned image without a network"
    matrix = pose_matrix(shape, original.shape, pose)
    return Aligned(resample(original, matrix, shape), matrix, pose, original_shape=original.shape[:2], **more)


def dice(a, b): return 2 * (a & b).sum() / (a.sum() + b.sum())


shapes = st.tuples(st.integers(20, 300), st.integers(20, 300))
poses = st.builds(Pose, number(-.4, .4), number(-.4, .4), number(.5, 1.5), number(.5, 1.5), number(-180, 180))


# Points and boxes

@quick
@given(poses, shapes, shapes)
def test_points_and_boxes_return(pose, shape, original):
    aligned = Aligned(np.zeros(shape), pose_matrix(shape, original, pose), pose)
    points = np.random.default_rng(0).uniform(-50, 350, (7, 2))
    np.testing.assert_allclose(aligned.to_original(aligned.to_aligned(points)), points, atol=1e-8)
    boxes = np.concatenate([points, points + 20], 1)
    there = aligned.boxes_to_aligned(boxes)
    back = aligned.boxes_to_original(there)
    def is_in(inner, outer):
        return (inner[:, :2] >= outer[:, :2] - 1e-6).all() and (inner[:, -2:] <= outer[:, 2:] + 1e-6).all()
    assert is_in(boxes, back), "a box never shrinks"
    inner = np.random.default_rng(1).uniform(boxes[:, :2], boxes[:, 2:])
    assert is_in(aligned.to_aligned(inner), there), "what is in a box stays in it"


@pytest.mark.parametrize("theta", [0, 90, 180, -90])
def test_boxes_are_exact_where_nothing_is_oblique(theta):
    pose = Pose(.1, 0, .7, .8, theta)
    aligned = Aligned(np.zeros((120, 96)), pose_matrix((120, 96), (300, 260), pose), pose)
    boxes = np.array([[-.5, -.5, 95.5, 119.5], [3, 4, 50, 60]])
    np.testing.assert_allclose(aligned.boxes_to_aligned(aligned.boxes_to_original(boxes)), boxes, atol=1e-9)


def test_a_box_is_that_of_its_pixels():
    "The box around a painted rectangle, edges at half pixels, in a frame that is twice as large"
    original = np.zeros((60, 50), bool)
    original[10:20, 5:30] = True
    matrix = rescale_matrix((120, 100), (60, 50))
    aligned = Aligned(np.zeros((120, 100)), matrix, Pose(0, 0, 1, 1, 0), original_shape=(60, 50))
    y, x = np.nonzero(aligned.apply(original))
    box = [x.min() - .5, y.min() - .5, x.max() + .5, y.max() + .5]
    assert aligned.boxes_to_aligned([[4.5, 9.5, 29.5, 19.5]])[0].tolist() == box


# Arrays

TYPES = ["bool", "uint8", "int16", "int64", "uint16", "float16", "float32", "float64"]

@quick
@given(poses, shapes, st.sampled_from(TYPES), st.integers(1, 6))
def test_every_type_keeps_its_type_and_channels(pose, shape, dtype, channels):
    original = np.zeros((90, 70), np.uint8)
    aligned = make(original, shape, pose)
    values = (np.arange(18 * 14 * channels).reshape(18, 14, channels) % 300).astype(dtype)
    for array in (values, values[..., 0]):
        for interpolation in ("auto", "linear", "nearest"):
            there, back = aligned.apply(array, interpolation), aligned.restore(array, 0, interpolation)
            assert (there.dtype, there.shape) == (array.dtype, shape + array.shape[2:])
            assert (back.dtype, back.shape) == (array.dtype, (90, 70) + array.shape[2:])
            assert array.min() <= there.astype(array.dtype).min() or there.min() == 0
            assert there.max() <= array.max()


@quick
@given(poses, shapes, shapes)
def test_labels_are_never_mixed_and_outside_is_filled(pose, shape, size):
    aligned = make(np.zeros((90, 70), np.uint8), shape, pose)
    labels = np.random.default_rng(0).choice(np.int16([-3, 5, 120]), size)
    for interpolation in ("auto", "nearest", "majority"):
        there = aligned.apply(labels, interpolation, fill=77)
        assert set(np.unique(there)) <= {-3, 5, 120, 77}
        x, y = aligned.to_original(np.argwhere(np.ones(shape))[:, ::-1]).T
        beyond = np.maximum.reduce([-.5 - x, x - 69.5, -.5 - y, y - 89.5]).reshape(shape)
        assert ((there == 77) == (beyond > 0))[abs(beyond) > 1e-6].all()


@quick
@given(poses, st.sampled_from([(7, 6), (8, 8), (32, 32), (240, 192)]))
def test_a_ramp_over_the_frame_is_that_ramp_on_the_original(pose, size):
    aligned = make(np.zeros((150, 120), np.uint8), (120, 96), pose)
    ramp = np.add.outer(3 * np.arange(size[0]), 2 * np.arange(size[1])).astype(float)
    back = aligned.restore(ramp, np.nan, "linear")
    points = np.argwhere(np.ones((150, 120)))[:, ::-1]
    at = map_points(rescale_matrix((120, 96), size), aligned.to_aligned(points))
    far = 1 + np.hypot(*size) / 60  # an original pixel covers several of the array's
    central = ((at > far) & (at < np.array(size[::-1]) - 1 - far)).all(1)
    np.testing.assert_allclose(back.ravel()[central], (at @ [2, 3])[central], atol=.02 * np.hypot(*size))


def test_a_map_does_not_fade_at_the_edges():
    aligned = make(np.zeros((150, 120), np.uint8))
    back = aligned.restore(np.ones((7, 6)), fill=-1)
    assert set(np.unique(back)) == {-1, 1}
    assert set(np.unique(aligned.apply(np.full((2, 2), 9.), fill=-1))) <= {-1, 9}


def test_linear_and_majority_and_nearest_on_a_mask_of_8_bits():
    mask = np.zeros((90, 70), np.uint8)
    mask[20:60, 20:50] = 255
    aligned = make(mask)
    assert set(np.unique(aligned.apply(mask))) == set(np.unique(aligned.apply(mask, "nearest"))) == {0, 255}
    assert len(np.unique(aligned.apply(mask, "linear"))) > 9


def test_an_image_is_interpolated_as_the_aligned_image_is():
    for dtype, factor in (("uint8", 1), ("uint16", 257), ("float32", 1 / 255)):
        original = (random_image(3, (300, 260)).astype(float) * factor).astype(dtype)
        for shape in ((40, 32), (120, 96), (400, 320)):
            aligned = make(original, shape, Pose(0, 0, .6, .7, 20))
            error = np.abs(aligned.apply(original, "linear").astype(float) - aligned.image)
            assert error.max() <= 1.01 * factor, (dtype, shape)


@pytest.mark.parametrize("wrong, reason", [
    (np.zeros(5), "(5,)"), (np.zeros((0, 5)), "(0, 5)"), (np.zeros((2, 2, 2, 2)), "channels last"),
    (np.zeros((3, 3), complex), "no real numbers"), ([["a"]], "no real numbers")])
def test_what_cannot_be_carried(wrong, reason):
    aligned = make(np.zeros((90, 70), np.uint8))
    for carry in (aligned.apply, aligned.restore):
        with pytest.raises(ValueError) as caught: carry(wrong)
        assert reason in str(caught.value)


# Masks there and back

def there_and_back(mask, shape, pose):
    "Dice inside the frame"
    aligned = make(mask.astype(np.uint8), shape, pose)
    seen = aligned.restore(np.ones((1, 1), bool))
    return dice(aligned.restore(aligned.apply(mask))[seen], mask[seen])


def ellipses(shape):
    y, x = np.mgrid[:shape[0], :shape[1]]
    x, y = (x + .5) / shape[1] - .5, (y + .5) / shape[0] - .5
    return ((np.abs(x) - .19) / .14)**2 + (y / .33)**2 < 1


@pytest.mark.parametrize("shape, least", [((120, 96), .98), ((320, 256), .995), ((800, 640), .998)])
@pytest.mark.parametrize("pose", [Pose(0, 0, .9, .9, 0), Pose(.1, -.1, .7, .8, -15), Pose(0, 0, 1.1, 1, 92)])
@pytest.mark.parametrize("size", [(1024, 1024), (900, 1100), (2000, 1700)])
def test_synthetic_masks_there_and_back(size, pose, shape, least):
    assert there_and_back(ellipses(size), shape, pose) > least


@pytest.mark.data("lungmask-dev")
def test_real_masks_there_and_back():
    "In the frame that just holds the lungs, rotated, at the aligner's own size and at larger ones"
    scores = []
    for i, path in enumerate(sorted((DATA/"lungmask-dev"/"masks").glob("*.png"))[::3]):
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0
        (top, left), (bottom, right) = (f(np.argwhere(mask), 0) for f in (np.min, np.max))
        side, (H, W) = max(mask.shape), mask.shape
        pose = Pose((left + right - W) / side, (top + bottom - H) / side,
                    1.1 * (right - left) / side, 1.1 * (bottom - top) / side, (-12, 0, 7, 90)[i % 4])
        scores.append([there_and_back(mask, shape, pose) for shape in ((120, 96), (320, 256), (640, 512))])
    mean, least = np.mean(scores, 0), np.min(scores, 0)
    assert len(scores) > 40
    assert (mean > [.99, .996, .999]).all() and (least > [.985, .994, .998]).all(), (mean, least)


# The lung map

def test_the_lung_map_of_an_image_on_its_side():
    "Given the map of the square, or that of the upright image, the lungs are the same"
    mask = ellipses((200, 160)).T.copy()   # on its side
    boxed = np.zeros((200, 200), np.float32)
    boxed[20:180] = mask
    grid = cv2.resize(boxed, (32, 32), interpolation=cv2.INTER_AREA)
    to_map = rescale_matrix((200, 200), (32, 32)) @ [[1, 0, 0], [0, 1, 20], [0, 0, 1]]
    frame = make(mask.astype(np.uint8), pose=Pose(0, 0, .75, .95, 90))
    aligned = replace(frame, lung_map=grid, frame_to_map=to_map @ frame.matrix)
    upright = np.array([[0, 1, 0], [-1, 0, 31], [0, 0, 1.]])   # pixel (x, y) of the grid is (y, 31 - x) there
    other = replace(frame, lung_map=np.rot90(grid).copy(), frame_to_map=upright @ aligned.frame_to_map)
    for one in (aligned, other):
        assert (one.lungs.shape, one.lungs.dtype, one.original_lungs().shape) == ((120, 96), bool, mask.shape)
        assert dice(one.lungs, one.apply(mask)) > .95 and dice(one.original_lungs(), mask) > .95
    assert (aligned.lungs != other.lungs).mean() < .005


# Millimetres

@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("spacing", [(.168, .168), (.3, .2)])
def test_simpleitk_resamples_as_we_do(tmp_path, dimensions, spacing):
    "The original with its spacing, on the grid of the aligned image; both origins are 0"
    sitk = pytest.importorskip("SimpleITK")
    original = random_image(1, (200, 170)).astype(np.float32)
    aligned = make(original, (180, 144), Pose(.05, -.04, .6, .7, 17), spacing=spacing)
    aligned.write_tfm(tmp_path/"to_original.tfm", dimensions)
    transform = sitk.ReadTransform(str(tmp_path/"to_original.tfm"))
    assert transform.GetDimension() == dimensions
    grid = sitk.GetImageFromArray(np.zeros(aligned.shape, np.float32))
    moving = sitk.GetImageFromArray(original)
    moving.SetSpacing(spacing[::-1]); grid.SetSpacing(aligned.aligned_spacing[::-1])
    if dimensions == 3: moving, grid = sitk.JoinSeries([moving]), sitk.JoinSeries([grid])
    resampled = sitk.Resample(moving, grid, transform, sitk.sitkLinear, 0.)
    theirs = sitk.GetArrayFromImage(resampled).reshape(aligned.shape)
    inside = cv2.erode(aligned.apply(np.ones((1, 1), np.uint8), "nearest"), np.ones((5, 5))) > 0
    assert inside.mean() > .8 and np.abs(theirs - aligned.image)[inside].max() < .5
    point = aligned.to_aligned([[100, 50]])[0] * aligned.aligned_spacing[::-1]
    here = transform.TransformPoint([*point, 0.][:dimensions])
    np.testing.assert_allclose(here[:2], [100 * spacing[1], 50 * spacing[0]], atol=1e-9)


@quick
@given(poses, st.tuples(number(.05, 2), number(.05, 2)))
def test_millimetres_are_those_of_the_pixels(pose, spacing):
    aligned = Aligned(np.zeros((120, 96)), pose_matrix((120, 96), (300, 260), pose), pose, spacing=spacing)
    points = np.array([[0, 0], [95, 0], [30, 70.]])
    lengths = points * aligned.aligned_spacing[::-1]
    on_original = aligned.to_original(points) * spacing[::-1]
    np.testing.assert_allclose(map_points(aligned.physical(), lengths), on_original, atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(aligned.physical()[:2, :2], axis=0), 1, rtol=1e-9)


@pytest.mark.parametrize("spacing", [None, (0, 0), (.2, 0), (math.nan, .2), (-.2, .2), (math.inf, .2)])
def test_unknown_spacing_stays_unknown(tmp_path, spacing):
    aligned = make(np.zeros((90, 70), np.uint8), spacing=spacing)
    with pytest.raises(ValueError, match="not known"): aligned.physical()
    with pytest.raises(ValueError, match="not known"): aligned.write_tfm(tmp_path/"a.tfm")
    assert list(tmp_path.iterdir()) == []


# A row of the table

def make_row(aligned, **more):
    flags = {name: getattr(aligned, name) for name in ("confidence", "flagged", "mirrored", "inverted")}
    names = ("height", "width", "output_height", "output_width")
    sizes = dict(zip(names, (*aligned.original_shape, *aligned.shape)))
    return {"image": "a.png", "file": "images/a.png", "status": "aligned", **aligned.pose._asdict(), **flags,
            **dict(zip(MATRIX_ENTRIES, aligned.matrix[:2].ravel().tolist())), **sizes, **more}


@quick
@given(poses, shapes, shapes, st.booleans())
def test_a_row_gives_the_same_back(pose, shape, original, as_text):
    aligned = make(random_image(0, original), shape, pose, mirrored=True)
    row = make_row(aligned, spacing_row=.2, spacing_column=.1)
    if as_text: row = {name: str(value) for name, value in row.items()}
    loaded = Aligned.load(row)
    assert (loaded.shape, loaded.original_shape) == (shape, original)
    assert (loaded.spacing, loaded.pose) == ((.2, .1), pose)
    assert (loaded.flagged, loaded.mirrored, loaded.inverted) == (False, True, False)
    np.testing.assert_array_equal(loaded.matrix, aligned.matrix)
    np.testing.assert_array_equal(loaded.restore(np.eye(7)), aligned.restore(np.eye(7)))
    np.testing.assert_array_equal(loaded.physical(), Aligned.load(row, aligned.image).physical())


def test_a_missing_column_and_a_failed_row_are_named():
    row = make_row(make(np.zeros((90, 70), np.uint8)))
    for name in set(row) - {"image", "file"}:
        fewer = {n: v for n, v in row.items() if n != name}
        with pytest.raises(ValueError, match=f"'{name}' is missing"): Aligned.load(fewer)
    for wrong, reason in (({"status": "failed"}, "a.png: its status is failed"),
                          ({"m00": "x"}, "'x' is no number"),
                          (dict.fromkeys(MATRIX_ENTRIES, 0.), "no transform")):
        with pytest.raises(ValueError, match=reason): Aligned.load(row | wrong)


def test_a_table_made_by_an_alignment_run(tmp_path):
    "The row of pandas, with missing values in columns of other rows"
    pd = pytest.importorskip("pandas")
    row = make_row(make(np.zeros((90, 70), np.uint8)))
    failed = {"image": "b.png", "file": "images/b.png", "status": "failed"}
    pd.DataFrame([row, failed]).to_csv(tmp_path/"transforms.csv", index=False)
    table = pd.read_csv(tmp_path/"transforms.csv")
    assert Aligned.load(table.iloc[0]).original_shape == (90, 70)
    with pytest.raises(ValueError, match="b.png: its status is failed"): Aligned.load(table.iloc[1])


def test_boxes_and_arrays_of_nothing():
    assert map_boxes(np.eye(3), np.zeros((0, 4))).shape == (0, 4)
    assert resample_filled(np.zeros((3, 3), np.uint8), np.eye(3), (3, 3)).tolist() == [[0] * 3] * 3
