"""Properties of the metrics that hold for any input, and the published figures of real masks.

The figures of `lungmask-dev` (identity 0.783 Dice, 0.095 dispersion; ceiling 0.918 and 0.023) were made by
another program. Identity is each whole image stretched onto the frame. Letterboxed instead, it is 0.780 and
0.099.
"""

import cv2
import numpy as np
import pytest
from helpers import DATA
from hypothesis import given, settings, strategies as st

from cxr_stn.resampling import warp_image, warp_mask
from cxr_stn.phantom.dataset import Phantom
from cxr_stn.evaluation.metrics import (alignment_scores, box_alignment, cardiomegaly_dispersion,
                                        consensus_dice, corner_error, coverage, decompose, dispersion,
                                        lung_boxes, pose_errors, split_lungs, summarise_errors,
                                        synthetic_warp_error, synthetic_warps, warped_boxes)

SHAPE = (120, 96)
quick = settings(max_examples=40, deadline=None)
number = lambda low, high: st.floats(low, high, allow_nan=False)
seeds = st.integers(0, 10_000)


def similarity(scale, angle, x, y):
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, x], [s, c, y], [0, 0, 1.]])


def pose(sx, sy, angle, x, y): return similarity(1, angle, x, y) @ np.diag([sx, sy, 1])


similarities = st.builds(similarity, number(.3, 4), number(-3, 3), number(-50, 50), number(-50, 50))
poses = st.builds(pose, number(.3, 4), number(.3, 4), number(-3, 3), number(-50, 50), number(-50, 50))


def random_poses(n, seed):
    rng = np.random.default_rng(seed)
    return np.stack([pose(*rng.uniform(.7, 1.4, 2), rng.uniform(-.5, .5), *rng.uniform(-20, 20, 2))
                     for _ in range(n)])


def random_boxes(n, seed):
    rng = np.random.default_rng(seed)
    return np.array([[10, 10, 45, 100], [55, 12, 92, 104]]) + rng.normal(0, 3, (n, 2, 4))


def two_lungs(seed=0, shape=(90, 80)):
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    for x in (24, 56):
        centre = (x + int(rng.integers(-3, 4)), 45 + int(rng.integers(-5, 6)))
        cv2.ellipse(mask, centre, (int(rng.integers(8, 13)), int(rng.integers(20, 30))),
                    float(rng.uniform(-8, 8)), 0, 360, 1, -1)
    return mask > 0


# Corner error: a distance between alignments

@quick
@given(poses, poses)
def test_corner_error_is_symmetric_and_zero_only_for_equals(A, B):
    assert corner_error(A, A, SHAPE) == pytest.approx(0, abs=1e-8)
    assert corner_error(A, B, SHAPE) == pytest.approx(corner_error(B, A, SHAPE))
    assert corner_error(A, B, SHAPE) > 0 or np.allclose(A, B)


@quick
@given(poses, poses, poses)
def test_corner_error_ignores_the_image_coordinates(A, B, image):
    assert corner_error(image @ A, image @ B, SHAPE) == \
        pytest.approx(corner_error(A, B, SHAPE), rel=1e-6, abs=1e-6)


@quick
@given(poses, number(-30, 30), number(-30, 30))
def test_a_shift_in_the_frame_is_its_own_length(A, x, y):
    assert corner_error(A, A @ similarity(1, 0, x, y), SHAPE) == pytest.approx(np.hypot(x, y), abs=1e-6)


@quick
@given(poses, poses, st.integers(2, 5))
def test_corner_error_grows_with_the_frame(A, B, k):
    pixels = np.diag([k, k, 1.])
    pixels[:2, 2] = (k - 1) / 2
    larger = corner_error(A @ np.linalg.inv(pixels), B @ np.linalg.inv(pixels), (SHAPE[0] * k, SHAPE[1] * k))
    assert larger == pytest.approx(k * corner_error(A, B, SHAPE), rel=1e-6, abs=1e-6)


@quick
@given(poses)
def test_decompose_finds_the_pose_again(A):
    angle, scales = decompose(A)
    again = similarity(1, np.deg2rad(angle), *A[:2, 2]) @ np.diag([*scales, 1])
    assert np.allclose(again, A)


# Dispersion

@quick
@given(seeds, number(.2, 5), number(.2, 5), number(-90, 90), number(-90, 90))
def test_dispersion_ignores_a_common_zoom_and_shift(seed, sx, sy, x, y):
    boxes = random_boxes(9, seed)
    images, overall = dispersion(boxes)
    again, same = dispersion(boxes * [sx, sy, sx, sy] + [x, y, x, y])
    assert np.allclose(images, again) and same == pytest.approx(overall)


@quick
@given(seeds, number(0, 2))
def test_dispersion_is_proportional_to_the_deviations(seed, factor):
    boxes = random_boxes(9, seed)
    boxes += np.array([[10, 10, 45, 100], [55, 10, 92, 100]]) - np.median(boxes, 0)
    middle = np.median(boxes, 0)
    smaller = dispersion(middle + factor * .1 * (boxes - middle))[1]
    assert smaller == pytest.approx(factor * dispersion(middle + .1 * (boxes - middle))[1], rel=.1, abs=1e-9)


def test_one_image_gone_astray_is_seen_in_its_own_figure():
    boxes = np.repeat(random_boxes(1, 0), 20, axis=0)
    boxes[7] += 15
    images, overall = dispersion(boxes)
    assert images.argmax() == 7 and np.count_nonzero(images > 1e-9) == 1
    assert overall == pytest.approx(images[7] / 20**.5)


# Ceiling

@quick
@given(seeds, seeds)
def test_the_ceiling_does_not_depend_on_scale_and_shift_of_the_images(seed, other):
    boxes, rng = random_boxes(7, seed), np.random.default_rng(other)
    scale, shift = rng.uniform(.4, 3, (7, 1, 2)), rng.uniform(-50, 50, (7, 1, 2))
    moved = boxes * np.tile(scale, 2) + np.tile(shift, 2)
    def placed(boxes):
        back = np.linalg.inv(box_alignment(boxes, SHAPE))
        return boxes * np.tile(back[:, None, [0, 1], [0, 1]], 2) + np.tile(back[:, None, :2, 2], 2)
    assert np.allclose(placed(moved), placed(boxes), atol=1e-6)
    assert dispersion(placed(boxes))[1] <= dispersion(boxes)[1] + 1e-9


# Lungs, masks, coverage

@quick
@given(seeds, poses)
def test_boxes_follow_the_matrix_and_no_frame_clips_them(seed, A):
    mask = two_lungs(seed)
    boxes = warped_boxes(mask, A)
    y, x = np.nonzero(mask)
    corners = np.concatenate([np.stack([x + i, y + j, np.ones_like(x)]) for i in (-.5, .5)
                              for j in (-.5, .5)], axis=1)
    moved = np.linalg.solve(A, corners)
    assert boxes[:, :2].min(0) == pytest.approx(moved[:2].min(1), abs=1e-6)
    assert boxes[:, 2:].max(0) == pytest.approx(moved[:2].max(1), abs=1e-6)


@quick
@given(seeds)
def test_mirrored_images_have_mirrored_boxes(seed):
    mask = two_lungs(seed)
    x0, y0, x1, y1 = lung_boxes(mask).T
    mirrored = np.stack([79 - x1, y0, 79 - x0, y1], axis=1)[::-1]
    assert np.allclose(lung_boxes(mask[:, ::-1]), mirrored)


@quick
@given(seeds, st.integers(0, 12))
def test_lungs_joined_by_a_bridge_are_still_two(seed, thickness):
    mask = two_lungs(seed)
    apart = split_lungs(mask)
    joined = mask.copy()
    joined[40:40 + thickness, 24:56] = True
    for lung, other in zip(split_lungs(joined), apart):
        assert (lung & other).sum() >= .97 * other.sum()


@pytest.mark.parametrize("kept, name", [(0, "viewer's-left"), (1, "viewer's-right")])
def test_a_missing_lung_is_an_error_that_says_which_is_there(kept, name):
    with pytest.raises(ValueError, match=f"only the {name} lung"): lung_boxes(split_lungs(two_lungs())[kept])


def test_specks_are_dropped():
    mask = two_lungs()
    mask[0, 0] = mask[-1, -1] = True
    assert np.allclose(lung_boxes(mask), lung_boxes(two_lungs()))


@quick
@given(seeds, number(.5, 3), number(-.5, .5))
def test_warped_masks_keep_their_area(seed, scale, angle):
    mask, frame = two_lungs(seed), (240, 240)
    A = similarity(scale, angle, 39.5, 44.5) @ similarity(1, 0, -119.5, -119.5)
    assert coverage(mask, A, frame) == 1
    assert warp_mask(mask, A, frame).sum() * scale**2 == pytest.approx(mask.sum(), rel=.06)


@quick
@given(seeds, similarities)
def test_coverage_counts_what_the_warped_mask_shows(seed, A):
    mask = two_lungs(seed)
    assert 0 <= coverage(mask, A, SHAPE) <= 1
    shown = warp_mask(mask, A, SHAPE).sum() * np.linalg.det(A[:2, :2])
    assert shown == pytest.approx(coverage(mask, A, SHAPE) * mask.sum(), rel=.25, abs=.1 * mask.sum())


@quick
@given(seeds)
def test_consensus_dice_is_one_for_equals_and_ignores_the_order(seed):
    masks = np.stack([two_lungs(seed + i) for i in range(5)])
    order = np.random.default_rng(seed).permutation(5)
    assert np.allclose(consensus_dice(masks)[order], consensus_dice(masks[order]))
    assert np.allclose(consensus_dice(masks[[0, 0, 0]]), 1)


def test_images_of_different_size_are_scored_together():
    masks = [two_lungs(0), np.kron(two_lungs(0), np.ones((3, 3))) > 0]
    matrices = box_alignment(np.stack([lung_boxes(mask) for mask in masks]), (90, 80))
    scores = alignment_scores(masks, matrices, (90, 80))
    assert scores["dispersion"] == pytest.approx(0, abs=1e-9) and scores["dice"] > .99
    assert scores["full_lung_rate"] == 1


# Poses and synthetic warps

@quick
@given(seeds, similarities)
def test_pose_errors_ignore_where_the_frame_holds_the_chest(seed, convention):
    true = random_poses(9, seed)
    errors = pose_errors(true @ convention, true, SHAPE)
    assert np.allclose(errors, 0, atol=1e-6)


@quick
@given(seeds, poses)
def test_pose_errors_ignore_the_image_coordinates(seed, image):
    true, predicted = random_poses(9, seed), random_poses(9, seed + 1)
    here, there = pose_errors(predicted, true, SHAPE), pose_errors(image @ predicted, image @ true, SHAPE)
    assert np.allclose(here.corner, there.corner, rtol=1e-6, atol=1e-6)


def test_known_errors_are_found_in_degrees_and_log_scale():
    true = random_poses(15, 0)
    predicted = true @ similarity(.02, 0, -1, -1)
    rotated, size = similarity(1, np.deg2rad(90), 0, 0), np.diag([1.2, .9, 1])
    predicted[4, :2, :2] = (rotated @ predicted[4])[:2, :2]
    predicted[9] = predicted[9] @ size
    errors = pose_errors(predicted, true, SHAPE)
    assert errors.angle[4] == pytest.approx(90) and errors.angle.drop(4).abs().max() < 1e-6
    assert errors.log_scale_x[9] == pytest.approx(np.log(1.2))
    assert errors.log_scale_y[9] == pytest.approx(np.log(.9))
    assert errors.corner.drop([4, 9]).max() < 1e-6


@quick
@given(seeds)
def test_a_perfect_aligner_recovers_every_synthetic_warp(seed):
    truth = random_poses(6, seed)
    warps = synthetic_warps(6, (90, 80), seed)
    answers = [truth, np.linalg.solve(warps, truth)]
    images = [two_lungs(i).astype(np.float32) for i in range(6)]
    scores = synthetic_warp_error(lambda images: answers.pop(0), images, warps, SHAPE)
    assert scores["mean"] == pytest.approx(0, abs=1e-6) and scores["failed"] == 0


def test_warps_move_the_image_as_they_say():
    image = cv2.GaussianBlur(two_lungs().astype(np.float32), (0, 0), 2)
    for warp in synthetic_warps(8, image.shape, 3):
        y, x = np.nonzero(warp_image(image, warp) > .5)
        moved = np.stack([x.mean(), y.mean()])
        y, x = np.nonzero(image > .5)
        corners = np.linalg.solve(warp, np.array([[x.min(), x.max()], [y.min(), y.max()], [1, 1]]))[:2]
        if corners.min() > 2 and corners[0].max() < 77 and corners[1].max() < 87:
            assert np.allclose(moved, np.linalg.solve(warp, [x.mean(), y.mean(), 1])[:2], atol=1)


def test_summary_counts_failures():
    summary = summarise_errors([1, 2, 3, np.inf, np.nan], (30, 40))
    assert summary["failed"] == pytest.approx(.4) and summary["median"] == 3 and summary["images"] == 5


def test_box_dispersion_ignores_zoom_and_needs_matching_lengths():
    boxes = np.random.default_rng(0).uniform(20, 60, (12, 4))
    table = cardiomegaly_dispersion(boxes, np.tile(np.diag([.5, .5, 1]), (12, 1, 1)))
    assert np.allclose(table.loc["before"], table.loc["after"])
    with pytest.raises(ValueError, match="11 matrices"):
        cardiomegaly_dispersion(boxes, np.tile(np.eye(3), (11, 1, 1)))


# Phantoms

def test_phantoms_and_metrics_agree_on_what_a_pose_is():
    images = [Phantom(n_images=12, size=192, seed=1)[i] for i in range(12)]
    inside = [image for image in images if not np.pad(np.zeros((190, 190), bool), 1,
                                                      constant_values=True)[image.lungs.any(0)].any()]
    assert len(inside) >= 4, "too many phantoms with lungs cut off by the image's edge"
    for image in inside:
        boxes = warped_boxes(image.lungs, image.matrix)
        pixel = 2.5 / decompose(image.matrix)[1].min()
        assert np.allclose([*boxes[:, :2].min(0), *boxes[:, 2:].max(0)], [-1, -1, 1, 1], atol=pixel)
    true = np.stack([image.matrix for image in images])
    placed = true @ similarity(.025, 0, -1.2, -1.5)
    idle = np.stack([resized(image.image, SHAPE) for image in images])
    assert pose_errors(placed, true, SHAPE).corner.max() < 1e-6
    assert pose_errors(idle, true, SHAPE).corner.median() > 3


# Real masks

needs_data = pytest.mark.data("lungmask-dev/masks")


@pytest.fixture(scope="module")
def masks():
    paths = sorted((DATA / "lungmask-dev" / "masks").glob("*.png"))
    assert len(paths) == 121
    return [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 127 for path in paths]


def resized(mask, shape):
    x, y = mask.shape[1] / shape[1], mask.shape[0] / shape[0]
    return np.array([[x, 0, x / 2 - .5], [0, y, y / 2 - .5], [0, 0, 1]])


@needs_data
def test_every_real_mask_holds_two_lungs(masks):
    boxes = np.stack([lung_boxes(mask) for mask in masks])
    widths = boxes[..., 2] - boxes[..., 0]
    assert widths.min() > 20 and (boxes[:, 0, 0] < boxes[:, 1, 0]).all()


@needs_data
@pytest.mark.parametrize("shape", [(160, 128), (128, 128)])
def test_identity_on_real_masks(masks, shape):
    scores = alignment_scores(masks, [resized(mask, shape) for mask in masks], shape)
    assert scores["dice"] == pytest.approx(.783, abs=.002)
    assert scores["dispersion"] == pytest.approx(.095, abs=.002)
    assert scores["full_lung_rate"] == 1


@needs_data
def test_ceiling_on_real_masks(masks):
    matrices = box_alignment(np.stack([lung_boxes(mask) for mask in masks]), (160, 128))
    scores = alignment_scores(masks, matrices, (160, 128))
    assert scores["dice"] == pytest.approx(.918, abs=.002)
    assert scores["dispersion"] == pytest.approx(.023, abs=.0015)
    assert scores["full_lung_rate"] == 1
